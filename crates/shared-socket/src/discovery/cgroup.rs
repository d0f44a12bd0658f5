//! `--cgroup PATH`.

use std::path::{Component, Path};

use anyhow::{Context, bail};

use super::Found;

/// A cgroup by its path: absolute, or below the cgroup2 mount.
pub fn from_path(path: &Path) -> anyhow::Result<Found> {
    let root = datapath::cgroup2_mount()?;
    if path.components().any(|c| c == Component::ParentDir) {
        bail!("cgroup {}: a path with `..` is not accepted; give it in full", path.display());
    }
    // an absolute path may be of the file system, or as /proc/PID/cgroup prints it
    let full =
        if path.starts_with(&root) { path.to_path_buf() } else { root.join(path.strip_prefix("/").unwrap_or(path)) };
    let full = if !full.is_dir() && path.is_absolute() && path.is_dir() { path.to_path_buf() } else { full };
    let id = datapath::cgroup_id(&full).with_context(|| format!("cgroup {} was not found", path.display()))?;
    Ok(Found { path: full, id })
}

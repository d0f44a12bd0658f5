//! `--cgroup PATH`.

use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail};

use super::Found;

/// A cgroup by its path: absolute, or below the cgroup2 mount.
pub fn from_path(path: &Path) -> anyhow::Result<Found> {
    let root = datapath::cgroup2_mount()?;
    let full = below(&root, path)?;
    let full = if !full.is_dir() && path.is_absolute() && path.is_dir() { path.to_path_buf() } else { full };
    let id = datapath::cgroup_id(&full).with_context(|| format!("cgroup {} was not found", path.display()))?;
    Ok(Found { path: full, id })
}

/// The path below the cgroup2 mount: an absolute one may be of the file system, or as /proc/PID/cgroup prints it.
fn below(root: &Path, path: &Path) -> anyhow::Result<PathBuf> {
    if path.components().any(|c| c == Component::ParentDir) {
        bail!("cgroup {}: a path with `..` is not accepted; give it in full", path.display());
    }
    Ok(if path.starts_with(root) { path.to_path_buf() } else { root.join(path.strip_prefix("/").unwrap_or(path)) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn never_outside_the_mount(path in "[./a-z\\PC]{0,40}", root in "(/[a-z]{1,8}){1,3}") {
            let root = Path::new(&root);
            if let Ok(full) = below(root, Path::new(&path)) {
                prop_assert!(full.starts_with(root), "{}", full.display());
                prop_assert!(!full.components().any(|c| c == Component::ParentDir));
            } else {
                prop_assert!(path.split('/').any(|part| part == ".."));
            }
        }

        #[test]
        fn the_three_forms_are_one(name in "[a-z.@:-]{1,9}x(/[a-z]{1,9}){0,3}") {
            let root = Path::new("/sys/fs/cgroup/unified");
            let full = root.join(&name);
            for form in [PathBuf::from(&name), Path::new("/").join(&name), full.clone()] {
                prop_assert_eq!(&below(root, &form).unwrap(), &full);
            }
        }
    }
}

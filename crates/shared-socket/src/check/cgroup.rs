//! The throw-away cgroup of a check.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

/// What every name begins with; process id and start time of the process follow.
pub const PREFIX: &str = "shared-socket-check-";

/// A cgroup that goes with this value; one that a killed check has left goes with the next check.
#[derive(Debug)]
pub struct Throwaway(PathBuf);

impl Throwaway {
    /// Makes one at the cgroup v2 mount `root`, and removes those of checks that are gone.
    pub fn new(root: &Path) -> Result<Self> {
        sweep(root);
        let own = std::process::id();
        let path = root.join(format!("{PREFIX}{own}-{}", start_of(own).unwrap_or_default()));
        fs::create_dir(&path).with_context(|| format!("cannot make the cgroup {}", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Throwaway {
    fn drop(&mut self) {
        // a process that was killed takes a moment to leave its cgroup
        for _ in 0..100 {
            match fs::remove_dir(&self.0) {
                Err(e) if e.kind() == ErrorKind::ResourceBusy => std::thread::sleep(Duration::from_millis(10)),
                Err(e) if e.kind() != ErrorKind::NotFound => {
                    tracing::warn!("cannot remove the cgroup {}: {e}", self.0.display());
                    return;
                }
                _ => return,
            }
        }
        tracing::warn!("the cgroup {} is still in use", self.0.display());
    }
}

fn start_of(pid: u32) -> Option<u64> {
    let stat = procfs::process::Process::new(i32::try_from(pid).ok()?).ok()?.stat().ok()?;
    Some(stat.starttime)
}

/// Removes the cgroups of checks that are gone.
fn sweep(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|n| n.strip_prefix(PREFIX)).and_then(|n| n.split_once('-'));
        let Some((pid, start)) = owner.and_then(|(pid, start)| Some((pid.parse().ok()?, start.parse::<u64>().ok()?)))
        else {
            continue;
        };
        if start_of(pid) != Some(start) {
            // one that still holds a dying process is left to the next check
            let _ = fs::remove_dir(entry.path());
        }
    }
}

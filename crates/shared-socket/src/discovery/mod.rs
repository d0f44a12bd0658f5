//! From what the user names to a cgroup. Backends for containers and pods will stand beside these two.

mod cgroup;
mod pid;

use std::path::PathBuf;

pub use cgroup::from_path;
pub use pid::from_pid;

/// What the user asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A cgroup v2 directory, absolute or below the cgroup2 mount.
    Cgroup(PathBuf),
    /// The cgroup of a process.
    Pid(u32),
}

/// A target that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Absolute path of the cgroup.
    pub path: PathBuf,
    /// Its id.
    pub id: u64,
}

impl Target {
    /// Looks the target up.
    pub fn find(&self) -> anyhow::Result<Found> {
        match self {
            Self::Cgroup(path) => from_path(path),
            Self::Pid(pid) => from_pid(*pid),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cgroup(path) => write!(f, "cgroup {}", path.display()),
            Self::Pid(pid) => write!(f, "process {pid}"),
        }
    }
}

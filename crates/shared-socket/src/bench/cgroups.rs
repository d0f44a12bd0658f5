//! The cgroups of a bench: for each way of the data a client and a server pod, under the cgroup v2 mount.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// What every name begins with; the process id follows.
pub const PREFIX: &str = "shared-socket-bench-";

/// Two pods with the same programs attached to them, or none.
#[derive(Clone, Debug)]
pub struct Pods {
    /// The client's cgroup.
    pub client: PathBuf,
    /// The server's cgroup.
    pub server: PathBuf,
}

/// All cgroups of this bench; they go when it goes.
#[derive(Debug)]
pub struct Cgroups {
    /// Nothing is attached here.
    pub plain: Pods,
    /// For Shared Socket.
    pub fast: Pods,
    /// For the textbook program.
    pub tuple: Pods,
    _made: Made,
}

/// Directories in the order of their making; removed in reverse.
#[derive(Debug, Default)]
struct Made(Vec<PathBuf>);

impl Cgroups {
    /// Makes them under the cgroup v2 mount `root`.
    pub fn new(root: &Path) -> Result<Self> {
        let top = root.join(format!("{PREFIX}{}", std::process::id()));
        let mut made = Made::default();
        made.make(&top)?;
        let mut pods = |name: &str| -> Result<Pods> {
            let group = top.join(name);
            made.make(&group)?;
            let pods = Pods { client: group.join("client"), server: group.join("server") };
            made.make(&pods.client)?;
            made.make(&pods.server)?;
            Ok(pods)
        };
        let (plain, fast, tuple) = (pods("plain")?, pods("fast")?, pods("tuple")?);
        Ok(Self { plain, fast, tuple, _made: made })
    }
}

impl Pods {
    /// Both cgroups.
    pub fn both(&self) -> [&Path; 2] {
        [&self.client, &self.server]
    }
}

impl Made {
    fn make(&mut self, path: &Path) -> Result<()> {
        fs::create_dir(path).with_context(|| {
            format!("cannot make the cgroup {}; this needs root and a writable cgroup v2 hierarchy", path.display())
        })?;
        self.0.push(path.to_owned());
        Ok(())
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in self.0.drain(..).rev() {
            remove(&path);
        }
    }
}

/// Removes a cgroup; one whose last process is still on its way out is given two seconds.
fn remove(path: &Path) {
    for _ in 0..100 {
        match fs::remove_dir(path) {
            Ok(()) => return,
            Err(error) if error.kind() == ErrorKind::NotFound => return,
            Err(error) if error.kind() == ErrorKind::ResourceBusy => sleep(Duration::from_millis(20)),
            Err(error) => {
                tracing::warn!("cannot remove the cgroup {}: {error}; remove it with rmdir", path.display());
                return;
            }
        }
    }
    tracing::warn!("the cgroup {} is still busy; remove it with rmdir", path.display());
}

/// Where sockets and locks are.
pub const RUN: &str = "/run";

/// Removes what benches left under `parent` (a cgroup mount, a bpffs or `/run`): directories and lock files of a bench's
/// name whose process is gone or is this one. Only for places that root alone can write.
pub fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(owner);
        if owner.is_some_and(|pid| pid == std::process::id() || !Path::new(&format!("/proc/{pid}")).exists()) {
            tracing::debug!("removing {}", entry.path().display());
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => remove_tree(&entry.path()),
                _ => drop(fs::remove_file(entry.path())),
            }
        }
    }
}

/// The process in a name: `shared-socket-bench-PID`, or a lock named after such a directory.
fn owner(name: &str) -> Option<u32> {
    let (before, pid) = name.rsplit_once(PREFIX)?;
    match pid.strip_suffix(".lock") {
        Some(pid) => pid.parse().ok(),
        None if before.is_empty() => pid.parse().ok(),
        None => None,
    }
}

/// Depth first; the files of a cgroup cannot be unlinked and need not be, those of a bpffs can.
fn remove_tree(path: &Path) {
    if let Ok(entries) = fs::read_dir(path) {
        for entry in entries.flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => remove_tree(&entry.path()),
                _ => {
                    let _ = fs::remove_file(entry.path());
                }
            }
        }
    }
    if let Err(error) = fs::remove_dir(path) {
        tracing::warn!("cannot remove {}: {error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_owner() {
        assert_eq!(owner("shared-socket-bench-12"), Some(12));
        assert_eq!(owner("shared-socket-sys-fs-bpf-shared-socket-bench-12.lock"), Some(12));
        for other in ["shared-socket", "shared-socket-bench-", "shared-socket-bench-x", "a-shared-socket-bench-12"] {
            assert_eq!(owner(other), None, "{other}");
        }
    }

    #[test]
    fn cgroups_go_with_the_value_and_the_sweep_takes_only_the_dead() {
        let root = tempfile::tempdir().unwrap();
        // No process has this id: it is above the kernel's limit.
        let dead = root.path().join(format!("{PREFIX}4194999"));
        fs::create_dir_all(dead.join("plain/client")).unwrap();
        fs::write(dead.join("plain/pin"), "").unwrap();
        fs::create_dir(root.path().join("other")).unwrap();
        let alive = root.path().join(format!("{PREFIX}1"));
        fs::create_dir(&alive).unwrap();
        let mine = root.path().join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir(&mine).unwrap();
        sweep(root.path());
        assert!(!dead.exists() && !mine.exists() && alive.exists() && root.path().join("other").exists());
        let cgroups = Cgroups::new(root.path()).unwrap();
        assert!(mine.exists() && cgroups.fast.both().iter().all(|path| path.is_dir()));
        drop(cgroups);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2);
    }
}

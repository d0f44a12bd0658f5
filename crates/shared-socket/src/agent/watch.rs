//! What wakes the agent. Nothing is polled that the kernel or the runtime tells.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::time::Duration;

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// A container or a pod may have begun or ended.
    Changed,
    /// A cgroup was made or removed that does not look like a container's.
    Aside,
    /// The configuration file may be another.
    Config,
    /// SIGUSR1, to log more, or SIGUSR2, to log less.
    Level { more: bool },
    /// SIGTERM or SIGINT.
    Stop,
}

/// Cgroups that are watched at most: about a kilobyte of kernel memory each.
const MOST: usize = 16_384;

/// Tells of each cgroup that is made, in the whole tree: on every node, whatever its runtime and cgroup driver, something
/// that begins has a cgroup of its own first. False (once) when there are too many for the kernel's limit of watches.
pub fn cgroups(root: &Path, wakes: Sender<Wake>) -> anyhow::Result<()> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC).context("starting inotify")?;
    let mut tree = Tree { inotify, paths: HashMap::new(), complete: true };
    tree.add(root);
    let root = root.to_path_buf();
    std::thread::Builder::new()
        .name("cgroups".into())
        .spawn(move || {
            while let Ok(events) = tree.inotify.read_events() {
                let mut wake = Wake::Aside;
                for event in events {
                    if event.name.as_ref().is_some_and(|name| is_of_runtime(&name.to_string_lossy())) {
                        wake = Wake::Changed;
                    }
                    if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                        wake = Wake::Changed;
                        tree.add(&root);
                    } else if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                        tree.paths.remove(&event.wd);
                    } else if let (Some(dir), Some(name)) = (tree.paths.get(&event.wd), event.name) {
                        let path = dir.join(name);
                        if event.mask.contains(AddWatchFlags::IN_ISDIR | AddWatchFlags::IN_CREATE) {
                            tree.add(&path);
                        }
                    }
                }
                if wakes.send(wake).is_err() {
                    return;
                }
            }
        })
        .context("starting a thread")?;
    Ok(())
}

/// Runtimes name a container's cgroup after its id, kubelet a pod's after its uid; with both drivers something may stand
/// before and behind it. Not all do; what is missed here is looked at all the same, only later.
fn is_of_runtime(name: &str) -> bool {
    let is_id = |part: &str| part.len() == 64 && part.bytes().all(|b| b.is_ascii_hexdigit());
    name.contains("pod") || name.split(['-', '.']).any(is_id)
}

struct Tree {
    inotify: Inotify,
    paths: HashMap<WatchDescriptor, PathBuf>,
    complete: bool,
}

impl Tree {
    /// A directory and all below it. What is made meanwhile is told, or found by the walk, or both.
    fn add(&mut self, dir: &Path) {
        let mut todo = vec![dir.to_path_buf()];
        while let Some(dir) = todo.pop() {
            let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_ONLYDIR;
            let added = if self.paths.len() < MOST { self.inotify.add_watch(&dir, flags) } else { Err(Errno::ENOSPC) };
            match added {
                Ok(wd) => {
                    self.paths.insert(wd, dir.clone());
                }
                Err(Errno::ENOSPC) if self.complete => {
                    self.complete = false;
                    tracing::warn!(
                        watched = self.paths.len(),
                        "not all cgroups can be watched (fs.inotify.max_user_watches): new pods are found by the events \
                         of the runtime, or within half a minute"
                    );
                    return;
                }
                Err(_) => continue, // removed meanwhile
            }
            let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
            todo.extend(entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
        }
    }
}

/// Tells when something in the directory of the file changes: the file itself, or the link that Kubernetes exchanges when a
/// ConfigMap changes.
pub fn config(file: &Path, wakes: Sender<Wake>) -> anyhow::Result<()> {
    let folder = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC).context("starting inotify")?;
    let flags = AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_ONLYDIR;
    inotify.add_watch(folder, flags).with_context(|| format!("watching {}", folder.display()))?;
    std::thread::Builder::new()
        .name("config".into())
        .spawn(move || while inotify.read_events().is_ok() && wakes.send(Wake::Config).is_ok() {})
        .context("starting a thread")?;
    Ok(())
}

/// SIGTERM and SIGINT end the agent, SIGHUP has it read its file.
pub fn signals(wakes: Sender<Wake>) -> anyhow::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
    let mut signals =
        signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2]).context("catching signals")?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                let wake = match signal {
                    SIGHUP => Wake::Config,
                    SIGUSR1 | SIGUSR2 => Wake::Level { more: signal == SIGUSR1 },
                    _ => Wake::Stop,
                };
                if wakes.send(wake).is_err() {
                    return;
                }
            }
        })
        .context("starting a thread")?;
    Ok(())
}

/// The runtime's own events, for as long as it has them. containerd has them since 1.7, CRI-O where it is told to.
pub async fn runtime(socket: PathBuf, wakes: Sender<Wake>) {
    let mut pause = Duration::from_secs(1);
    loop {
        let mut first = true;
        let result = crate::discovery::watch_cri(&socket, || {
            if std::mem::take(&mut first) {
                tracing::info!("follows the runtime's events"); // with the first: containerd does not answer before
            }
            pause = Duration::from_secs(1);
            let _ = wakes.send(Wake::Changed);
        })
        .await;
        if let Err(e) = result {
            if e.downcast_ref::<crate::discovery::NoEvents>().is_some() {
                tracing::info!("the runtime has no events; cgroups are watched, and pods are listed when they change");
                return;
            }
            tracing::debug!("the runtime's events: {e:#}");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(15));
        let _ = wakes.send(Wake::Changed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_made_is_told_and_watched() {
        let root = tempfile::tempdir().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        cgroups(root.path(), tell).unwrap();
        let patience = Duration::from_secs(10);
        for (dir, wake) in [("a", Wake::Aside), ("a/b", Wake::Aside), ("a/b/pod7", Wake::Changed)] {
            std::fs::create_dir(root.path().join(dir)).unwrap();
            assert_eq!(told.recv_timeout(patience), Ok(wake), "{dir}");
            std::thread::sleep(Duration::from_millis(50)); // its own watch is added after it is told of
            while told.try_recv().is_ok() {}
        }
    }

    #[test]
    fn names_of_containers() {
        let id = "0123456789abcdef".repeat(4);
        for yes in
            [&id, &format!("cri-containerd-{id}.scope"), &format!("docker-{id}.scope"), "kubepods-pod0b1a_2.slice"]
        {
            assert!(is_of_runtime(yes), "{yes}");
        }
        for no in ["run-u12.scope", "nginx.service", "0123", "system.slice"] {
            assert!(!is_of_runtime(no), "{no}");
        }
    }

    #[test]
    fn a_file_that_is_written_or_exchanged_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("agent.yaml");
        let (tell, told) = std::sync::mpsc::channel();
        config(&file, tell).unwrap();
        let patience = Duration::from_secs(10);
        std::fs::write(&file, "x").unwrap();
        assert_eq!(told.recv_timeout(patience), Ok(Wake::Config));
        std::thread::sleep(Duration::from_millis(50));
        while told.try_recv().is_ok() {}
        std::os::unix::fs::symlink("x", folder.path().join("..data_tmp")).unwrap();
        std::fs::rename(folder.path().join("..data_tmp"), folder.path().join("..data")).unwrap();
        assert_eq!(told.recv_timeout(patience), Ok(Wake::Config));
        assert!(config(Path::new("/nowhere/agent.yaml"), std::sync::mpsc::channel().0).is_err());
    }
}

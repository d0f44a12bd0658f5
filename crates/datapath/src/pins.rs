//! Names below the pin directory.

use std::path::{Path, PathBuf};

/// Maps that are pinned; `about` last: its presence says that a load was complete.
pub const MAPS: &[&str] = &["sockets", "halves", "workloads", "handshakes", "kinds", "totals", "verdicts", "about"];

/// Programs that are pinned.
pub const PROGRAMS: &[&str] = &[
    "shared_socket_sockops",
    "shared_socket_release",
    "shared_socket_stub",
    "shared_socket_verdict",
    "shared_socket_drain",
    "shared_socket_recv",
];

/// Paths below one pin directory.
#[derive(Debug, Clone)]
pub struct Pins(PathBuf);

impl Pins {
    pub fn new(dir: &Path) -> Self {
        Self(dir.to_path_buf())
    }

    pub fn dir(&self) -> &Path {
        &self.0
    }

    pub fn map(&self, name: &str) -> PathBuf {
        self.0.join(format!("map_{name}"))
    }

    pub fn program(&self, name: &str) -> PathBuf {
        self.0.join(format!("prog_{name}"))
    }

    /// The link of a hook to a cgroup.
    pub fn link(&self, hook: &str, cgroup: u64) -> PathBuf {
        self.0.join(format!("link_{hook}_{cgroup}"))
    }

    /// The link of the receive tracepoint.
    pub fn recv_link(&self) -> PathBuf {
        self.0.join("link_recv")
    }

    /// Removes every pin of ours and the directory.
    pub fn remove(&self) -> std::io::Result<()> {
        let entries = match std::fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        // `about` first: from then on the pins count as leftovers of an unfinished load
        let _ = std::fs::remove_file(self.map("about"));
        for entry in entries.flatten() {
            match std::fs::remove_file(entry.path()) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        std::fs::remove_dir(&self.0)
    }
}

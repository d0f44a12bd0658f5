//! Which process holds a socket: the socket's inode leads to a descriptor.

use std::collections::{HashMap, HashSet};
use std::fs;

/// A process, as far as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Command name.
    pub command: String,
}

/// The processes of some network namespaces.
#[derive(Debug, Default)]
pub struct Crowd {
    pids: Vec<u32>,
    /// Where each of the namespaces is found.
    pub places: Vec<Place>,
}

/// A network namespace, and a process in it.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Inode number of the namespace.
    pub netns: u32,
    /// The process.
    pub pid: u32,
}

impl Crowd {
    /// Walks /proc once. Processes that vanish meanwhile are skipped.
    pub fn of(namespaces: &HashSet<u32>) -> Self {
        let mut crowd = Self::default();
        let mut found = HashSet::new();
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        for pid in entries.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok()) {
            let place = format!("/proc/{pid}/ns/net");
            let Some(namespace) = fs::read_link(&place).ok().and_then(|link| inode("net", link.to_str()?)) else {
                continue;
            };
            let Some(netns) = u32::try_from(namespace).ok().filter(|n| namespaces.contains(n)) else { continue };
            crowd.pids.push(pid);
            if found.insert(netns) {
                crowd.places.push(Place { netns, pid });
            }
        }
        crowd
    }

    /// Who holds these sockets, by inode.
    pub fn holders(&self, inodes: &HashSet<u64>) -> HashMap<u64, Process> {
        let mut found = HashMap::new();
        for pid in &self.pids {
            let mut command = None;
            for descriptor in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
                let Ok(link) = fs::read_link(descriptor.path()) else { continue };
                let Some(inode) = link.to_str().and_then(|l| inode("socket", l)) else { continue };
                if !inodes.contains(&inode) {
                    continue;
                }
                let command = command.get_or_insert_with(|| {
                    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                    comm.trim_end_matches('\n').to_owned()
                });
                found.entry(inode).or_insert_with(|| Process { pid: *pid, command: command.clone() });
            }
        }
        found
    }
}

/// `net:[4026531840]`, `socket:[12345]`
fn inode(kind: &str, link: &str) -> Option<u64> {
    link.strip_prefix(kind)?.strip_prefix(":[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn links(number in any::<u64>(), other in "\\PC{0,30}") {
            prop_assert_eq!(inode("net", &format!("net:[{number}]")), Some(number));
            prop_assert_eq!(inode("net", &format!("mnt:[{number}]")), None);
            prop_assert!(inode("net", &other).is_none());
        }
    }
}

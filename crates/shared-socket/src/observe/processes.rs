//! Which process holds a socket: network namespace and ports lead to an inode, the inode to a descriptor.

use std::collections::HashMap;
use std::net::SocketAddr;

/// A process, as far as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Command name.
    pub command: String,
}

/// Network namespace and both addresses, as the socket's own end sees them.
pub type SocketKey = (u32, SocketAddr, SocketAddr);

/// Finds the processes of sockets in one walk of /proc. Processes that vanish meanwhile are skipped.
pub fn find(wanted: &[SocketKey]) -> HashMap<SocketKey, Process> {
    let mut tables: HashMap<u32, HashMap<u64, SocketKey>> = HashMap::new();
    let mut found = HashMap::new();
    if wanted.is_empty() {
        return found;
    }
    let Ok(processes) = procfs::process::all_processes() else { return found };
    for process in processes.flatten() {
        let Some(netns) = netns_of(&process) else { continue };
        if !wanted.iter().any(|(ns, ..)| *ns == netns) {
            continue;
        }
        let inodes = tables.entry(netns).or_insert_with(|| table(&process, netns));
        let Ok(descriptors) = process.fd() else { continue };
        for descriptor in descriptors.flatten() {
            if let procfs::process::FDTarget::Socket(inode) = descriptor.target
                && let Some(key) = inodes.get(&inode)
            {
                let command = process.stat().map(|s| s.comm).unwrap_or_default();
                found.entry(*key).or_insert(Process { pid: process.pid as u32, command });
            }
        }
    }
    found
}

fn netns_of(process: &procfs::process::Process) -> Option<u32> {
    let link = std::fs::read_link(format!("/proc/{}/ns/net", process.pid)).ok()?;
    netns_inode(link.to_str()?)
}

/// `net:[4026531840]`
fn netns_inode(link: &str) -> Option<u32> {
    link.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

fn table(process: &procfs::process::Process, netns: u32) -> HashMap<u64, SocketKey> {
    let v4 = process.tcp().unwrap_or_default();
    let v6 = process.tcp6().unwrap_or_default();
    v4.into_iter().chain(v6).map(|e| (e.inode, (netns, unmap(e.local_address), unmap(e.remote_address)))).collect()
}

/// v4-mapped and plain IPv4 are one socket to us: the kernel half records what the socket's family says.
pub fn unmap(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn namespaces(inode in any::<u32>(), other in "\\PC{0,30}") {
            prop_assert_eq!(netns_inode(&format!("net:[{inode}]")), Some(inode));
            prop_assert_eq!(netns_inode(&format!("mnt:[{inode}]")), None);
            prop_assert!(netns_inode(&other).is_none_or(|n| other.trim_start_matches("net:[").contains(&n.to_string())));
            netns_inode(&format!("net:[{other}]"));
        }

        #[test]
        fn mapped_and_plain_addresses_are_one(bits in any::<u32>(), port in any::<u16>()) {
            let plain = std::net::Ipv4Addr::from_bits(bits);
            let mapped = SocketAddr::new(plain.to_ipv6_mapped().into(), port);
            prop_assert_eq!(unmap(mapped), SocketAddr::new(plain.into(), port));
        }
    }
}

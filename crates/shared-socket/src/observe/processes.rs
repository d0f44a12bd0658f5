//! What /proc tells of a socket: its TCP state, what waits unread, and which process holds it: network namespace and ports
//! lead to an inode, the inode to a descriptor.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use procfs::net::TcpState;

/// A process, as far as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Command name.
    pub command: String,
}

/// A socket, as the kernel lists it.
#[derive(Debug, Clone)]
pub struct Socket {
    /// TCP's state, by the name that `ss` has for it.
    pub state: &'static str,
    /// Bytes that came by TCP and are unread. (Those of the fast path are in no table.)
    pub unread: u64,
    /// Bytes that were sent by TCP and are not acknowledged.
    pub unacknowledged: u64,
    /// Who holds it; the first that was found. Nobody before it is accepted.
    pub process: Option<Process>,
}

fn state_name(state: &TcpState) -> &'static str {
    match state {
        TcpState::Established => "established",
        TcpState::SynSent => "syn-sent",
        TcpState::SynRecv | TcpState::NewSynRecv => "syn-recv",
        TcpState::FinWait1 => "fin-wait-1",
        TcpState::FinWait2 => "fin-wait-2",
        TcpState::TimeWait => "time-wait",
        TcpState::Close => "close",
        TcpState::CloseWait => "close-wait",
        TcpState::LastAck => "last-ack",
        TcpState::Listen => "listen",
        TcpState::Closing => "closing",
    }
}

/// Network namespace and both addresses, as the socket's own end sees them.
pub type SocketKey = (u32, SocketAddr, SocketAddr);

/// Looks these sockets up in one walk of /proc. Processes that vanish meanwhile are passed over, and so are sockets of a
/// network namespace in which no process is left.
pub fn find(wanted: &[SocketKey]) -> HashMap<SocketKey, Socket> {
    let mut namespaces: HashMap<u32, HashMap<u64, SocketKey>> = HashMap::new();
    let mut found = HashMap::new();
    if wanted.is_empty() {
        return found;
    }
    let wanted: HashSet<&SocketKey> = wanted.iter().collect();
    let asked: HashSet<u32> = wanted.iter().map(|(netns, ..)| *netns).collect();
    let Ok(processes) = procfs::process::all_processes() else { return found };
    for process in processes.flatten() {
        let Some(netns) = netns_of(&process).filter(|netns| asked.contains(netns)) else { continue };
        let inodes = namespaces.entry(netns).or_insert_with(|| {
            let mut inodes = HashMap::new();
            for entry in table(&process) {
                let key = (netns, unmap(entry.local_address), unmap(entry.remote_address));
                if wanted.contains(&key) {
                    let (unread, unacknowledged) = (entry.rx_queue.into(), entry.tx_queue.into());
                    let state = state_name(&entry.state);
                    found.insert(key, Socket { state, unread, unacknowledged, process: None });
                    inodes.insert(entry.inode, key);
                }
            }
            inodes
        });
        if inodes.is_empty() {
            continue;
        }
        let Ok(descriptors) = process.fd() else { continue };
        let mut command = None;
        for descriptor in descriptors.flatten() {
            if let procfs::process::FDTarget::Socket(inode) = descriptor.target
                && let Some(socket) = inodes.get(&inode).and_then(|key| found.get_mut(key))
                && socket.process.is_none()
            {
                let command = command.get_or_insert_with(|| process.stat().map(|s| s.comm).unwrap_or_default()).clone();
                socket.process = Some(Process { pid: process.pid as u32, command });
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

fn table(process: &procfs::process::Process) -> impl Iterator<Item = procfs::net::TcpNetEntry> {
    process.tcp().unwrap_or_default().into_iter().chain(process.tcp6().unwrap_or_default())
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

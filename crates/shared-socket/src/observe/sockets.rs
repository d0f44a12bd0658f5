//! What the kernel says of TCP sockets (`sock_diag`, as `ss` asks it), found by cookie: state, queues, inode.
//!
//! The cookie is the one that the records are kept by, so two connections of one 4-tuple in two network namespaces are
//! never mixed up, and one dump a namespace serves ten thousand sockets. A program over the records could say no more of
//! TCP's queues, and would be one more to verify on every kernel.
//!
//! Where that cannot be asked (a kernel without `tcp_diag`, or who may not enter the namespace), the tables of /proc tell
//! nearly as much, by addresses.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr as Address;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};
use nix::sched::{CloneFlags, setns};

use super::filter::STATES;
use super::processes::Place;

/// Network namespace and both addresses, as the socket's own end sees them, v4-mapped ones as IPv4; and its cookie.
pub type Wanted = HashMap<(u32, Address, Address), u64>;

/// One socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// TCP's state.
    pub state: Option<&'static str>,
    /// Bytes that arrived by TCP and are unread.
    pub unread: u64,
    /// Bytes that were sent by TCP and are not acknowledged.
    pub unacked: u64,
    /// Memory of what it has received, where that is told.
    pub rmem: Option<u64>,
    /// Inode of its descriptor; 0 when it has none.
    pub inode: u64,
}

/// The sockets of these network namespaces by cookie.
pub fn look(places: &[Place], wanted: &Wanted) -> HashMap<u64, Seen> {
    let work = || {
        let mut all = HashMap::new();
        for place in places {
            let entered = std::fs::File::open(format!("/proc/{}/ns/net", place.pid))
                .and_then(|namespace| Ok(setns(namespace, CloneFlags::CLONE_NEWNET)?));
            let looked = entered.and_then(|()| {
                dump(AF_INET, SocketId::new_v4(), &mut all)?;
                dump(AF_INET6, SocketId::new_v6(), &mut all)
            });
            if let Err(e) = looked {
                tracing::debug!("sock_diag in the network namespace of process {}: {e}", place.pid);
                tables(place, wanted, &mut all);
            }
        }
        all
    };
    // a thread of its own: it does not come back to the namespace that it began in
    std::thread::scope(|scope| scope.spawn(work).join()).unwrap_or_default()
}

fn tables(place: &Place, wanted: &Wanted, all: &mut HashMap<u64, Seen>) {
    let Ok(process) = procfs::process::Process::new(place.pid as i32) else { return };
    let plain = |a: Address| Address::new(a.ip().to_canonical(), a.port());
    for entry in process.tcp().into_iter().chain(process.tcp6()).flatten() {
        let key = (place.netns, plain(entry.local_address), plain(entry.remote_address));
        if let Some(cookie) = wanted.get(&key) {
            let seen = Seen {
                state: usize::from(entry.state.to_u8()).checked_sub(1).and_then(|at| STATES.get(at)).copied(),
                unread: entry.rx_queue.into(),
                unacked: entry.tx_queue.into(),
                rmem: None,
                inode: entry.inode,
            };
            all.entry(*cookie).or_insert(seen);
        }
    }
}

fn dump(family: u8, socket_id: SocketId, all: &mut HashMap<u64, Seen>) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    // a socket that has ended has no record, and one that listens is no connection
    let states = StateFlags::all() - StateFlags::LISTEN - StateFlags::TIME_WAIT;
    let extensions = ExtensionFlags::MEMINFO;
    let request = InetRequest { family, protocol: IPPROTO_TCP, extensions, states, socket_id };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.header.length as usize];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    loop {
        let (answer, _) = socket.recv_from_full()?;
        let mut rest = answer.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest).map_err(io::Error::other)?;
            let length = (message.header.length as usize).next_multiple_of(4).min(rest.len()).max(1);
            rest = &rest[length..];
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(found)) => {
                    all.insert(u64::from_ne_bytes(found.header.socket_id.cookie), (&*found).into());
                }
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(e) => return Err(e.to_io()),
                _ => {}
            }
        }
    }
}

impl From<&InetResponse> for Seen {
    fn from(r: &InetResponse) -> Self {
        let memory = r.nlas.iter().find_map(|nla| match nla {
            Nla::LegacyMemInfo(m) => Some(m.receive_queue),
            Nla::MemInfo(m) => Some(m.receive_queue),
            _ => None,
        });
        Self {
            state: usize::from(r.header.state).checked_sub(1).and_then(|at| STATES.get(at)).copied(),
            unread: r.header.recv_queue.into(),
            unacked: r.header.send_queue.into(),
            rmem: memory.map(u64::from),
            inode: r.header.inode.into(),
        }
    }
}

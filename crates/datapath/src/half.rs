//! One end of a pair, as people read it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::Serialize;

use crate::flows::Histogram;
use crate::skel::types;

/// Which way messages of a half go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Path {
    /// Redirected into the peer's ingress queue.
    Fast,
    /// Through the network stack, for now.
    #[default]
    Tcp,
    /// Out of the sockhash: plain TCP for good.
    Left,
}

/// Which end of the connection a half is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The end that connected.
    Client,
    /// The end that accepted.
    Server,
}

impl Role {
    /// By the number in the records (bpf/abi.h).
    pub(crate) fn from_number(number: u8) -> Self {
        if number == 0 { Self::Client } else { Self::Server }
    }
}

/// Messages and bytes that a half has sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Messages by the fast path.
    pub fast_messages: u64,
    /// Bytes by the fast path.
    pub fast_bytes: u64,
    /// Messages by TCP.
    pub tcp_messages: u64,
    /// Bytes by TCP.
    pub tcp_bytes: u64,
}

/// An address and a port, in the half's own network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    /// Address; v4-mapped ones are shown as they are.
    pub addr: IpAddr,
    /// Port.
    pub port: u16,
}

/// One end of a pair.
#[derive(Debug, Clone)]
pub struct Half {
    /// Socket cookie.
    pub cookie: u64,
    /// The peer's cookie; 0 while it is not known.
    pub peer_cookie: u64,
    /// Which end.
    pub role: Role,
    /// Its path.
    pub path: Path,
    /// Number of the reason of its last message.
    pub reason: u32,
    /// Own address.
    pub local: Endpoint,
    /// The peer's address, as this end sees it.
    pub remote: Endpoint,
    /// cgroup id of the attached workload.
    pub workload: u64,
    /// cgroup id of the socket.
    pub cgroup: u64,
    /// Inode number of the network namespace.
    pub netns: u32,
    /// CLOCK_MONOTONIC nanoseconds at establishment.
    pub established_ns: u64,
    /// CLOCK_MONOTONIC nanoseconds of the first handoff; 0: never.
    pub handoff_ns: u64,
    /// Handoffs so far.
    pub handoffs: u64,
    /// What its own ingress queue may come to hold, overhead included.
    pub reserved_bytes: u64,
    /// An upper bound of the messages of this half that wait in the peer's ingress queue.
    pub queued_messages: u32,
    /// What it has sent.
    pub sent: Counters,
    /// Messages by reason number.
    pub reasons: Vec<u64>,
    /// Sampled messages that it received by the fast path, by how long they waited for it, in nanoseconds; `None` when there
    /// were none.
    pub waits: Option<Box<Histogram>>,
}

impl From<&types::counters> for Counters {
    fn from(c: &types::counters) -> Self {
        Self {
            fast_messages: c.fast_messages,
            fast_bytes: c.fast_bytes,
            tcp_messages: c.tcp_messages,
            tcp_bytes: c.tcp_bytes,
        }
    }
}

impl std::ops::AddAssign for Counters {
    fn add_assign(&mut self, o: Self) {
        self.fast_messages += o.fast_messages;
        self.fast_bytes += o.fast_bytes;
        self.tcp_messages += o.tcp_messages;
        self.tcp_bytes += o.tcp_bytes;
    }
}

impl From<&types::endpoint> for Endpoint {
    fn from(e: &types::endpoint) -> Self {
        let addr = if i32::from(e.family) == nix::sys::socket::AddressFamily::Inet6 as i32 {
            IpAddr::V6(Ipv6Addr::from(e.addr))
        } else {
            IpAddr::V4(Ipv4Addr::new(e.addr[0], e.addr[1], e.addr[2], e.addr[3]))
        };
        Self { addr, port: e.port }
    }
}

impl From<&types::half> for Half {
    fn from(h: &types::half) -> Self {
        Self {
            cookie: h.slf.cookie,
            // an adopted half knows its peer before the peer is in
            peer_cookie: if h.gate & u64::from(types::gate::GATE_UNTIED.0) != 0 { 0 } else { h.peer.cookie },
            role: Role::from_number(h.role),
            path: match h.path {
                _ if h.gate & u64::from(types::gate::GATE_LEFT.0) != 0 => Path::Left,
                1 => Path::Fast,
                _ => Path::Tcp,
            },
            reason: u32::from(h.reason),
            local: (&h.local).into(),
            remote: (&h.remote).into(),
            workload: h.workload,
            cgroup: h.cgroup,
            netns: h.netns,
            established_ns: h.established_ns,
            handoff_ns: h.handoff_ns,
            handoffs: h.handoffs,
            reserved_bytes: h.reserved,
            queued_messages: h.queued_messages,
            sent: (&h.sent).into(),
            reasons: h.reasons.to_vec(),
            waits: (h.waited != 0).then(|| Box::new(Histogram(h.waits.map(u64::from)))),
        }
    }
}

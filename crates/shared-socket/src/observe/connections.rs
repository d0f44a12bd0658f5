//! Pairs, as `shared-socket connections` shows them.

use std::collections::HashMap;
use std::net::SocketAddr;

use datapath::{Datapath, Half, Path, Role};
use serde::Serialize;

use super::processes::{self, unmap};
use super::{Name, Names};

/// One end of a connection.
#[derive(Debug, Clone, Serialize)]
pub struct End {
    /// Whose it is.
    pub workload: Name,
    /// Address in its own network namespace.
    pub addr: String,
    /// Port.
    pub port: u16,
    /// State of TCP, where it can be found, by the name that `ss` has for it.
    pub state: Option<&'static str>,
    /// Bytes that came by TCP and are unread, where that can be found.
    pub unread_bytes: Option<u64>,
    /// Bytes that it sent by TCP and that are not acknowledged, where that can be found.
    pub unacknowledged_bytes: Option<u64>,
    /// Process, where it can be found.
    pub pid: Option<u32>,
    /// Its command, where it can be found.
    pub command: Option<String>,
    /// The way of what this end sends.
    pub path: Path,
    /// Why its last message was not fast; `fast` when it was.
    pub reason: &'static str,
    /// Messages sent by the fast path.
    pub fast_messages: u64,
    /// Bytes sent by the fast path.
    pub fast_bytes: u64,
    /// Messages sent by TCP.
    pub tcp_messages: u64,
    /// Bytes sent by TCP.
    pub tcp_bytes: u64,
    /// Times that it went from TCP to the fast path.
    pub handoffs: u64,
    /// What may come to wait in its own queue, overhead included.
    pub reserved_bytes: u64,
}

/// One pair.
#[derive(Debug, Clone, Serialize)]
pub struct Connection {
    /// The end that connected; absent when it has closed already.
    pub client: Option<End>,
    /// The end that accepted; absent when it has closed already or was not accepted yet.
    pub server: Option<End>,
    /// `fast` when both ends are, `left` when both are out, else `tcp`.
    pub path: Path,
    /// Seconds since establishment.
    pub age_seconds: f64,
}

fn key(half: &Half) -> processes::SocketKey {
    let address = |e: &datapath::Endpoint| unmap(SocketAddr::new(e.addr, e.port));
    (half.netns, address(&half.local), address(&half.remote))
}

fn end(half: &Half, sockets: &HashMap<processes::SocketKey, processes::Socket>, names: &Names) -> End {
    let socket = sockets.get(&key(half));
    let owner = socket.and_then(|s| s.process.as_ref());
    End {
        workload: names.of(half.cgroup, half.workload),
        state: socket.map(|s| s.state),
        unread_bytes: socket.map(|s| s.unread),
        unacknowledged_bytes: socket.map(|s| s.unacknowledged),
        addr: half.local.addr.to_canonical().to_string(),
        port: half.local.port,
        pid: owner.map(|p| p.pid),
        command: owner.map(|p| p.command.clone()),
        path: half.path,
        reason: datapath::reason_name(half.reason),
        fast_messages: half.sent.fast_messages,
        fast_bytes: half.sent.fast_bytes,
        tcp_messages: half.sent.tcp_messages,
        tcp_bytes: half.sent.tcp_bytes,
        handoffs: half.handoffs,
        reserved_bytes: half.reserved_bytes,
    }
}

fn together(a: Option<Path>, b: Option<Path>) -> Path {
    match (a, b) {
        (Some(Path::Left) | None, Some(Path::Left) | None) => Path::Left,
        (Some(Path::Fast) | None, Some(Path::Fast) | None) => Path::Fast,
        _ => Path::Tcp,
    }
}

impl Default for End {
    fn default() -> Self {
        Self {
            workload: Name::default(),
            addr: String::new(),
            port: 0,
            state: None,
            unread_bytes: None,
            unacknowledged_bytes: None,
            pid: None,
            command: None,
            path: Path::Tcp,
            reason: "fast",
            fast_messages: 0,
            fast_bytes: 0,
            tcp_messages: 0,
            tcp_bytes: 0,
            handoffs: 0,
            reserved_bytes: 0,
        }
    }
}

impl End {
    /// Messages sent, by both paths.
    pub fn messages(&self) -> u64 {
        self.fast_messages + self.tcp_messages
    }

    /// Bytes sent, by both paths.
    pub fn bytes(&self) -> u64 {
        self.fast_bytes + self.tcp_bytes
    }
}

impl Connection {
    /// Those that are there: the client first.
    pub fn ends(&self) -> impl Iterator<Item = &End> {
        [&self.client, &self.server].into_iter().flatten()
    }
}

/// Reads all pairs, oldest first. `names` are those of the runtimes; other cgroups have their paths for names.
pub fn read(datapath: &Datapath, names: Names) -> anyhow::Result<Vec<Connection>> {
    let halves = datapath.halves()?;
    let sockets = processes::find(&halves.iter().map(key).collect::<Vec<_>>());
    let names = names.with_paths(halves.iter().map(|h| h.cgroup));
    let by_cookie: HashMap<u64, &Half> = halves.iter().map(|h| (h.cookie, h)).collect();
    let now = monotonic_ns();
    let mut list = Vec::new();
    for half in &halves {
        let peer = by_cookie.get(&half.peer_cookie).copied();
        // a pair is listed by its client, or by the server when the client is gone
        let (client, server) = match (half.role, peer) {
            (Role::Client, peer) => (Some(half), peer),
            (Role::Server, None) => (None, Some(half)),
            (Role::Server, Some(_)) => continue,
        };
        list.push(Connection {
            path: together(client.map(|h| h.path), server.map(|h| h.path)),
            client: client.map(|h| end(h, &sockets, &names)),
            server: server.map(|h| end(h, &sockets, &names)),
            age_seconds: now.saturating_sub(half.established_ns) as f64 / 1e9,
        });
    }
    list.sort_by(|a, b| b.age_seconds.total_cmp(&a.age_seconds));
    Ok(list)
}

fn monotonic_ns() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map(|t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
        .unwrap_or_default()
}

//! Pairs, as `shared-socket connections` shows them.

use std::collections::HashMap;
use std::net::SocketAddr;

use datapath::{Datapath, Half, Path, Role};
use serde::Serialize;

use super::processes::{self, unmap};

/// One end of a connection.
#[derive(Debug, Clone, Serialize)]
pub struct End {
    /// Address in its own network namespace.
    pub addr: String,
    /// Port.
    pub port: u16,
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

fn end(half: &Half, owners: &HashMap<processes::SocketKey, processes::Process>) -> End {
    let owner = owners.get(&key(half));
    End {
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

/// Reads all pairs, oldest first.
pub fn read(datapath: &Datapath) -> anyhow::Result<Vec<Connection>> {
    let halves = datapath.halves()?;
    let owners = processes::find(&halves.iter().map(key).collect::<Vec<_>>());
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
            client: client.map(|h| end(h, &owners)),
            server: server.map(|h| end(h, &owners)),
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

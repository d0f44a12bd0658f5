//! Pairs, as `shared-socket connections` shows them.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet};

use datapath::{Datapath, Half, Path, Role};
use serde::Serialize;

use super::processes::{Crowd, Process};
use super::sockets::{self, Seen};
use super::{Name, Names};

/// One end of a connection.
#[derive(Debug, Clone, Default, Serialize)]
pub struct End {
    /// Address in its own network namespace.
    pub addr: String,
    /// Port.
    pub port: u16,
    /// Whose it is, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<Name>,
    /// cgroup id of the socket.
    pub cgroup_id: u64,
    /// Socket cookie.
    pub cookie: u64,
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
    /// Bytes redirected to it that are unread; absent where the kernel does not tell, and while bytes that came by TCP
    /// are unread as well.
    pub fast_unread_bytes: Option<u64>,
    /// An upper bound of the messages redirected to it that are unread.
    pub fast_unread_messages: u32,
    /// Bytes that came by TCP and are unread.
    pub tcp_unread_bytes: Option<u64>,
    /// Bytes that it sent by TCP and that are not acknowledged yet.
    pub tcp_unacked_bytes: Option<u64>,
    /// Memory that the kernel counts for what it has received.
    pub rmem_bytes: Option<u64>,
    /// State of TCP.
    pub state: Option<&'static str>,
    /// What it sent, by reason: messages.
    pub reasons: BTreeMap<&'static str, u64>,
    /// How long sampled messages waited for this end to read them; absent when none was sampled.
    #[serde(skip)]
    pub waits: Option<Box<datapath::Histogram>>,
}

impl End {
    /// Messages sent.
    pub fn messages(&self) -> u64 {
        self.fast_messages + self.tcp_messages
    }

    /// Bytes sent.
    pub fn bytes(&self) -> u64 {
        self.fast_bytes + self.tcp_bytes
    }

    /// Bytes that wait for it, as far as they are known.
    pub fn queued(&self) -> u64 {
        self.fast_unread_bytes.unwrap_or(0) + self.tcp_unread_bytes.unwrap_or(0)
    }

    /// Whose it is, in one word.
    pub fn name(&self) -> String {
        self.workload.as_ref().map_or_else(|| format!("cgroup {}", self.cgroup_id), |w| w.name.clone())
    }

    /// Address and port.
    pub fn address(&self) -> String {
        if self.addr.contains(':') {
            format!("[{}]:{}", self.addr, self.port)
        } else {
            format!("{}:{}", self.addr, self.port)
        }
    }
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

impl Connection {
    /// The ends that are there.
    pub fn ends(&self) -> impl Iterator<Item = &End> {
        self.client.iter().chain(&self.server)
    }

    /// Bytes sent, both ways.
    pub fn bytes(&self) -> u64 {
        self.ends().map(End::bytes).sum()
    }

    /// Messages sent, both ways.
    pub fn messages(&self) -> u64 {
        self.ends().map(End::messages).sum()
    }

    /// Bytes that wait on either end.
    pub fn queued(&self) -> u64 {
        self.ends().map(End::queued).sum()
    }

    /// Share of its messages that were fast: 0 to 1.
    pub fn fast_share(&self) -> f64 {
        share(self.ends().map(|e| e.fast_messages).sum(), self.messages())
    }

    /// The reason of the end that is not fast; `-` when both are.
    pub fn reason(&self) -> &'static str {
        self.ends().map(|e| e.reason).find(|r| *r != "fast").unwrap_or("-")
    }

    /// One number that it keeps while its first end lives.
    pub fn id(&self) -> u64 {
        self.ends().next().map_or(0, |e| e.cookie)
    }
}

/// 0 of 0 is 0.
pub fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// By what connections are sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[allow(missing_docs)]
pub enum Key {
    Age,
    Bytes,
    Messages,
    Queued,
    Share,
    Path,
    Reason,
    Name,
    Server,
    Port,
    State,
}

impl Key {
    /// All of them, for whoever turns from one to the next.
    pub const ALL: [Self; 11] = [
        Self::Age,
        Self::Bytes,
        Self::Messages,
        Self::Queued,
        Self::Share,
        Self::Path,
        Self::Reason,
        Self::Name,
        Self::Server,
        Self::Port,
        Self::State,
    ];

    /// Figures: the largest first. Words: by the alphabet.
    pub fn compare(self, a: &Connection, b: &Connection) -> Ordering {
        let name = |c: &Connection| c.client.as_ref().map(End::name);
        let server = |c: &Connection| c.server.as_ref().map(End::name);
        let port = |c: &Connection| c.server.as_ref().map(|e| e.port);
        let state = |c: &Connection| c.client.as_ref().and_then(|e| e.state);
        match self {
            Self::Age => b.age_seconds.total_cmp(&a.age_seconds),
            Self::Bytes => b.bytes().cmp(&a.bytes()),
            Self::Messages => b.messages().cmp(&a.messages()),
            Self::Queued => b.queued().cmp(&a.queued()),
            Self::Share => b.fast_share().total_cmp(&a.fast_share()),
            Self::Path => (a.path as u8).cmp(&(b.path as u8)),
            Self::Reason => a.reason().cmp(b.reason()),
            Self::Name => name(a).cmp(&name(b)),
            Self::Server => server(a).cmp(&server(b)),
            Self::Port => port(a).cmp(&port(b)),
            Self::State => state(a).cmp(&state(b)),
        }
    }
}

/// Sorts by the first key, among equals by the next.
pub fn sort(list: &mut [Connection], keys: &[Key]) {
    list.sort_by(|a, b| {
        keys.iter().map(|key| key.compare(a, b)).find(|o| o.is_ne()).unwrap_or_else(|| a.id().cmp(&b.id()))
    });
}

/// What is known of the halves besides their records.
struct Besides<'a> {
    names: Option<&'a Names>,
    seen: HashMap<u64, Seen>,
    holders: HashMap<u64, Process>,
    rmem_counts: bool,
}

fn end(half: &Half, peer: Option<&Half>, besides: &Besides<'_>) -> End {
    let seen = besides.seen.get(&half.cookie);
    let owner = seen.and_then(|s| besides.holders.get(&s.inode));
    let alone = |s: &&Seen| besides.rmem_counts && s.unread == 0 && half.path != Path::Left;
    let messages = peer.map_or(0, |p| p.queued_messages);
    let reasons = (0u32..).zip(&half.reasons).filter(|(_, n)| **n > 0);
    End {
        addr: half.local.addr.to_canonical().to_string(),
        port: half.local.port,
        workload: besides.names.map(|n| n.of(half.cgroup, half.workload)),
        cgroup_id: half.cgroup,
        cookie: half.cookie,
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
        fast_unread_bytes: seen.filter(alone).and_then(|s| s.rmem),
        fast_unread_messages: if seen.filter(alone).is_some_and(|s| s.rmem == Some(0)) { 0 } else { messages },
        tcp_unread_bytes: seen.map(|s| s.unread),
        tcp_unacked_bytes: seen.map(|s| s.unacked),
        rmem_bytes: seen.and_then(|s| s.rmem),
        state: seen.and_then(|s| s.state),
        reasons: reasons.map(|(number, n)| (datapath::reason_name(number), *n)).collect(),
        waits: half.waits.clone(),
    }
}

fn together(a: Option<Path>, b: Option<Path>) -> Path {
    match (a, b) {
        (Some(Path::Left) | None, Some(Path::Left) | None) => Path::Left,
        (Some(Path::Fast) | None, Some(Path::Fast) | None) => Path::Fast,
        _ => Path::Tcp,
    }
}

/// Reads all pairs, oldest first. Without `names` they have none, and no cgroup is looked up.
pub fn read(datapath: &Datapath, names: Option<&Names>) -> anyhow::Result<Vec<Connection>> {
    let halves = datapath.halves()?;
    let crowd = Crowd::of(&halves.iter().map(|h| h.netns).collect());
    let plain = |e: &datapath::Endpoint| std::net::SocketAddr::new(e.addr.to_canonical(), e.port);
    let wanted = halves.iter().map(|h| ((h.netns, plain(&h.local), plain(&h.remote)), h.cookie)).collect();
    let seen = sockets::look(&crowd.places, &wanted);
    let inodes: HashSet<u64> = halves.iter().filter_map(|h| seen.get(&h.cookie)).map(|s| s.inode).collect();
    let names = names.map(|n| {
        let ids: HashSet<u64> = halves.iter().flat_map(|h| [h.cgroup, h.workload]).collect();
        n.clone().with_paths(ids)
    });
    let besides =
        Besides { names: names.as_ref(), holders: crowd.holders(&inodes), seen, rmem_counts: datapath.rmem_counts()? };
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
            client: client.map(|h| end(h, server, &besides)),
            server: server.map(|h| end(h, client, &besides)),
            age_seconds: now.saturating_sub(half.established_ns) as f64 / 1e9,
        });
    }
    sort(&mut list, &[Key::Age]);
    Ok(list)
}

fn monotonic_ns() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map(|t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
        .unwrap_or_default()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One that the tests of filters and screens look at.
    pub(crate) fn connection() -> Connection {
        let of = |pod: &str, addr: &str, port, pid, command: &str, path, reason| End {
            addr: addr.into(),
            port,
            workload: Some(Name {
                namespace: Some("core".into()),
                pod: Some(pod.into()),
                container: Some("main".into()),
                name: format!("core/{pod}/main"),
            }),
            cgroup_id: 7,
            cookie: u64::from(port),
            pid: Some(pid),
            command: Some(command.into()),
            path,
            reason,
            fast_messages: 10,
            fast_bytes: 1 << 20,
            tcp_messages: 5,
            tcp_bytes: 1 << 10,
            handoffs: 1,
            reserved_bytes: 8192,
            fast_unread_bytes: Some(4096),
            fast_unread_messages: 1,
            tcp_unread_bytes: Some(0),
            tcp_unacked_bytes: Some(0),
            rmem_bytes: Some(4096),
            state: Some(if port == 6379 { "close_wait" } else { "established" }),
            reasons: BTreeMap::from([("fast", 10), (if reason == "fast" { "not_drained" } else { reason }, 5)]),
            waits: None,
        };
        Connection {
            client: Some(of("web-1", "10.0.0.1", 40000, 7, "curl", Path::Fast, "fast")),
            server: Some(of("redis-0", "10.0.0.2", 6379, 8, "redis-server", Path::Tcp, "backed_up")),
            path: Path::Tcp,
            age_seconds: 61.0,
        }
    }

    #[test]
    fn sorted_by_several_keys() {
        let made = |bytes, age| {
            let mut c = connection();
            c.client.as_mut().unwrap().fast_bytes = bytes;
            c.age_seconds = age;
            c
        };
        let mut list = vec![made(1, 5.0), made(2, 1.0), made(1, 9.0)];
        sort(&mut list, &[Key::Bytes, Key::Age]);
        assert_eq!(list.iter().map(|c| c.age_seconds).collect::<Vec<_>>(), [1.0, 9.0, 5.0]);
    }
}

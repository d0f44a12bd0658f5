//! Captured messages: whose they are, which way they went, and where they stand in their stream.
//!
//! The tap tells what was sent before the verdict on it. Which way a message went is told by the next message of the same end, or
//! by the end's record, so each waits for a moment; their order stays.

mod live;
mod packets;
mod pcapng;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use datapath::{Counters, Endpoint, Entry, Half, JournalKind, Role, Tapped, reason_name};
use serde::Serialize;

pub use live::{Live, Naming, Numbers};
pub use pcapng::Writer;

use super::filter::Filter;
use super::{Connection, End, Name};

/// After that long the record of a message's sender is asked which way it went, again and again,
const WAIT: Duration = Duration::from_millis(30);
/// and after that long it is not known: the record is gone, and its sums were not told.
const LONGEST: Duration = Duration::from_millis(300);
/// Records that are asked for at one time.
const ASKED: usize = 64;
/// Connections that are remembered; of more, the oldest are forgotten and begin anew.
const STREAMS: usize = 131_072;

/// What is asked for while messages pass.
pub trait World {
    /// The record of a half, if it is still there.
    fn half(&self, cookie: u64) -> Option<Half>;
    /// Whose a cgroup is.
    fn name(&mut self, cgroup: u64, workload: u64) -> Name;
}

/// One end of a captured connection.
#[derive(Debug, Clone, Serialize)]
pub struct Party {
    /// Whose it is.
    pub workload: Name,
    /// Its address, as it knows it itself.
    pub address: SocketAddr,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum What {
    /// A message was sent.
    Data {
        /// Its first bytes; fewer than `size` where it was cut short.
        bytes: Vec<u8>,
        /// Bytes of the message.
        size: u32,
        /// Some of it was lost, or could not be read.
        cut: bool,
        /// `fast`, or why it went by TCP; `None`: the connection ended before it could be known.
        reason: Option<&'static str>,
    },
    /// This end is plain TCP from now on: what it sends is seen no more.
    Left(&'static str),
    /// The connection is gone.
    Closed,
}

/// One thing that happened on a captured connection.
#[derive(Debug, Clone)]
pub struct Captured {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub time_ns: u64,
    /// Tells connections apart.
    pub connection: Key,
    /// The end that connected.
    pub client: Party,
    /// The end that accepted.
    pub server: Party,
    /// Where the client believes to be connected to, if that is another address.
    pub service: Option<SocketAddr>,
    /// Which end did it.
    pub from: Role,
    /// Bytes that it had sent before, and that the other end had.
    pub offsets: [u64; 2],
    /// The first of its connection that is seen.
    pub first: bool,
    /// What.
    pub what: What,
}

impl Captured {
    /// The end that did it, and the other.
    pub fn ends(&self) -> (&Party, &Party) {
        match self.from {
            Role::Client => (&self.client, &self.server),
            Role::Server => (&self.server, &self.client),
        }
    }
}

/// The initial sequence numbers, the client's first: both ends know them.
pub type Key = (u32, u32);

#[derive(Debug, Clone)]
struct EndSeen {
    local: SocketAddr,
    remote: SocketAddr,
    cgroup: u64,
    workload: u64,
}

#[derive(Debug, Default)]
struct Stream {
    /// By role.
    ends: [Option<EndSeen>; 2],
    /// Their sockets, by cookie and generation.
    halves: [Option<(u64, u32)>; 2],
    /// Bytes that each end has sent, as far as it is told.
    sent: [u64; 2],
    /// Messages of each end whose way is known, and those of them that were fast.
    known: [u64; 2],
    fast: [u64; 2],
    /// What each end had sent when the connection closed.
    totals: Option<[Counters; 2]>,
    told: Option<Told>,
    wanted: Option<bool>,
}

impl Stream {
    /// Of the last message of an end whose record is gone: the totals have one more by the fast path than what is known.
    fn was_fast(&self, role: usize, number: u64) -> bool {
        self.totals.is_some_and(|totals| {
            let total = totals[role];
            self.known[role] == number
                && total.fast_messages + total.tcp_messages == number + 1
                && total.fast_messages == self.fast[role] + 1
        })
    }
}

#[derive(Debug, Clone)]
struct Told {
    client: Party,
    server: Party,
    service: Option<SocketAddr>,
}

#[derive(Debug)]
enum Waiting {
    Message { message: Box<Tapped>, reason: Option<&'static str> },
    Event { time_ns: u64, key: Key, role: Role, what: What },
}

/// Puts names, addresses and paths to what the tap and the journal tell.
pub struct Recorder {
    filter: Filter,
    /// Of so many connections, one.
    one_in: u32,
    waiting: VecDeque<(Instant, Waiting)>,
    /// How many have gone from the front of `waiting`.
    gone: u64,
    /// The newest message of each half, by its place.
    newest: HashMap<(u64, u32), (u64, u64)>,
    streams: HashMap<Key, Stream>,
    /// The oldest first; some are gone already.
    order: VecDeque<Key>,
    /// Of sockets, by cookie and generation.
    keys: HashMap<(u64, u32), (Key, Role)>,
}

fn index(role: Role) -> usize {
    usize::from(role == Role::Server)
}

fn key(t: &Tapped) -> Key {
    match t.role {
        Role::Client => (t.isn_local, t.isn_remote),
        Role::Server => (t.isn_remote, t.isn_local),
    }
}

fn socket(e: &Endpoint) -> SocketAddr {
    SocketAddr::new(e.addr.to_canonical(), e.port)
}

impl Recorder {
    /// Only connections that the filter lets through, and of so many of those one (0 and 1: all).
    pub fn new(filter: Filter, one_in: u32) -> Self {
        Self {
            filter,
            one_in: one_in.max(1),
            waiting: VecDeque::new(),
            gone: 0,
            newest: HashMap::new(),
            streams: HashMap::new(),
            order: VecDeque::new(),
            keys: HashMap::new(),
        }
    }

    fn stream(&mut self, key: Key) -> &mut Stream {
        if !self.streams.contains_key(&key) {
            self.order.push_back(key);
            if self.order.len() > 2 * STREAMS {
                let (streams, newest) = (&self.streams, key);
                self.order.retain(|key| *key == newest || streams.contains_key(key));
            }
            while self.streams.len() >= STREAMS {
                let Some(old) = self.order.pop_front() else { break };
                self.forget(old);
            }
        }
        self.streams.entry(key).or_default()
    }

    fn forget(&mut self, key: Key) {
        for half in self.streams.remove(&key).into_iter().flat_map(|s| s.halves).flatten() {
            self.keys.remove(&half);
        }
    }

    /// A message from the tap.
    pub fn take(&mut self, message: Tapped, now: Instant) {
        let (half, key) = ((message.cookie, message.generation), key(&message));
        let role = message.role;
        let place = self.gone + self.waiting.len() as u64;
        if let Some((number, at)) = self.newest.insert(half, (message.number, place))
            && number + 1 == message.number
            && let Some((_, Waiting::Message { reason, .. })) =
                at.checked_sub(self.gone).and_then(|at| self.waiting.get_mut(at as usize))
        {
            *reason = Some(reason_name(message.reason_before));
        }
        if self.keys.insert(half, (key, role)).is_none() {
            self.stream(key).halves[index(role)] = Some(half);
        }
        let end = EndSeen {
            local: socket(&message.local),
            remote: socket(&message.remote),
            cgroup: message.cgroup,
            workload: message.workload,
        };
        self.stream(key).ends[index(role)].get_or_insert(end);
        self.waiting.push_back((now, Waiting::Message { message: Box::new(message), reason: None }));
    }

    /// Asks the records of the ends which way their last messages went: when those are read, their verdicts have passed, and
    /// later the records may be gone. Of some; the others wait.
    pub fn ask(&mut self, world: &dyn World) {
        for (_, at) in self.newest.values().take(ASKED) {
            if let Some((_, Waiting::Message { message, reason: reason @ None })) =
                at.checked_sub(self.gone).and_then(|at| self.waiting.get_mut(at as usize))
            {
                *reason = last_reason(message, world);
            }
        }
    }

    /// An event of the journal.
    pub fn tell(&mut self, entry: &Entry, now: Instant) {
        let what = match entry.kind {
            JournalKind::Left => What::Left(reason_name(entry.reason)),
            JournalKind::Closed | JournalKind::Unwatched => What::Closed,
            _ => return,
        };
        let Some((key, role)) = self.keys.get(&(entry.cookie, entry.generation)).copied() else { return };
        if let (What::Closed, Some(stream)) = (&what, self.streams.get_mut(&key)) {
            stream.totals = Some(if role == Role::Client { [entry.sent, entry.got] } else { [entry.got, entry.sent] });
        }
        self.waiting.push_back((now, Waiting::Event { time_ns: entry.time_ns, key, role, what }));
    }

    /// What is ready, in order. `refuse` hears of halves that the filter does not want.
    pub fn next(&mut self, now: Instant, world: &mut dyn World, mut refuse: impl FnMut(u64, u32)) -> Option<Captured> {
        loop {
            let (since, front) = self.waiting.front_mut()?;
            if let Waiting::Message { message, reason: reason @ None } = front {
                let waited = now.saturating_duration_since(*since);
                if waited >= WAIT {
                    *reason = last_reason(message, world);
                }
                let has_ended = self.streams.get(&key(message)).is_some_and(|s| s.totals.is_some());
                if reason.is_none() && !has_ended && waited < LONGEST {
                    return None;
                }
            }
            self.gone += 1;
            match self.waiting.pop_front()?.1 {
                Waiting::Message { message, reason } => {
                    let half = (message.cookie, message.generation);
                    if self.newest.get(&half).is_some_and(|(number, _)| *number == message.number) {
                        self.newest.remove(&half);
                    }
                    if let Some(captured) = self.message(*message, reason, world) {
                        return Some(captured);
                    }
                    if self.keys.get(&half).and_then(|(k, _)| self.streams.get(k)).and_then(|s| s.wanted) == Some(false)
                    {
                        refuse(half.0, half.1);
                    }
                }
                Waiting::Event { time_ns, key, role, what } => {
                    let Some(stream) = self.streams.get(&key) else { continue };
                    let told = stream.told.clone();
                    let offsets = stream.sent;
                    if matches!(what, What::Closed) {
                        self.forget(key);
                    }
                    let Some(Told { client, server, service }) = told else { continue };
                    return Some(Captured {
                        time_ns,
                        connection: key,
                        client,
                        server,
                        service,
                        from: role,
                        offsets: [offsets[index(role)], offsets[1 - index(role)]],
                        first: false,
                        what,
                    });
                }
            }
        }
    }

    /// Nothing waits any more for anything.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    fn message(&mut self, message: Tapped, reason: Option<&'static str>, world: &mut dyn World) -> Option<Captured> {
        let (key, role) = (key(&message), message.role);
        // the numbers of connections are random
        let is_chosen = (key.0 ^ key.1).is_multiple_of(self.one_in);
        self.stream(key);
        let stream = self.streams.get_mut(&key)?;
        let first = stream.told.is_none() && stream.wanted.is_none();
        if first {
            let peer = index(match role {
                Role::Client => Role::Server,
                Role::Server => Role::Client,
            });
            if stream.ends[peer].is_none() {
                stream.ends[peer] = Some(peer_of(&message, world));
            }
            let told = told(stream, world)?;
            let wanted = is_chosen && self.filter.matches(&connection(&told));
            stream.wanted = Some(wanted);
            if wanted {
                stream.told = Some(told);
            }
        }
        let Told { client, server, service } = stream.told.clone()?;
        let reason = reason.or_else(|| stream.was_fast(index(role), message.number).then_some("fast"));
        stream.known[index(role)] += u64::from(reason.is_some());
        stream.fast[index(role)] += u64::from(reason == Some("fast"));
        let offsets = [message.offset, stream.sent[1 - index(role)]];
        stream.sent[index(role)] = message.offset + u64::from(message.size);
        Some(Captured {
            time_ns: message.time_ns,
            connection: key,
            client,
            server,
            service,
            from: role,
            offsets,
            first,
            what: What::Data { bytes: message.bytes, size: message.size, cut: message.cut, reason },
        })
    }
}

/// From the record of its sender, if nothing was sent since.
fn last_reason(message: &Tapped, world: &dyn World) -> Option<&'static str> {
    let half = world.half(message.cookie)?;
    (half.sent.fast_messages + half.sent.tcp_messages == message.number + 1).then(|| reason_name(half.reason))
}

/// The other end of a message, which has sent nothing yet.
fn peer_of(message: &Tapped, world: &dyn World) -> EndSeen {
    let peer_cookie = match message.peer_cookie {
        0 => world.half(message.cookie).map_or(0, |h| h.peer_cookie), // it was tied meanwhile
        cookie => cookie,
    };
    match (peer_cookie != 0).then(|| world.half(peer_cookie)).flatten() {
        Some(half) => EndSeen {
            local: socket(&half.local),
            remote: socket(&half.remote),
            cgroup: half.cgroup,
            workload: half.workload,
        },
        None => EndSeen {
            local: socket(&message.remote),
            remote: socket(&message.local),
            cgroup: message.peer_cgroup,
            workload: message.peer_workload,
        },
    }
}

fn told(stream: &Stream, world: &mut dyn World) -> Option<Told> {
    let [Some(client), Some(server)] = &stream.ends else { return None };
    let mut party = |end: &EndSeen| Party { workload: world.name(end.cgroup, end.workload), address: end.local };
    let service = (client.remote != server.local).then_some(client.remote);
    Some(Told { client: party(client), server: party(server), service })
}

/// As the filter looks at it.
fn connection(told: &Told) -> Connection {
    let end = |party: &Party| End {
        addr: party.address.ip().to_string(),
        port: party.address.port(),
        workload: Some(party.workload.clone()),
        ..End::default()
    };
    Connection {
        client: Some(end(&told.client)),
        server: Some(end(&told.server)),
        path: datapath::Path::Tcp,
        age_seconds: 0.0,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One in which nothing is known but names.
    pub(crate) struct Empty;

    impl World for Empty {
        fn half(&self, _cookie: u64) -> Option<Half> {
            None
        }

        fn name(&mut self, cgroup: u64, _workload: u64) -> Name {
            Name { name: format!("w{cgroup}"), ..Name::default() }
        }
    }

    /// A message between 10.0.0.1:40000 (cgroup 1) and 10.0.0.2:80 (cgroup 2).
    pub(crate) fn tapped(role: Role, number: u64, offset: u64, bytes: &[u8]) -> Tapped {
        let end = |n: u8, port| Endpoint { addr: std::net::IpAddr::from([10, 0, 0, n]), port };
        let ends = [(end(1, 40_000), 1, 100), (end(2, 80), 2, 200)];
        let (own, other) = (ends[index(role)], ends[1 - index(role)]);
        Tapped {
            time_ns: 1_000 * (number + 1),
            cookie: own.1,
            generation: 1,
            peer_cookie: other.1,
            number,
            offset,
            role,
            reason_before: 0,
            workload: own.1,
            cgroup: own.1,
            peer_workload: other.1,
            peer_cgroup: other.1,
            local: own.0,
            remote: other.0,
            netns: 1,
            isn_local: own.2,
            isn_remote: other.2,
            size: bytes.len() as u32,
            bytes: bytes.to_vec(),
            cut: false,
        }
    }

    fn drain(recorder: &mut Recorder, refused: &mut Vec<(u64, u32)>) -> Vec<Captured> {
        let later = Instant::now() + Duration::from_secs(1);
        std::iter::from_fn(|| recorder.next(later, &mut Empty, |c, g| refused.push((c, g)))).collect()
    }

    #[test]
    fn the_next_message_tells_the_way_of_the_one_before() {
        let mut recorder = Recorder::new(Filter::ALL, 1);
        let now = Instant::now();
        recorder.take(tapped(Role::Client, 0, 0, b"GET"), now);
        assert!(recorder.next(now, &mut Empty, |_, _| ()).is_none(), "it waits");
        recorder.take(tapped(Role::Server, 0, 0, b"200"), now);
        recorder.take(tapped(Role::Client, 1, 3, b"GET again"), now);
        let got = recorder.next(now, &mut Empty, |_, _| ()).expect("its way is known");
        assert!(matches!(got.what, What::Data { reason: Some("fast"), .. }));
        assert!(got.first);
        assert_eq!((got.client.workload.name.as_str(), got.server.workload.name.as_str()), ("w1", "w2"));
        let rest = drain(&mut recorder, &mut Vec::new());
        assert_eq!(
            rest.iter().map(|c| (c.from, c.offsets)).collect::<Vec<_>>(),
            [(Role::Server, [0, 3]), (Role::Client, [3, 3])]
        );
        assert!(rest.iter().all(|c| !c.first && matches!(c.what, What::Data { reason: None, .. })));
        assert!(recorder.newest.is_empty() && recorder.is_idle());
    }

    #[test]
    fn what_the_filter_does_not_want_is_refused() {
        let mut refused = Vec::new();
        let mut recorder = Recorder::new("port 443".parse().expect("a filter"), 1);
        recorder.take(tapped(Role::Server, 0, 0, b"x"), Instant::now());
        recorder.take(tapped(Role::Client, 0, 0, b"y"), Instant::now());
        assert!(drain(&mut recorder, &mut refused).is_empty());
        assert_eq!(refused, [(2, 1), (1, 1)]);
        let mut recorder = Recorder::new("dst port 80 and name w1".parse().expect("a filter"), 1);
        recorder.take(tapped(Role::Server, 0, 0, b"x"), Instant::now());
        assert_eq!(drain(&mut recorder, &mut refused).len(), 1);
        assert_eq!(refused.len(), 2);
    }
}

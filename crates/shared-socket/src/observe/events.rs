//! What happened, as `shared-socket events` shows it: entries of the journal with names in the place of cgroup ids.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use bytesize::ByteSize;
use datapath::{Counters, Entry, JournalKind, REASONS, Role, now_ns, reason_name};
use jiff::Timestamp;
use serde::Serialize;

use super::names::{Name, Names};

/// What is added to CLOCK_MONOTONIC to have the time of day. It changes when the clock is set, and while the machine sleeps:
/// events of before that are shown as late as the clock is now.
pub fn clock_offset() -> i128 {
    Timestamp::now().as_nanosecond() - i128::from(now_ns())
}

/// One event.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    /// When.
    pub time: Timestamp,
    /// CLOCK_MONOTONIC, nanoseconds.
    pub monotonic_ns: u64,
    /// What happened.
    pub kind: JournalKind,
    /// Why; absent where there is nothing to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// To which end of the connection; absent when it happened to a workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Whose this end is, or what was attached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<Name>,
    /// Whose the other end is, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<Name>,
    /// Address of this end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<SocketAddr>,
    /// Address of the other end, as this one sees it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<SocketAddr>,
    /// Cookie of the socket.
    #[serde(skip_serializing_if = "is_zero")]
    pub cookie: u64,
    /// Cookie of the other end's.
    #[serde(skip_serializing_if = "is_zero")]
    pub peer_cookie: u64,
    /// Inode number of the network namespace.
    #[serde(skip_serializing_if = "is_zero_u32")]
    pub netns: u32,
    /// What the application did.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hazards: Vec<&'static str>,
    /// How long the connection has lasted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_seconds: Option<f64>,
    /// What this end has sent, where the connection has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent: Option<Counters>,
    /// What the other end has sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub received: Option<Counters>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde asks for it
fn is_zero(n: &u64) -> bool {
    *n == 0
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde asks for it
fn is_zero_u32(n: &u32) -> bool {
    *n == 0
}

fn has_ended(kind: JournalKind) -> bool {
    matches!(kind, JournalKind::Closed | JournalKind::Unwatched)
}

impl Event {
    /// An entry of the journal, with names, and `offset` to have the time of day.
    pub fn new(e: &Entry, names: &Names, offset: i128) -> Self {
        let time = Timestamp::from_nanosecond(i128::from(e.time_ns) + offset).unwrap_or_default();
        let address = |end: &datapath::Endpoint| SocketAddr::new(end.addr.to_canonical(), end.port);
        let is_connection = e.cookie != 0;
        Self {
            time,
            monotonic_ns: e.time_ns,
            kind: e.kind,
            reason: (e.reason != 0).then(|| reason_name(e.reason)),
            role: is_connection.then_some(e.role),
            workload: (e.cgroup != 0).then(|| names.of(e.cgroup, e.workload)),
            peer: (e.peer_cgroup != 0).then(|| names.of(e.peer_cgroup, e.peer_workload)),
            local: e.local.as_ref().map(address),
            remote: e.remote.as_ref().map(address),
            cookie: e.cookie,
            peer_cookie: e.peer_cookie,
            netns: e.netns,
            hazards: e.hazards.clone(),
            duration_seconds: (e.duration_ns != 0).then_some(e.duration_ns as f64 / 1e9),
            sent: has_ended(e.kind).then_some(e.sent),
            received: has_ended(e.kind).then_some(e.got),
        }
    }

    /// In words, without whom it happened to.
    pub fn what(&self) -> String {
        let why = self.reason.map(|name| {
            let text = REASONS.iter().find(|r| r.name == name).map_or("", |r| r.text);
            format!("{name} ({text})")
        });
        let who = self.role.map_or("", |role| if role == Role::Client { "the client" } else { "the server" });
        let because = |what: String| why.as_ref().map_or(what.clone(), |why| format!("{what}: {why}"));
        match self.kind {
            JournalKind::Connect | JournalKind::Accept if why.is_some() => because("stays on TCP".into()),
            JournalKind::Connect => "may be paired".into(),
            JournalKind::Accept => "is paired".into(),
            JournalKind::Paired => "both ends can be fast".into(),
            JournalKind::Adopted => "it was there before: both ends can be fast".into(),
            JournalKind::Handoff => format!("{who} sends by the fast path"),
            JournalKind::FellBack => because(format!("{who} sends by TCP")),
            JournalKind::Left => because(format!("{who} is plain TCP from now on")),
            JournalKind::Closed => format!("after {}", self.totals()),
            JournalKind::Unwatched => because(format!("goes on by TCP, unseen, after {}", self.totals())),
            JournalKind::Stuck => because(format!("{who} has bytes unread that it does not look for")),
            JournalKind::Untold => format!("{who} was not told that the other end has reset the connection"),
            JournalKind::Refused => because(format!("an option of {who} would hide bytes that are unread")),
            JournalKind::Reset => because(format!("{who} was still stuck")),
            JournalKind::Attach => "is attached".into(),
            JournalKind::Detach => "is detached".into(),
            JournalKind::Upgrade => "other programs are in force".into(),
            JournalKind::Unknown => "an event of a later version".into(),
        }
    }

    /// "1.2 s; client sent 12 messages, 3.4 KiB (100 % fast), server ..."
    fn totals(&self) -> String {
        let sent = |who: &str, c: Option<Counters>| {
            let c = c.unwrap_or_default();
            let (messages, bytes) = (c.fast_messages + c.tcp_messages, c.fast_bytes + c.tcp_bytes);
            let share =
                (100 * c.fast_messages).checked_div(messages).map_or(String::new(), |s| format!(", {s} % fast"));
            format!("{who} sent {messages} messages ({}{share})", ByteSize(bytes))
        };
        let (client, server) =
            if self.role == Some(Role::Server) { (self.received, self.sent) } else { (self.sent, self.received) };
        format!("{:.3} s; {}, {}", self.duration_seconds.unwrap_or(0.0), sent("client", client), sent("server", server))
    }
}

/// One line for people.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |name: &Option<Name>, at: &Option<SocketAddr>| match (name, at) {
            (Some(name), Some(at)) => format!("{name} {at}"),
            (None, Some(at)) => at.to_string(),
            (Some(name), None) => name.to_string(),
            (None, None) => "-".into(),
        };
        let (own, other) = (end(&self.workload, &self.local), end(&self.peer, &self.remote));
        write!(f, "{:.6} {:<9} ", self.time, self.kind.name())?;
        match self.role {
            None => write!(f, "{own}")?,
            Some(Role::Client) => write!(f, "{own} -> {other}")?,
            Some(Role::Server) => write!(f, "{other} -> {own}")?,
        }
        write!(f, ": {}", self.what())
    }
}

/// What is not in a list of events.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Missed {
    /// Events that were overwritten before they were read, or could not be written.
    pub lost: u64,
    /// Events that came too fast to be written, by kind.
    pub suppressed: BTreeMap<&'static str, u64>,
}

impl Missed {
    /// Of one look.
    pub fn of(batch: &datapath::Batch) -> Option<Self> {
        let suppressed: BTreeMap<_, _> = batch.suppressed.iter().map(|(kind, n)| (kind.name(), *n)).collect();
        (batch.lost > 0 || !suppressed.is_empty()).then_some(Self { lost: batch.lost, suppressed })
    }
}

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by_kind: Vec<String> = self.suppressed.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
        let lost = (self.lost > 0).then(|| format!("{} events were overwritten before they were read", self.lost));
        let fast = (!by_kind.is_empty()).then(|| format!("not told, as they came too fast: {}", by_kind.join(", ")));
        write!(f, "{}", lost.into_iter().chain(fast).collect::<Vec<_>>().join("; "))
    }
}

/// Which events are wanted.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// Only these; all when there is none.
    pub kinds: Vec<JournalKind>,
    /// One end is of one of these.
    pub names: Vec<globset::GlobMatcher>,
    /// One end has one of these.
    pub ports: Vec<u16>,
    /// Only these.
    pub reasons: Vec<String>,
    /// CLOCK_MONOTONIC, nanoseconds; not before this.
    pub since_ns: u64,
}

impl EventFilter {
    /// Whether it is one of them.
    pub fn wants(&self, e: &Event) -> bool {
        let one_of = |name: &Name| {
            let pod = name.pod.as_ref();
            let qualified = pod.zip(name.namespace.as_ref()).map(|(pod, namespace)| format!("{namespace}/{pod}"));
            let all = [Some(&name.name), pod, name.container.as_ref(), qualified.as_ref()];
            all.into_iter().flatten().any(|text| self.names.iter().any(|m| m.is_match(text)))
        };
        let ports = || [e.local, e.remote].into_iter().flatten().map(|a| a.port());
        e.monotonic_ns >= self.since_ns
            && (self.kinds.is_empty() || self.kinds.contains(&e.kind))
            && (self.names.is_empty() || [&e.workload, &e.peer].into_iter().flatten().any(one_of))
            && (self.ports.is_empty() || ports().any(|p| self.ports.contains(&p)))
            && (self.reasons.is_empty() || e.reason.is_some_and(|r| self.reasons.iter().any(|w| w == r)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: JournalKind) -> Event {
        let name = |pod: &str| Name {
            namespace: Some("core".into()),
            pod: Some(pod.into()),
            container: Some("main".into()),
            name: format!("core/{pod}/main"),
        };
        Event {
            time: "2026-11-27T22:00:01.5Z".parse().unwrap(),
            monotonic_ns: 1_000,
            kind,
            reason: None,
            role: Some(Role::Server),
            workload: Some(name("scp")),
            peer: Some(name("smf")),
            local: "10.0.0.2:80".parse().ok(),
            remote: "10.0.0.1:4711".parse().ok(),
            cookie: 7,
            peer_cookie: 8,
            netns: 1,
            hazards: Vec::new(),
            duration_seconds: Some(1.25),
            sent: Some(Counters { fast_messages: 3, fast_bytes: 3072, tcp_messages: 1, tcp_bytes: 1024 }),
            received: Some(Counters::default()),
        }
    }

    #[test]
    fn a_line_says_who_and_what() {
        let closed = event(JournalKind::Closed).to_string();
        assert_eq!(
            closed,
            "2026-11-27T22:00:01.500000Z closed    core/smf/main 10.0.0.1:4711 -> core/scp/main 10.0.0.2:80: after 1.250 s; \
             client sent 0 messages (0 B), server sent 4 messages (4.0 KiB, 75 % fast)"
        );
        let back = Event { reason: Some("backed_up"), ..event(JournalKind::FellBack) }.to_string();
        assert!(
            back.ends_with(
                "the server sends by TCP: backed_up (the peer's queue holds its budget of bytes or messages)"
            )
        );
    }

    #[test]
    fn a_filter_looks_at_both_ends() {
        let glob = |text: &str| crate::discovery::pattern(text).unwrap();
        let e = event(JournalKind::Paired);
        let wants = |filter: EventFilter| filter.wants(&e);
        assert!(wants(EventFilter::default()));
        for name in ["smf", "core/scp", "core/smf/main", "s*", "main"] {
            assert!(wants(EventFilter { names: vec![glob(name)], ..Default::default() }), "{name}");
        }
        assert!(!wants(EventFilter { names: vec![glob("amf")], ..Default::default() }));
        assert!(wants(EventFilter { ports: vec![4711], kinds: vec![JournalKind::Paired], ..Default::default() }));
        assert!(!wants(EventFilter { ports: vec![4712], ..Default::default() }));
        assert!(!wants(EventFilter { kinds: vec![JournalKind::Left], ..Default::default() }));
        assert!(!wants(EventFilter { reasons: vec!["bulk".into()], ..Default::default() }));
        assert!(!wants(EventFilter { since_ns: 1_001, ..Default::default() }));
    }
}

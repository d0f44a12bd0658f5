//! What goes between workloads: the live connections of each two of them, added up, and how fast that grows.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::{Connection, End, Name};

/// Who connected to whom.
pub type Key = (Name, Name);

/// Sums of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Sent {
    /// Messages by the fast path.
    pub fast_messages: u64,
    /// Bytes by the fast path.
    pub fast_bytes: u64,
    /// Messages by TCP.
    pub tcp_messages: u64,
    /// Bytes by TCP.
    pub tcp_bytes: u64,
}

/// The live connections from one workload to another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Flow {
    /// How many.
    pub connections: u64,
    /// Of these, those whose last messages went by the fast path, both ways.
    pub fast_connections: u64,
    /// By the ends that connected.
    pub up: Sent,
    /// By the ends that accepted.
    pub down: Sent,
}

impl Sent {
    fn add(&mut self, end: Option<&End>) {
        let Some(end) = end else { return };
        self.fast_messages += end.fast_messages;
        self.fast_bytes += end.fast_bytes;
        self.tcp_messages += end.tcp_messages;
        self.tcp_bytes += end.tcp_bytes;
    }

    /// Messages by both paths.
    pub fn messages(&self) -> u64 {
        self.fast_messages + self.tcp_messages
    }

    /// Bytes by both paths.
    pub fn bytes(&self) -> u64 {
        self.fast_bytes + self.tcp_bytes
    }

    /// What was added since. A connection that has gone takes its sums with it: that is nothing, and not less.
    fn since(&self, before: &Self) -> Self {
        Self {
            fast_messages: self.fast_messages.saturating_sub(before.fast_messages),
            fast_bytes: self.fast_bytes.saturating_sub(before.fast_bytes),
            tcp_messages: self.tcp_messages.saturating_sub(before.tcp_messages),
            tcp_bytes: self.tcp_bytes.saturating_sub(before.tcp_bytes),
        }
    }
}

/// How fast a flow goes, both ways together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Rate {
    /// Messages a second by the fast path.
    pub fast_messages: f64,
    /// Messages a second by TCP.
    pub tcp_messages: f64,
    /// Bytes a second by the fast path.
    pub fast_bytes: f64,
    /// Bytes a second by TCP.
    pub tcp_bytes: f64,
}

impl Rate {
    /// Messages a second by both paths.
    pub fn messages(&self) -> f64 {
        self.fast_messages + self.tcp_messages
    }

    /// Bytes a second by both paths.
    pub fn bytes(&self) -> f64 {
        self.fast_bytes + self.tcp_bytes
    }

    /// Of the messages, the part that was fast, 0 to 1; none when there was none.
    pub fn fast_share(&self) -> Option<f64> {
        (self.messages() > 0.0).then(|| self.fast_messages / self.messages())
    }
}

impl std::ops::AddAssign for Rate {
    fn add_assign(&mut self, other: Self) {
        self.fast_messages += other.fast_messages;
        self.tcp_messages += other.tcp_messages;
        self.fast_bytes += other.fast_bytes;
        self.tcp_bytes += other.tcp_bytes;
    }
}

/// Adds the connections up.
pub fn of(connections: &[Connection]) -> BTreeMap<Key, Flow> {
    let mut flows: BTreeMap<Key, Flow> = BTreeMap::new();
    let unknown = || Name { name: "(closed)".into(), ..Name::default() };
    for c in connections {
        let name = |end: &Option<End>| end.as_ref().map_or_else(unknown, |e| e.workload.clone());
        let flow = flows.entry((name(&c.client), name(&c.server))).or_default();
        flow.connections += 1;
        flow.fast_connections += u64::from(c.path == datapath::Path::Fast);
        flow.up.add(c.client.as_ref());
        flow.down.add(c.server.as_ref());
    }
    flows
}

/// How fast they went between two looks.
pub fn rates(before: &BTreeMap<Key, Flow>, after: &BTreeMap<Key, Flow>, time: Duration) -> BTreeMap<Key, Rate> {
    let per_second = |n: u64| n as f64 / time.as_secs_f64().max(1e-9);
    let rate = |(key, now): (&Key, &Flow)| {
        let then = before.get(key).copied().unwrap_or_default();
        let (up, down) = (now.up.since(&then.up), now.down.since(&then.down));
        let rate = Rate {
            fast_messages: per_second(up.fast_messages + down.fast_messages),
            tcp_messages: per_second(up.tcp_messages + down.tcp_messages),
            fast_bytes: per_second(up.fast_bytes + down.fast_bytes),
            tcp_bytes: per_second(up.tcp_bytes + down.tcp_bytes),
        };
        (key.clone(), rate)
    };
    after.iter().map(rate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(from: &str, to: &str, sent: u64) -> Connection {
        let end = |name: &str, fast_messages| End {
            workload: Name { name: name.into(), ..Name::default() },
            fast_messages,
            fast_bytes: 10 * fast_messages,
            tcp_messages: 1,
            ..End::default()
        };
        Connection {
            client: Some(end(from, sent)),
            server: Some(end(to, 2 * sent)),
            path: datapath::Path::Fast,
            age_seconds: 1.0,
        }
    }

    #[test]
    fn connections_add_up() {
        let before = of(&[connection("a", "b", 5), connection("a", "b", 1), connection("b", "a", 3)]);
        assert_eq!(before.len(), 2);
        let flow = before.values().next().unwrap();
        assert_eq!((flow.connections, flow.up.messages(), flow.down.bytes()), (2, 8, 120));
        let after = of(&[connection("a", "b", 15), connection("a", "b", 1)]);
        let rates = rates(&before, &after, Duration::from_secs(2));
        let rate = rates.values().next().unwrap();
        assert_eq!((rate.fast_messages, rate.tcp_messages, rate.bytes()), (15.0, 0.0, 150.0));
        assert_eq!(rate.fast_share(), Some(1.0));
    }

    #[test]
    fn what_has_gone_is_not_less_than_nothing() {
        let before = of(&[connection("a", "b", 5), connection("a", "b", 100)]);
        let rates = rates(&before, &of(&[connection("a", "b", 6)]), Duration::from_secs(1));
        assert_eq!(rates.values().next().unwrap().messages(), 0.0);
    }
}

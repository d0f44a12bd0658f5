//! Traffic between workloads: sums and rates of what connections have sent.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::{Connection, share};

/// What one end had sent at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sent {
    fast_messages: u64,
    fast_bytes: u64,
    tcp_messages: u64,
    tcp_bytes: u64,
}

/// A moment to compare with: what each socket had sent, by cookie.
#[derive(Debug, Clone, Default)]
pub struct Mark(HashMap<u64, Sent>);

impl Mark {
    /// Of these connections now.
    pub fn of(list: &[Connection]) -> Self {
        let sent = |e: &super::End| Sent {
            fast_messages: e.fast_messages,
            fast_bytes: e.fast_bytes,
            tcp_messages: e.tcp_messages,
            tcp_bytes: e.tcp_bytes,
        };
        Self(list.iter().flat_map(Connection::ends).map(|e| (e.cookie, sent(e))).collect())
    }
}

/// Per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Rate {
    /// Messages by the fast path.
    pub fast_messages: f64,
    /// Bytes by the fast path.
    pub fast_bytes: f64,
    /// Messages by TCP.
    pub tcp_messages: f64,
    /// Bytes by TCP.
    pub tcp_bytes: f64,
}

impl Rate {
    /// By either path.
    pub fn messages(&self) -> f64 {
        self.fast_messages + self.tcp_messages
    }

    /// By either path.
    pub fn bytes(&self) -> f64 {
        self.fast_bytes + self.tcp_bytes
    }

    /// Of a connection since a mark, so many seconds ago. A socket that is new since then had sent nothing.
    pub fn of(c: &Connection, before: &Mark, seconds: f64) -> Self {
        let mut rate = Self::default();
        if seconds <= 0.0 {
            return rate;
        }
        for e in c.ends() {
            let was = before.0.get(&e.cookie).copied().unwrap_or_default();
            rate.fast_messages += e.fast_messages.saturating_sub(was.fast_messages) as f64 / seconds;
            rate.fast_bytes += e.fast_bytes.saturating_sub(was.fast_bytes) as f64 / seconds;
            rate.tcp_messages += e.tcp_messages.saturating_sub(was.tcp_messages) as f64 / seconds;
            rate.tcp_bytes += e.tcp_bytes.saturating_sub(was.tcp_bytes) as f64 / seconds;
        }
        rate
    }
}

impl std::ops::AddAssign for Rate {
    fn add_assign(&mut self, o: Self) {
        self.fast_messages += o.fast_messages;
        self.fast_bytes += o.fast_bytes;
        self.tcp_messages += o.tcp_messages;
        self.tcp_bytes += o.tcp_bytes;
    }
}

/// Traffic of two workloads, both ways.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Flow {
    /// Who connects.
    pub client: String,
    /// Who accepts.
    pub server: String,
    /// Connections.
    pub pairs: u64,
    /// Of these, those that are fast.
    pub fast_pairs: u64,
    /// Messages so far.
    pub messages: u64,
    /// Of these, by the fast path.
    pub fast_messages: u64,
    /// Bytes so far.
    pub bytes: u64,
    /// Of these, by the fast path.
    pub fast_bytes: u64,
    /// Share of the messages that were fast: 0 to 1.
    pub fast_share: f64,
    /// A second, lately.
    pub rate: Rate,
}

/// Sums by pair of workloads, of the connections that live. (The one place to change where sums of those that are gone are
/// kept.)
pub fn flows(list: &[Connection], before: &Mark, seconds: f64) -> Vec<Flow> {
    let mut all: BTreeMap<(String, String), Flow> = BTreeMap::new();
    for c in list {
        let name = |e: &Option<super::End>| e.as_ref().map_or_else(|| "(gone)".to_owned(), super::End::name);
        let (client, server) = (name(&c.client), name(&c.server));
        let flow =
            all.entry((client.clone(), server.clone())).or_insert_with(|| Flow { client, server, ..Flow::default() });
        flow.pairs += 1;
        flow.fast_pairs += u64::from(c.path == datapath::Path::Fast);
        flow.messages += c.messages();
        flow.bytes += c.bytes();
        for e in c.ends() {
            flow.fast_messages += e.fast_messages;
            flow.fast_bytes += e.fast_bytes;
        }
        flow.rate += Rate::of(c, before, seconds);
    }
    let mut list: Vec<Flow> = all.into_values().collect();
    for flow in &mut list {
        flow.fast_share = share(flow.fast_messages, flow.messages);
    }
    list
}

#[cfg(test)]
mod tests {
    use super::super::connections::tests::connection;
    use super::*;

    #[test]
    fn sums_and_rates() {
        let before = Mark::of(&[connection()]);
        let mut later = connection();
        later.client.as_mut().unwrap().fast_messages += 20;
        later.server.as_mut().unwrap().tcp_bytes += 4096;
        let list = flows(&[later.clone(), later], &before, 2.0);
        assert_eq!(list.len(), 1);
        assert_eq!((list[0].client.as_str(), list[0].server.as_str()), ("core/web-1/main", "core/redis-0/main"));
        assert_eq!((list[0].pairs, list[0].messages, list[0].fast_messages), (2, 100, 80));
        assert_eq!(list[0].rate, Rate { fast_messages: 20.0, tcp_bytes: 4096.0, ..Rate::default() });
        assert_eq!(flows(&[connection()], &before, 0.0)[0].rate, Rate::default());
    }
}

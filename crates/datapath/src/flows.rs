//! Sums by pairs of workloads, and what the programs cost.

use std::collections::HashMap;
use std::os::fd::AsFd;

use libbpf_rs::MapCore;

use crate::skel::types;
use crate::{Counters, Datapath, Result, fold, sys};

/// Slots of a histogram.
pub const SLOTS: usize = types::abi::HISTOGRAM_SLOTS.0 as usize;

/// Values by their power of two: slot n counts those of [2^n, 2^(n+1)), the first also 0, and the last all above.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Histogram(pub [u64; SLOTS]);

impl Histogram {
    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// What has come since then. Less than then is another's: it counts from nothing.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let is_other = self.0.iter().zip(&before.0).any(|(now, was)| now < was);
        Self(std::array::from_fn(|slot| self.0[slot] - if is_other { 0 } else { before.0[slot] }))
    }

    /// The middle one, as exact as the slots are, which double: within its slot they are taken to be spread evenly.
    pub fn median(&self) -> Option<u64> {
        let half = self.count() as f64 / 2.0;
        let mut below = 0.0;
        for (slot, n) in self.0.iter().enumerate().filter(|(_, n)| **n > 0) {
            let n = *n as f64;
            if below + n >= half {
                let (from, width) =
                    if slot == 0 { (0.0, 2.0) } else { (2f64.powi(slot as i32), 2f64.powi(slot as i32)) };
                return Some((from + width * (half - below) / n) as u64);
            }
            below += n;
        }
        None
    }
}

impl std::ops::AddAssign<&Self> for Histogram {
    fn add_assign(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(sum, n)| *sum += n);
    }
}

/// Connections between two workloads, live and gone.
#[derive(Debug, Clone, Copy, Default)]
pub struct Flow {
    /// cgroup id of the attached workload that connects; `u64::MAX` where the map had no room, or made some.
    pub client: u64,
    /// And of the one that accepts; 0: connections whose other end did not come to be paired.
    pub server: u64,
    /// Pairs with both halves in the sockhash.
    pub pairs_live: u64,
    /// Pairs ever tied.
    pub pairs: u64,
    /// Of these, connections that were established before their workload was attached.
    pub adopted: u64,
    /// What the clients have sent.
    pub client_sent: Counters,
    /// What the servers have sent.
    pub server_sent: Counters,
    /// Changes from the TCP path to the fast path.
    pub handoffs: u64,
    /// Halves that left the sockhash by protocol.
    pub left: u64,
    /// How long the connections lasted that are gone, in all, in nanoseconds.
    pub duration_ns: u64,
    /// And one by one, in 2^20 ns.
    pub durations: Histogram,
    /// Halves that became fast, by the time from their establishment to that, in 2^10 ns.
    pub starts: Histogram,
    /// Messages by their size in bytes.
    pub sizes: Histogram,
    /// Sampled messages of the fast path by how long they waited for their reader, in nanoseconds.
    pub waits: Histogram,
}

impl Flow {
    /// What had no room in the map.
    pub fn is_other(&self) -> bool {
        self.client == u64::MAX
    }

    /// Bytes of both ways and both paths.
    pub fn bytes(&self) -> u64 {
        let sum = |c: &Counters| c.fast_bytes + c.tcp_bytes;
        sum(&self.client_sent) + sum(&self.server_sent)
    }
}

impl std::ops::AddAssign<&Self> for Flow {
    fn add_assign(&mut self, o: &Self) {
        self.pairs_live += o.pairs_live;
        self.pairs += o.pairs;
        self.adopted += o.adopted;
        self.client_sent += o.client_sent;
        self.server_sent += o.server_sent;
        self.handoffs += o.handoffs;
        self.left += o.left;
        self.duration_ns += o.duration_ns;
        self.durations += &o.durations;
        self.starts += &o.starts;
        self.sizes += &o.sizes;
        self.waits += &o.waits;
    }
}

impl From<&types::flow> for Flow {
    fn from(raw: &types::flow) -> Self {
        Self {
            pairs: raw.pairs,
            adopted: raw.adopted,
            client_sent: (&raw.sent[0]).into(),
            server_sent: (&raw.sent[1]).into(),
            handoffs: raw.handoffs,
            left: raw.left,
            duration_ns: raw.duration_ns,
            durations: Histogram(raw.durations),
            starts: Histogram(raw.starts),
            sizes: Histogram(raw.sizes),
            waits: Histogram(raw.waits),
            ..Self::default()
        }
    }
}

/// A pair counts once, by its client.
pub(crate) fn is_live_pair(h: &types::half) -> bool {
    let out = u64::from(types::gate::GATE_LEFT.0 | types::gate::GATE_UNTIED.0);
    h.role == 0 && h.peer.cookie != 0 && h.gate & out == 0
}

pub(crate) const OTHER: (u64, u64) = (u64::MAX, u64::MAX);

/// What is live, and by pairs of workloads also what is gone.
pub(crate) struct Sums {
    pub halves: u64,
    pub pairs_live: u64,
    pub sent: Counters,
    pub handoffs: u64,
    pub reasons: [u64; types::abi::REASON_SLOTS.0 as usize],
    /// The most that is reserved for one half.
    pub fullest: u64,
    flows: HashMap<(u64, u64), Flow>,
    is_full: bool,
}

impl Sums {
    /// Of those that are gone; whether the map has no room for others.
    pub fn new(gone: &[(types::flow_key, types::flow)], is_full: bool) -> Self {
        let mut flows: HashMap<(u64, u64), Flow> = HashMap::new();
        let fresh = |place: (u64, u64)| Flow { client: place.0, server: place.1, ..Flow::default() };
        for (key, raw) in gone {
            let place = (key.client, key.server);
            *flows.entry(place).or_insert_with(|| fresh(place)) += &Flow::from(raw);
        }
        flows.entry(OTHER).or_insert_with(|| fresh(OTHER));
        Self {
            halves: 0,
            pairs_live: 0,
            sent: Counters::default(),
            handoffs: 0,
            reasons: [0; types::abi::REASON_SLOTS.0 as usize],
            fullest: 0,
            flows,
            is_full,
        }
    }

    /// A half that is live. One that is not tied yet belongs to no flow.
    pub fn add(&mut self, half: &types::half) {
        let live_pair = u64::from(is_live_pair(half));
        self.halves += 1;
        self.pairs_live += live_pair;
        self.sent += Counters::from(&half.sent);
        self.handoffs += half.handoffs;
        self.reasons.iter_mut().zip(&half.reasons).for_each(|(sum, n)| *sum += n);
        self.fullest = self.fullest.max(half.reserved);
        if half.peer_workload == 0 {
            return;
        }
        let client = half.role == 0;
        let place = if client { (half.workload, half.peer_workload) } else { (half.peer_workload, half.workload) };
        // a pair makes its entry when it is tied, if there is room: it may have been tied since the entries were read
        let place = if self.is_full && !self.flows.contains_key(&place) { OTHER } else { place };
        let fresh = || Flow { client: place.0, server: place.1, ..Flow::default() };
        let flow = self.flows.entry(place).or_insert_with(fresh);
        *(if client { &mut flow.client_sent } else { &mut flow.server_sent }) += Counters::from(&half.sent);
        flow.pairs_live += live_pair;
        flow.handoffs += half.handoffs;
        flow.sizes.0.iter_mut().zip(&half.sizes).for_each(|(sum, n)| *sum += n);
        if half.handoff_ns > half.established_ns {
            let units = (half.handoff_ns - half.established_ns) >> 10;
            flow.starts.0[(units.max(1).ilog2() as usize).min(SLOTS - 1)] += 1;
        }
        flow.waits.0.iter_mut().zip(&half.waits).for_each(|(sum, n)| *sum += u64::from(*n));
    }

    /// Most bytes first.
    pub fn into_flows(self) -> Vec<Flow> {
        let mut list: Vec<Flow> = self.flows.into_values().collect();
        list.sort_by_key(|f| (std::cmp::Reverse(f.bytes()), f.client, f.server));
        list
    }
}

/// What a program has cost, since it was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramCost {
    /// Its name.
    pub name: String,
    /// How often it ran.
    pub runs: u64,
    /// For how long, in all.
    pub nanoseconds: u64,
}

impl Datapath {
    pub(crate) fn gone_flows(&self) -> Result<Vec<(types::flow_key, types::flow)>> {
        let mut list = Vec::new();
        for pins in self.readable().filter(|p| p.map("flows").exists()) {
            list.extend(fold::read(pins)?);
        }
        Ok(list)
    }

    /// Sums by pairs of workloads, live and gone, most bytes first.
    pub fn flows(&self) -> Result<Vec<Flow>> {
        Ok(self.snapshot()?.0.into_flows())
    }

    /// Room for pairs of workloads, and how many there are.
    pub fn flow_room(&self) -> Result<(u64, u64)> {
        let mut entries = 0;
        self.pins.each("flows", |_: types::flow_key, _: types::flow| entries += 1)?;
        Ok((entries, self.map("flows")?.max_entries().into()))
    }

    /// How many generations are pinned.
    pub fn generation_count(&self) -> u64 {
        self.all().count() as u64
    }

    /// What each program of the generation in use has cost. The verdict runs in the stub (`shared_socket_stub`), which has its
    /// time. `None` where the kernel does not count: `kernel.bpf_stats_enabled` is 0.
    pub fn program_costs(&self) -> Option<Vec<ProgramCost>> {
        let enabled =
            std::fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled").is_ok_and(|text| text.trim() != "0");
        let cost = |name: String| {
            let program = self.program(&name).ok()?;
            let (_, runs, nanoseconds) = sys::program_runs(program.as_fd()).ok()?;
            Some(ProgramCost { name, runs, nanoseconds })
        };
        enabled.then(|| self.pins.programs().into_iter().filter_map(cost).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half(role: u8, workload: u64, peer: u64, bytes: u64) -> types::half {
        let mut h = types::half { role, workload, peer_workload: peer, ..Default::default() };
        h.peer.cookie = 1;
        h.sent.fast_bytes = bytes;
        h.sent.fast_messages = 1;
        h.sizes[bytes.ilog2() as usize] = 1;
        h
    }

    #[test]
    fn the_median_and_what_has_come_since() {
        let of = |list: &[(usize, u64)]| {
            let mut h = Histogram::default();
            list.iter().for_each(|(slot, n)| h.0[*slot] = *n);
            h
        };
        assert_eq!(Histogram::default().median(), None);
        assert_eq!(of(&[(0, 4)]).median(), Some(1));
        assert_eq!(of(&[(13, 1)]).median(), Some(8192 + 4096));
        assert_eq!(of(&[(3, 1), (10, 8), (20, 1)]).median(), Some(1024 + 512));
        assert_eq!(of(&[(3, 5), (10, 2)]).since(&of(&[(3, 5)])), of(&[(10, 2)]));
        assert_eq!(of(&[(3, 1)]).since(&of(&[(3, 5)])), of(&[(3, 1)]), "another connection of the same socket");
    }

    #[test]
    fn what_is_live_and_what_is_gone_add_up() {
        let mut gone = types::flow { pairs: 2, ..Default::default() };
        gone.sent[0].tcp_bytes = 100;
        let key = |client, server| types::flow_key { client, server };
        let mut sums = Sums::new(&[(key(7, 8), gone), (key(7, 8), gone)], true);
        for h in [half(0, 7, 8, 64), half(1, 8, 7, 32), half(0, 9, 9, 4), half(0, 7, 0, 1000)] {
            sums.add(&h);
        }
        assert_eq!((sums.halves, sums.pairs_live, sums.sent.fast_bytes), (4, 3, 1100));
        let flows = sums.into_flows();
        let of = |client| *flows.iter().find(|f| f.client == client).unwrap();
        let f = of(7);
        assert_eq!((f.pairs, f.pairs_live, f.server), (4, 1, 8));
        assert_eq!((f.client_sent.fast_bytes, f.client_sent.tcp_bytes, f.server_sent.fast_bytes), (64, 200, 32));
        assert_eq!((f.sizes.0[6], f.sizes.0[5], f.sizes.count()), (1, 1, 2));
        assert_eq!(f.bytes(), 296);
        assert!(of(u64::MAX).is_other());
        assert_eq!(of(u64::MAX).client_sent.fast_bytes, 4, "no entry of its own, so there was no room");
        assert!(flows.iter().all(|f| f.client_sent.fast_bytes != 1000), "not tied");
        let mut roomy = Sums::new(&[], false);
        roomy.add(&half(0, 9, 9, 4));
        assert!(roomy.into_flows().iter().any(|f| (f.client, f.bytes()) == (9, 4)), "tied since then");
    }
}

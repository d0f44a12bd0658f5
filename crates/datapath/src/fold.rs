//! Sums of workloads that are gone for good are put together, so that the map `flows` keeps room for those that come.
//!
//! What is put together lies in an entry of the map that no program knows: one word at a time cannot be added from here
//! while programs add to the entry of what had no room. There are two of them, and a third entry says which of the two counts, and
//! which flows it contains already. So the one replacement of that third entry moves a batch from "by itself" to "put
//! together": a reader sees the one or the other, and a death at any point leaves nothing that is lost or counted twice.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use libbpf_rs::{MapCore, MapFlags, MapHandle};

use crate::flows::OTHER;
use crate::pins::Pins;
use crate::skel::types::{self, flow, flow_key};
use crate::view::{Datapath, cgroup_paths};
use crate::{Error, Result, failpoint, host, sys};

const SUMS: [flow_key; 2] = [flow_key { client: u64::MAX, server: 0 }, flow_key { client: u64::MAX, server: 1 }];
const CONTROL: flow_key = flow_key { client: u64::MAX, server: 2 };
/// Entries of the map that are no flow of anybody.
pub(crate) const ENTRIES: usize = 3;
/// As many keys as fit into a value of the map besides three words.
const BATCH: usize = (size_of::<flow>() - 24) / size_of::<flow_key>();

/// The value at `CONTROL`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Control {
    /// Batches so far.
    sequence: u64,
    /// Which of `SUMS` counts.
    current: u64,
    /// How many of `folded` have a meaning.
    count: u64,
    /// These are in the sum that counts; who still finds them in the map is not to count them.
    folded: [flow_key; BATCH],
}

// it is a value of that map, and has no padding
const _: () = assert!(size_of::<Control>() == size_of::<flow>());

impl Control {
    fn of(map: &MapHandle) -> Result<Self> {
        let value = map
            .lookup(sys::pod_bytes(&CONTROL), MapFlags::ANY)
            .map_err(|e| Error::libbpf("reading which flows are put together", e))?;
        let none = flow_key { client: 0, server: 0 };
        let fresh = Self { sequence: 0, current: 0, count: 0, folded: [none; BATCH] };
        Ok(value.as_deref().and_then(sys::read_pod).unwrap_or(fresh))
    }

    fn folded(&self) -> &[flow_key] {
        &self.folded[..BATCH.min(self.count as usize)]
    }

    fn sum(&self) -> usize {
        (self.current & 1) as usize
    }
}

fn place(key: &flow_key) -> (u64, u64) {
    (key.client, key.server)
}

/// Makes the entries while there is room; what is there stays. `key` of what could not be made is no reason not to load.
pub(crate) fn prepare(flows: &impl MapCore) {
    for key in SUMS.iter().chain([&CONTROL]) {
        let _ = flows.update(sys::pod_bytes(key), sys::pod_bytes(&flow::default()), MapFlags::NO_EXIST);
    }
}

/// All sums of a generation, each once. What was put together counts as what had no room.
pub(crate) fn read(pins: &Pins) -> Result<Vec<(flow_key, flow)>> {
    let map = pins.open_map("flows")?;
    let began = Instant::now();
    loop {
        let control = Control::of(&map)?;
        let mut list = Vec::new();
        pins.each("flows", |key: flow_key, flow: flow| list.push((key, flow)))?;
        // within one batch all that changes is what does not count; under a long row of them the last look is taken as it is
        if control.sequence == Control::of(&map)?.sequence || began.elapsed() > Duration::from_secs(2) {
            return Ok(counted(&control, list));
        }
    }
}

fn counted(control: &Control, list: Vec<(flow_key, flow)>) -> Vec<(flow_key, flow)> {
    let folded: HashSet<(u64, u64)> = control.folded().iter().map(place).collect();
    let sum = place(&SUMS[control.sum()]);
    let other = flow_key { client: OTHER.0, server: OTHER.1 };
    list.into_iter()
        .filter_map(|(key, flow)| match place(&key) {
            at if at == sum => Some((other, flow)),
            at if at.0 == u64::MAX && at != OTHER => None,
            at => (!folded.contains(&at)).then_some((key, flow)),
        })
        .collect()
}

/// A flow is words that are added up.
fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.chunks_exact(8).filter_map(|word| word.try_into().ok()).map(u64::from_ne_bytes)
}

/// The map of one generation, whose writers are kept out by the lock.
struct Fold(MapHandle);

impl Fold {
    fn value(&self, key: &flow_key) -> Result<Option<Vec<u8>>> {
        self.0.lookup(sys::pod_bytes(key), MapFlags::ANY).map_err(|e| Error::libbpf("reading a flow", e))
    }

    fn write(&self, key: &flow_key, value: &[u8]) -> Result<()> {
        self.0
            .update(sys::pod_bytes(key), value, MapFlags::ANY)
            .map_err(|e| Error::libbpf("putting flows of workloads that are gone together", e))
    }

    fn forget(&self, keys: &[flow_key]) {
        for key in keys {
            let _ = self.0.delete(sys::pod_bytes(key)); // it may be gone since the last try
        }
    }

    /// Nothing may write to the flows of these keys any more.
    fn together(&self, keys: &[flow_key]) -> Result<()> {
        let mut control = Control::of(&self.0)?;
        self.forget(control.folded()); // an interrupted one had got as far as that
        for batch in keys.chunks(BATCH) {
            let before = self.value(&SUMS[control.sum()])?.unwrap_or_default();
            let mut sum: Vec<u64> = words(&before).collect();
            sum.resize(size_of::<flow>() / 8, 0);
            for key in batch {
                let value = self.value(key)?.unwrap_or_default();
                sum.iter_mut().zip(words(&value)).for_each(|(sum, word)| *sum = sum.wrapping_add(word));
            }
            control.sequence += 1;
            control.current = 1 - control.current;
            control.count = batch.len() as u64;
            control.folded[..batch.len()].copy_from_slice(batch);
            let sum: Vec<u8> = sum.into_iter().flat_map(u64::to_ne_bytes).collect();
            self.write(&SUMS[control.sum()], &sum)?;
            failpoint::step("fold: summed up");
            self.write(&CONTROL, sys::pod_bytes(&control))?;
            failpoint::step("fold: in force");
            self.forget(batch);
            failpoint::step("fold: deleted");
        }
        Ok(())
    }
}

/// From so many entries on flows are put together. Debug: the environment may give another number.
fn threshold(room: usize) -> usize {
    let debug = std::env::var("SHARED_SOCKET_DEBUG_FLOWS").ok().and_then(|v| v.parse().ok());
    debug.unwrap_or(room / 2)
}

impl Datapath {
    /// Flows of workloads that are gone, when the map is more than half full: first those with both ends gone, then, if that
    /// is not enough, those with one. Cgroup ids are not used again, so nobody adds to any of them.
    pub(crate) fn fold_gone(&self) -> Result<()> {
        let map = self.pins.open_map("flows")?;
        let limit = threshold(map.max_entries() as usize);
        let mut keys: Vec<flow_key> = Vec::new();
        self.pins.each("flows", |key: flow_key, _: flow| keys.push(key))?;
        keys.retain(|key| key.client != u64::MAX);
        if keys.len() <= limit {
            return Ok(());
        }
        let Ok(root) = host::cgroup2_mount() else { return Ok(()) };
        // below a cgroup namespace the others cannot be seen
        if std::fs::metadata(&root).map_or(true, |meta| meta.ino() != 1) {
            return Ok(());
        }
        let mut there: HashSet<u64> = HashSet::new();
        for pins in self.all() {
            there.extend(pins.workloads()?.iter().map(|(id, _)| *id));
        }
        let ids: HashSet<u64> = keys.iter().flat_map(|key| [key.client, key.server]).filter(|id| *id != 0).collect();
        let ids: Vec<u64> = ids.difference(&there).copied().collect();
        there.extend(cgroup_paths(&root, &ids).into_keys());
        if ids.iter().all(|id| there.contains(id)) {
            return Ok(());
        }
        // a program that had found a workload before it was let go has ended by then, and the half that it made is seen
        std::thread::sleep(Duration::from_millis(20));
        for pins in self.all() {
            // also the retired ones: their sums may be on their way
            pins.each("halves", |_: u64, half: types::half| there.extend([half.workload, half.peer_workload]))?;
        }
        there.remove(&0); // no other end
        let is_there = |id: u64| there.contains(&id);
        let (mut gone, rest): (Vec<flow_key>, Vec<flow_key>) =
            keys.iter().partition(|key| !is_there(key.client) && !is_there(key.server));
        if rest.len() > limit {
            let half_gone = |key: &&flow_key| !is_there(key.client) || (key.server != 0 && !is_there(key.server));
            gone.extend(rest.iter().filter(half_gone));
        }
        if !gone.is_empty() {
            tracing::info!(flows = gone.len(), of = keys.len(), "putting flows of workloads that are gone together");
        }
        Fold(map).together(&gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(client: u64, server: u64) -> flow_key {
        flow_key { client, server }
    }

    #[test]
    fn before_and_after_the_replacement_it_is_the_same_sum() {
        let of = |pairs| flow { pairs, ..Default::default() };
        let none = [key(0, 0); BATCH];
        let mut control = Control { sequence: 4, current: 0, count: 0, folded: none };
        let map = || {
            let sums = [(SUMS[0], of(10)), (SUMS[1], of(13)), (CONTROL, of(99))];
            [(key(7, 8), of(3)), (key(7, 9), of(5)), (key(u64::MAX, u64::MAX), of(1))].into_iter().chain(sums).collect()
        };
        let pairs = |list: &[(flow_key, flow)]| list.iter().map(|(_, f)| f.pairs).sum::<u64>();
        let before = counted(&control, map());
        assert_eq!((pairs(&before), before.len()), (19, 4));
        (control.current, control.count, control.folded[0]) = (1, 1, key(7, 8));
        let after = counted(&control, map());
        assert_eq!((pairs(&after), after.len()), (19, 3));
        assert!(after.iter().all(|(k, _)| place(k) == OTHER || place(k) == (7, 9)));
    }

    #[test]
    fn a_flow_is_words() {
        assert_eq!(size_of::<flow>() % 8, 0);
        let mut f = flow { pairs: 3, ..Default::default() };
        f.waits[31] = 4;
        assert_eq!(words(sys::pod_bytes(&f)).sum::<u64>(), 7);
    }
}

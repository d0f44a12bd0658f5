//! What the programs tell userspace (the ring buffer `events`), and the end of connections that are stuck.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use libbpf_rs::RingBufferBuilder;
use serde::Serialize;

use crate::adopt::in_each;
use crate::pins::Pins;
use crate::skel::types;
use crate::{Datapath, Endpoint, Error, KindKey, Result, Role, hazard_names, sys, upkeep};

/// The program that resets; only where the kernel has `bpf_sock_destroy` (6.5).
pub const RESET: &str = "shared_socket_reset";

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// Redirected bytes are unread, and the application reads in a way that does not see them.
    Stuck,
    /// A socket option was refused (`EBUSY`), as it would have hidden redirected bytes that are unread.
    Refused,
    /// The connection of a stuck half was reset.
    Reset,
    /// The peer has reset the connection and the kernel has dropped that RST: this end waits in vain.
    Untold,
    /// A later version's.
    Unknown,
}

/// One event.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub time_ns: u64,
    /// What happened.
    pub what: What,
    /// Cookie of the socket.
    pub cookie: u64,
    /// cgroup id of the socket.
    pub cgroup_id: u64,
    /// Which end it is.
    pub role: Role,
    /// Address of this end, if the connection still has a record.
    pub local: Option<Endpoint>,
    /// Address of the other end: likewise, or the destination of its kind.
    pub remote: Option<Endpoint>,
    /// What the application did.
    pub hazards: Vec<&'static str>,
}

impl Event {
    fn read(bytes: &[u8], datapath: &Datapath) -> Option<Self> {
        let raw: types::event = sys::read_pod(bytes)?;
        let what = match types::event_what(raw.what) {
            types::event_what::EVENT_STUCK => What::Stuck,
            types::event_what::EVENT_REFUSED => What::Refused,
            types::event_what::EVENT_RESET => What::Reset,
            types::event_what::EVENT_UNTOLD => What::Untold,
            _ => What::Unknown,
        };
        let kind = KindKey::read(&raw.kind);
        let half = datapath.half(raw.half.cookie, raw.half.generation);
        let destination = |addr: IpAddr| Endpoint { addr, port: kind.port };
        Some(Self {
            time_ns: raw.time_ns,
            what,
            cookie: raw.half.cookie,
            cgroup_id: raw.kind.cgroup,
            role: kind.role,
            local: half.as_ref().map(|h| h.local),
            remote: half.map(|h| h.remote).or_else(|| kind.addr.map(destination)),
            hazards: hazard_names(raw.hazards),
        })
    }
}

/// Reads events as they come, and resets what stays stuck. One reader at a time: an event is told once.
pub struct Guard {
    dir: PathBuf,
    grace: Duration,
    /// Stuck halves are looked at when the grace of the last of them is over.
    due: Option<Instant>,
    /// When the records are swept next.
    sweep: Instant,
}

/// How often the records are swept: so long an end may wait that was not told of a reset.
const SWEEP: Duration = Duration::from_secs(5);

impl Guard {
    /// Of what is pinned below `dir`, now or later. A half that stays stuck for `grace` is reset.
    pub fn new(dir: PathBuf, grace: Duration) -> Self {
        Self { dir, grace, due: None, sweep: Instant::now() }
    }

    /// Serves the generation in use until another one is, or nothing is pinned any more; waits at most `patience` for
    /// events before it looks. False when nothing is pinned.
    pub fn serve(&mut self, patience: Duration, mut told: impl FnMut(&Event)) -> Result<bool> {
        let opened = Datapath::reading(&self.dir, |d| d.map("events").map(|map| (d, map)))?;
        let Some((datapath, map)) = opened else { return Ok(false) };
        let mut seen: Vec<Event> = Vec::new();
        let found = std::cell::RefCell::new(&mut seen);
        let what = |e| Error::libbpf("reading the events", e);
        let mut builder = RingBufferBuilder::new();
        let take = |bytes: &[u8]| {
            found.borrow_mut().extend(Event::read(bytes, &datapath));
            0
        };
        builder.add(&map, take).map_err(what)?;
        let ring = builder.build().map_err(what)?;
        // what an earlier guard was told and did not live to see to
        self.due.get_or_insert_with(|| Instant::now() + self.grace);
        loop {
            let now = Instant::now();
            let next = self.due.map_or(self.sweep, |due| due.min(self.sweep));
            let wait = next.saturating_duration_since(now).min(patience);
            match ring.poll(wait + Duration::from_millis(1)) {
                Err(e) if e.kind() != libbpf_rs::ErrorKind::Interrupted => return Err(what(e)),
                _ => {}
            }
            for event in std::mem::take(&mut **found.borrow_mut()) {
                if matches!(event.what, What::Stuck | What::Untold) {
                    self.due = Some(Instant::now() + self.grace);
                }
                told(&event);
            }
            if self.sweep <= Instant::now() {
                self.sweep = Instant::now() + SWEEP;
                for pins in datapath.readable() {
                    upkeep::sweep_halves(pins)?;
                }
            }
            if self.due.is_some_and(|due| due <= Instant::now()) {
                self.due = None;
                datapath.reset_stuck()?;
                ring.consume().map_err(what)?; // it tells of each
                for event in std::mem::take(&mut **found.borrow_mut()) {
                    told(&event);
                }
            }
            let is_current = |pins: &Pins| pins.map(crate::pins::ABOUT).exists();
            let newest = Datapath::view(&self.dir, None)?;
            if !is_current(&datapath.pins) || newest.is_none_or(|n| n.pins.number != datapath.pins.number) {
                return Ok(true);
            }
        }
    }
}

impl Datapath {
    /// Resets connections that are stuck; how many. Nothing where the kernel cannot (before 6.5).
    pub fn reset_stuck(&self) -> Result<usize> {
        let stuck = |pins: &&Pins| pins.program(RESET).exists() && has_stuck(pins).unwrap_or(true);
        let generations: Vec<&Pins> = self.readable().filter(stuck).collect();
        if generations.is_empty() {
            return Ok(0);
        }
        let namespaces = self.namespaces()?;
        let mut count = 0;
        for pins in generations {
            count += in_each::<u64>(pins, RESET, &namespaces.iter().collect::<Vec<_>>(), Duration::ZERO)?.len();
        }
        Ok(count)
    }
}

/// Does any record say so? The iterator looks at every socket of every namespace.
fn has_stuck(pins: &Pins) -> Result<bool> {
    use libbpf_rs::{MapCore, MapFlags};
    let map = pins.open_map("halves")?;
    let stuck = u64::from(types::gate::GATE_STUCK.0);
    let found = map.keys().any(|key| {
        let value = map.lookup(&key, MapFlags::ANY).ok().flatten();
        value.as_deref().and_then(sys::read_pod::<types::half>).is_some_and(|h| h.gate & stuck != 0)
    });
    Ok(found)
}

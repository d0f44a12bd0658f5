//! A capture that runs: the tap, the journal for what ends, and names.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use datapath::{Datapath, Entry, Half, Journal, Start, Tap, TapCounts, TapOptions, Tapped, now_ns};

use super::{Captured, Recorder, World};
use crate::observe::Name;
use crate::observe::filter::Filter;

/// How often it is looked for other pins: an upgrade may have made new ones.
const REOPEN: Duration = Duration::from_secs(2);

/// Longer than anything waits.
const LONG: Duration = Duration::from_secs(3600);

/// Who knows whose a cgroup is.
pub trait Naming {
    /// Whose a cgroup is; `workload` is the attached one above it.
    fn name(&mut self, cgroup: u64, workload: u64) -> Name;
}

/// Nobody is asked: a cgroup's name is its number.
#[derive(Debug)]
pub struct Numbers;

impl Naming for Numbers {
    fn name(&mut self, cgroup: u64, _workload: u64) -> Name {
        Name { name: format!("cgroup {cgroup}"), ..Name::default() }
    }
}

/// Messages as they are sent, with names.
pub struct Live<N> {
    dir: PathBuf,
    datapath: Datapath,
    opened: Instant,
    tap: Tap,
    journal: Journal,
    recorder: Recorder,
    names: N,
    taken: Vec<Tapped>,
    /// Events that are later than the messages that were read.
    events: VecDeque<Entry>,
}

struct Looking<'a, N> {
    datapath: &'a Datapath,
    names: &'a mut N,
}

impl<N: Naming> World for Looking<'_, N> {
    fn half(&self, cookie: u64) -> Option<Half> {
        self.datapath.half_of(cookie)
    }

    fn name(&mut self, cgroup: u64, workload: u64) -> Name {
        self.names.name(cgroup, workload)
    }
}

impl<N: Naming> Live<N> {
    /// Begins; `None` when nothing is pinned below `dir`. Of the connections that the filter lets through, one in `one_in`.
    pub fn open(
        dir: &Path,
        options: TapOptions,
        filter: Filter,
        one_in: u32,
        names: N,
    ) -> anyhow::Result<Option<Self>> {
        let journal = Journal::open(dir, Start::Now)?;
        let Some(tap) = Tap::open(dir, options)? else { return Ok(None) };
        let Some(datapath) = Datapath::read(dir)? else { return Ok(None) };
        Ok(Some(Self {
            dir: dir.to_path_buf(),
            datapath,
            opened: Instant::now(),
            tap,
            journal,
            recorder: Recorder::new(filter, one_in),
            names,
            taken: Vec::new(),
            events: VecDeque::new(),
        }))
    }

    /// Waits for messages, `patience` at most, and hands on what is ready. False when nothing is pinned any more.
    pub fn read(
        &mut self,
        patience: Duration,
        mut see: impl FnMut(Captured) -> anyhow::Result<()>,
    ) -> anyhow::Result<bool> {
        let until = now_ns();
        let goes_on = self.tap.read(patience, &mut self.taken)?;
        self.record(goes_on.then_some(until))?;
        let now = Instant::now();
        if self.opened.elapsed() >= REOPEN {
            self.opened = now;
            if let Some(datapath) = Datapath::read(&self.dir)? {
                self.datapath = datapath;
            }
        }
        self.hand_on(now, &mut see)?;
        Ok(goes_on)
    }

    /// Captures nothing more, and hands on all that was.
    pub fn rest(&mut self, mut see: impl FnMut(Captured) -> anyhow::Result<()>) -> anyhow::Result<()> {
        self.tap.stop()?;
        loop {
            self.tap.read(Duration::ZERO, &mut self.taken)?;
            let is_last = self.taken.is_empty();
            self.record(if is_last { None } else { Some(0) })?;
            let now = if is_last { Instant::now() + LONG } else { Instant::now() };
            self.hand_on(now, &mut see)?;
            if is_last {
                return Ok(());
            }
        }
    }

    /// Takes what was read, and what the journal tells of the time until then, so that a connection's end comes behind its
    /// messages. `until`: CLOCK_MONOTONIC, before the tap was read; `None`: all.
    fn record(&mut self, until: Option<u64>) -> anyhow::Result<()> {
        let now = Instant::now();
        for message in self.taken.drain(..) {
            self.recorder.take(message, now);
        }
        self.recorder.ask(&Looking { datapath: &self.datapath, names: &mut self.names });
        self.events.extend(self.journal.read(until.is_none())?.entries);
        if until.is_none() || self.tap.is_drained() {
            let is_due = |e: &Entry| until.is_none_or(|until| e.time_ns < until);
            while self.events.front().is_some_and(is_due) {
                let Some(entry) = self.events.pop_front() else { break };
                self.recorder.tell(&entry, now);
            }
        }
        Ok(())
    }

    fn hand_on(&mut self, now: Instant, see: &mut impl FnMut(Captured) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let mut refused = Vec::new();
        let mut world = Looking { datapath: &self.datapath, names: &mut self.names };
        while let Some(captured) = self.recorder.next(now, &mut world, |cookie, generation| {
            refused.push((cookie, generation));
        }) {
            see(captured)?;
        }
        for (cookie, generation) in refused {
            self.tap.choose(cookie, generation, false)?;
        }
        Ok(())
    }

    /// What the tap has copied so far, and what it has not.
    pub fn counts(&self) -> TapCounts {
        self.tap.counts()
    }
}

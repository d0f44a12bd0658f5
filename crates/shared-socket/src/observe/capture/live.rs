//! A capture that runs: the tap, the journal for what ends, and names.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use datapath::{Datapath, Half, Journal, Start, Tap, TapCounts, TapOptions, Tapped};

use super::{Captured, Recorder, World};
use crate::observe::Name;
use crate::observe::filter::Filter;

/// How often it is looked for other pins: an upgrade may have made new ones.
const REOPEN: Duration = Duration::from_secs(2);

/// Who knows whose a cgroup is.
pub trait Naming {
    /// Whose a cgroup is; `workload` is the attached one above it.
    fn name(&mut self, cgroup: u64, workload: u64) -> Name;
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
    /// Begins; `None` when nothing is pinned below `dir`.
    pub fn open(dir: &Path, options: TapOptions, filter: Filter, names: N) -> anyhow::Result<Option<Self>> {
        let journal = Journal::open(dir, Start::Now)?;
        let Some(tap) = Tap::open(dir, options)? else { return Ok(None) };
        let Some(datapath) = Datapath::read(dir)? else { return Ok(None) };
        Ok(Some(Self {
            dir: dir.to_path_buf(),
            datapath,
            opened: Instant::now(),
            tap,
            journal,
            recorder: Recorder::new(filter),
            names,
            taken: Vec::new(),
        }))
    }

    /// Waits for messages, `patience` at most, and hands on what is ready. False when nothing is pinned any more.
    pub fn read(
        &mut self,
        patience: Duration,
        mut see: impl FnMut(Captured) -> anyhow::Result<()>,
    ) -> anyhow::Result<bool> {
        let goes_on = self.tap.read(patience, &mut self.taken)?;
        let now = Instant::now();
        for message in self.taken.drain(..) {
            self.recorder.take(message, now);
        }
        self.recorder.ask(&Looking { datapath: &self.datapath, names: &mut self.names });
        for entry in self.journal.read(!goes_on)?.entries {
            self.recorder.tell(&entry, now);
        }
        if self.opened.elapsed() >= REOPEN {
            self.opened = now;
            if let Some(datapath) = Datapath::read(&self.dir)? {
                self.datapath = datapath;
            }
        }
        self.hand_on(now, &mut see)?;
        Ok(goes_on)
    }

    /// What is still waiting: nothing more comes.
    pub fn rest(&mut self, mut see: impl FnMut(Captured) -> anyhow::Result<()>) -> anyhow::Result<()> {
        self.read(Duration::ZERO, &mut see)?;
        let now = Instant::now();
        for entry in self.journal.read(true)?.entries {
            self.recorder.tell(&entry, now);
        }
        let later = Instant::now() + Duration::from_secs(3600);
        self.hand_on(later, &mut see)
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

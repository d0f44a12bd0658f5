//! Names for a command that goes on for long.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::target::RuntimeArgs;
use crate::observe::capture::{Naming, Numbers};
use crate::observe::{Name, Names as Table};

/// How often the runtimes are asked again, when cgroups come that there is no name for.
const ASK: Duration = Duration::from_secs(2);

/// Names, asked for again when cgroups come that were not there before.
pub(super) struct Known {
    runtimes: RuntimeArgs,
    names: Table,
    seen: HashSet<u64>,
    asked: Instant,
}

impl Known {
    pub(super) fn new(runtimes: RuntimeArgs) -> anyhow::Result<Self> {
        Ok(Self { names: runtimes.names()?, runtimes, seen: HashSet::new(), asked: Instant::now() })
    }

    pub(super) fn names(&self) -> &Table {
        &self.names
    }

    /// These ids come up.
    pub(super) fn learn(&mut self, ids: impl IntoIterator<Item = u64>) {
        let fresh: HashSet<u64> = ids.into_iter().filter(|id| *id != 0 && !self.seen.contains(id)).collect();
        if fresh.is_empty() {
            return;
        }
        if self.asked.elapsed() >= ASK {
            self.asked = Instant::now();
            if let Ok(names) = self.runtimes.names() {
                self.names = names.with_paths(self.seen.iter().copied());
            }
        }
        self.names = std::mem::take(&mut self.names).with_paths(fresh.iter().copied());
        self.seen.extend(fresh);
    }
}

/// Names, or numbers.
pub(super) enum Names {
    Known(Box<Known>),
    Numbers,
}

impl Names {
    pub(super) fn new(numeric: bool, runtimes: &RuntimeArgs) -> anyhow::Result<Self> {
        Ok(if numeric { Self::Numbers } else { Self::Known(Known::new(runtimes.clone())?.into()) })
    }
}

impl Naming for Names {
    fn name(&mut self, cgroup: u64, workload: u64) -> Name {
        match self {
            Self::Known(known) => known.name(cgroup, workload),
            Self::Numbers => Numbers.name(cgroup, workload),
        }
    }
}

impl Naming for Known {
    fn name(&mut self, cgroup: u64, workload: u64) -> Name {
        self.learn([cgroup, workload]);
        self.names.of(cgroup, workload)
    }
}

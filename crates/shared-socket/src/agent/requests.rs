//! The agent's glimpse of requests: a thread that reads from a tap, as `shared-socket requests` does.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use datapath::TapOptions;

use super::config::RequestsConfig;
use super::serve::{Shared, told};
use crate::observe::capture::{Live, Naming};
use crate::observe::filter::Filter;
use crate::observe::metrics::Requests;
use crate::observe::requests::Glimpse;
use crate::observe::{Name, Names};

/// How often the ring buffer is looked at: it holds what comes in many times that.
const LOOK: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_millis(500);
/// Until something is attached, or a tap can be had.
const AGAIN: Duration = Duration::from_secs(2);
const BUFFER: u32 = 8 << 20;

/// Looks as long as it lives.
#[derive(Debug)]
pub struct Looking {
    ended: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug)]
struct Seen {
    glimpse: Glimpse,
    /// Of taps that are gone, and of the one that is there.
    lost: [u64; 2],
}

/// As of the last round.
struct Told {
    shared: Shared,
    last: Arc<Names>,
    names: Names,
}

impl Naming for Told {
    fn name(&mut self, cgroup: u64, workload: u64) -> Name {
        let now = told(&self.shared).names.clone();
        if !Arc::ptr_eq(&now, &self.last) {
            self.names = (*now).clone();
            self.last = now;
        }
        self.names = std::mem::take(&mut self.names).with_paths([cgroup, workload]);
        self.names.of(cgroup, workload)
    }
}

impl Looking {
    /// Begins. `most`: pairs of workloads that have sums of their own.
    pub fn start(config: RequestsConfig, pin_dir: PathBuf, shared: Shared, most: usize) -> anyhow::Result<Self> {
        let glimpse = Glimpse::new(config.protocol, most);
        let (ended, seen) = (Arc::<AtomicBool>::default(), Arc::new(Mutex::new(Seen { glimpse, lost: [0; 2] })));
        let looking = Self { ended: ended.clone(), seen: seen.clone() };
        let run = move || {
            let mut warned = false;
            while !ended.load(Ordering::Relaxed) {
                match look(&config, &pin_dir, &shared, &seen, &ended) {
                    Err(e) if !warned => {
                        warned = true;
                        tracing::warn!("requests are not seen: {e:#}; it is tried again");
                    }
                    Err(_) => {}
                    Ok(()) => warned = false,
                }
                std::thread::sleep(AGAIN);
            }
        };
        std::thread::Builder::new().name("requests".into()).spawn(run).context("starting a thread")?;
        Ok(looking)
    }

    /// What was seen so far.
    pub fn read(&self) -> Requests {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let glimpse = &seen.glimpse;
        let rows = glimpse.table.rows().into_iter();
        Requests {
            rows: rows.map(|row| (glimpse.name(&row.client), glimpse.name(&row.server), row)).collect(),
            lost: glimpse.lost(),
            lost_pieces: seen.lost.iter().sum(),
        }
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// Until nothing is pinned any more, or nobody wants to see.
fn look(
    config: &RequestsConfig,
    pin_dir: &std::path::Path,
    shared: &Shared,
    seen: &Mutex<Seen>,
    ended: &AtomicBool,
) -> anyhow::Result<()> {
    let options = TapOptions { snaplen: config.snaplen, buffer_bytes: BUFFER, look: LOOK, ..TapOptions::default() };
    if !pin_dir.exists() {
        return Ok(());
    }
    let names = Told { shared: shared.clone(), last: Arc::default(), names: Names::default() };
    let Some(mut live) = Live::open(pin_dir, options, Filter::ALL, config.one_in, names)? else { return Ok(()) };
    let lock = || seen.lock().unwrap_or_else(PoisonError::into_inner);
    let mut goes_on = true;
    while goes_on && !ended.load(Ordering::Relaxed) {
        goes_on = live.read(PATIENCE, |c| {
            lock().glimpse.see(&c, |_| ());
            Ok(())
        })?;
        lock().lost[1] = live.counts().lost;
    }
    let mut seen = lock();
    seen.lost = [seen.lost.iter().sum(), 0];
    Ok(())
}

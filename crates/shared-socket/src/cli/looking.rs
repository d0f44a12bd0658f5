//! `top --requests`: a thread of its own reads from a tap, which cannot be handed from one to another.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use datapath::TapOptions;

use super::known::Names;
use super::target::RuntimeArgs;
use crate::observe::capture::Live;
use crate::observe::filter::Filter;
use crate::observe::requests::Glimpse;
use crate::top::requests::Seen;

/// Messages are waited for so long before it is looked whether that is the end.
const PATIENCE: Duration = Duration::from_millis(100);
/// Until a tap is tried for again.
const AGAIN: Duration = Duration::from_secs(2);
/// As by default of `requests`.
const SNAPLEN: u32 = 4096;
/// Pairs of workloads that have a row.
const ROWS: usize = 1000;

/// What the tap is for.
pub(super) struct Wanted {
    pub(super) pin_dir: PathBuf,
    pub(super) filter: Filter,
    pub(super) numeric: bool,
    pub(super) runtimes: RuntimeArgs,
}

/// Looks as long as it lives; when it is gone, so is the tap.
pub(super) struct Looking {
    ended: Arc<AtomicBool>,
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

struct State {
    glimpse: Glimpse,
    /// Pieces, of taps that are gone, and of the one that is there.
    lost: [u64; 2],
    way: Way,
}

enum Way {
    /// No tap was tried for yet.
    Begins,
    Sees,
    Fails(String),
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Looking {
    pub(super) fn start(wanted: Wanted) -> anyhow::Result<Self> {
        let ended = Arc::<AtomicBool>::default();
        let state = State { glimpse: Glimpse::new(None, ROWS), lost: [0; 2], way: Way::Begins };
        let state = Arc::new(Mutex::new(state));
        let (is_end, told) = (ended.clone(), state.clone());
        let run = move || {
            while !is_end.load(Ordering::Relaxed) {
                let done = look(&wanted, &told, &is_end);
                let mut state = lock(&told);
                state.lost = [state.lost.iter().sum(), 0];
                match done {
                    Ok(()) if is_end.load(Ordering::Relaxed) => return, // of its own will: that is no failure
                    Ok(()) => state.way = Way::Fails("nothing is attached".into()),
                    Err(e) => state.way = Way::Fails(format!("{e:#}")),
                }
                drop(state);
                std::thread::park_timeout(AGAIN); // the end wakes it
            }
        };
        let thread = std::thread::Builder::new().name("requests".into()).spawn(run).context("starting a thread")?;
        Ok(Self { ended, state, thread: Some(thread) })
    }

    /// What was seen so far.
    pub(super) fn read(&self) -> Seen {
        let state = lock(&self.state);
        let problem = match &state.way {
            Way::Begins => Some("requests are seen in a moment".into()),
            Way::Sees if self.thread.as_ref().is_some_and(JoinHandle::is_finished) => {
                Some("requests are not seen any more: a bug of this command".into())
            }
            Way::Sees => None,
            Way::Fails(why) => Some(format!("requests are not seen: {why}; it is tried again")),
        };
        Seen {
            rows: state.glimpse.table.rows(),
            lost: state.glimpse.lost(),
            lost_pieces: state.lost.iter().sum(),
            problem,
        }
    }

    /// A tap is there, or cannot be had.
    pub(super) fn has_begun(&self) -> bool {
        !matches!(lock(&self.state).way, Way::Begins)
    }

    /// Takes the tap out; what it has copied until now is seen.
    pub(super) fn end(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join(); // its panic was told
        }
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        self.end();
    }
}

/// Until nothing is pinned any more, or it is the end.
fn look(wanted: &Wanted, state: &Mutex<State>, ended: &AtomicBool) -> anyhow::Result<()> {
    let options = TapOptions { snaplen: SNAPLEN, ..TapOptions::default() };
    let names = Names::new(wanted.numeric, &wanted.runtimes)?;
    let Some(mut live) = Live::open(&wanted.pin_dir, options, wanted.filter.clone(), 1, names)? else { return Ok(()) };
    lock(state).way = Way::Sees;
    let see = |c| {
        lock(state).glimpse.see(&c, |_| ());
        Ok(())
    };
    let mut goes_on = true;
    while goes_on && !ended.load(Ordering::Relaxed) {
        goes_on = live.read(PATIENCE, see)?;
        lock(state).lost[1] = live.counts().lost;
    }
    live.rest(see)?;
    lock(state).lost[1] = live.counts().lost;
    Ok(())
}

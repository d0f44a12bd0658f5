//! A glimpse that goes on beside something else (the agent, `top`): a tap cannot be handed from one thread to another, so one
//! of its own reads from it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use datapath::TapOptions;

use super::{Glimpse, Protocol, Row};
use crate::observe::Name;
use crate::observe::capture::{Live, Naming};
use crate::observe::filter::Filter;

/// Messages are waited for so long before it is looked whether that is the end.
const PATIENCE: Duration = Duration::from_millis(100);
/// Until a tap is tried for again.
const AGAIN: Duration = Duration::from_secs(2);

/// What is looked at.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Where the datapath is pinned, now or later.
    pub pin_dir: PathBuf,
    /// Which connections,
    pub filter: Filter,
    /// and of so many of these, one.
    pub one_in: u32,
    /// How the tap is set up.
    pub tap: TapOptions,
    /// Only this protocol.
    pub only: Option<Protocol>,
    /// Pairs of workloads that have sums of their own.
    pub rows: usize,
}

/// What was seen so far, and why nothing is seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Sums since it began.
    pub rows: Vec<Row>,
    /// Requests whose answers could not be found.
    pub lost: u64,
    /// Pieces of messages that were lost.
    pub lost_pieces: u64,
    /// Why nothing is seen now.
    pub problem: Option<String>,
}

/// Looks as long as it lives; when it is gone, so is the tap.
#[derive(Debug)]
pub struct Looking {
    ended: Arc<AtomicBool>,
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct State {
    glimpse: Glimpse,
    /// Pieces, of taps that are gone, and of the one that is there.
    lost: [u64; 2],
    way: Way,
}

#[derive(Debug, PartialEq, Eq)]
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
    /// Begins. `names` is asked for them whenever a tap is made, on the thread that uses them; `failed` hears of each new reason for
    /// which there is none.
    pub fn start<N: Naming>(
        wanted: Wanted,
        names: impl Fn() -> anyhow::Result<N> + Send + 'static,
        failed: impl Fn(&str) + Send + 'static,
    ) -> anyhow::Result<Self> {
        let ended = Arc::<AtomicBool>::default();
        let state = State { glimpse: Glimpse::new(wanted.only, wanted.rows), lost: [0; 2], way: Way::Begins };
        let state = Arc::new(Mutex::new(state));
        let (is_end, told) = (ended.clone(), state.clone());
        let run = move || {
            let mut known = String::new();
            while !is_end.load(Ordering::Relaxed) {
                let done = look(&wanted, &names, &told, &is_end);
                let mut state = lock(&told);
                state.lost = [state.lost.iter().sum(), 0];
                let why = match done {
                    Ok(()) if is_end.load(Ordering::Relaxed) => return, // of its own will: that is no failure
                    Ok(()) => "nothing is attached".to_owned(),
                    Err(e) => format!("{e:#}"),
                };
                state.way = Way::Fails(why.clone());
                drop(state);
                if known != why {
                    failed(&why);
                    known = why;
                }
                std::thread::park_timeout(AGAIN); // the end wakes it
            }
        };
        let thread = std::thread::Builder::new().name("requests".into()).spawn(run).context("starting a thread")?;
        Ok(Self { ended, state, thread: Some(thread) })
    }

    /// What was seen so far.
    pub fn read(&self) -> Seen {
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

    /// The parts of a name that stands in a row.
    pub fn name(&self, name: &str) -> Name {
        lock(&self.state).glimpse.name(name)
    }

    /// A tap is there, or cannot be had.
    pub fn has_begun(&self) -> bool {
        lock(&self.state).way != Way::Begins
    }

    /// Takes the tap out; what it has copied until now is seen. Nothing that the thread waits for may be held.
    pub fn end(&mut self) {
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
fn look<N: Naming>(
    wanted: &Wanted,
    names: &impl Fn() -> anyhow::Result<N>,
    state: &Mutex<State>,
    ended: &AtomicBool,
) -> anyhow::Result<()> {
    let (tap, filter) = (wanted.tap.clone(), wanted.filter.clone());
    let Some(mut live) = Live::open(&wanted.pin_dir, tap, filter, wanted.one_in, names()?)? else { return Ok(()) };
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

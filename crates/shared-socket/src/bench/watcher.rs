//! Who looks at messages while they are measured: a capture that writes them all, or a glimpse of requests.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use datapath::{TapOptions, now_ns};

use super::matrix::Path;
use crate::observe::capture::{Captured, Live, Numbers, What, Writer};
use crate::observe::clock_offset;
use crate::observe::filter::Filter;
use crate::observe::requests::{Glimpse, SNAPLEN};

/// Messages are waited for so long before it is looked whether that is the end.
const PATIENCE: Duration = Duration::from_millis(20);

/// What was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    /// Messages.
    pub messages: u64,
    /// Pieces of messages for which the buffer had no room.
    pub lost: u64,
    /// Requests with their answers.
    pub requests: u64,
}

/// Looks on a thread of its own until it is asked to end.
#[derive(Debug)]
pub struct Watcher {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Watched>>>,
}

impl Watcher {
    /// Begins to look at what is pinned, as this path says; `None` when it says that nobody does.
    pub fn start(path: Path, pin_dir: Option<PathBuf>) -> Result<Option<Self>> {
        let Some(pin_dir) = pin_dir.filter(|_| path.is_watched()) else { return Ok(None) };
        let ended = Arc::<AtomicBool>::default();
        let is_end = ended.clone();
        let (began, begins) = channel();
        let run = move || watch(path, &pin_dir, &is_end, began);
        let thread = std::thread::Builder::new().name("watcher".into()).spawn(run).context("starting a thread")?;
        let watcher = Self { ended, thread: Some(thread) };
        match begins.recv() {
            Ok(()) => Ok(Some(watcher)),
            Err(_) => Err(watcher.end().err().unwrap_or_else(|| anyhow!("nothing is attached"))),
        }
    }

    /// Ends it; what it has seen.
    pub fn end(mut self) -> Result<Watched> {
        self.join().unwrap_or_else(|| Ok(Watched::default()))
    }

    fn join(&mut self) -> Option<Result<Watched>> {
        self.ended.store(true, Ordering::Relaxed);
        let done = self.thread.take()?.join();
        Some(done.unwrap_or_else(|_| Err(anyhow!("the thread that looks at messages panicked"))))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.join(); // a measurement that failed says why itself
    }
}

fn watch(path: Path, pin_dir: &std::path::Path, ended: &AtomicBool, began: Sender<()>) -> Result<Watched> {
    let capturing = path == Path::Captured;
    let options = TapOptions { snaplen: if capturing { u32::MAX } else { SNAPLEN }, ..TapOptions::default() };
    let filter: Filter = "".parse().map_err(|e| anyhow!("an empty filter: {e}"))?;
    let Some(mut live) = Live::open(pin_dir, options, filter, 1, Numbers)? else { return Ok(Watched::default()) };
    let mut file = Writer::new(std::io::sink(), i64::try_from(clock_offset()).unwrap_or_default(), "", u32::MAX)?;
    let mut glimpse = Glimpse::new(None, 16);
    let mut watched = Watched::default();
    let _ = began.send(()); // who asked is gone: so is `ended` set
    let mut see = |c: Captured| {
        watched.messages += u64::from(matches!(c.what, What::Data { .. }));
        if capturing {
            file.write(&c)?;
        } else {
            glimpse.see(&c, |_| watched.requests += 1);
        }
        anyhow::Ok(())
    };
    while !ended.load(Ordering::Relaxed) && live.read(PATIENCE, &mut see)? {}
    live.rest(&mut see)?;
    watched.lost = live.counts().lost;
    file.finish(now_ns(), watched.lost)?;
    Ok(watched)
}

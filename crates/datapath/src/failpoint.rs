//! Debug: die at a chosen step, to prove that a death at any step does no harm.
//!
//! `SHARED_SOCKET_DEBUG_DIE_AT=N` makes the N-th step of a command kill its process as `kill -9` would. The tests of
//! crashes raise N until the command comes to its end.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

static DIE_AT: OnceLock<Option<u32>> = OnceLock::new();
static STEPS: AtomicU32 = AtomicU32::new(0);

/// A change of what is pinned or attached was made.
pub fn step(what: &str) {
    let at = DIE_AT.get_or_init(|| std::env::var("SHARED_SOCKET_DEBUG_DIE_AT").ok()?.parse().ok());
    let number = STEPS.fetch_add(1, Ordering::Relaxed) + 1;
    tracing::debug!(number, what, "step");
    if *at == Some(number) {
        eprintln!("dies at step {number} ({what})");
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
    }
}

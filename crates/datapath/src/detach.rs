//! Leaving: no new pairs, live ones out by protocol, then the hooks.

use std::path::Path;
use std::time::{Duration, Instant};

use libbpf_rs::MapCore;

use crate::pins::{self, Pins};
use crate::skel::types;
use crate::view::Datapath;
use crate::{Error, Result, failpoint};

/// What [`Datapath::drain`] left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    /// Halves that could not leave in time; they stay accelerated until they can.
    pub remaining: u64,
}

impl Datapath {
    /// Starts to detach: from now on no new pair of this workload is made. False when it is not attached.
    pub fn start_drain(&self, id: u64) -> Result<bool> {
        let mut known = false;
        for pins in self.all() {
            let how = if pins.abi()? < 2 { types::draining::DRAINING_LEAVE } else { types::draining::DRAINING_CLEAN };
            known |= pins.set_draining(id, how)?;
            failpoint::step("detach: draining");
        }
        Ok(known)
    }

    /// Makes the pairs of draining workloads leave, until all have or `timeout` has passed. Strict pairs get half of it to
    /// find a moment at which nothing is queued.
    pub fn drain(&self, timeout: Duration) -> Result<Drain> {
        let deadline = Instant::now() + timeout;
        let mut pause = Duration::from_millis(1);
        let mut clean = false;
        let mut patient = Some(Instant::now() + timeout / 2);
        loop {
            if patient.is_some_and(|until| Instant::now() >= until) {
                patient = None;
                self.insist()?;
            }
            let remaining = self.drain_once()?;
            // a second look: a handshake that had passed the check of its workload may have entered meanwhile
            if (remaining == 0 && clean) || (remaining > 0 && Instant::now() >= deadline) {
                return Ok(Drain { remaining });
            }
            clean = remaining == 0;
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// From now on every pair of a draining workload leaves, whatever is queued.
    fn insist(&self) -> Result<()> {
        for pins in self.all() {
            for (id, _) in pins.workloads()?.iter().filter(|(_, w)| w.draining == types::draining::DRAINING_CLEAN.0) {
                pins.set_draining(*id, types::draining::DRAINING_LEAVE)?;
                failpoint::step("detach: insisting");
            }
        }
        Ok(())
    }

    pub(crate) fn drain_once(&self) -> Result<u64> {
        let mut remaining = 0;
        for pins in self.all() {
            remaining += pins.drain_once()?;
        }
        failpoint::step("detach: drained");
        Ok(remaining)
    }

    /// Ends a detach: unlinks the cgroup. Call it when [`drain`](Self::drain) left nothing.
    pub fn finish_detach(&self, id: u64) -> Result<()> {
        if self.check_version().is_ok() {
            self.note(crate::JournalKind::Detach, id);
        }
        for pins in self.all() {
            forget(pins, id)?;
        }
        Ok(())
    }

    /// Removes every pin if nothing is attached (any more).
    pub fn remove_if_idle(&self) -> Result<()> {
        if self.workloads()?.is_empty() { self.remove_all() } else { Ok(()) }
    }

    /// Removes every pin. Drain first: what is unread stays readable, but nothing serves the end of a pair any more.
    pub fn remove_all(&self) -> Result<()> {
        let what = |dir: &Path| format!("removing the pins in {}", dir.display());
        for pins in self.all() {
            pins.remove().map_err(|e| Error::system(what(pins.dir()), e))?;
            failpoint::step("remove: a generation");
        }
        pins::remove_root(&self.root).map_err(|e| Error::system(what(&self.root), e))
    }
}

/// Takes the hooks of a cgroup away, those first that make pairs, and its entry.
pub(crate) fn forget(pins: &Pins, id: u64) -> Result<()> {
    // all that are there: another version may have more of them
    for path in pins.links(id) {
        pins::remove_pin(&path).map_err(|e| Error::system(format!("removing {}", path.display()), e))?;
        failpoint::step("detach: a hook");
    }
    match pins.open_map("workloads")?.delete(&id.to_ne_bytes()) {
        Err(e) if e.kind() != libbpf_rs::ErrorKind::NotFound => {
            return Err(Error::libbpf(format!("forgetting the workload {id}"), e));
        }
        _ => failpoint::step("detach: the workload"),
    }
    if pins.map("withheld").exists() {
        let _ = pins.open_map("withheld")?.delete(&id.to_ne_bytes()); // most are not in it
    }
    Ok(())
}

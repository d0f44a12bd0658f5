//! What every command does first while it holds the lock: finish what an interrupted one left, and let go of what is gone.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use libbpf_rs::{MapCore, MapFlags};

use crate::generation::is_leaving;
use crate::load::Eligibility;
use crate::pins::{HOOKS, Pins};
use crate::skel::types;
use crate::view::{Datapath, cgroup_paths};
use crate::{Error, Result, detach, failpoint, host, load, sys, tap};

/// A connect that was given up sends its last SYN within 127 s.
const STALE_HANDSHAKE: Duration = Duration::from_secs(150);

/// How much to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tidy {
    Everything,
    /// For `detach`: drains are its business.
    AllButDrains,
}

impl Datapath {
    /// Every step can be repeated; an interruption at any of them leaves the rest to the next command.
    pub(crate) fn tidy(&self, how: Tidy) -> Result<()> {
        let ours = self.pins.abi()? == load::abi_version();
        if how == Tidy::Everything && ours && self.pins.upgrading().exists() {
            tracing::warn!("an upgrade was interrupted: exchanging the programs once more");
            self.exchange_programs(None)?;
        }
        self.forget_gone()?;
        self.retire_older()?;
        for pins in self.readable() {
            tap::take_out_dead(pins)?;
        }
        if how == Tidy::Everything && ours {
            self.finish_drains()?;
            self.link_missing()?;
        }
        for pins in self.all() {
            sweep_halves(pins)?;
        }
        self.reset_stuck()?; // it has waited for this command, and would wait for ever
        if ours {
            sweep_handshakes(&self.pins)?;
        }
        Ok(())
    }

    /// The hooks of each workload: an attach, or an upgrade to a new generation, may have been interrupted.
    fn link_missing(&self) -> Result<()> {
        let Ok(root) = host::cgroup2_mount() else { return Ok(()) };
        let attached = self.pins.workloads()?;
        let is_bare = |id: u64| HOOKS.iter().any(|hook| !self.pins.link(hook.name, id).exists());
        let bare: Vec<_> = attached.into_iter().filter(|(id, w)| w.draining == 0 && is_bare(*id)).collect();
        let ids: Vec<u64> = bare.iter().map(|(id, _)| *id).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let paths = cgroup_paths(&root, &ids);
        for (id, workload) in bare {
            let eligibility = if workload.eligibility == 0 { Eligibility::Safe } else { Eligibility::All };
            let Some(path) = paths.get(&id) else { continue };
            self.link_hooks(&root.join(path.strip_prefix("/").unwrap_or(path)), id, eligibility)?;
        }
        Ok(())
    }

    /// Older generations make no new pairs and go with their last half.
    pub(crate) fn retire_older(&self) -> Result<()> {
        for pins in self.all().filter(|pins| pins.number != self.pins.number) {
            let mut fresh = false;
            for (id, _) in pins.workloads()?.iter().filter(|(_, w)| w.draining == 0) {
                fresh |= pins.set_draining(*id, types::draining::DRAINING_KEEP)?;
                failpoint::step("upgrade: the old one makes no more pairs");
            }
            if fresh {
                // a handshake that had passed the check of its workload enters now
                std::thread::sleep(Duration::from_millis(20));
            }
            if pins.sockets()? == 0 {
                pins.remove()
                    .map_err(|e| Error::system(format!("removing the old generation {}", pins.dir().display()), e))?;
            }
        }
        Ok(())
    }

    /// A detach that was interrupted, or could not drain, and can now.
    fn finish_drains(&self) -> Result<()> {
        for pins in self.all() {
            let ids: Vec<u64> = pins.workloads()?.iter().filter(|(_, w)| is_leaving(w)).map(|(id, _)| *id).collect();
            if !ids.is_empty() && pins.drain_once()? == 0 {
                for id in ids {
                    detach::forget(pins, id)?;
                }
            }
        }
        Ok(())
    }

    /// Cgroups that were removed. The kernel lets go of a link when the last socket of the cgroup and of all below it is
    /// gone, which may be long after its last process: until then the hooks serve those sockets.
    fn forget_gone(&self) -> Result<()> {
        for pins in self.all() {
            for (id, _) in pins.workloads()? {
                let released = |hook: &str| {
                    sys::open_pin(&pins.link(hook, id))
                        .is_ok_and(|l| sys::linked_cgroup(l.as_fd()).is_ok_and(|id| id == 0))
                };
                if HOOKS.iter().any(|hook| released(hook.name)) {
                    tracing::info!(id, "the cgroup of a workload is gone");
                    self.note(crate::JournalKind::Detach, id);
                    detach::forget(pins, id)?;
                }
            }
        }
        if self.pins.abi()? == load::abi_version()
            && let Ok(root) = host::cgroup2_mount()
        {
            forget_kinds(&self.pins, &root)?;
            // no reason not to do what was asked for: the next command tries again
            if let Err(e) = self.fold_gone() {
                tracing::warn!("{e}");
            }
        }
        Ok(())
    }
}

/// What was learned of cgroups that are gone. Their ids are not used again.
fn forget_kinds(pins: &Pins, root: &Path) -> Result<()> {
    // below a cgroup namespace the others cannot be seen
    if std::fs::metadata(root).map_or(true, |meta| meta.ino() != 1) {
        return Ok(());
    }
    let kinds = pins.open_map("kinds")?;
    let keys: Vec<Vec<u8>> = kinds.keys().collect();
    let cgroup_of = |key: &Vec<u8>| sys::read_pod::<types::kind_key>(key).map_or(0, |k| k.cgroup);
    let ids: Vec<u64> = keys.iter().map(cgroup_of).collect::<HashSet<_>>().into_iter().collect();
    let paths = cgroup_paths(root, &ids);
    for key in keys.iter().filter(|key| !paths.contains_key(&cgroup_of(key))) {
        let _ = kinds.delete(key); // it may have been evicted meanwhile
    }
    Ok(())
}

/// Records of halves whose end no hook of ours has seen; and halves that were not told of their peer's reset.
pub(crate) fn sweep_halves(pins: &Pins) -> Result<()> {
    if !pins.program("shared_socket_sweep").exists() {
        return Ok(()); // an older version, or removed a moment ago
    }
    pins.walk("shared_socket_sweep", "halves").map(|_| ()).map_err(|e| Error::system("sweeping the records", e))
}

/// Connects whose end was not seen either. Without its entry a connect that lives after all stays on TCP.
fn sweep_handshakes(pins: &Pins) -> Result<()> {
    let map = pins.open_map("handshakes")?;
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    for key in map.keys() {
        let value = map.lookup(&key, MapFlags::ANY).map_err(|e| Error::libbpf("reading handshakes", e))?;
        if let Some(handshake) = value.as_deref().and_then(sys::read_pod::<types::handshake>)
            && now > Duration::from_nanos(handshake.published_ns) + STALE_HANDSHAKE
        {
            let _ = map.delete(&key);
        }
    }
    Ok(())
}

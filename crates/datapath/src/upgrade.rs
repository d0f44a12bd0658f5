//! New programs under live connections.
//!
//! Where the ABI and the form of all maps are the same, the new programs take over the maps, in place: the verdict's slot
//! and each link are exchanged atomically. Programs of one ABI work together in any mixture, so an interruption leaves a
//! mixture, and the directory `upgrading`, by which the next command knows to do it again.
//!
//! Otherwise a new generation is loaded beside the old one. From the moment at which it is complete it is the one in use:
//! the old one makes no more pairs and keeps serving those that it has, until the last half of them is gone. A pair is
//! never half old and half new, because a client is only tied by the generation that published it, in its own maps.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use libbpf_rs::skel::Skel;
use libbpf_rs::{MapCore, MapFlags};

use crate::load::{self, LoadOptions};
use crate::pins::{ABOUT, HOOKS, Pins, TRACES, Trace};
use crate::skel::{SharedSocketSkel, types};
use crate::view::Datapath;
use crate::{Error, Result, failpoint, sys};

/// What an upgrade changes besides the programs; `None` keeps what is.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// Pairs at most; another number needs new maps.
    pub max_pairs: Option<u32>,
    /// Bytes queued to one peer at most.
    pub budget_bytes: Option<u32>,
    /// Messages queued to one peer at most.
    pub budget_messages: Option<u32>,
    /// Bytes queued to all peers together at most.
    pub total_budget_bytes: Option<u64>,
    /// Kinds with fewer messages a connection stay on TCP.
    pub min_messages: Option<u32>,
    /// What was found of this kernel: versions differ in what they look for.
    pub kernel: Option<crate::KernelFindings>,
}

/// What an upgrade did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upgrade {
    /// Live connections have the new programs.
    InPlace,
    /// New connections have the new programs and maps; live ones keep the old.
    NewGeneration,
}

/// A generation, as `status` shows it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Generation {
    /// They count up; 0 is what the first release pinned.
    pub number: u32,
    /// Where it is pinned.
    pub pin_dir: PathBuf,
    /// ABI number of its maps.
    pub abi_version: u32,
    /// New pairs are made in it.
    pub current: bool,
    /// The exchange of its programs was interrupted; the next `attach` or `upgrade` does it again.
    pub upgrading: bool,
    /// Halves in its sockhash.
    pub sockets: u64,
}

impl Datapath {
    /// What is pinned, oldest first.
    pub fn generations(&self) -> Result<Vec<Generation>> {
        let generation = |pins: &Pins| {
            Ok(Generation {
                number: pins.number,
                pin_dir: pins.dir().to_path_buf(),
                abi_version: pins.abi()?,
                current: pins.number == self.pins.number,
                upgrading: pins.upgrading().exists(),
                sockets: pins.sockets()?,
            })
        };
        let mut list = Vec::new();
        for pins in self.all() {
            match generation(pins) {
                Err(_) if !pins.map(ABOUT).exists() => {} // removed while we look
                found => list.push(found?),
            }
        }
        Ok(list)
    }

    /// Upgrades what is pinned below a directory to the programs of this build; `None` when nothing is.
    pub fn upgrade(dir: &Path, changes: &Changes) -> Result<Option<(Self, Upgrade)>> {
        let Some(view) = Self::open(dir)? else { return Ok(None) };
        if load::fits(&view.pins, view.pins.abi()?, changes.max_pairs)? {
            view.exchange_programs(Some(changes))?;
            view.note(crate::JournalKind::Upgrade, 0);
            view.tidy(crate::upkeep::Tidy::Everything)?;
            return Ok(Some((view, Upgrade::InPlace)));
        }
        view.add_generation(changes)?;
        let lock = view.lock;
        let Some(view) = Self::view(dir, lock)? else { return Ok(None) };
        view.note(crate::JournalKind::Upgrade, 0);
        view.tidy(crate::upkeep::Tidy::Everything)?;
        let found = Self::view(dir, None)?.map(|v| v.older).unwrap_or_default();
        Ok(Some((Self { older: found, ..view }, Upgrade::NewGeneration)))
    }

    /// In place.
    pub(crate) fn exchange_programs(&self, changes: Option<&Changes>) -> Result<()> {
        let mut settings = inherited(&self.pins)?;
        if let Some(changes) = changes {
            change(&mut settings, changes);
        }
        let mark = self.pins.upgrading();
        let what = |e| Error::system(format!("marking the upgrade in {}", mark.display()), e);
        match fs::create_dir(&mark) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(what(e)),
            _ => failpoint::step("upgrade: marked"),
        }
        load::reload(&self.pins, &settings, |skel| self.exchange_links(skel))?;
        fs::remove_dir(&mark).map_err(what)?;
        failpoint::step("upgrade: done");
        Ok(())
    }

    /// The kernel exchanges the program of a cgroup link with no event between. A tracing link cannot be exchanged: for a
    /// moment both see the events, as one missed hazard would be worse than a call that counts twice.
    fn exchange_links(&self, skel: &SharedSocketSkel<'_>) -> Result<()> {
        let object = skel.object();
        let program = |wanted: &str| object.progs().find(|p| p.name() == wanted && p.autoload());
        for (id, _) in self.pins.workloads()? {
            for hook in HOOKS {
                let path = self.pins.link(hook.name, id);
                let (Ok(link), Some(program)) = (sys::open_pin(&path), program(hook.program)) else {
                    continue; // tidy() links it
                };
                match sys::update_link(link.as_fd(), program.as_fd()) {
                    Err(e) if e.raw_os_error() != Some(nix::errno::Errno::ENOLINK as i32) => {
                        return Err(Error::system(format!("exchanging the program of {}", path.display()), e));
                    }
                    _ => failpoint::step("upgrade: a hook"), // or its cgroup is gone
                }
            }
        }
        for Trace { name, program: wanted, .. } in TRACES {
            let path = self.pins.trace(name);
            if let (true, Some(program)) = (path.exists(), program(wanted)) {
                let link = sys::link_tracepoint(program.as_fd())
                    .map_err(|e| Error::system(format!("linking the program {wanted} to its tracepoint"), e))?;
                load::replace_pin(link.as_fd(), &path)?;
                failpoint::step("upgrade: a tracepoint");
            }
        }
        Ok(())
    }

    /// Beside the old one. The pin of `about` makes it the one in use; `tidy` does the rest.
    fn add_generation(&self, changes: &Changes) -> Result<()> {
        let mut settings = inherited(&self.pins)?;
        change(&mut settings, changes);
        let pairs = changes.max_pairs.map_or_else(|| Ok(self.pins.open_map("halves")?.max_entries() / 2), Ok)?;
        settings.reserver_mask = load::reservers(pairs) - 1;
        let pins = Pins::new(&self.root, self.pins.number + 1);
        fs::create_dir(pins.dir()).map_err(|e| Error::system(format!("creating {}", pins.dir().display()), e))?;
        load::load(&pins, pairs, &settings, |skel| self.hand_over(skel)).inspect_err(|_| {
            let _ = pins.remove();
        })
    }

    /// What is attached, and what was learned where it can be read.
    fn hand_over(&self, skel: &SharedSocketSkel<'_>) -> Result<()> {
        let what = |e| Error::libbpf("handing the workloads over to a new generation", e);
        for (id, workload) in self.pins.workloads()?.iter().filter(|(_, w)| w.draining == 0) {
            skel.maps.workloads.update(&id.to_ne_bytes(), sys::pod_bytes(workload), MapFlags::ANY).map_err(what)?;
        }
        for port in self.ports()? {
            skel.maps.ports.update(&port.to_ne_bytes(), &[1], MapFlags::ANY).map_err(what)?;
        }
        for id in self.withheld()? {
            skel.maps.withheld.update(&id.to_ne_bytes(), &[1], MapFlags::ANY).map_err(what)?;
        }
        let (old, new) = (self.pins.open_map("kinds")?, &skel.maps.kinds);
        let same = (old.key_size(), old.value_size()) == (new.key_size(), new.value_size());
        if same && self.pins.abi()? == types::abi::ABI_VERSION.0 {
            let what = |e| Error::libbpf("handing over what was learned", e);
            for key in old.keys() {
                if let Some(value) = old.lookup(&key, MapFlags::ANY).map_err(what)? {
                    new.update(&key, &value, MapFlags::ANY).map_err(what)?;
                }
            }
        }
        Ok(())
    }
}

/// The settings that are in force. `struct settings` is only ever appended to: what another version did not know keeps
/// this version's default.
fn inherited(pins: &Pins) -> Result<types::settings> {
    let old = pins.about()?;
    let mut bytes =
        sys::pod_bytes(&load::settings(&LoadOptions { keepalive: Duration::ZERO, ..Default::default() })?).to_vec();
    let common = old.len().min(bytes.len());
    bytes[..common].copy_from_slice(&old[..common]);
    let mut settings: types::settings = sys::read_pod(&bytes).unwrap_or_default();
    settings.abi_version = load::abi_version();
    Ok(settings)
}

fn change(settings: &mut types::settings, changes: &Changes) {
    let fields = [
        (&mut settings.budget_bytes, changes.budget_bytes),
        (&mut settings.budget_messages, changes.budget_messages),
        (&mut settings.total_budget_kib, changes.total_budget_bytes.map(load::kib)),
        (&mut settings.min_messages, changes.min_messages),
    ];
    for (field, value) in fields {
        *field = value.unwrap_or(*field);
    }
    if let Some(kernel) = changes.kernel {
        kernel.configure(settings);
    }
}

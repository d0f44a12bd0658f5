//! The pinned datapath, as userspace works with it.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use nix::fcntl::{Flock, FlockArg};

use crate::flows::Sums;
use crate::load::{self, Eligibility, LoadOptions};
use crate::pins::{self, Pins};
use crate::skel::types;
use crate::upkeep::Tidy;
use crate::{Counters, Error, Flow, Half, Histogram, JournalKind, Result, failpoint, fold, host, reason, sys};

/// An attached cgroup.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Workload {
    /// cgroup id.
    pub cgroup_id: u64,
    /// Path below the cgroup2 mount, or `None` when the cgroup is gone.
    pub cgroup: Option<PathBuf>,
    /// Seconds since 1970 at which it was attached.
    pub attached_at: u64,
    /// Who is accelerated in it.
    pub eligibility: Eligibility,
    /// Being detached: no new pairs, live ones leave.
    pub draining: bool,
    /// Its messages may be captured.
    pub capture: bool,
    /// All hooks are linked. If not, a command was interrupted, or pins were removed; the next `attach` or `upgrade` links
    /// what is missing.
    pub complete: bool,
}

/// Sums over all pairs, live and gone.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Totals {
    /// Pairs with both halves in the sockhash.
    pub pairs_live: u64,
    /// Pairs ever tied.
    pub pairs_total: u64,
    /// Of these, connections that were established before their workload was attached.
    pub adopted: u64,
    /// Messages by the fast path.
    pub fast_messages: u64,
    /// Bytes by the fast path.
    pub fast_bytes: u64,
    /// Messages of paired sockets by TCP.
    pub tcp_messages: u64,
    /// Bytes of paired sockets by TCP.
    pub tcp_bytes: u64,
    /// Changes from the TCP path to the fast path.
    pub handoffs: u64,
    /// Halves that left the sockhash by protocol.
    pub left: u64,
    /// Halves that were found stuck: redirected bytes unread where the application turned to `splice(2)` or
    /// `TCP_ZEROCOPY_RECEIVE`.
    pub stuck: u64,
    /// Of these, connections that were reset, as they stayed so.
    pub reset: u64,
    /// Options (kTLS, `TCP_REPAIR`, `SO_PEEK_OFF`) that were refused, as redirected bytes were unread.
    pub refused_options: u64,
    /// Tries to leave that were put off because a message of the peer was on its way.
    pub leave_in_flight: u64,
    /// Tries to leave that were put off because something was unread.
    pub leave_unread: u64,
    /// Debug: races held open, by window: how often, and how often something came in between.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<(u64, u64)>,
    /// Records of halves.
    pub halves: u64,
    /// Connects on their way.
    pub published: u64,
    /// Handshakes on their way, both ends here.
    pub announced: u64,
    /// Messages and events by reason name; names never counted are absent.
    #[serde(skip)]
    pub reasons: BTreeMap<String, u64>,
    /// Verdicts that were timed, by nanoseconds.
    #[serde(skip)]
    pub verdicts: Histogram,
}

/// What may be queued to peers, and what is, at most.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Budget {
    /// Bytes queued to one peer at most.
    pub peer_bytes: u64,
    /// Messages queued to one peer at most.
    pub peer_messages: u64,
    /// The most that is reserved for one peer now: what its queue may come to hold, overhead included.
    pub peer_reserved_bytes: u64,
    /// Bytes queued to all peers together at most, the kernel's overhead for messages included.
    pub total_bytes: u64,
    /// What is reserved for all peers now: never less than what is queued.
    pub total_reserved_bytes: u64,
}

/// A program that is pinned.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Program {
    /// Number of its generation.
    pub generation: u64,
    /// Its name.
    pub name: String,
    /// The kernel's number of it.
    pub id: u32,
    /// How often it ran; 0 where the kernel does not count (`kernel.bpf_stats_enabled`).
    pub runs: u64,
    /// How long, in nanoseconds; likewise.
    pub run_time_ns: u64,
}

/// What [`Datapath::attach`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    /// It is attached now.
    Attached,
    /// It was, with the same eligibility: nothing was changed.
    Already,
    /// It was; its eligibility or a drain was changed.
    Changed,
}

/// The datapath pinned below one directory. One writer at a time: an exclusive lock is held while it lives.
pub struct Datapath {
    pub(crate) root: PathBuf,
    /// The generation in use.
    pub(crate) pins: Pins,
    /// Generations that serve connections made under them, oldest first.
    pub(crate) older: Vec<Pins>,
    pub(crate) lock: Option<Flock<File>>,
}

fn found(dir: &Path) -> Result<pins::Found> {
    Pins::find(dir).map_err(|e| Error::system(format!("looking for pins in {}", dir.display()), e))
}

/// Locks the pin directory itself, so that the lock is one for all who see this bpffs, in whatever mount namespace, and
/// needs no disk. `None`: it is not there. Its last user removes the directory, so what was locked must still be it.
pub(crate) fn lock(dir: &Path) -> Result<Option<Flock<File>>> {
    let what = || format!("locking {} against a second instance", dir.display());
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let file = match File::open(dir) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::system(what(), e)),
        };
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => {
                let ours = lock.metadata().map_err(|e| Error::system(what(), e))?;
                if fs::metadata(dir).is_ok_and(|now| (now.dev(), now.ino()) == (ours.dev(), ours.ino())) {
                    return Ok(Some(lock));
                }
            }
            Err((_, e)) if Instant::now() >= deadline || e != nix::errno::Errno::EWOULDBLOCK => {
                return Err(Error::system(what(), e.into()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Makes the directory, too.
fn lock_or_make(dir: &Path) -> Result<Flock<File>> {
    let mut tries = 0;
    loop {
        tries += 1;
        match host::ensure_bpffs(dir) {
            Err(e) if dir.exists() || tries == 20 => return Err(e),
            Err(_) => continue, // a detach has removed it a moment after it was made
            Ok(()) => {}
        }
        if let Some(lock) = lock(dir)? {
            return Ok(lock);
        }
    }
}

impl Datapath {
    /// Opens what is pinned, to change it; loads and pins it first when nothing is there. Finishes or undoes what an
    /// interrupted command left.
    pub fn open_or_load(options: &LoadOptions) -> Result<Self> {
        let lock = lock_or_make(&options.pin_dir)?;
        Self::clear(&options.pin_dir)?;
        let view = match Self::view(&options.pin_dir, None)? {
            Some(view) => view,
            None => Self::load_first(options)?,
        };
        let view = Self { lock: Some(lock), ..view };
        view.check_version()?;
        view.tidy(Tidy::Everything)?;
        Ok(view)
    }

    fn load_first(options: &LoadOptions) -> Result<Self> {
        let pins = Pins::new(&options.pin_dir, 1);
        let loaded = load::settings(options).and_then(|settings| {
            fs::create_dir(pins.dir()).map_err(|e| Error::system(format!("creating {}", pins.dir().display()), e))?;
            load::load(&pins, options.max_pairs, &settings, |_| Ok(()))
        });
        if let Err(e) = loaded {
            let _ = pins.remove();
            let _ = pins::remove_root(&options.pin_dir);
            return Err(e);
        }
        Ok(Self { root: options.pin_dir.clone(), pins, older: Vec::new(), lock: None })
    }

    /// Opens what is pinned, by whatever version, to detach or upgrade it; `None` when nothing is.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        let Some(lock) = lock(dir)? else { return Ok(None) };
        Self::clear(dir)?;
        let Some(view) = Self::view(dir, Some(lock))? else { return Ok(None) };
        view.tidy(Tidy::AllButDrains)?;
        Ok(Some(view))
    }

    /// Removes what unfinished loads and removals left. No pair depends on it: nothing of it was linked yet, or no more.
    fn clear(dir: &Path) -> Result<()> {
        for pins in found(dir)?.leftovers {
            pins.remove().map_err(|e| Error::system(format!("removing leftovers in {}", pins.dir().display()), e))?;
            failpoint::step("clear: leftovers");
        }
        Ok(())
    }

    /// Removes what an unfinished load or removal left, when nothing else is pinned.
    pub fn sweep(dir: &Path) -> Result<()> {
        let Some(_lock) = lock(dir)? else { return Ok(()) };
        Self::clear(dir)?;
        if found(dir)?.complete.is_empty() {
            pins::remove_root(dir).map_err(|e| Error::system(format!("removing {}", dir.display()), e))?;
        }
        Ok(())
    }

    /// Opens what is pinned, to read it; takes no lock. Who reads at once takes [`reading`](Self::reading).
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        Self::reading(dir, Ok)
    }

    /// Hands what is pinned to `read`; `None` when nothing is. Takes no lock. A detach or an upgrade may remove a generation
    /// while it is being read: an error is one only when everything that was pinned is still there. If not, it begins again.
    pub fn reading<T, E: From<Error>>(
        dir: &Path,
        mut read: impl FnMut(Self) -> std::result::Result<T, E>,
    ) -> std::result::Result<Option<T>, E> {
        let mut tries = 0;
        loop {
            tries += 1;
            let Some(view) = Self::view(dir, None)? else { return Ok(None) };
            let all: Vec<(Pins, Option<u64>)> = view.all().map(|p| (p.clone(), p.inode(pins::ABOUT))).collect();
            match view.check_version().map_err(E::from).and_then(|()| read(view)) {
                // whoever removes something at every try is not served by another one
                Err(_) if tries < 20 && all.iter().any(|(p, was)| was.is_none() || p.inode(pins::ABOUT) != *was) => {}
                result => return result.map(Some),
            }
        }
    }

    pub(crate) fn view(dir: &Path, lock: Option<Flock<File>>) -> Result<Option<Self>> {
        let mut older = found(dir)?.complete;
        Ok(older.pop().map(|pins| Self { root: dir.to_path_buf(), pins, older, lock }))
    }

    pub(crate) fn check_version(&self) -> Result<()> {
        let (found, ours) = (self.pins.abi()?, load::abi_version());
        if found != ours {
            return Err(Error::Version { path: self.pins.dir().to_path_buf(), found, ours });
        }
        Ok(())
    }

    pub(crate) fn map(&self, name: &str) -> Result<MapHandle> {
        self.pins.open_map(name)
    }

    pub(crate) fn program(&self, name: &str) -> Result<OwnedFd> {
        self.pins.open_program(name)
    }

    /// All generations that are pinned, oldest first.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Pins> {
        let live = |pins: &&Pins| pins.map(pins::ABOUT).exists(); // the last half may have gone meanwhile
        self.older.iter().filter(live).chain([&self.pins])
    }

    /// Those whose records this version can read.
    pub(crate) fn readable(&self) -> impl Iterator<Item = &Pins> {
        self.all().filter(|p| p.number == self.pins.number || p.abi().is_ok_and(|abi| abi == load::abi_version()))
    }

    /// Attaches a cgroup (absolute path). What is established already stays on TCP until [`adopt`](Self::adopt).
    pub fn attach(&self, cgroup: &Path, eligibility: Eligibility) -> Result<Attach> {
        let id = host::cgroup_id(cgroup)?;
        let map = self.map("workloads")?;
        let key = id.to_ne_bytes();
        let write = |e| Error::libbpf(format!("registering the workload {}", cgroup.display()), e);
        let old: Option<types::workload> =
            map.lookup(&key, MapFlags::ANY).map_err(write)?.as_deref().and_then(sys::read_pod);
        let wanted = u32::from(eligibility == Eligibility::All);
        let complete = pins::HOOKS.iter().all(|hook| self.pins.link(hook.name, id).exists());
        if let Some(old) = old
            && old.eligibility == wanted
            && old.draining == 0
            && complete
        {
            return Ok(Attach::Already);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        let value =
            types::workload { attached_ns: old.map_or(now, |o| o.attached_ns), eligibility: wanted, draining: 0 };
        map.update(&key, sys::pod_bytes(&value), MapFlags::ANY).map_err(write)?;
        failpoint::step("attach: workload");
        if let Err(e) = self.link_hooks(cgroup, id, eligibility) {
            if old.is_none() {
                let _ = self.finish_detach(id);
            }
            return Err(e);
        }
        self.note(JournalKind::Attach, id);
        Ok(if old.is_some() { Attach::Changed } else { Attach::Attached })
    }

    /// Links what is not linked yet.
    pub(crate) fn link_hooks(&self, cgroup: &Path, id: u64, eligibility: Eligibility) -> Result<()> {
        self.trace(eligibility == Eligibility::Safe || self.samples_all()?)?;
        let what = || format!("opening {}", cgroup.display());
        let dir = File::open(cgroup).map_err(|e| Error::system(what(), e))?;
        for hook in pins::HOOKS {
            let path = self.pins.link(hook.name, id);
            if path.exists() {
                continue;
            }
            let what = || format!("linking the {} program to {}", hook.name, cgroup.display());
            let link = sys::link_cgroup(self.program(hook.program)?.as_fd(), &dir, hook.kind)
                .map_err(|e| Error::system(what(), e))?;
            sys::pin(link.as_fd(), &path).map_err(|e| Error::system(format!("pinning {}", path.display()), e))?;
            failpoint::step("attach: a hook");
        }
        Ok(())
    }

    /// Whether waits are measured in workloads of `all`, too: then the receive tracepoint is needed there.
    fn samples_all(&self) -> Result<bool> {
        let settings: Option<types::settings> = sys::read_pod(&self.pins.about()?);
        Ok(settings.is_some_and(|s| s.sample_all != 0 && s.sample_mask != u32::MAX))
    }

    /// Of which messages it is measured how long they wait.
    pub fn sampling(&self) -> Result<Sampling> {
        let settings: Option<types::settings> = sys::read_pod(&self.pins.about()?);
        Ok(match settings {
            Some(s) if s.sample_mask == u32::MAX => Sampling::Never,
            Some(s) if s.sample_all != 0 => Sampling::Everywhere(s.sample_mask + 1),
            Some(s) => Sampling::Safe(s.sample_mask + 1),
            None => Sampling::Never,
        })
    }

    /// Links the tracing programs; those from which kinds are `learned` only while a workload needs them.
    pub(crate) fn trace(&self, learned: bool) -> Result<()> {
        for pins::Trace { name, program, .. } in pins::TRACES.iter().filter(|t| learned || !t.learns) {
            let path = self.pins.trace(name);
            if path.exists() || !self.pins.program(program).exists() {
                continue;
            }
            let link = sys::link_tracepoint(self.program(program)?.as_fd())
                .map_err(|e| Error::system(format!("linking the program {program} to what it traces"), e))?;
            sys::pin(link.as_fd(), &path).map_err(|e| Error::system(format!("pinning {}", path.display()), e))?;
            failpoint::step("attach: a tracepoint");
        }
        Ok(())
    }

    /// What is attached, in any generation; the newest that knows a cgroup speaks for it.
    pub fn workloads(&self) -> Result<Vec<Workload>> {
        let mut known = BTreeMap::new();
        for pins in self.all() {
            known.extend(pins.workloads()?.into_iter().map(|(id, w)| (id, (pins, w))));
        }
        let ids: Vec<u64> = known.keys().copied().collect();
        let paths = host::cgroup2_mount().map(|root| cgroup_paths(&root, &ids)).unwrap_or_default();
        let withheld = self.withheld()?;
        let workload = |(id, (pins, w)): (u64, (&Pins, types::workload))| Workload {
            cgroup_id: id,
            capture: !withheld.contains(&id),
            cgroup: paths.get(&id).cloned(),
            attached_at: w.attached_ns / 1_000_000_000,
            eligibility: if w.eligibility == 0 { Eligibility::Safe } else { Eligibility::All },
            draining: w.draining != 0,
            complete: pins::HOOKS.iter().all(|hook| pins.link(hook.name, id).exists()),
        };
        Ok(known.into_iter().map(workload).collect())
    }

    /// All halves; one that closes while this runs may be missing.
    pub fn halves(&self) -> Result<Vec<Half>> {
        let mut list = Vec::new();
        self.each_record(|raw| list.push(Half::from(raw)))?;
        Ok(list)
    }

    /// A record is large, and there may be a hundred thousand: none is kept that is only counted.
    fn each_record(&self, mut see: impl FnMut(&types::half)) -> Result<()> {
        for pins in self.readable() {
            pins.each("halves", |_: u64, raw: types::half| {
                // one that is retired counts in the totals already, and goes as soon as nobody holds it (bpf/hold.bpf.h)
                if raw.gate & u64::from(types::gate::GATE_RETIRED.0) == 0 {
                    see(&raw);
                }
            })?;
        }
        Ok(())
    }

    /// One half, if it is still there.
    pub(crate) fn half(&self, cookie: u64, generation: u32) -> Option<Half> {
        let value = self.map("halves").ok()?.lookup(&cookie.to_ne_bytes(), MapFlags::ANY).ok()??;
        let raw: types::half = sys::read_pod(&value)?;
        (raw.slf.generation == generation).then(|| Half::from(&raw))
    }

    /// The record of a socket, in any generation, if it is still there.
    pub fn half_of(&self, cookie: u64) -> Option<Half> {
        self.readable().find_map(|pins| {
            let value = pins.open_map("halves").ok()?.lookup(&cookie.to_ne_bytes(), MapFlags::ANY).ok()??;
            sys::read_pod(&value).map(|raw: types::half| Half::from(&raw))
        })
    }

    fn gone(&self) -> Result<Vec<types::totals>> {
        let mut list = Vec::new();
        for pins in self.readable() {
            let per_cpu = pins
                .open_map("totals")?
                .lookup_percpu(&0u32.to_ne_bytes(), MapFlags::ANY)
                .map_err(|e| Error::libbpf("reading the totals", e))?
                .unwrap_or_default();
            list.extend(per_cpu.iter().filter_map(|v| sys::read_pod::<types::totals>(v)));
        }
        Ok(list)
    }

    /// Live halves and the sums of those that are gone, from one moment: a record that moves from the one to the other
    /// meanwhile would count twice or never. Under constant churn the last of some tries is taken as it is.
    pub(crate) fn snapshot(&self) -> Result<(Sums, Vec<types::totals>)> {
        let began = Instant::now();
        let room = self.map("flows").map_or(0, |map| map.max_entries() as usize);
        let mut tries = 0;
        loop {
            let before: u64 = self.gone()?.iter().map(|t| t.retired).sum();
            let flows = self.gone_flows()?;
            let is_full = flows.len() + fold::ENTRIES >= room;
            let mut sums = Sums::new(&flows, is_full);
            self.each_record(|raw| sums.add(raw))?;
            let gone = self.gone()?;
            tries += 1;
            let is_one_moment = before == gone.iter().map(|t| t.retiring).sum::<u64>();
            if is_one_moment || tries == 100 || (tries > 10 && began.elapsed() > Duration::from_secs(1)) {
                return Ok((sums, gone));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Room for records of halves; a pair takes two.
    pub fn max_halves(&self) -> Result<u64> {
        Ok(self.map("halves")?.max_entries().into())
    }

    /// Do redirected bytes count in the receive memory of their reader (`sk_rmem_alloc`) on this kernel?
    pub fn rmem_counts(&self) -> Result<bool> {
        let settings: Option<types::settings> = sys::read_pod(&self.pins.about()?);
        Ok(settings.is_some_and(|s| s.rmem_counts != 0))
    }

    /// The programs that are pinned, of all generations; one that cannot be opened is left out.
    pub fn programs(&self) -> Vec<Program> {
        let mut list = Vec::new();
        for pins in self.all() {
            let entries = fs::read_dir(pins.dir()).into_iter().flatten().flatten();
            let names = entries.filter_map(|e| Some(e.file_name().to_str()?.strip_prefix("prog_")?.to_owned()));
            for name in names {
                if let Ok((id, runs, run_time_ns)) =
                    pins.open_program(&name).map_err(|_| ()).and_then(|p| sys::program_runs(p.as_fd()).map_err(|_| ()))
                {
                    list.push(Program { generation: pins.number.into(), name, id, runs, run_time_ns });
                }
            }
        }
        list.sort_by_key(|p| (p.generation, p.id));
        list
    }

    /// Limits and use of the queues.
    pub fn budget(&self) -> Result<Budget> {
        let mut fullest = 0;
        self.each_record(|h| fullest = fullest.max(h.reserved))?;
        self.budget_of(fullest)
    }

    fn budget_of(&self, peer_reserved_bytes: u64) -> Result<Budget> {
        let settings: Option<types::settings> = sys::read_pod(&self.pins.about()?);
        let used = self
            .map("budget")?
            .lookup(&0u32.to_ne_bytes(), MapFlags::ANY)
            .map_err(|e| Error::libbpf("reading the budget", e))?;
        let used: Option<types::budget> = used.as_deref().and_then(sys::read_pod);
        Ok(Budget {
            peer_bytes: settings.map_or(0, |s| s.budget_bytes.into()),
            peer_messages: settings.map_or(0, |s| s.budget_messages.into()),
            peer_reserved_bytes,
            total_bytes: settings.map_or(0, |s| u64::from(s.total_budget_kib) << 10),
            total_reserved_bytes: used.map_or(0, |b| b.used),
        })
    }

    /// Sums over all pairs, live and gone.
    pub fn totals(&self) -> Result<Totals> {
        let (sums, gone) = self.snapshot()?;
        self.totals_of(&sums, &gone)
    }

    /// All that is counted, from one moment.
    pub fn counts(&self) -> Result<Counts> {
        let (sums, gone) = self.snapshot()?;
        Ok(Counts {
            totals: self.totals_of(&sums, &gone)?,
            budget: self.budget_of(sums.fullest)?,
            flows: sums.into_flows(),
        })
    }

    fn totals_of(&self, live: &Sums, gone: &[types::totals]) -> Result<Totals> {
        let (mut sent, mut reasons) = (live.sent, live.reasons);
        let mut totals =
            Totals { halves: live.halves, pairs_live: live.pairs_live, handoffs: live.handoffs, ..Totals::default() };
        for raw in gone {
            sent += Counters::from(&raw.sent);
            totals.pairs_total += raw.pairs;
            totals.adopted += raw.adopted;
            totals.handoffs += raw.handoffs;
            totals.left += raw.left;
            totals.stuck += raw.stuck;
            totals.reset += raw.reset;
            totals.refused_options += raw.refused;
            totals.leave_in_flight += raw.in_flight;
            totals.leave_unread += raw.unread;
            if raw.held.iter().any(|held| held.passed > 0) {
                totals.held.resize(raw.held.len(), (0, 0));
                let sums = totals.held.iter_mut().zip(&raw.held);
                sums.for_each(|(sum, held)| *sum = (sum.0 + held.passed, sum.1 + held.hit));
            }
            reasons.iter_mut().zip(&raw.reasons).for_each(|(sum, n)| *sum += n);
            totals.verdicts += &Histogram(raw.verdicts);
        }
        totals.fast_messages = sent.fast_messages;
        totals.fast_bytes = sent.fast_bytes;
        totals.tcp_messages = sent.tcp_messages;
        totals.tcp_bytes = sent.tcp_bytes;
        self.pins.each("handshakes", |_: u32, hs: types::handshake| {
            if hs.state == 0 {
                totals.published += 1;
            } else {
                totals.announced += 1;
            }
        })?;
        totals.reasons = (0u32..)
            .zip(reasons)
            .filter(|(_, n)| *n > 0)
            .map(|(number, n)| (reason::reason_name(number).to_owned(), n))
            .collect();
        Ok(totals)
    }
}

/// Of which messages it is measured how long they wait for their reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampling {
    /// Of none: `--latency-samples 0`, or a kernel without the tracepoint.
    Never,
    /// Of one in so many, by what is attached as `safe`.
    Safe(u32),
    /// Of one in so many.
    Everywhere(u32),
}

/// All that is counted, from one moment.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Sums over all pairs.
    pub totals: Totals,
    /// Limits and use of the queues.
    pub budget: Budget,
    /// The same sums by pairs of workloads.
    pub flows: Vec<Flow>,
}

/// Paths of cgroups by id, from one walk of the hierarchy.
pub fn cgroup_paths(root: &Path, ids: &[u64]) -> HashMap<u64, PathBuf> {
    let mut found = HashMap::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(dir) = todo.pop() {
        if found.len() == ids.len() {
            break;
        }
        if let Ok(meta) = fs::metadata(&dir)
            && ids.contains(&meta.ino())
        {
            let below = dir.strip_prefix(root).unwrap_or(&dir);
            found.insert(meta.ino(), Path::new("/").join(below));
        }
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        todo.extend(entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
    }
    found
}

//! The pinned datapath, as userspace works with it.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use nix::fcntl::{Flock, FlockArg};

use crate::load::{self, ABI_VERSION, Eligibility, LoadOptions};
use crate::pins::Pins;
use crate::skel::types;
use crate::{Counters, Error, Half, Path as HalfPath, Result, Role, host, reason, sys};

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
}

/// Sums over all pairs, live and gone.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Totals {
    /// Pairs with both halves in the sockhash.
    pub pairs_live: u64,
    /// Pairs ever tied.
    pub pairs_total: u64,
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
    /// Records of halves.
    pub halves: u64,
    /// Connects on their way.
    pub published: u64,
    /// Handshakes on their way, both ends here.
    pub announced: u64,
    /// Messages and events by reason name; names never counted are absent.
    #[serde(skip)]
    pub reasons: BTreeMap<String, u64>,
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

/// What [`Datapath::drain`] left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drain {
    /// Halves that could not leave in time; they stay accelerated until they can.
    pub remaining: u64,
}

/// The datapath pinned below one directory. One writer at a time: an exclusive lock is held while it lives.
pub struct Datapath {
    pins: Pins,
    _lock: Option<Flock<File>>,
}

fn lock(dir: &Path) -> Result<Flock<File>> {
    // bpffs has no regular files: the lock lives in /run, named after the pin directory
    let name: String = dir.to_string_lossy().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let base = if Path::new("/run").is_dir() { Path::new("/run") } else { Path::new("/tmp") };
    let path = base.join(format!("shared-socket{name}.lock"));
    let what = || format!("locking {} against a second instance", path.display());
    let file = File::options().create(true).write(true).truncate(false).open(&path);
    let mut file = file.map_err(|e| Error::system(what(), e))?;
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, e)) if Instant::now() < deadline && e == nix::errno::Errno::EWOULDBLOCK => {
                file = back;
                std::thread::sleep(Duration::from_millis(20));
            }
            Err((_, e)) => return Err(Error::system(what(), e.into())),
        }
    }
}

impl Datapath {
    /// Opens what is pinned, to change it; loads and pins it first when nothing (or an unfinished load) is there.
    pub fn open_or_load(options: &LoadOptions) -> Result<Self> {
        let lock = lock(&options.pin_dir)?;
        host::ensure_bpffs(&options.pin_dir)?;
        let pins = Pins::new(&options.pin_dir);
        if !pins.map("about").exists() {
            // an unfinished load or an unfinished removal: nothing of it is in use by a live pair of ours
            pins.remove().map_err(|e| Error::system(format!("removing leftovers in {}", pins.dir().display()), e))?;
            host::ensure_bpffs(&options.pin_dir)?;
            if let Err(e) = load::load(options) {
                let _ = pins.remove();
                return Err(e);
            }
        }
        let view = Self { pins, _lock: Some(lock) };
        view.check_version()?;
        Ok(view)
    }

    /// Opens what is pinned, to change it; `None` when nothing is.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        if !dir.is_dir() {
            return Ok(None);
        }
        let lock = lock(dir)?;
        Self::view(dir, Some(lock))
    }

    /// Removes what an unfinished load or removal left; true when there was something. No pair can depend on it.
    pub fn sweep(dir: &Path) -> Result<bool> {
        let pins = Pins::new(dir);
        if !dir.is_dir() || pins.map("about").exists() {
            return Ok(false);
        }
        let _lock = lock(dir)?;
        if pins.map("about").exists() {
            return Ok(false); // a load was on its way and is complete now
        }
        pins.remove().map_err(|e| Error::system(format!("removing leftovers in {}", dir.display()), e))?;
        Ok(true)
    }

    /// Opens what is pinned, to read it; takes no lock.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        Self::view(dir, None)
    }

    fn view(dir: &Path, lock: Option<Flock<File>>) -> Result<Option<Self>> {
        let pins = Pins::new(dir);
        match pins.map("about").symlink_metadata() {
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::system(format!("looking for pins in {}", dir.display()), e)),
        }
        let view = Self { pins, _lock: lock };
        view.check_version()?;
        Ok(Some(view))
    }

    fn check_version(&self) -> Result<()> {
        let found = self.settings()?.map_or(0, |s| s.abi_version);
        if found != ABI_VERSION {
            return Err(Error::Version { path: self.pins.dir().to_path_buf(), found, ours: ABI_VERSION });
        }
        Ok(())
    }

    fn map(&self, name: &str) -> Result<MapHandle> {
        let path = self.pins.map(name);
        MapHandle::from_pinned_path(&path)
            .map_err(|e| Error::libbpf(format!("opening the pinned map {}", path.display()), e))
    }

    fn program(&self, name: &str) -> Result<OwnedFd> {
        let path = self.pins.program(name);
        sys::open_pin(&path).map_err(|e| Error::system(format!("opening the pinned program {}", path.display()), e))
    }

    fn settings(&self) -> Result<Option<types::settings>> {
        let value = self
            .map("about")?
            .lookup(&0u32.to_ne_bytes(), MapFlags::ANY)
            .map_err(|e| Error::libbpf("reading the settings", e))?;
        Ok(value.as_deref().and_then(sys::read_pod))
    }

    /// Attaches a cgroup (absolute path). What is established already stays on TCP.
    pub fn attach(&self, cgroup: &Path, eligibility: Eligibility) -> Result<Attach> {
        let id = host::cgroup_id(cgroup)?;
        let map = self.map("workloads")?;
        let key = id.to_ne_bytes();
        let write = |e| Error::libbpf(format!("registering the workload {}", cgroup.display()), e);
        let old: Option<types::workload> =
            map.lookup(&key, MapFlags::ANY).map_err(write)?.as_deref().and_then(sys::read_pod);
        let wanted = u32::from(eligibility == Eligibility::All);
        let complete = self.pins.link("sockops", id).exists() && self.pins.link("release", id).exists();
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
        if eligibility == Eligibility::Safe {
            self.watch_receives()?;
        }
        // release before sockops: a pair must never exist whose close is not marked
        let linked = self
            .link("release", "shared_socket_release", cgroup, id, libbpf_sys::BPF_CGROUP_INET_SOCK_RELEASE)
            .and_then(|()| self.link("sockops", "shared_socket_sockops", cgroup, id, libbpf_sys::BPF_CGROUP_SOCK_OPS));
        if let Err(e) = linked {
            if old.is_none() {
                let _ = self.finish_detach(id);
            }
            return Err(e);
        }
        Ok(if old.is_some() { Attach::Changed } else { Attach::Attached })
    }

    fn link(&self, hook: &str, program: &str, cgroup: &Path, id: u64, kind: libbpf_sys::bpf_attach_type) -> Result<()> {
        let path = self.pins.link(hook, id);
        if path.exists() {
            return Ok(());
        }
        let what = || format!("linking the {hook} program to {}", cgroup.display());
        let dir = File::open(cgroup).map_err(|e| Error::system(what(), e))?;
        let link =
            sys::link_cgroup(self.program(program)?.as_fd(), &dir, kind).map_err(|e| Error::system(what(), e))?;
        sys::pin(link.as_fd(), &path).map_err(|e| Error::system(format!("pinning {}", path.display()), e))
    }

    /// The receive tracepoint, from which kinds are learned; only while a workload needs it.
    fn watch_receives(&self) -> Result<()> {
        let path = self.pins.recv_link();
        if path.exists() || !self.pins.program("shared_socket_recv").exists() {
            return Ok(());
        }
        let link = sys::link_tracepoint(self.program("shared_socket_recv")?.as_fd())
            .map_err(|e| Error::system("linking the sock_recv_length tracepoint", e))?;
        sys::pin(link.as_fd(), &path).map_err(|e| Error::system(format!("pinning {}", path.display()), e))
    }

    /// Starts to detach: from now on no new pair of this workload is made.
    pub fn start_drain(&self, id: u64) -> Result<bool> {
        let map = self.map("workloads")?;
        let what = |e| Error::libbpf(format!("marking the workload {id} as draining"), e);
        let old: Option<types::workload> =
            map.lookup(&id.to_ne_bytes(), MapFlags::ANY).map_err(what)?.as_deref().and_then(sys::read_pod);
        let Some(mut value) = old else { return Ok(false) };
        value.draining = 1;
        map.update(&id.to_ne_bytes(), sys::pod_bytes(&value), MapFlags::ANY).map_err(what)?;
        Ok(true)
    }

    /// Makes the pairs of draining workloads leave, until all have or `timeout` has passed.
    pub fn drain(&self, timeout: Duration) -> Result<Drain> {
        let program = self.program("shared_socket_drain")?;
        let sockets = self.map("sockets")?;
        let deadline = Instant::now() + timeout;
        loop {
            let mut text = String::new();
            sys::iterate(program.as_fd(), sockets.as_fd())
                .and_then(|mut f| f.read_to_string(&mut text))
                .map_err(|e| Error::system("running the drain iterator", e))?;
            let remaining = self.remaining()?;
            if remaining == 0 || Instant::now() >= deadline {
                return Ok(Drain { remaining });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Halves of draining workloads that are still in the sockhash.
    fn remaining(&self) -> Result<u64> {
        let draining: Vec<u64> = self.workloads()?.iter().filter(|w| w.draining).map(|w| w.cgroup_id).collect();
        let halves = self.halves()?;
        let workload_of: HashMap<u64, u64> = halves.iter().map(|h| (h.cookie, h.workload)).collect();
        let in_drain = |h: &&Half| {
            h.path != HalfPath::Left
                && (draining.contains(&h.workload)
                    || workload_of.get(&h.peer_cookie).is_some_and(|w| draining.contains(w)))
        };
        Ok(halves.iter().filter(in_drain).count() as u64)
    }

    /// Ends a detach: unlinks the cgroup. Call it when [`drain`](Self::drain) left nothing.
    pub fn finish_detach(&self, id: u64) -> Result<()> {
        for hook in ["sockops", "release"] {
            let path = self.pins.link(hook, id);
            match fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::system(format!("removing {}", path.display()), e));
                }
                _ => {}
            }
        }
        match self.map("workloads")?.delete(&id.to_ne_bytes()) {
            Err(e) if e.kind() != libbpf_rs::ErrorKind::NotFound => {
                Err(Error::libbpf(format!("forgetting the workload {id}"), e))
            }
            _ => Ok(()),
        }
    }

    /// Removes every pin. Pairs that are still live would lose what is unread: drain first.
    pub fn remove_all(&self) -> Result<()> {
        self.pins.remove().map_err(|e| Error::system(format!("removing the pins in {}", self.pins.dir().display()), e))
    }

    /// What is attached.
    pub fn workloads(&self) -> Result<Vec<Workload>> {
        let map = self.map("workloads")?;
        let ids: Vec<u64> = map.keys().filter_map(|k| sys::read_pod(&k)).collect();
        let paths = host::cgroup2_mount().map(|root| cgroup_paths(&root, &ids)).unwrap_or_default();
        let mut list = Vec::new();
        for id in ids {
            let value =
                map.lookup(&id.to_ne_bytes(), MapFlags::ANY).map_err(|e| Error::libbpf("reading the workloads", e))?;
            if let Some(w) = value.as_deref().and_then(sys::read_pod::<types::workload>) {
                list.push(Workload {
                    cgroup_id: id,
                    cgroup: paths.get(&id).cloned(),
                    attached_at: w.attached_ns / 1_000_000_000,
                    eligibility: if w.eligibility == 0 { Eligibility::Safe } else { Eligibility::All },
                    draining: w.draining != 0,
                });
            }
        }
        list.sort_by_key(|w| w.cgroup_id);
        Ok(list)
    }

    /// All halves; one that closes while this runs may be missing.
    pub fn halves(&self) -> Result<Vec<Half>> {
        let map = self.map("halves")?;
        let mut list = Vec::new();
        for key in map.keys() {
            let value = map.lookup(&key, MapFlags::ANY).map_err(|e| Error::libbpf("reading the halves", e))?;
            if let Some(raw) = value.as_deref().and_then(sys::read_pod::<types::half>) {
                list.push(Half::from(&raw));
            }
        }
        Ok(list)
    }

    fn gone(&self) -> Result<Vec<types::totals>> {
        let per_cpu = self
            .map("totals")?
            .lookup_percpu(&0u32.to_ne_bytes(), MapFlags::ANY)
            .map_err(|e| Error::libbpf("reading the totals", e))?
            .unwrap_or_default();
        Ok(per_cpu.iter().filter_map(|v| sys::read_pod(v)).collect())
    }

    /// Live halves and the sums of those that are gone, from one moment: a record that moves from the one to the other
    /// meanwhile would count twice or never. Under constant churn the last of some tries is taken as it is.
    fn snapshot(&self) -> Result<(Vec<Half>, Vec<types::totals>)> {
        let mut tries = 0;
        loop {
            let before: u64 = self.gone()?.iter().map(|t| t.retired).sum();
            let halves = self.halves()?;
            let gone = self.gone()?;
            tries += 1;
            if before == gone.iter().map(|t| t.retiring).sum::<u64>() || tries == 100 {
                return Ok((halves, gone));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sums over all pairs, live and gone.
    pub fn totals(&self) -> Result<Totals> {
        let (halves, gone) = self.snapshot()?;
        let mut sent = Counters::default();
        let mut reasons = vec![0u64; 32];
        let mut totals = Totals { halves: halves.len() as u64, ..Totals::default() };
        for half in &halves {
            sent += half.sent;
            totals.handoffs += half.handoffs;
            reasons.iter_mut().zip(&half.reasons).for_each(|(sum, n)| *sum += n);
            if half.role == Role::Client && half.peer_cookie != 0 && half.path != HalfPath::Left {
                totals.pairs_live += 1;
            }
        }
        for raw in gone {
            sent += Counters::from(&raw.sent);
            totals.pairs_total += raw.pairs;
            totals.handoffs += raw.handoffs;
            totals.left += raw.left;
            reasons.iter_mut().zip(&raw.reasons).for_each(|(sum, n)| *sum += n);
        }
        totals.fast_messages = sent.fast_messages;
        totals.fast_bytes = sent.fast_bytes;
        totals.tcp_messages = sent.tcp_messages;
        totals.tcp_bytes = sent.tcp_bytes;
        let handshakes = self.map("handshakes")?;
        for key in handshakes.keys() {
            let value = handshakes.lookup(&key, MapFlags::ANY).map_err(|e| Error::libbpf("reading handshakes", e))?;
            match value.as_deref().and_then(sys::read_pod::<types::handshake>) {
                Some(hs) if hs.state == 0 => totals.published += 1,
                Some(_) => totals.announced += 1,
                None => {}
            }
        }
        totals.reasons = (0u32..)
            .zip(reasons)
            .filter(|(_, n)| *n > 0)
            .map(|(number, n)| (reason::reason_name(number).to_owned(), n))
            .collect();
        Ok(totals)
    }
}

/// Paths of cgroups by id, from one walk of the hierarchy.
fn cgroup_paths(root: &Path, ids: &[u64]) -> HashMap<u64, PathBuf> {
    use std::os::unix::fs::MetadataExt;
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

//! The tap: copies of messages for who captures (bpf/tap.bpf.c).
//!
//! A tap takes a slot of the map `verdicts` before the last and goes on to the next, so that several can be there at one
//! time. A slot without a tap holds what the slot behind it holds: without any, all hold the verdict.
//!
//! It is loaded for the life of a [`Tap`]; when that is gone, all is as if nothing had been. Who is killed leaves the tap in
//! its slot, where it does nothing once its lease has run out, and the next command takes it out: a slot in use is told by a
//! lock on a directory beside the pins, which the kernel drops with its holder. The tap's program is pinned in there.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, MapHandle, RingBuffer, RingBufferBuilder};
use nix::fcntl::{Flock, FlockArg};

use crate::journal::now_ns;
use crate::pins::{self, Pins};
use crate::skel::types;
use crate::tap_skel::TapSkelBuilder;
use crate::{Datapath, Endpoint, Error, Result, Role, kernel, sys, view};

/// Slots of `verdicts` that a tap may take.
pub(crate) const SLOTS: u32 = types::verdict_slot::VERDICT_LAST.0;
const LAST: u32 = types::verdict_slot::VERDICT_LAST.0;

/// A tap copies nothing when so long nobody has renewed its lease.
const LEASE: Duration = Duration::from_secs(5);
/// How often it is renewed, and what is pinned is looked at.
const RENEW: Duration = Duration::from_secs(1);
/// How often the ring buffers are looked at, where nothing else is said.
const LOOK: Duration = Duration::from_millis(5);
/// Pieces that are taken at one time.
const BATCH: usize = 4096;

/// What is copied.
#[derive(Debug, Clone)]
pub struct TapOptions {
    /// Bytes of each message, at most.
    pub snaplen: u32,
    /// Of what each end sends, so many bytes from its start, at most.
    pub first_bytes: u64,
    /// Only what these ends send; `None`: both.
    pub from: Option<Role>,
    /// Size of the ring buffer; it is rounded up to a power of two.
    pub buffer_bytes: u32,
    /// How often the ring buffer is looked at.
    pub look: Duration,
}

impl Default for TapOptions {
    fn default() -> Self {
        Self { snaplen: u32::MAX, first_bytes: u64::MAX, from: None, buffer_bytes: 16 << 20, look: LOOK }
    }
}

/// A message, as its sender gave it to the kernel.
#[derive(Debug, Clone)]
pub struct Tapped {
    /// CLOCK_MONOTONIC, nanoseconds: when it was sent.
    pub time_ns: u64,
    /// Cookie of the sender's socket.
    pub cookie: u64,
    /// Tells the connections of one socket apart.
    pub generation: u32,
    /// Cookie of the other end; 0: not known yet.
    pub peer_cookie: u64,
    /// Messages that this end had sent before.
    pub number: u64,
    /// Bytes that this end had sent before.
    pub offset: u64,
    /// Which end sent it.
    pub role: Role,
    /// Number of the reason of the message before it; of its first, nothing.
    pub reason_before: u32,
    /// cgroup id of the sender's workload.
    pub workload: u64,
    /// cgroup id of the sender's socket.
    pub cgroup: u64,
    /// As `workload`, of the other end; 0: not known yet.
    pub peer_workload: u64,
    /// As `cgroup`, of the other end; 0: not known yet.
    pub peer_cgroup: u64,
    /// The sender's address.
    pub local: Endpoint,
    /// The other end's, as the sender sees it.
    pub remote: Endpoint,
    /// Inode number of the sender's network namespace.
    pub netns: u32,
    /// Initial sequence number of the sender,
    pub isn_local: u32,
    /// and of the other end.
    pub isn_remote: u32,
    /// Bytes of the message.
    pub size: u32,
    /// Its first bytes; fewer where it was cut short, or something was lost.
    pub bytes: Vec<u8>,
    /// Something of it was lost, as the ring buffer was full; or could not be read.
    pub cut: bool,
}

impl Tapped {
    fn new(raw: &types::tapped) -> Self {
        Self {
            time_ns: raw.time_ns,
            cookie: raw.cookie,
            generation: raw.generation,
            peer_cookie: raw.peer_cookie,
            number: raw.number,
            offset: raw.offset,
            role: Role::from_number(raw.role),
            reason_before: raw.reason.into(),
            workload: raw.workload,
            cgroup: raw.cgroup,
            peer_workload: raw.peer_workload,
            peer_cgroup: raw.peer_cgroup,
            local: (&raw.local).into(),
            remote: (&raw.remote).into(),
            netns: raw.netns,
            isn_local: raw.isn_local,
            isn_remote: raw.isn_remote,
            size: raw.size,
            bytes: Vec::new(),
            cut: false,
        }
    }

    fn is_of(&self, raw: &types::tapped) -> bool {
        (self.cookie, self.generation, self.number) == (raw.cookie, raw.generation, raw.number)
    }
}

/// Sums of a tap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct TapCounts {
    /// Messages copied, whole or in part.
    pub messages: u64,
    /// Pieces of messages for which the ring buffer had no room.
    pub lost: u64,
    /// Messages of workloads that may not be captured.
    pub withheld: u64,
    /// Messages whose bytes could not be read, or not all of them.
    pub hidden: u64,
}

impl std::ops::AddAssign for TapCounts {
    fn add_assign(&mut self, o: Self) {
        self.messages += o.messages;
        self.lost += o.lost;
        self.withheld += o.withheld;
        self.hidden += o.hidden;
    }
}

/// Puts pieces together. One half's come in order; those of others may come between.
#[derive(Debug, Default)]
struct Assembly {
    open: Vec<Tapped>,
    whole: Vec<Tapped>,
}

impl Assembly {
    fn add(&mut self, record: &[u8]) {
        let Some(raw) = sys::read_pod::<types::tapped>(record) else { return };
        let bytes = &record[size_of::<types::tapped>()..];
        let bytes = &bytes[..bytes.len().min(raw.length as usize)];
        let at = match self.open.iter().position(|t| t.cookie == raw.cookie) {
            Some(at) if self.open[at].is_of(&raw) => at,
            found => {
                // a later message: the end of the one before it is lost
                if let Some(at) = found {
                    self.close(at, true);
                }
                self.open.push(Tapped::new(&raw));
                self.open.len() - 1
            }
        };
        let message = &mut self.open[at];
        if message.bytes.len() == raw.at as usize {
            message.bytes.extend_from_slice(bytes);
        } else {
            message.cut = true; // a piece before this one is lost
        }
        let flags = u32::from(raw.flags);
        let hidden = flags & types::tapped_flags::TAPPED_HIDDEN.0 != 0;
        if hidden || flags & types::tapped_flags::TAPPED_MORE.0 == 0 {
            self.close(at, hidden);
        }
    }

    fn close(&mut self, at: usize, cut: bool) {
        let mut message = self.open.swap_remove(at);
        message.cut |= cut;
        self.whole.push(message);
    }

    /// What waits for a piece that does not come.
    fn give_up(&mut self, before_ns: u64) {
        while let Some(at) = self.open.iter().position(|t| t.time_ns < before_ns) {
            self.close(at, true);
        }
    }
}

/// A tap in one generation.
struct Source {
    pins: Pins,
    /// Of the pin of its map: another generation may come to stand at the same place.
    inode: u64,
    slot: u32,
    program: OwnedFd,
    id: u32,
    choices: MapHandle,
    lease: MapHandle,
    counts: MapHandle,
    ring: RingBuffer<'static>,
    taken: Rc<RefCell<Assembly>>,
    /// Held while the slot is ours.
    held: Option<Flock<File>>,
}

/// Copies of messages, as long as it lives. Dropped, it takes itself out.
pub struct Tap {
    dir: PathBuf,
    options: TapOptions,
    sources: Vec<Source>,
    /// Of sources that are gone.
    gone: TapCounts,
    renew: Instant,
    stopped: bool,
    /// The last look found all that was there.
    drained: bool,
}

fn verdicts(pins: &Pins) -> Result<MapHandle> {
    pins.open_map("verdicts")
}

fn id_in(verdicts: &dyn MapCore, slot: u32) -> Option<u32> {
    let value = verdicts.lookup(&slot.to_ne_bytes(), MapFlags::ANY).ok().flatten();
    value.as_deref().and_then(sys::read_pod)
}

fn put(verdicts: &dyn MapCore, slot: u32, program: BorrowedFd<'_>) -> Result<()> {
    let fd = program.as_raw_fd() as u32;
    verdicts
        .update(&slot.to_ne_bytes(), &fd.to_ne_bytes(), MapFlags::ANY)
        .map_err(|e| Error::libbpf(format!("filling slot {slot} of the verdicts"), e))
}

/// Puts a verdict in force. The last slot first: a tap that is in one before it goes on to it. Each swap is atomic and reaches
/// every live connection with its next message.
pub(crate) fn put_verdict(verdicts: &dyn MapCore, program: BorrowedFd<'_>) -> Result<()> {
    let before = id_in(verdicts, LAST);
    put(verdicts, LAST, program)?;
    for slot in 0..SLOTS {
        let here = id_in(verdicts, slot);
        if here.is_none() || here == before {
            put(verdicts, slot, program)?;
        }
    }
    Ok(())
}

/// The lock of a slot; `None`: somebody has it. The caller holds the lock of all pins.
fn lock_slot(dir: &Path) -> Result<Option<Flock<File>>> {
    let what = |e| Error::system(format!("locking {}", dir.display()), e);
    match fs::create_dir(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(what(e)),
        _ => {}
    }
    match Flock::lock(File::open(dir).map_err(what)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, e)) => Err(what(e.into())),
    }
}

/// Taps whose holder is gone leave their slots. The caller holds the lock of all pins.
pub(crate) fn take_out_dead(pins: &Pins) -> Result<()> {
    for slot in 0..SLOTS {
        let dir = pins.tap(slot);
        if dir.exists()
            && let Some(_lock) = lock_slot(&dir)?
        {
            tracing::info!(slot, "a capture ended without taking its tap out");
            remove(&dir)?;
        }
    }
    arrange(pins)
}

/// The directory of a slot, with what is pinned in it.
fn remove(dir: &Path) -> Result<()> {
    pins::remove_tap(dir).map_err(|e| Error::system(format!("removing {}", dir.display()), e))
}

/// Each slot holds its tap, or what the one behind it holds; from the last to the first, so that no tap misses a message because
/// another comes or goes. The caller holds the lock of all pins.
fn arrange(pins: &Pins) -> Result<()> {
    if !pins.map("verdicts").exists() || !pins.program("shared_socket_verdict").exists() {
        return Ok(()); // being removed
    }
    let verdicts = verdicts(pins)?;
    if verdicts.max_entries() <= SLOTS {
        return Ok(()); // another version's
    }
    let mut program: Option<OwnedFd> = None;
    let mut id = id_in(&verdicts, LAST);
    for slot in (0..SLOTS).rev() {
        if let Ok(tap) = sys::open_pin(&pins::tap_program(&pins.tap(slot))) {
            id = Some(sys::program_runs(tap.as_fd()).map_err(|e| Error::system("asking for a tap's id", e))?.0);
            program = Some(tap);
        }
        if id_in(&verdicts, slot) != id {
            let program = match &program {
                Some(tap) => tap,
                None => program.insert(pins.open_program("shared_socket_verdict")?),
            };
            put(&verdicts, slot, program.as_fd())?;
        }
    }
    Ok(())
}

fn inode(pins: &Pins) -> u64 {
    pins.inode("verdicts").unwrap_or(0)
}

impl Source {
    /// The caller holds the lock of all pins.
    fn open(pins: &Pins, options: &TapOptions) -> Result<Self> {
        let mut free = None;
        for slot in 0..SLOTS {
            if let Some(lock) = lock_slot(&pins.tap(slot))? {
                free = Some((slot, lock));
                break;
            }
        }
        let Some((slot, held)) = free else {
            return Err(Error::Unsupported {
                what: format!("{SLOTS} captures run already, and there is room for no more"),
                todo: "end one of them, or wait for its end".into(),
            });
        };
        let made = Self::load(pins, slot, options).and_then(|source| {
            source.renew()?;
            let pin = pins::tap_program(&pins.tap(slot));
            sys::pin(source.program.as_fd(), &pin)
                .map_err(|e| Error::system(format!("pinning {}", pin.display()), e))?;
            arrange(pins)?;
            Ok(Self { held: Some(held), ..source })
        });
        if made.is_err() {
            let _ = remove(&pins.tap(slot)).and_then(|()| arrange(pins));
        }
        made
    }

    fn load(pins: &Pins, slot: u32, options: &TapOptions) -> Result<Self> {
        crate::silence();
        let what = |e| Error::libbpf("opening the BPF object of the tap", e);
        let mut storage = MaybeUninit::uninit();
        let mut open = TapSkelBuilder::default().open(&mut storage).map_err(what)?;
        let roles = match options.from {
            None => 3,
            Some(Role::Client) => 1,
            Some(Role::Server) => 2,
        };
        let page = u32::try_from(page_size()).unwrap_or(4096);
        if let Some(rodata) = open.maps.rodata_data.as_deref_mut() {
            rodata.tap.first_bytes = options.first_bytes;
            rodata.tap.snaplen = options.snaplen;
            rodata.tap.next = slot + 1;
            rodata.tap.roles = roles;
            rodata.tap.page_bytes = page;
        }
        let bytes = options.buffer_bytes.max(page).checked_next_power_of_two().unwrap_or(1 << 31);
        open.maps.tapped.set_max_entries(bytes).map_err(|e| Error::libbpf("sizing the ring buffer of the tap", e))?;
        for mut map in open.open_object_mut().maps_mut() {
            let name = map.name().to_string_lossy().into_owned();
            match name.as_str() {
                "halves" | "verdicts" | "withheld" => {
                    let path = pins.map(&name);
                    map.reuse_pinned_map(&path)
                        .map_err(|e| Error::libbpf(format!("taking the map {}", path.display()), e))?;
                }
                "tapped" => {}
                own if own.starts_with("tap_") || own.contains('.') => {}
                _ => map.set_autocreate(false).map_err(what)?,
            }
        }
        let skel = open.load().map_err(kernel::rejected)?;
        let keeping = |e| Error::libbpf("keeping a map of the tap", e);
        let program = skel
            .progs
            .shared_socket_tap
            .as_fd()
            .try_clone_to_owned()
            .map_err(|e| Error::system("keeping the program of the tap", e))?;
        let (id, ..) = sys::program_runs(program.as_fd()).map_err(|e| Error::system("asking for the tap's id", e))?;
        let taken = Rc::new(RefCell::new(Assembly::default()));
        let sink = taken.clone();
        let reading = |e| Error::libbpf("reading the ring buffer of the tap", e);
        let mut builder = RingBufferBuilder::new();
        builder
            .add(&skel.maps.tapped, move |record| {
                sink.borrow_mut().add(record);
                0
            })
            .map_err(reading)?;
        let ring = builder.build().map_err(reading)?;
        Ok(Self {
            pins: pins.clone(),
            inode: inode(pins),
            slot,
            program,
            id,
            choices: MapHandle::try_from(&skel.maps.tap_choices).map_err(keeping)?,
            lease: MapHandle::try_from(&skel.maps.tap_lease).map_err(keeping)?,
            counts: MapHandle::try_from(&skel.maps.tap_counts).map_err(keeping)?,
            ring,
            taken,
            held: None,
        })
    }

    fn renew(&self) -> Result<()> {
        let until = now_ns() + LEASE.as_nanos() as u64;
        self.lease
            .update(&0u32.to_ne_bytes(), &until.to_ne_bytes(), MapFlags::ANY)
            .map_err(|e| Error::libbpf("renewing the lease of the tap", e))
    }

    fn is_there(&self) -> bool {
        inode(&self.pins) == self.inode
    }

    fn is_in(&self) -> bool {
        verdicts(&self.pins).is_ok_and(|v| id_in(&v, self.slot) == Some(self.id))
    }

    fn counts(&self) -> TapCounts {
        let per_cpu = self.counts.lookup_percpu(&0u32.to_ne_bytes(), MapFlags::ANY).ok().flatten().unwrap_or_default();
        let mut sum = TapCounts::default();
        for raw in per_cpu.iter().filter_map(|v| sys::read_pod::<types::tap_counts>(v)) {
            sum += TapCounts { messages: raw.messages, lost: raw.lost, withheld: raw.withheld, hidden: raw.hidden };
        }
        sum
    }

    /// The caller holds the lock of all pins.
    fn take_out(&mut self) -> Result<()> {
        if self.held.is_none() || !self.is_there() {
            return Ok(());
        }
        remove(&self.pins.tap(self.slot))?;
        arrange(&self.pins)?;
        self.held = None;
        Ok(())
    }
}

fn page_size() -> i64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096)
}

impl Tap {
    /// Begins to copy; `None` when nothing is pinned below `dir`.
    pub fn open(dir: &Path, options: TapOptions) -> Result<Option<Self>> {
        let mut tap = Self {
            dir: dir.to_path_buf(),
            options,
            sources: Vec::new(),
            gone: TapCounts::default(),
            renew: Instant::now() + RENEW,
            stopped: false,
            drained: false,
        };
        Ok(tap.follow()?.then_some(tap))
    }

    /// Is in every generation that this version can read, and in no other; false when there is none.
    fn follow(&mut self) -> Result<bool> {
        for source in self.sources.iter_mut().filter(|s| !s.is_there()) {
            source.held = None; // what was pinned is gone, and the tap with it
            self.gone += source.counts();
        }
        self.sources.retain(|s| s.held.is_some());
        let Some(view) = Datapath::read(&self.dir)? else { return Ok(false) };
        let known: BTreeSet<u64> = self.sources.iter().map(|s| s.inode).collect();
        let fresh: Vec<&Pins> = view.readable().filter(|p| !known.contains(&inode(p))).collect();
        if fresh.is_empty() && self.sources.iter().all(Source::is_in) {
            return Ok(!self.sources.is_empty());
        }
        let Some(_lock) = view::lock(&self.dir)? else { return Ok(false) };
        for source in self.sources.iter().filter(|s| s.is_there() && !s.is_in()) {
            arrange(&source.pins)?;
        }
        for pins in fresh.into_iter().filter(|p| p.map("verdicts").exists()) {
            take_out_dead(pins)?;
            self.sources.push(Source::open(pins, &self.options)?);
        }
        Ok(!self.sources.is_empty())
    }

    /// Waits for messages, `patience` at most, and takes what has come, in the order in which it was sent. False when nothing
    /// is pinned any more.
    pub fn read(&mut self, patience: Duration, into: &mut Vec<Tapped>) -> Result<bool> {
        let deadline = Instant::now() + patience;
        loop {
            if !self.stopped && Instant::now() >= self.renew {
                self.renew = Instant::now() + RENEW;
                for source in &self.sources {
                    source.renew()?;
                }
                if !self.follow()? {
                    return Ok(false);
                }
            }
            let mut all_empty = true;
            for source in &self.sources {
                let count = source.ring.consume_raw_n(BATCH);
                if count < 0 {
                    return Err(Error::system(
                        "reading the ring buffer of the tap",
                        std::io::Error::from_raw_os_error(-count),
                    ));
                }
                all_empty &= (count as usize) < BATCH;
                let mut taken = source.taken.borrow_mut();
                taken.give_up(now_ns().saturating_sub(RENEW.as_nanos() as u64));
                into.append(&mut taken.whole);
            }
            if self.sources.len() > 1 {
                into.sort_by_key(|t| t.time_ns);
            }
            self.drained = all_empty;
            if !into.is_empty() || !all_empty || Instant::now() >= deadline {
                return Ok(true);
            }
            std::thread::sleep(self.options.look.min(deadline.saturating_duration_since(Instant::now())));
        }
    }

    /// Whether the last [`read`](Self::read) took everything that was there when it ended.
    pub fn is_drained(&self) -> bool {
        self.drained
    }

    /// Copies nothing more; what was copied can still be read.
    pub fn stop(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.stopped, true) || self.sources.is_empty() {
            return Ok(());
        }
        let Some(_lock) = view::lock(&self.dir)? else { return Ok(()) }; // nothing is pinned any more
        self.sources.iter_mut().try_for_each(Source::take_out)
    }

    /// Whether messages of this half are copied from now on. Those that nothing was said of are.
    pub fn choose(&self, cookie: u64, generation: u32, wanted: bool) -> Result<()> {
        let choice = types::tap_choice { generation, wanted: u32::from(wanted) };
        for source in &self.sources {
            source
                .choices
                .update(&cookie.to_ne_bytes(), sys::pod_bytes(&choice), MapFlags::ANY)
                .map_err(|e| Error::libbpf("choosing what the tap copies", e))?;
        }
        Ok(())
    }

    /// What was copied so far, and what was not.
    pub fn counts(&self) -> TapCounts {
        let mut sum = self.gone;
        for source in &self.sources {
            sum += source.counts();
        }
        sum
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if let Err(e) = self.stop() {
            tracing::warn!("taking the tap out: {e}; it will copy nothing any more, and the next command takes it out");
        }
    }
}

impl Datapath {
    /// Workloads whose messages are not copied, by cgroup id.
    pub fn withheld(&self) -> Result<BTreeSet<u64>> {
        if !self.pins.map("withheld").exists() {
            return Ok(BTreeSet::new());
        }
        let map = self.map("withheld")?;
        Ok(map.keys().filter_map(|key| sys::read_pod(&key)).collect())
    }

    /// Whether messages of this workload, to and from it, may be copied. Holds from the next message on; true when it was
    /// different before.
    pub fn withhold(&self, id: u64, withheld: bool) -> Result<bool> {
        if self.withheld()?.contains(&id) == withheld {
            return Ok(false);
        }
        let what = |e| Error::libbpf(format!("writing that the workload {id} may not be captured"), e);
        for pins in self.readable() {
            let map = pins.open_map("withheld")?;
            match withheld {
                true => map.update(&id.to_ne_bytes(), &[1], MapFlags::ANY).map_err(what)?,
                false => match map.delete(&id.to_ne_bytes()) {
                    Err(e) if e.kind() != libbpf_rs::ErrorKind::NotFound => return Err(what(e)),
                    _ => {}
                },
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(cookie: u64, number: u64, at: u32, size: u32, more: bool, bytes: &[u8]) -> Vec<u8> {
        let raw = types::tapped {
            cookie,
            number,
            at,
            size,
            length: bytes.len() as u32,
            flags: u8::from(more),
            ..Default::default()
        };
        [sys::pod_bytes(&raw), bytes, b"what was here before"].concat()
    }

    #[test]
    fn pieces_come_together() {
        let mut assembly = Assembly::default();
        assembly.add(&record(1, 0, 0, 6, true, b"abc"));
        assembly.add(&record(2, 0, 0, 2, false, b"xy"));
        assembly.add(&record(1, 0, 3, 6, false, b"def"));
        let got: Vec<_> = assembly.whole.iter().map(|t| (t.cookie, t.bytes.as_slice(), t.cut)).collect();
        assert_eq!(got, [(2, b"xy".as_slice(), false), (1, b"abcdef".as_slice(), false)]);
        assert!(assembly.open.is_empty());
    }

    #[test]
    fn what_is_lost_cuts_a_message_short() {
        let mut assembly = Assembly::default();
        assembly.add(&record(1, 0, 0, 9, true, b"abc"));
        assembly.add(&record(1, 0, 6, 9, false, b"ghi")); // the middle is lost
        assembly.add(&record(1, 1, 0, 9, true, b"abc"));
        assembly.add(&record(1, 2, 0, 1, false, b"z")); // the end is lost
        assembly.add(&record(1, 3, 0, 9, true, b"abc")); // what comes last, too
        assembly.give_up(1);
        let got: Vec<_> = assembly.whole.iter().map(|t| (t.number, t.bytes.as_slice(), t.cut)).collect();
        let abc = b"abc".as_slice();
        assert_eq!(got, [(0, abc, true), (1, abc, true), (2, b"z".as_slice(), false), (3, abc, true)]);
    }
}

//! The journal: what happened, for people (bpf/journal.bpf.h).
//!
//! The programs overwrite its oldest entries and wait for nobody, so any number of readers may look, whenever they like, and
//! none has to. Each keeps its own positions; what was overwritten before it came is counted.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use nix::sys::mman::{MapFlags as Mapping, ProtFlags, mmap, munmap};
use serde::Serialize;

use crate::pins::Pins;
use crate::skel::types;
use crate::{Counters, Datapath, Endpoint, Error, Result, Role, hazard_names, sys};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JournalKind {
    /// A client's socket is established, or stays on TCP because its kind is not worth it.
    Connect,
    /// A server's socket is established.
    Accept,
    /// The two ends of a connection were tied.
    Paired,
    /// The same, of a connection that was established before its workload was attached.
    Adopted,
    /// What a half sends goes by the fast path from now on.
    Handoff,
    /// What a half sends goes by TCP again.
    FellBack,
    /// A half was taken out of the sockhash, and is plain TCP from now on.
    Left,
    /// The last half of a connection is gone.
    Closed,
    /// The same, but the connection goes on: its workload is not attached any more.
    Unwatched,
    /// Redirected bytes are unread, and the application reads in a way that does not see them.
    Stuck,
    /// The peer has reset the connection and the kernel has dropped that RST.
    Untold,
    /// A socket option was refused, as it would have hidden redirected bytes that are unread.
    Refused,
    /// The connection of a stuck half was reset.
    Reset,
    /// A workload was attached.
    Attach,
    /// A workload was detached.
    Detach,
    /// Other programs are in force.
    Upgrade,
    /// A later version's.
    Unknown,
}

impl JournalKind {
    /// All that this version knows.
    pub const ALL: [Self; 16] = [
        Self::Connect,
        Self::Accept,
        Self::Paired,
        Self::Adopted,
        Self::Handoff,
        Self::FellBack,
        Self::Left,
        Self::Closed,
        Self::Unwatched,
        Self::Stuck,
        Self::Untold,
        Self::Refused,
        Self::Reset,
        Self::Attach,
        Self::Detach,
        Self::Upgrade,
    ];

    /// As printed, and as `--kind` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Accept => "accept",
            Self::Paired => "paired",
            Self::Adopted => "adopted",
            Self::Handoff => "handoff",
            Self::FellBack => "fell_back",
            Self::Left => "left",
            Self::Closed => "closed",
            Self::Unwatched => "unwatched",
            Self::Stuck => "stuck",
            Self::Untold => "untold",
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Attach => "attach",
            Self::Detach => "detach",
            Self::Upgrade => "upgrade",
            Self::Unknown => "unknown",
        }
    }

    fn number(self) -> types::journal_kind {
        use types::journal_kind as k;
        match self {
            Self::Connect => k::JOURNAL_CONNECT,
            Self::Accept => k::JOURNAL_ACCEPT,
            Self::Paired => k::JOURNAL_PAIRED,
            Self::Adopted => k::JOURNAL_ADOPTED,
            Self::Handoff => k::JOURNAL_HANDOFF,
            Self::FellBack => k::JOURNAL_FELL_BACK,
            Self::Left => k::JOURNAL_LEFT,
            Self::Closed => k::JOURNAL_CLOSED,
            Self::Unwatched => k::JOURNAL_UNWATCHED,
            Self::Stuck => k::JOURNAL_STUCK,
            Self::Untold => k::JOURNAL_UNTOLD,
            Self::Refused => k::JOURNAL_REFUSED,
            Self::Reset => k::JOURNAL_RESET,
            Self::Attach => k::JOURNAL_ATTACH,
            Self::Detach => k::JOURNAL_DETACH,
            Self::Upgrade => k::JOURNAL_UPGRADE,
            Self::Unknown => k::JOURNAL_NONE,
        }
    }

    fn of_number(number: u32) -> Self {
        Self::ALL.into_iter().find(|k| k.number().0 == number).unwrap_or(Self::Unknown)
    }
}

impl FromStr for JournalKind {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let found = Self::ALL.into_iter().find(|k| k.name() == name.replace('-', "_"));
        found.ok_or_else(|| {
            let all: Vec<&str> = Self::ALL.iter().map(|k| k.name()).collect();
            format!("there is no kind of event {name:?}; there are {}", all.join(", "))
        })
    }
}

/// One event.
#[derive(Debug, Clone)]
pub struct Entry {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub time_ns: u64,
    /// What happened.
    pub kind: JournalKind,
    /// Number of the reason; 0 (`fast`) where there is none.
    pub reason: u32,
    /// Which end of the connection it happened to.
    pub role: Role,
    /// Cookie of its socket; 0: no socket's.
    pub cookie: u64,
    /// Tells the connections of one socket apart; 0: it has no record.
    pub generation: u32,
    /// Cookie of the other end; 0: not known.
    pub peer_cookie: u64,
    /// cgroup id of the socket.
    pub cgroup: u64,
    /// cgroup id of the attached workload.
    pub workload: u64,
    /// As `cgroup`, of the other end.
    pub peer_cgroup: u64,
    /// As `workload`, of the other end; 0: not known.
    pub peer_workload: u64,
    /// Its own address.
    pub local: Option<Endpoint>,
    /// The other end's, as it sees it.
    pub remote: Option<Endpoint>,
    /// Inode number of the network namespace.
    pub netns: u32,
    /// What the application did.
    pub hazards: Vec<&'static str>,
    /// How long the connection had lasted, in nanoseconds.
    pub duration_ns: u64,
    /// What this end had sent.
    pub sent: Counters,
    /// What the other end had sent; of [`JournalKind::Closed`] and [`JournalKind::Unwatched`].
    pub got: Counters,
}

impl From<&types::journal_entry> for Entry {
    fn from(raw: &types::journal_entry) -> Self {
        let end = |addr, port| {
            let raw = types::endpoint { addr, port, family: raw.family, ..Default::default() };
            (raw.family != 0).then(|| Endpoint::from(&raw))
        };
        Self {
            time_ns: raw.time_ns,
            kind: JournalKind::of_number(raw.kind.into()),
            reason: raw.reason,
            role: Role::from_number(raw.role),
            cookie: raw.cookie,
            generation: raw.generation,
            peer_cookie: raw.peer_cookie,
            cgroup: raw.cgroup,
            workload: raw.workload,
            peer_cgroup: raw.peer_cgroup,
            peer_workload: raw.peer_workload,
            local: end(raw.local_addr, raw.local_port),
            remote: end(raw.remote_addr, raw.remote_port),
            netns: raw.netns,
            hazards: hazard_names(raw.hazards),
            duration_ns: raw.duration_ns,
            sent: (&raw.sent).into(),
            got: (&raw.got).into(),
        }
    }
}

/// What a look found.
#[derive(Debug, Default)]
pub struct Batch {
    /// In the order of time.
    pub entries: Vec<Entry>,
    /// Entries that were overwritten before this reader came to them, or could not be written.
    pub lost: u64,
    /// Events that came too fast, by kind: they were never written.
    pub suppressed: BTreeMap<JournalKind, u64>,
}

/// Where a reader begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With the oldest entry that is there.
    Oldest,
    /// With what comes from now on.
    Now,
}

/// Entries that are newer wait for the next look, so that those of other CPUs come before them.
const SETTLE: Duration = Duration::from_millis(5);
/// A writer that has begun an entry and does not end it.
const PATIENCE: Duration = Duration::from_secs(1);

/// The entries of one generation, as this process sees them: read-only, and changed by the kernel at any moment.
struct Pages {
    at: NonNull<std::ffi::c_void>,
    length: NonZeroUsize,
    entries: usize,
}

// SAFETY: the pages are only read, by loads that allow for changes; nothing of them belongs to a thread.
unsafe impl Send for Pages {}

enum Seen {
    Entry(Box<types::journal_entry>),
    /// Not written yet, or not completely.
    NotYet,
    /// By a later one.
    Overwritten,
}

impl Pages {
    fn new(map: &MapHandle) -> Result<Self> {
        let entries = map.max_entries() as usize;
        let length = (entries * size_of::<types::journal_entry>()).next_multiple_of(4096);
        let failed = |e: nix::Error| Error::system("mapping the journal into memory", e.into());
        let length = NonZeroUsize::new(length).ok_or_else(|| failed(nix::Error::EINVAL))?;
        // SAFETY: a fresh mapping at an address that the kernel chooses; nothing else refers to it.
        let at = unsafe { mmap(None, length, ProtFlags::PROT_READ, Mapping::MAP_SHARED, map, 0) }.map_err(failed)?;
        Ok(Self { at, length, entries })
    }

    fn entry(&self, index: usize) -> Option<*const types::journal_entry> {
        // SAFETY: the index is inside the mapping, which has `entries` of them.
        (index < self.entries)
            .then(|| unsafe { self.at.as_ptr().cast::<types::journal_entry>().cast_const().add(index) })
    }

    /// The position of what stands at an index, plus 1.
    fn sequence(&self, index: usize) -> u64 {
        let Some(entry) = self.entry(index) else { return 0 };
        // SAFETY: the first member of an entry, which is aligned to eight bytes in a mapping that lives as long as `self`;
        // the kernel changes it by atomics.
        unsafe { AtomicU64::from_ptr(entry.cast::<u64>().cast_mut()) }.load(Ordering::Acquire)
    }

    /// The entry of a position, copied between two looks at its sequence.
    fn read(&self, index: usize, position: u64) -> Seen {
        let Some(entry) = self.entry(index) else { return Seen::Overwritten };
        match self.sequence(index) {
            seen if seen > position + 1 => return Seen::Overwritten,
            seen if seen < position + 1 => return Seen::NotYet,
            _ => {}
        }
        // SAFETY: inside the mapping, plain data of which any bits are valid. The kernel may write meanwhile: the volatile
        // read takes what is there, and the sequence that is read behind it tells whether that is one entry.
        let copy = Box::new(unsafe { std::ptr::read_volatile(entry) });
        fence(Ordering::Acquire);
        if self.sequence(index) == position + 1 { Seen::Entry(copy) } else { Seen::Overwritten }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, and no reference into it outlives `self`.
        let _ = unsafe { munmap(self.at, self.length.get()) };
    }
}

/// The part of one CPU, or of userspace.
#[derive(Debug, Clone, Copy, Default)]
struct Segment {
    /// Of the entry that is read next.
    position: u64,
    /// Since when it is waited for, while others behind it are there.
    waiting: Option<Instant>,
}

/// The journal of one generation.
struct Source {
    /// Of the pin of its map: another generation may come to stand at the same place.
    inode: u64,
    pages: Pages,
    heads: MapHandle,
    size: u64,
    /// One a CPU; the last is userspace's.
    segments: Vec<Segment>,
    lost: u64,
    suppressed: BTreeMap<JournalKind, u64>,
}

impl Source {
    fn open(pins: &Pins, start: Start) -> Result<Self> {
        let map = pins.open_map("journal")?;
        let settings: types::settings = sys::read_pod(&pins.about()?).unwrap_or_default();
        let size = u64::from(settings.journal_mask) + 1;
        let parts = (u64::from(map.max_entries()) / size) as usize;
        let mut source = Self {
            inode: pins.inode("journal").unwrap_or(0),
            pages: Pages::new(&map)?,
            heads: pins.open_map("journal_heads")?,
            size,
            segments: vec![Segment::default(); parts],
            lost: 0,
            suppressed: BTreeMap::new(),
        };
        let heads = source.heads()?;
        for part in 0..parts {
            let next = source.next(part, &heads);
            source.segments[part].position = match start {
                Start::Oldest => next.saturating_sub(size),
                Start::Now => next,
            };
        }
        if start == Start::Now {
            (source.lost, source.suppressed) = counts(&heads);
        }
        Ok(source)
    }

    fn heads(&self) -> Result<Vec<types::journal_head>> {
        let values = self
            .heads
            .lookup_percpu(&0u32.to_ne_bytes(), MapFlags::ANY)
            .map_err(|e| Error::libbpf("reading the journal's heads", e))?;
        Ok(values.unwrap_or_default().iter().filter_map(|v| sys::read_pod(v)).collect())
    }

    fn index(&self, part: usize, position: u64) -> usize {
        part * self.size as usize + (position & (self.size - 1)) as usize
    }

    /// The position behind the newest entry.
    fn next(&self, part: usize, heads: &[types::journal_head]) -> u64 {
        if part + 1 == self.segments.len() {
            return (0..self.size).map(|at| self.pages.sequence(self.index(part, at))).max().unwrap_or(0);
        }
        heads.get(part).map_or(0, |h| h.next)
    }

    fn read(&mut self, into: &mut Batch) -> Result<()> {
        let heads = self.heads()?;
        for part in 0..self.segments.len() {
            let next = self.next(part, &heads);
            let oldest = next.saturating_sub(self.size);
            let Segment { mut position, mut waiting } = self.segments[part];
            if position < oldest {
                into.lost += oldest - position;
                position = oldest;
            }
            while position < next {
                match self.pages.read(self.index(part, position), position) {
                    Seen::Entry(raw) => into.entries.push((&*raw).into()),
                    Seen::Overwritten => into.lost += 1,
                    Seen::NotYet if waiting.get_or_insert_with(Instant::now).elapsed() < PATIENCE => break,
                    Seen::NotYet => into.lost += 1,
                }
                waiting = None;
                position += 1;
            }
            self.segments[part] = Segment { position, waiting };
        }
        let (lost, suppressed) = counts(&heads);
        into.lost += lost.saturating_sub(self.lost);
        for (kind, count) in &suppressed {
            let fresh = count.saturating_sub(self.suppressed.get(kind).copied().unwrap_or(0));
            if fresh > 0 {
                *into.suppressed.entry(*kind).or_default() += fresh;
            }
        }
        (self.lost, self.suppressed) = (lost, suppressed);
        Ok(())
    }
}

/// What was not written, in all: lost, and suppressed by kind.
fn counts(heads: &[types::journal_head]) -> (u64, BTreeMap<JournalKind, u64>) {
    let mut suppressed = BTreeMap::new();
    for head in heads {
        for (number, bucket) in (0u32..).zip(&head.buckets).filter(|(_, b)| b.suppressed > 0) {
            *suppressed.entry(JournalKind::of_number(number)).or_default() += bucket.suppressed;
        }
    }
    (heads.iter().map(|h| h.lost).sum(), suppressed)
}

/// A reader of the journals of all generations, which come and go while it reads.
pub struct Journal {
    dir: PathBuf,
    sources: Vec<Source>,
    held: Vec<Entry>,
}

impl Journal {
    /// Of what is pinned below `dir`, now or later.
    pub fn open(dir: &Path, start: Start) -> Result<Self> {
        let mut journal = Self { dir: dir.to_path_buf(), sources: Vec::new(), held: Vec::new() };
        journal.find(start)?;
        Ok(journal)
    }

    /// Takes in the generations that are new, and lets go of those that are no more. False when nothing is pinned.
    fn find(&mut self, start: Start) -> Result<bool> {
        let Some(datapath) = Datapath::read(&self.dir)? else { return Ok(false) };
        for pins in datapath.readable() {
            // gone a moment ago, or from before there was a journal
            let Some(inode) = pins.inode("journal") else { continue };
            if self.sources.iter().all(|s| s.inode != inode) {
                match Source::open(pins, start) {
                    Ok(source) => self.sources.push(source),
                    Err(e) if pins.inode("journal").is_some() => return Err(e),
                    Err(e) => tracing::debug!("{e}"), // likewise
                }
            }
        }
        Ok(true)
    }

    /// What has come since the last look. With `rest`, what came a moment ago, too, which otherwise waits for the next look: an
    /// older entry may still be on its way.
    pub fn read(&mut self, rest: bool) -> Result<Batch> {
        let now = now_ns();
        self.find(Start::Oldest)?;
        let mut batch = Batch::default();
        for source in &mut self.sources {
            source.read(&mut batch)?;
        }
        batch.entries.append(&mut self.held);
        batch.entries.sort_by_key(|e| e.time_ns);
        if !rest {
            let settled = now.saturating_sub(SETTLE.as_nanos() as u64);
            let at = batch.entries.partition_point(|e| e.time_ns <= settled);
            self.held = batch.entries.split_off(at);
        }
        self.forget_gone();
        Ok(batch)
    }

    /// After they were read for the last time: a detach is told in the journal that goes with it.
    fn forget_gone(&mut self) {
        if self.sources.len() > 1
            && let Ok(Some(datapath)) = Datapath::view(&self.dir, None)
        {
            let live: Vec<u64> = datapath.all().filter_map(|p| p.inode("journal")).collect();
            self.sources.retain(|s| live.contains(&s.inode));
        }
    }
}

/// CLOCK_MONOTONIC in nanoseconds, as the programs read it.
pub fn now_ns() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map(|t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
        .unwrap_or_default()
}

/// What the journal did not tell, since load.
#[derive(Debug, Clone, Default)]
pub struct JournalLoss {
    /// Events that could not be written.
    pub lost: u64,
    /// Events that came too fast, by kind.
    pub suppressed: BTreeMap<JournalKind, u64>,
    /// Events that were written.
    pub written: u64,
}

impl Datapath {
    /// What the journals did not tell.
    pub fn journal_loss(&self) -> Result<JournalLoss> {
        let mut loss = JournalLoss::default();
        for pins in self.readable().filter(|p| p.map("journal_heads").exists()) {
            let values = pins
                .open_map("journal_heads")?
                .lookup_percpu(&0u32.to_ne_bytes(), MapFlags::ANY)
                .map_err(|e| Error::libbpf("reading the journal's heads", e))?;
            let heads: Vec<types::journal_head> =
                values.unwrap_or_default().iter().filter_map(|v| sys::read_pod(v)).collect();
            let (lost, suppressed) = counts(&heads);
            loss.lost += lost;
            loss.written += heads.iter().map(|h| h.next).sum::<u64>();
            suppressed.into_iter().for_each(|(kind, n)| *loss.suppressed.entry(kind).or_default() += n);
        }
        Ok(loss)
    }

    /// Writes an event of userspace's own, into the segment that only who holds the lock of the pins writes to. No command
    /// fails because of it.
    pub(crate) fn note(&self, kind: JournalKind, workload: u64) {
        if let Err(e) = note(&self.pins, kind, workload) {
            tracing::debug!("an event could not be written to the journal: {e}");
        }
    }
}

fn note(pins: &Pins, kind: JournalKind, workload: u64) -> Result<()> {
    if pins.inode("journal").is_none() {
        return Ok(()); // from before there was a journal
    }
    let source = Source::open(pins, Start::Now)?;
    let part = source.segments.len() - 1;
    let position = source.segments[part].position;
    let index = u32::try_from(source.index(part, position)).unwrap_or(u32::MAX);
    let mut entry = types::journal_entry {
        time_ns: now_ns(),
        cgroup: workload,
        workload,
        kind: kind.number().0 as u8,
        ..Default::default()
    };
    let map = pins.open_map("journal")?;
    // twice: a reader believes what stands between two looks at one sequence, and so what did not change since the first
    for sequence in [0, position + 1] {
        entry.sequence = sequence;
        map.update(&index.to_ne_bytes(), sys::pod_bytes(&entry), MapFlags::ANY)
            .map_err(|e| Error::libbpf("writing to the journal", e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_one_to_one() {
        for kind in JournalKind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
            assert_eq!(JournalKind::of_number(kind.number().0), kind);
            assert_eq!(serde_name(kind), kind.name());
        }
        assert_eq!(JournalKind::ALL.len() + 1, types::journal_kind::JOURNAL_KINDS.0 as usize);
        assert!("nothing".parse::<JournalKind>().unwrap_err().contains("fell_back"));
    }

    /// As serde writes it, without a format of its own here.
    fn serde_name(kind: JournalKind) -> String {
        format!("{kind:?}").chars().enumerate().fold(String::new(), |mut name, (at, c)| {
            if at > 0 && c.is_uppercase() {
                name.push('_');
            }
            name.push(c.to_ascii_lowercase());
            name
        })
    }
}

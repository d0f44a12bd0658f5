//! Hazards outlive the datapath: a small file, by names that outlive a reboot.
//!
//! A kind is known to the kernel by the id of its cgroup, which a reboot changes; here it is the cgroup's path below the
//! cgroup2 mount, the end, the address and the port. Containers whose path carries an id of their own (pods, `docker
//! run`) are new kinds each time and are learned anew, on TCP, as all new kinds are. Entries that were not seen for
//! [`KEEP`] are dropped, and the newest [`MOST`] are kept.
//!
//! The file is a convenience, never a condition: what cannot be read or written is a warning, and kinds are learned.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use datapath::{Datapath, KindKey, cgroup_id, cgroup2_mount, hazard_set};
use serde::{Deserialize, Serialize};

/// Entries at most.
pub const MOST: usize = 4096;
/// For how long a kind is remembered that nobody has seen.
pub const KEEP: Duration = Duration::from_secs(90 * 24 * 3600);
const LARGEST: u64 = 4 << 20;
const UNFINISHED: Duration = Duration::from_secs(600);
const VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Name {
    cgroup: PathBuf,
    #[serde(flatten)]
    key: KindKey,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    #[serde(flatten)]
    name: Name,
    hazards: Vec<String>,
    seen: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Document {
    version: u32,
    kinds: Vec<Entry>,
}

/// The file in the state directory.
#[derive(Debug, Clone)]
pub struct Memory {
    path: PathBuf,
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn read(path: &Path) -> anyhow::Result<Vec<Entry>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(|| format!("opening {}", path.display())),
    };
    let mut text = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut text).with_context(|| format!("reading {}", path.display()))?;
    parse(&text).with_context(|| format!("reading {}", path.display()))
}

fn parse(text: &[u8]) -> anyhow::Result<Vec<Entry>> {
    if text.len() as u64 > LARGEST {
        bail!("it is larger than {LARGEST} bytes");
    }
    let document: Document = serde_json::from_slice(text)?;
    if document.version != VERSION {
        bail!("it has version {}, this program knows {VERSION}", document.version);
    }
    Ok(document.kinds)
}

/// Removes the files of writers that were killed. Whoever has written for so long writes no more.
fn remove_unfinished(folder: &Path, prefix: &str) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|at| at.elapsed().ok());
        if entry.file_name().to_string_lossy().starts_with(prefix) && age.is_some_and(|age| age > UNFINISHED) {
            let _ = fs::remove_file(entry.path()); // another one was faster, or writing will say why not
        }
    }
}

/// Writes a file of the state directory, which need not be there yet: whole or not at all, also when the disk is full or
/// the machine stops here.
pub fn replace_json(path: &Path, document: &impl Serialize) -> anyhow::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let mut text = serde_json::to_vec_pretty(document)?;
    text.push(b'\n');
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!(".{name}.");
    remove_unfinished(folder, &prefix);
    let mut file = tempfile::Builder::new()
        .prefix(&prefix)
        .tempfile_in(folder)
        .with_context(|| format!("creating a file in {}", folder.display()))?;
    file.write_all(&text).and_then(|()| file.as_file().sync_all()).context("writing it")?;
    file.persist(path).with_context(|| format!("replacing {}", path.display()))?;
    File::open(folder).and_then(|d| d.sync_all()).with_context(|| format!("syncing {}", folder.display()))
}

/// The old entries with the new ones, none that is too old, and the newest when there are too many.
fn merge(old: Vec<Entry>, new: Vec<Entry>, now: u64) -> Vec<Entry> {
    let mut all: BTreeMap<Name, Entry> = BTreeMap::new();
    for mut entry in old.into_iter().chain(new) {
        entry.seen = entry.seen.min(now);
        match all.entry(entry.name.clone()) {
            std::collections::btree_map::Entry::Vacant(slot) => {
                slot.insert(entry);
            }
            std::collections::btree_map::Entry::Occupied(mut slot) => {
                let held = slot.get_mut();
                held.seen = held.seen.max(entry.seen);
                held.hazards.extend(entry.hazards);
                held.hazards.sort();
                held.hazards.dedup();
            }
        }
    }
    let mut list: Vec<Entry> =
        all.into_values().filter(|e| !e.hazards.is_empty() && now - e.seen <= KEEP.as_secs()).collect();
    list.sort_by_key(|e| std::cmp::Reverse(e.seen));
    list.truncate(MOST);
    list
}

impl Memory {
    /// The memory in `state_dir`.
    pub fn new(state_dir: &Path) -> Self {
        Self { path: state_dir.join("hazards.json") }
    }

    fn write(&self, kinds: Vec<Entry>) -> anyhow::Result<()> {
        replace_json(&self.path, &Document { version: VERSION, kinds })
    }

    /// Adds what the datapath has learned.
    fn try_save(&self, datapath: &Datapath) -> anyhow::Result<()> {
        let now = now();
        let learned: Vec<Entry> = datapath
            .kinds()?
            .into_iter()
            .filter(|k| !k.hazards.is_empty())
            .filter_map(|k| {
                let hazards = k.hazards.into_iter().map(str::to_owned).collect();
                Some(Entry { name: Name { cgroup: k.cgroup?, key: k.key }, hazards, seen: now })
            })
            .collect();
        let old = read(&self.path).unwrap_or_else(|e| {
            tracing::warn!("remembered hazards are not used, and are replaced: {e:#}");
            Vec::new()
        });
        if learned.is_empty() && old.is_empty() {
            return Ok(());
        }
        self.write(merge(old, learned, now))
    }

    /// Tells the datapath what was learned before, of an attached cgroup (absolute path) and all below it.
    fn try_load(&self, datapath: &Datapath, cgroup: &Path) -> anyhow::Result<()> {
        let root = cgroup2_mount()?;
        for entry in merge(read(&self.path)?, Vec::new(), now()) {
            let below = entry.name.cgroup.strip_prefix("/").unwrap_or(&entry.name.cgroup);
            let path = root.join(below);
            let set = hazard_set(&entry.hazards);
            if set == 0 || !path.starts_with(cgroup) || below.components().any(|c| c.as_os_str() == "..") {
                continue;
            }
            if let Ok(id) = cgroup_id(&path) {
                datapath.remember(id, &entry.name.key, set)?;
            }
        }
        Ok(())
    }

    /// Adds what the datapath has learned to the file; what fails is a warning.
    pub fn save(&self, datapath: &Datapath) {
        if let Err(e) = self.try_save(datapath) {
            tracing::warn!("hazards are not remembered beyond this attachment: {e:#}");
        }
    }

    /// Tells the datapath what was learned before; what fails is a warning.
    pub fn load(&self, datapath: &Datapath, cgroup: &Path) {
        if let Err(e) = self.try_load(datapath, cgroup) {
            tracing::warn!("remembered hazards are not used: {e:#}");
        }
    }

    /// Forgets the kinds of these cgroups (absolute paths) and below, or all; how many were remembered.
    pub fn forget(&self, cgroups: Option<&[PathBuf]>) -> anyhow::Result<usize> {
        let root = cgroup2_mount()?;
        let old = read(&self.path).unwrap_or_default();
        let count = old.len();
        let gone = |e: &Entry| {
            let path = root.join(e.name.cgroup.strip_prefix("/").unwrap_or(&e.name.cgroup));
            cgroups.is_none_or(|list| list.iter().any(|c| path.starts_with(c)))
        };
        let kept: Vec<Entry> = old.into_iter().filter(|e| !gone(e)).collect();
        let forgotten = count - kept.len();
        if cgroups.is_none() {
            match fs::remove_file(&self.path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(e).with_context(|| format!("removing {}", self.path.display()));
                }
                _ => {}
            }
        } else if forgotten > 0 {
            self.write(kept)?;
        }
        Ok(forgotten)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datapath::Role;
    use proptest::prelude::*;

    fn entry(cgroup: &str, port: u16, hazards: &[&str], seen: u64) -> Entry {
        Entry {
            name: Name { cgroup: cgroup.into(), key: KindKey { role: Role::Server, addr: None, port } },
            hazards: hazards.iter().map(|h| (*h).to_owned()).collect(),
            seen,
        }
    }

    #[test]
    fn entries_survive_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let memory = Memory::new(&folder.path().join("not there yet"));
        let list = vec![entry("/a.slice", 80, &["splice", "blocking"], 5), entry("/a.slice", 81, &["urgent"], 6)];
        memory.write(list.clone()).unwrap();
        assert_eq!(read(&memory.path).unwrap(), list);
    }

    #[test]
    fn what_a_killed_writer_left_goes() {
        let folder = tempfile::tempdir().unwrap();
        let left = |name: &str, age: u64| {
            let file = File::create(folder.path().join(name)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        };
        left(".hazards.json.killed", 700);
        left(".hazards.json.writes", 1);
        left(".another", 700);
        Memory::new(folder.path()).write(Vec::new()).unwrap();
        let names = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let names: std::collections::BTreeSet<String> = names.collect();
        assert_eq!(Vec::from_iter(names), [".another", ".hazards.json.writes", "hazards.json"]);
    }

    #[test]
    fn one_kind_is_one_entry_and_old_ones_go() {
        let day = 24 * 3600;
        let old = vec![entry("/a", 80, &["splice"], day), entry("/gone", 1, &["splice"], 0)];
        let now = 91 * day;
        let merged = merge(old, vec![entry("/a", 80, &["blocking", "splice"], now)], now);
        assert_eq!(merged, vec![entry("/a", 80, &["blocking", "splice"], now)]);
    }

    #[test]
    fn the_newest_are_kept() {
        let many = (0..u16::MAX).map(|p| entry("/a", p, &["splice"], u64::from(p))).collect();
        let kept = merge(many, Vec::new(), 70_000);
        assert_eq!(kept.len(), MOST);
        assert_eq!(kept[0].seen, u64::from(u16::MAX) - 1);
    }

    proptest! {
        #[test]
        fn any_file_is_taken_or_refused(text in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(&text);
        }

        #[test]
        fn any_json_is_taken_or_refused(cgroup in ".*", port in any::<u16>(), hazard in ".*", seen in any::<u64>()) {
            let text = serde_json::to_vec(&Document { version: VERSION, kinds: vec![entry(&cgroup, port, &[&hazard], seen)] });
            let list = parse(&text.unwrap()).unwrap();
            prop_assert!(merge(list, Vec::new(), 1).len() <= 1);
        }
    }
}

//! What the agent has attached itself, in the state directory: what a person attached by hand is not the agent's to detach.
//!
//! An entry is written before its cgroup is attached and removed after it was detached, so that an agent that is killed in
//! between finds what is its own. After a reboot nothing is attached, and all entries go.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::memory::replace_json;

/// The file.
pub struct Ledger {
    path: PathBuf,
    book: Book,
    /// One agent a node and state directory.
    _lock: Flock<fs::File>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Book {
    /// The build of the programs that were loaded, or upgraded to, last.
    #[serde(default)]
    programs: String,
    /// Cgroup ids, and of what they are.
    #[serde(default)]
    attached: BTreeMap<u64, String>,
}

impl Ledger {
    /// Opens it; an error when another agent has it.
    pub fn open(state_dir: &Path) -> anyhow::Result<Self> {
        let what = || format!("opening the agent's state in {}", state_dir.display());
        fs::create_dir_all(state_dir).with_context(what)?;
        let lock_path = state_dir.join("agent.lock");
        let file = fs::File::options().create(true).truncate(false).write(true).open(&lock_path).with_context(what)?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| {
            if e == nix::errno::Errno::EWOULDBLOCK {
                anyhow::anyhow!("another agent runs with the state directory {}; a node has one", state_dir.display())
            } else {
                anyhow::Error::from(std::io::Error::from(e)).context(format!("locking {}", lock_path.display()))
            }
        })?;
        let path = state_dir.join("agent.json");
        let book = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|e| {
                tracing::warn!("{} is not used ({e}): what is attached counts as attached by hand", path.display());
                Book::default()
            }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Book::default(),
            Err(e) => return Err(e).with_context(what),
        };
        Ok(Self { path, book, _lock: lock })
    }

    /// Did the agent attach it?
    pub fn has(&self, id: u64) -> bool {
        self.book.attached.contains_key(&id)
    }

    /// All that it attached.
    pub fn ids(&self) -> impl Iterator<Item = u64> {
        self.book.attached.keys().copied()
    }

    /// Of what it is.
    pub fn name(&self, id: u64) -> Option<&str> {
        self.book.attached.get(&id).map(String::as_str)
    }

    /// The programs that were loaded last.
    pub fn programs(&self) -> &str {
        &self.book.programs
    }

    /// Changes it; on the disk first, whole or not at all.
    fn change(&mut self, change: impl FnOnce(&mut Book)) -> anyhow::Result<()> {
        let mut book = self.book.clone();
        change(&mut book);
        if book == self.book {
            return Ok(());
        }
        replace_json(&self.path, &book).with_context(|| format!("writing {}", self.path.display()))?;
        self.book = book;
        Ok(())
    }

    /// Before they are attached.
    pub fn add(&mut self, entries: impl Iterator<Item = (u64, String)>) -> anyhow::Result<()> {
        self.change(|book| book.attached.extend(entries))
    }

    /// After they were detached, or are gone.
    pub fn remove(&mut self, ids: &[u64]) -> anyhow::Result<()> {
        self.change(|book| book.attached.retain(|id, _| !ids.contains(id)))
    }

    /// After programs were loaded or upgraded.
    pub fn set_programs(&mut self, programs: &str) -> anyhow::Result<()> {
        self.change(|book| programs.clone_into(&mut book.programs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_survives_and_is_for_one() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(folder.path()).unwrap();
        assert!(Ledger::open(folder.path()).is_err_and(|e| e.to_string().contains("another agent runs")));
        ledger.add([(5, "core/smf-0".to_owned()), (6, "x/y".to_owned())].into_iter()).unwrap();
        ledger.set_programs("abc").unwrap();
        ledger.remove(&[6]).unwrap();
        drop(ledger);
        let again = Ledger::open(folder.path()).unwrap();
        assert_eq!(
            (again.has(5), again.has(6), again.name(5), again.programs()),
            (true, false, Some("core/smf-0"), "abc")
        );
    }

    #[test]
    fn a_spoilt_file_is_no_reason_to_stop() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("agent.json"), "{").unwrap();
        assert_eq!(Ledger::open(folder.path()).unwrap().ids().count(), 0);
    }
}

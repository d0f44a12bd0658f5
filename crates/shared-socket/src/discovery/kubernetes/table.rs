//! What is known of the objects of one kind, and how it is going with the API.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::trouble::Kind;

/// The same trouble is logged again after this.
const TELL_AGAIN: Duration = Duration::from_secs(600);

/// What is known of one kind of object, by the object's name.
#[derive(Debug)]
pub(super) struct Table<T> {
    /// `None` before the first complete list.
    pub(super) known: Option<BTreeMap<String, T>>,
    /// The list that is being read.
    pub(super) fresh: Option<BTreeMap<String, T>>,
    /// Why the API is not heard at the moment.
    pub(super) trouble: Option<String>,
    /// When which trouble was logged.
    pub(super) logged: BTreeMap<Kind, Instant>,
    /// This trouble was, and so is its end.
    pub(super) is_logged: bool,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { known: None, fresh: None, trouble: None, logged: BTreeMap::new(), is_logged: false }
    }
}

impl<T: PartialEq> Table<T> {
    /// An object and what is to be kept of it, if anything; whether that changes what is known.
    pub(super) fn put(&mut self, name: String, kept: Option<T>) -> bool {
        let Some(known) = &mut self.known else { return false };
        match kept {
            Some(kept) if known.get(&name) == Some(&kept) => false,
            Some(kept) => {
                known.insert(name, kept);
                true
            }
            None => known.remove(&name).is_some(),
        }
    }

    /// What was known until now stays until the list is complete.
    pub(super) fn begin(&mut self) {
        self.fresh = Some(BTreeMap::new());
    }

    pub(super) fn listed(&mut self, name: String, kept: Option<T>) {
        if let Some(kept) = kept {
            self.fresh.get_or_insert_default().insert(name, kept);
        }
    }

    /// Whether the list is another than what was known.
    pub(super) fn complete(&mut self) -> bool {
        let fresh = self.fresh.take();
        let changed = self.known != fresh;
        self.known = fresh;
        changed
    }

    pub(super) fn heard(&mut self, what: &str) {
        self.trouble = None;
        if std::mem::take(&mut self.is_logged) {
            tracing::info!("the Kubernetes API answers for {what} again");
        }
    }

    pub(super) fn failed(&mut self, kind: Kind, text: String) {
        if kind.is_ordinary() {
            tracing::debug!("{text}");
            return;
        }
        if self.logged.get(&kind).is_none_or(|at| at.elapsed() > TELL_AGAIN) {
            self.logged.insert(kind, Instant::now());
            self.is_logged = true;
            tracing::warn!("{text}; what was known stays in force, and it is tried again");
        } else {
            tracing::debug!("{text}");
        }
        self.trouble = Some(text);
    }
}

pub(super) type Shared<T> = Arc<Mutex<Table<T>>>;

/// No panic of another thread makes it unreadable.
pub(super) fn locked<T>(table: &Mutex<Table<T>>) -> MutexGuard<'_, Table<T>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

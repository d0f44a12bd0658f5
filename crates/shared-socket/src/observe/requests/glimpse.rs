//! Requests of all captured connections.

use std::collections::HashMap;

use super::{Piece, Protocol, Request, Table, Tracker};
use crate::observe::Name;
use crate::observe::capture::{Captured, Key, What};

/// Connections that are followed at one time; of more, those that were not yet are not.
const CONNECTIONS: usize = 65_536;

/// Follows what is captured.
#[derive(Debug)]
pub struct Glimpse {
    only: Option<Protocol>,
    trackers: HashMap<Key, Tracker>,
    /// Sums since it began.
    pub table: Table,
    names: HashMap<String, Name>,
    /// Requests that were lost of connections that are gone.
    lost: u64,
    done: Vec<Request>,
}

impl Glimpse {
    /// Looks for one protocol, or for all that are known; sums for so many pairs of workloads.
    pub fn new(only: Option<Protocol>, max_rows: usize) -> Self {
        Self {
            only,
            trackers: HashMap::new(),
            table: Table::new(max_rows),
            names: HashMap::new(),
            lost: 0,
            done: Vec::new(),
        }
    }

    /// Takes what happened, and tells of each request that it completes.
    pub fn see(&mut self, captured: &Captured, told: impl FnMut(&Request)) {
        let What::Data { bytes, size, .. } = &captured.what else {
            if let Some(mut tracker) = self.trackers.remove(&captured.connection) {
                tracker.close(&mut self.done);
                self.lost += tracker.lost();
            }
            self.count(captured, told);
            return;
        };
        if self.trackers.len() >= CONNECTIONS && !self.trackers.contains_key(&captured.connection) {
            return;
        }
        let tracker = self.trackers.entry(captured.connection).or_insert_with(|| Tracker::new(self.only));
        let piece = Piece {
            at_ns: captured.time_ns,
            from_client: captured.from == datapath::Role::Client,
            offset: captured.offsets[0],
            len: u64::from(*size),
            seen: bytes,
        };
        tracker.feed(&piece, &mut self.done);
        self.count(captured, told);
    }

    fn count(&mut self, captured: &Captured, mut told: impl FnMut(&Request)) {
        let (client, server) = (&captured.client.workload, &captured.server.workload);
        for request in self.done.drain(..) {
            self.table.add(&client.name, &server.name, &request);
            told(&request);
        }
        for name in [client, server] {
            if !self.names.contains_key(&name.name) && self.names.len() < CONNECTIONS {
                self.names.insert(name.name.clone(), name.clone());
            }
        }
    }

    /// The parts of a name that stands in the table.
    pub fn name(&self, name: &str) -> Name {
        self.names.get(name).cloned().unwrap_or_else(|| Name { name: name.to_owned(), ..Name::default() })
    }

    /// Requests whose answers could not be found, as something of the connection was lost.
    pub fn lost(&self) -> u64 {
        self.lost + self.trackers.values().map(Tracker::lost).sum::<u64>()
    }
}

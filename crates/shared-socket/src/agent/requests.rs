//! The agent's glimpse of requests, for /metrics.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use datapath::TapOptions;

use super::config::RequestsConfig;
use super::serve::{Shared, told};
use crate::observe::capture::Naming;
use crate::observe::filter::Filter;
use crate::observe::metrics::Requests;
use crate::observe::requests::{Looking, Wanted};
use crate::observe::{Name, Names};

/// How often the ring buffer is looked at: it holds what comes in many times that.
const LOOK: Duration = Duration::from_millis(20);
const BUFFER: u32 = 8 << 20;

/// As of the last round.
struct Told {
    shared: Shared,
    last: Arc<Names>,
    names: Names,
}

impl Naming for Told {
    fn name(&mut self, cgroup: u64, workload: u64) -> Name {
        let now = told(&self.shared).names.clone();
        if !Arc::ptr_eq(&now, &self.last) {
            self.names = (*now).clone();
            self.last = now;
        }
        self.names = std::mem::take(&mut self.names).with_paths([cgroup, workload]);
        self.names.of(cgroup, workload)
    }
}

/// Begins to look. `most`: pairs of workloads that have sums of their own.
pub fn start(config: &RequestsConfig, pin_dir: PathBuf, shared: Shared, most: usize) -> anyhow::Result<Looking> {
    let wanted = Wanted {
        pin_dir,
        filter: Filter::ALL,
        one_in: config.one_in,
        tap: TapOptions { snaplen: config.snaplen, buffer_bytes: BUFFER, look: LOOK, ..TapOptions::default() },
        only: config.protocol,
        rows: most,
    };
    let names = move || Ok(Told { shared: shared.clone(), last: Arc::default(), names: Names::default() });
    Looking::start(wanted, names, |why| tracing::warn!("requests are not seen: {why}; it is tried again"))
}

/// What was seen so far.
pub fn read(looking: &Looking) -> Requests {
    let seen = looking.read();
    let named = |row: crate::observe::requests::Row| (looking.name(&row.client), looking.name(&row.server), row);
    Requests { rows: seen.rows.into_iter().map(named).collect(), lost: seen.lost, lost_pieces: seen.lost_pieces }
}

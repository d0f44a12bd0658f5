//! The kernel half of Shared Socket and the typed access to it.
//!
//! Everything that must outlive a process (programs, maps, links) is pinned below one bpffs directory; [`Datapath`] is
//! a view of that directory. Killing the process that holds a `Datapath` changes nothing for any connection.
//!
//! This crate has the only `unsafe` of the project: system calls that `libbpf-rs` does not wrap, and the reading of
//! plain-old-data map values.

mod adopt;
mod detach;
mod error;
mod events;
mod failpoint;
mod flows;
mod fold;
mod generation;
mod half;
mod host;
mod journal;
mod kernel;
mod kinds;
mod load;
mod pins;
mod ports;
pub mod probe;
mod reason;
mod sys;
mod tap;
pub mod tuple;
mod upgrade;
mod upkeep;
mod version;
mod view;

pub use adopt::{Adopted, Adoption};
pub use detach::Drain;
pub use error::{Error, Result};
pub use events::{Event, Guard, What};
pub use flows::{Flow, Histogram, ProgramCost, SLOTS};
pub use half::{Counters, Endpoint, Half, Path, Role};
pub use host::{Host, cgroup_id, cgroup2_mount, ensure_bpffs};
pub use journal::{Batch, Entry, Journal, JournalKind, JournalLoss, Start, now_ns};
pub use kinds::{HAZARDS, Hazard, Kind, KindKey, hazard_names, hazard_set};
pub use load::{Eligibility, KernelFindings, LoadOptions, SHORT_READS, programs_id, silence};
pub use ports::PORTS;
pub use reason::{REASONS, Reason, reason_name};
pub use tap::{Tap, TapCounts, TapOptions, Tapped};
pub use upgrade::{Changes, Generation, Upgrade};
pub use version::{Kernel, Version};
pub use view::{Attach, Budget, Counts, Datapath, Program, Sampling, Totals, Workload, cgroup_paths};

/// The textbook 4-tuple sockmap program, the comparator of `shared-socket bench`.
pub static TUPLE_OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tuple.bpf.o"));

#[allow(missing_docs, clippy::all, clippy::undocumented_unsafe_blocks, unsafe_op_in_unsafe_fn, dead_code)]
mod skel {
    include!(concat!(env!("OUT_DIR"), "/shared_socket.skel.rs"));
}

#[allow(missing_docs, clippy::all, clippy::undocumented_unsafe_blocks, unsafe_op_in_unsafe_fn, dead_code)]
mod tap_skel {
    include!(concat!(env!("OUT_DIR"), "/tap.skel.rs"));
}

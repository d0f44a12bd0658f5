//! What `shared-socket check` needs of the kernel: loading single features, a minimal sockmap, and what sockets say.
//!
//! Nothing here is pinned: whatever a probe makes ends with the process, however that ends.

mod features;
mod fields;
mod minimal;
mod sockets;

pub use features::{
    Attempt, can_trace, cgroup_link, datapath_programs, helpers, iterate_sockets, map_kinds, program, tracepoint_link,
};
pub use fields::{Field, fields};
pub use minimal::Minimal;
pub use sockets::{
    bytes_received, loopback_up, readable_bytes, receive_zerocopy_sees, rmem_alloc, set_receive_lowat, set_tls_receive,
    set_zerocopy, splice_out,
};

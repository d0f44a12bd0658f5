//! What is seen: connections and their processes, metrics.

mod connections;
pub mod metrics;
mod processes;

pub use connections::{Connection, End, read as read_connections};

//! What is seen: connections and their processes, whose they are, metrics.

mod connections;
mod events;
pub mod filter;
pub mod flows;
pub mod map;
pub mod metrics;
mod names;
mod processes;
pub mod requests;
mod sockets;

#[cfg(test)]
pub(crate) use connections::tests::connection as connections_for_tests;
pub use connections::{Connection, End, Key, read as read_connections, share, sort};
pub use events::{Event, EventFilter, Missed, clock_offset};
pub use names::{Name, Names};

//! What is seen: connections and their processes, whose they are, metrics.

mod connections;
pub mod filter;
pub mod flows;
pub mod map;
pub mod metrics;
mod names;
mod processes;
mod sockets;

#[cfg(test)]
pub(crate) use connections::tests::connection as connections_for_tests;
pub use connections::{Connection, End, Key, read as read_connections, share, sort};
pub use names::{Name, Names};

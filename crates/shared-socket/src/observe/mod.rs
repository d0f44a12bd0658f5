//! What is seen: connections and their processes.

mod connections;
mod processes;

pub use connections::{Connection, End, read as read_connections};

//! What is seen: connections and their processes, whose they are, metrics.

mod connections;
mod events;
pub mod filter;
pub mod flows;
pub mod human;
mod map;
pub mod metrics;
mod names;
mod processes;

pub use connections::{Connection, End, read as read_connections};
pub use events::{Event, EventFilter, Missed, clock_offset};
pub use filter::Filter;
pub use map::Map;
pub use names::{Name, Names};

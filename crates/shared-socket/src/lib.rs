//! Shared Socket: TCP between containers on one node as fast as the kernel allows, transparently.
//!
//! The way of the data: [`discovery`] (names to cgroups), the `datapath` crate (load, attach, pin, read),
//! [`memory`] (hazards that outlive it), [`observe`] (what is seen), [`cli`] (a file a verb). [`bench`] and [`lab`] measure.
#![forbid(unsafe_code)]

pub mod bench;
pub mod check;
pub mod cli;
pub mod discovery;
pub mod lab;
pub mod memory;
pub mod observe;

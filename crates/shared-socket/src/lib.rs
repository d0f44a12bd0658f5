//! Shared Socket: TCP between containers on one node as fast as the kernel allows, transparently.
//!
//! The way of the data: [`discovery`] (names to cgroups), [`policy`] (what may be fast), the `datapath` crate (load, attach,
//! pin, read), [`memory`] (hazards that outlive it), [`observe`] (what is seen), [`cli`] (a file a verb). [`agent`] does it
//! all by itself as pods come and go; [`bench`] and [`lab`] measure.
#![forbid(unsafe_code)]

pub mod agent;
pub mod bench;
pub mod check;
pub mod cli;
pub mod discovery;
pub mod lab;
pub mod memory;
pub mod observe;
pub mod policy;
pub mod top;

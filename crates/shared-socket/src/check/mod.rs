//! `shared-socket check`: what this kernel can do and does, found by trying it.
//!
//! Features are loaded one by one; hazards are looked for by a process of its own ([`child`]) with real connections in a
//! throw-away network namespace and cgroup. What is found is judged ([`report`]), configures the programs, and is kept
//! ([`cache`]) until the kernel changes.

pub mod cache;
mod cgroup;
pub mod child;
mod cves;
mod features;
mod hazards;
mod report;

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use datapath::{Host, KernelFindings};

use crate::bench::interrupt::Interrupt;
use datapath::Kernel;
pub use report::{Report, State};

/// Fails, saying what to do, when this process may not even try.
fn may_try() -> Result<()> {
    let missing = features::missing_capabilities().unwrap_or_default();
    if missing.is_empty() {
        return Ok(());
    }
    let why = std::io::Error::other(format!("{} missing", missing.join(" and ")));
    Err(datapath::Error::Privilege { what: "trying what this kernel can do".into(), why }.into())
}

/// Tries everything, and keeps what configures the datapath.
pub fn run(interrupt: &Interrupt) -> Result<Report> {
    may_try()?;
    let start = Instant::now();
    let (kernel, host) = (Kernel::read(), Host::read());
    datapath::silence();
    let cgroup = match datapath::cgroup2_mount().map_err(Into::into).and_then(|root| cgroup::Throwaway::new(&root)) {
        Ok(cgroup) => Some(cgroup),
        Err(e) => {
            tracing::warn!("no throw-away cgroup, so links to cgroups and H17 are not tried: {e:#}");
            None
        }
    };
    let path = cgroup.as_ref().map(cgroup::Throwaway::path);
    // the probes mostly wait, so the features are tried meanwhile
    let (features, probes) = std::thread::scope(|scope| {
        let features = scope.spawn(|| features::rows(&host, path));
        let probes = child::probe(true, path, interrupt);
        (features.join(), probes)
    });
    let features = features.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    interrupt.check()?;
    let probes = probes.unwrap_or_else(|e| {
        tracing::warn!("no hazard was tried: {e:#}");
        Vec::new()
    });
    drop(cgroup);
    let millis = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    let report = report::report(kernel, features, probes, millis);
    if !report.probes.is_empty() {
        keep(&report.kernel, report.datapath, true);
    }
    Ok(report)
}

fn keep(kernel: &Kernel, findings: KernelFindings, complete: bool) {
    let directory = cache::directory();
    if let Err(e) = cache::write(&directory, kernel, &cache::Kept::new(kernel, findings, complete)) {
        tracing::info!("what was found of this kernel could not be kept in {}: {e}", directory.display());
    }
}

/// What was found out about this kernel before, if anything: nothing is tried.
pub fn kept() -> Option<cache::Kept> {
    cache::read(&cache::directory(), &Kernel::read())
}

/// What configures a datapath that is to be loaded: what was kept, or else the few probes that it takes.
///
/// Fails on a kernel that cannot be made safe. Where the probes fail, every doubt counts as a hazard.
pub fn configuration() -> Result<KernelFindings> {
    let kernel = Kernel::read();
    if let Some(why) = report::refusal(&kernel) {
        let todo = "update the kernel: the distribution's newest of this series has it".into();
        return Err(datapath::Error::Unsupported { what: why, todo }.into());
    }
    if let Some(kept) = cache::read(&cache::directory(), &kernel) {
        tracing::debug!("configured by what was found before");
        return Ok(kept.findings);
    }
    may_try()?;
    let start = Instant::now();
    let findings = match child::probe(false, None, &Interrupt::default()) {
        Ok(probes) => report::configure(&probes),
        Err(e) => {
            tracing::warn!("this kernel could not be tried, so every doubt counts as a hazard: {e:#}");
            return Ok(KernelFindings::default());
        }
    };
    tracing::info!("tried what configures the datapath in {:?}", start.elapsed());
    keep(&kernel, findings, false);
    Ok(findings)
}

/// As [`configuration`], unless something is loaded already: that keeps what it was loaded with.
pub fn configuration_for(pin_dir: &Path) -> Result<KernelFindings> {
    match datapath::Datapath::read(pin_dir) {
        Ok(Some(_)) => Ok(KernelFindings::default()),
        _ => configuration(),
    }
}

//! What is attached to the cgroups of a bench, and its removal.

use std::fmt;
use std::path::{Path as FilePath, PathBuf};

use anyhow::{Context as _, Result};
use datapath::tuple::TextbookTuple;
use datapath::{Datapath, Eligibility, LoadOptions};

use super::cgroups::{PREFIX, Pods, RUN, sweep};
use super::matrix::Path;

/// Where bpffs is mounted by convention.
const BPFFS: &str = "/sys/fs/bpf";

/// Shared Socket and the textbook program, each on its own pods; both are gone when this is.
#[derive(Default)]
pub struct Accelerators {
    fast: Option<Fast>,
    tuple: Option<TextbookTuple>,
}

/// Messages of attached halves so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Messages {
    /// By the fast path.
    pub fast: u64,
    /// By TCP.
    pub tcp: u64,
}

struct Fast {
    pin_dir: PathBuf,
    /// To read. The lock is free while it is measured: who looks at messages meanwhile needs it.
    datapath: Option<Datapath>,
}

impl Accelerators {
    /// Loads a datapath of this bench's own and attaches it to the pods; every pair is eligible.
    pub fn attach_fast(&mut self, pods: &Pods) -> Result<()> {
        let bpffs = FilePath::new(BPFFS);
        sweep(bpffs);
        let pin_dir = bpffs.join(format!("{PREFIX}{}", std::process::id()));
        let kernel = crate::check::configuration()?;
        let options = LoadOptions { pin_dir: pin_dir.clone(), kernel, ..LoadOptions::default() };
        // A load that failed halfway may leave its directory: the sweep takes that of this process too.
        let datapath = Datapath::open_or_load(&options)
            .inspect_err(|_| [bpffs, FilePath::new(RUN)].into_iter().for_each(sweep))
            .with_context(|| {
                format!(
                    "cannot load the fast path under {}; to measure without it: --path tcp,uds,tuple",
                    pin_dir.display()
                )
            })?;
        // Kept before anything is attached: what follows may fail, and then its drop takes all down.
        let fast = self.fast.insert(Fast { pin_dir, datapath: None });
        for cgroup in pods.both() {
            datapath
                .attach(cgroup, Eligibility::All)
                .with_context(|| format!("cannot attach the fast path to {}", cgroup.display()))?;
        }
        drop(datapath);
        fast.datapath = Datapath::read(&fast.pin_dir)?;
        Ok(())
    }

    /// Attaches the textbook program to the pods.
    pub fn attach_tuple(&mut self, pods: &Pods) -> Result<()> {
        let tuple = TextbookTuple::attach(&pods.both())
            .context("cannot attach the textbook 4-tuple program; to measure without it: --path tcp,fast,uds")?;
        self.tuple = Some(tuple);
        Ok(())
    }

    /// Where Shared Socket is pinned.
    pub fn pin_dir(&self) -> Option<PathBuf> {
        self.fast.as_ref().map(|fast| fast.pin_dir.clone())
    }

    /// The messages counted so far for a path, if it counts any.
    pub fn messages(&self, path: Path) -> Result<Option<Messages>> {
        match self.fast.as_ref().and_then(|fast| fast.datapath.as_ref()) {
            Some(datapath) if path.is_accelerated() => {
                let totals = datapath.totals().context("cannot read the counters of the fast path")?;
                Ok(Some(Messages { fast: totals.fast_messages, tcp: totals.tcp_messages }))
            }
            _ => Ok(None),
        }
    }
}

impl fmt::Debug for Accelerators {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accelerators")
            .field("fast", &self.fast.is_some())
            .field("tuple", &self.tuple.is_some())
            .finish()
    }
}

impl Drop for Fast {
    fn drop(&mut self) {
        let removed = Datapath::open(&self.pin_dir).and_then(|d| d.as_ref().map_or(Ok(()), Datapath::remove_all));
        if let Err(error) = removed {
            tracing::warn!("cannot unpin all of {}: {error}", self.pin_dir.display());
        }
        // Whatever is left of it: the directory, and the lock that goes with it.
        sweep(FilePath::new(BPFFS));
        sweep(FilePath::new(RUN));
    }
}

//! Targets on the command line. Names of containers and pods will be positional arguments here.

use std::path::PathBuf;

use crate::discovery::Target;

/// What to act on.
#[derive(Debug, clap::Args)]
pub struct TargetArgs {
    /// A cgroup v2 directory: absolute, or relative to the cgroup2 mount
    #[arg(long = "cgroup", value_name = "PATH")]
    cgroups: Vec<PathBuf>,
    /// The cgroup of this process
    #[arg(long = "pid", value_name = "PID")]
    pids: Vec<u32>,
}

impl TargetArgs {
    /// In the order of kinds; empty when none was given.
    pub fn targets(&self) -> Vec<Target> {
        let cgroups = self.cgroups.iter().cloned().map(Target::Cgroup);
        cgroups.chain(self.pids.iter().copied().map(Target::Pid)).collect()
    }
}

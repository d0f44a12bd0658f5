//! `shared-socket detach`

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use datapath::Datapath;
use serde::Serialize;

use super::target::TargetArgs;
use super::{Context, EXIT_NOT_DRAINED};
use crate::memory::Memory;

/// Stop accelerating workloads.
///
/// First no new pairs are made, then live ones leave the fast path by a protocol that loses nothing, then the programs
/// are taken away. Connections live on over TCP.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    targets: TargetArgs,
    /// A cgroup by its id, as `status` shows it: also one that was removed and whose sockets live on
    #[arg(long = "id", value_name = "ID")]
    cgroup_ids: Vec<u64>,
    /// Everything that is attached
    #[arg(long, conflicts_with_all = ["names", "namespace", "labels", "cgroups", "pids", "cgroup_ids"])]
    all: bool,
    /// Seconds to wait for pairs whose application has not read what it was sent
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    timeout: f64,
}

#[derive(Serialize)]
struct Report {
    detached: Vec<u64>,
    remaining_halves: u64,
}

impl Args {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<ExitCode> {
        if self.targets.is_empty() && self.cgroup_ids.is_empty() && !self.all {
            bail!(
                "nothing to detach: name a container, a pod, a unit, --cgroup PATH, --pid PID or --id ID, or say --all"
            );
        }
        let timeout = Duration::try_from_secs_f64(self.timeout)
            .map_err(|e| anyhow::anyhow!("--timeout {}: {e}", self.timeout))?;
        let Some(datapath) = Datapath::open(&context.pin_dir)? else {
            if self.all {
                Datapath::sweep(&context.pin_dir)?;
                println!("nothing is attached");
                return Ok(ExitCode::SUCCESS);
            }
            bail!("nothing is attached (no pins in {})", context.pin_dir.display());
        };
        let attached = datapath.workloads()?;
        let mut ids = if self.all { attached.iter().map(|w| w.cgroup_id).collect() } else { self.cgroup_ids };
        let named = ids.len();
        let targets = self.targets.find()?;
        ids.extend(targets.iter().map(|t| t.found.id));
        for (i, id) in ids.iter().enumerate() {
            if !attached.iter().any(|w| w.cgroup_id == *id) {
                let name = if i < named { format!("cgroup id {id}") } else { targets[i - named].name.clone() };
                bail!("{name} is not attached; `shared-socket status` lists what is");
            }
        }
        for id in &ids {
            datapath.start_drain(*id)?;
        }
        let drain = datapath.drain(timeout)?;
        let mut report = Report { detached: Vec::new(), remaining_halves: drain.remaining };
        Memory::new(&context.state_dir).save(&datapath);
        if drain.remaining == 0 {
            for id in &ids {
                datapath.finish_detach(*id)?;
            }
            report.detached = ids;
            datapath.remove_if_idle()?;
        }
        if !context.print_document(&report)? {
            if report.remaining_halves > 0 {
                eprintln!(
                    "not detached: {} halves hold bytes that their application has not read, or a sender is in \
                     flight; no new pairs are made and they stay on until they can leave. Run detach again later \
                     (`shared-socket connections` shows them)",
                    report.remaining_halves
                );
            } else {
                println!("detached {} workload(s)", report.detached.len());
            }
        }
        Ok(if report.remaining_halves > 0 { ExitCode::from(EXIT_NOT_DRAINED) } else { ExitCode::SUCCESS })
    }
}

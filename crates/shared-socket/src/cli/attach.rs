//! `shared-socket attach`

use std::process::ExitCode;

use anyhow::bail;
use clap::ValueEnum;
use datapath::{Attach, Datapath, Eligibility, LoadOptions};
use serde::Serialize;

use super::Context;
use super::target::TargetArgs;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum EligibilityArg {
    /// Accelerate what was observed to be safe while it ran on TCP
    Safe,
    /// Accelerate every pair, blocking sockets too: for workloads that you know
    All,
}

/// Accelerate workloads.
///
/// Connections that are established from now on between two attached workloads (or inside one) are accelerated when
/// they are eligible. Attaching what is attached changes nothing.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  shared-socket attach --cgroup system.slice/nginx.service --pid 4711\n  shared-socket attach --cgroup /sys/fs/cgroup/bench --eligibility all"
)]
pub struct Args {
    #[command(flatten)]
    targets: TargetArgs,
    /// Which pairs are accelerated
    #[arg(long, value_enum, default_value_t = EligibilityArg::Safe)]
    eligibility: EligibilityArg,
    /// Pairs at most; more stay on TCP. Counts when nothing is attached yet
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..=4_000_000))]
    max_pairs: u32,
    /// Bytes queued to one peer at most, before messages go by TCP. Counts when nothing is attached yet
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20, value_parser = clap::value_parser!(u32).range(4096..=1 << 30))]
    budget_bytes: u32,
    /// Messages queued to one peer at most, before messages go by TCP. Counts when nothing is attached yet
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    budget_messages: u32,
    /// Leave connections on TCP whose kind carries fewer messages a connection, both ways; 0 accelerates the shortest
    #[arg(long, value_name = "N", default_value_t = 8)]
    min_messages: u32,
    /// Debug: learn from O_NONBLOCK of the files, as on kernels before 6.3
    #[arg(long, hide = true)]
    debug_no_receive_trace: bool,
    /// Debug: hold the races of the leave protocol open for so many iterations
    #[arg(long, hide = true, default_value_t = 0)]
    debug_spin: u32,
}

#[derive(Serialize)]
struct Row {
    target: String,
    cgroup: String,
    cgroup_id: u64,
    result: &'static str,
}

impl Args {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<ExitCode> {
        let targets = self.targets.targets();
        if targets.is_empty() {
            bail!("nothing to attach: name a workload with --cgroup PATH or --pid PID");
        }
        // all names first: a typo in the second must not leave the first half-done
        let found = targets.iter().map(|t| Ok((t, t.find()?))).collect::<anyhow::Result<Vec<_>>>()?;
        let datapath = Datapath::open_or_load(&LoadOptions {
            pin_dir: context.pin_dir.clone(),
            max_pairs: self.max_pairs,
            budget_bytes: self.budget_bytes,
            budget_messages: self.budget_messages,
            min_messages: self.min_messages,
            trace_receives: !self.debug_no_receive_trace,
            spin: self.debug_spin,
            ..LoadOptions::default()
        })?;
        let eligibility = match self.eligibility {
            EligibilityArg::Safe => Eligibility::Safe,
            EligibilityArg::All => Eligibility::All,
        };
        let mut rows = Vec::new();
        for (target, found) in found {
            let result = datapath.attach(&found.path, eligibility).inspect_err(|_| {
                // nothing half-attached: a datapath that serves nobody goes again
                if datapath.workloads().is_ok_and(|w| w.is_empty()) {
                    let _ = datapath.remove_all();
                }
            });
            let result = match result? {
                Attach::Attached => "attached",
                Attach::Already => "already attached",
                Attach::Changed => "changed",
            };
            rows.push(Row {
                target: target.to_string(),
                cgroup: found.path.display().to_string(),
                cgroup_id: found.id,
                result,
            });
        }
        if !context.print_document(&rows)? {
            for row in &rows {
                println!("{}: {} ({}, id {})", row.target, row.result, row.cgroup, row.cgroup_id);
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

//! `shared-socket attach`

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::ValueEnum;
use datapath::{Adopted, Adoption, Attach, Datapath, Eligibility, LoadOptions};
use serde::Serialize;

use super::Context;
use super::target::TargetArgs;
use crate::discovery::Named;
use crate::memory::Memory;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum EligibilityArg {
    /// Accelerate what was observed to be safe while it ran on TCP
    Safe,
    /// Accelerate every pair, blocking sockets too: for workloads that you know
    All,
}

/// Accelerate workloads.
///
/// Connections between two attached workloads (or inside one) are accelerated when they are eligible: those that are
/// established from now on, and those that exist already. Attaching what is attached changes nothing, but adopts what
/// has become eligible since.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  shared-socket attach smf scp\n  shared-socket attach core/smf-0 unit/nginx.service 'web-*'\n  shared-socket attach -n core -l app=smf\n  shared-socket attach --cgroup system.slice/nginx.service --pid 4711\n  shared-socket attach --cgroup /sys/fs/cgroup/bench --eligibility all"
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
    /// Bytes queued to all peers together at most, before messages go by TCP; counts 1 KiB a message besides its data, and
    /// what is granted but not used yet. Default: a sixteenth of the memory, 1 GiB at most. Counts when nothing is
    /// attached yet
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1 << 20..=1 << 41))]
    total_budget_bytes: Option<u64>,
    /// Leave connections on TCP whose kind carries fewer messages a connection, both ways; 0 accelerates the shortest
    #[arg(long, value_name = "N", default_value_t = 8)]
    min_messages: u32,
    /// Of so many messages on the fast path, measure how long one waits for its reader (rounded up to a power of two; 0: of
    /// none). By default of one in 64, where a workload is `safe`: with a number also where it is `all`, which costs each
    /// receive call of the machine some 40 ns there. Counts when nothing is attached yet
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1 << 20))]
    latency_samples: Option<u32>,
    /// Leave connections alone that exist already
    #[arg(long)]
    no_adopt: bool,
    /// Messages to and from these workloads are never copied by `capture` and `requests`; attach them again without it to allow
    /// it
    #[arg(long)]
    no_capture: bool,
    /// How long to watch connections that exist already and are still learned, to adopt them when they prove to be safe
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, conflicts_with = "no_adopt")]
    adopt_wait: f64,
    /// Debug: milliseconds to wait between the passes of adoption
    #[arg(long, hide = true, default_value_t = 0)]
    debug_adopt_delay: u64,
    /// Debug: learn from O_NONBLOCK of the files, as on kernels before 6.3
    #[arg(long, hide = true)]
    debug_no_receive_trace: bool,
    /// Debug: how often a message goes by TCP for conntrack's sake
    #[arg(long, hide = true, value_name = "MS", default_value_t = 60_000)]
    debug_keepalive_ms: u64,
    /// Debug: what FIONREAD does not count on a half: 1 what came by TCP, 2 what was redirected; 0: no pair is strict
    #[arg(long, hide = true, value_parser = clap::value_parser!(u32).range(0..=2))]
    debug_fionread: Option<u32>,
    /// Debug: hold the races of the leave protocol open for so many iterations
    #[arg(long, hide = true, default_value_t = 0)]
    debug_spin: u32,
    /// Debug: in which of them, a bit for each window of bpf/abi.h
    #[arg(long, hide = true, default_value_t = LoadOptions::default().spin_windows)]
    debug_windows: u32,
}

#[derive(Serialize)]
struct Row {
    target: String,
    cgroup: String,
    cgroup_id: u64,
    result: &'static str,
    #[serde(flatten)]
    existing: Adopted,
}

impl Args {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<ExitCode> {
        if self.targets.is_empty() {
            bail!("nothing to attach: name a container, a pod, a unit, --cgroup PATH or --pid PID");
        }
        let wait = Duration::try_from_secs_f64(self.adopt_wait)
            .map_err(|e| anyhow::anyhow!("--adopt-wait {}: {e}", self.adopt_wait))?;
        let targets = self.targets.find()?;
        let mut kernel = crate::check::configuration_for(&context.pin_dir)?;
        kernel.fionread = self.debug_fionread.unwrap_or(kernel.fionread | datapath::SHORT_READS);
        let defaults = LoadOptions::default();
        let datapath = Datapath::open_or_load(&LoadOptions {
            pin_dir: context.pin_dir.clone(),
            max_pairs: self.max_pairs,
            budget_bytes: self.budget_bytes,
            budget_messages: self.budget_messages,
            min_messages: self.min_messages,
            keepalive: Duration::from_millis(self.debug_keepalive_ms),
            trace_receives: !self.debug_no_receive_trace,
            latency_samples: self.latency_samples,
            kernel,
            spin: self.debug_spin,
            spin_windows: self.debug_windows,
            total_budget_bytes: self.total_budget_bytes.unwrap_or(defaults.total_budget_bytes),
            ..defaults
        })?;
        let eligibility = match self.eligibility {
            EligibilityArg::Safe => Eligibility::Safe,
            EligibilityArg::All => Eligibility::All,
        };
        let mut rows = Vec::new();
        let memory = Memory::new(&context.state_dir);
        memory.save(&datapath);
        for Named { name, found } in targets {
            memory.load(&datapath, &found.path); // before the first connection is judged
            let capture = datapath.withhold(found.id, self.no_capture)?;
            let result = datapath.attach(&found.path, eligibility).inspect_err(|_| {
                // nothing half-attached: a datapath that serves nobody goes again
                let _ = datapath.remove_if_idle();
            });
            let result = match result? {
                Attach::Attached => "attached",
                Attach::Already if capture => "changed",
                Attach::Already => "already attached",
                Attach::Changed => "changed",
            };
            rows.push(Row {
                target: name,
                cgroup: found.path.display().to_string(),
                cgroup_id: found.id,
                result,
                existing: Adopted::default(),
            });
        }
        if !self.no_adopt {
            let adoption = adopt(&datapath, wait, Duration::from_millis(self.debug_adopt_delay))?;
            for row in &mut rows {
                row.existing = adoption.workloads.get(&row.cgroup_id).cloned().unwrap_or_default();
            }
        }
        if !context.print_document(&rows)? {
            for row in &rows {
                println!(
                    "{}: {} ({}, id {}){}",
                    row.target,
                    row.result,
                    row.cgroup,
                    row.cgroup_id,
                    told(&row.existing)
                );
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Adopts what exists; what is still learned is looked at again until `wait` has passed.
fn adopt(datapath: &Datapath, wait: Duration, delay: Duration) -> anyhow::Result<Adoption> {
    let deadline = Instant::now() + wait;
    let mut adoption = match datapath.adopt(delay) {
        Err(e @ datapath::Error::Unsupported { .. }) => {
            // what is new is accelerated all the same: no reason to fail
            tracing::warn!("{e}");
            return Ok(Adoption::default());
        }
        result => result?,
    };
    while adoption.learning + adoption.busy > 0 && Instant::now() < deadline {
        // what is busy may be idle in a moment; what is learned takes its time
        let pause = Duration::from_millis(if adoption.busy > 0 { 10 } else { 250 });
        std::thread::sleep(pause.min(deadline.saturating_duration_since(Instant::now())));
        adoption.then(datapath.adopt(delay)?);
    }
    Ok(adoption)
}

/// "; 3 connections adopted, 2 left on TCP (learning 2), 4 to elsewhere"
fn told(existing: &Adopted) -> String {
    let mut text = String::new();
    let on_tcp: u64 = existing.on_tcp.values().sum();
    if existing.adopted + on_tcp > 0 {
        text += &format!("; {} existing connections adopted", existing.adopted);
    }
    if on_tcp > 0 {
        let reasons: Vec<String> = existing.on_tcp.iter().map(|(name, n)| format!("{name} {n}")).collect();
        text += &format!(", {on_tcp} left on TCP ({})", reasons.join(", "));
    }
    if existing.elsewhere > 0 {
        text += &format!("; {} go elsewhere", existing.elsewhere);
    }
    text
}

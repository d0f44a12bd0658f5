//! `shared-socket status`

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::{Table, presets};
use datapath::{Budget, Datapath, Generation, Host, Totals, Workload};
use serde::Serialize;

use super::target::RuntimeArgs;
use super::{Context, Output};
use crate::observe::Names;

/// What is attached, and totals.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// No names: runtimes are not asked whose the cgroups are
    #[arg(short, long)]
    numeric: bool,
    /// Refresh every so many seconds (1 when no number is given)
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1")]
    watch: Option<f64>,
    #[command(flatten)]
    runtimes: RuntimeArgs,
}

#[derive(Serialize)]
struct Row {
    /// Whose it is, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(flatten)]
    workload: Workload,
}

/// What `status` shows.
#[derive(Serialize)]
pub(super) struct Status {
    version: &'static str,
    host: Host,
    pin_dir: std::path::PathBuf,
    /// Oldest first; more than one after an upgrade that changed the maps.
    generations: Vec<Generation>,
    workloads: Vec<Row>,
    totals: Totals,
    budget: Budget,
    reasons: BTreeMap<String, u64>,
}

impl Args {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<ExitCode> {
        let pause = self.watch.map(Duration::try_from_secs_f64).transpose();
        let pause = pause.map_err(|e| anyhow::anyhow!("--watch: {e}"))?;
        let names = if self.numeric { None } else { Some(self.runtimes.names()?) };
        loop {
            let status = read(context, names.as_ref())?;
            if pause.is_some() && matches!(context.output, Output::Table | Output::Wide) {
                print!("\x1b[H\x1b[2J");
            }
            if !context.print_document(&status)? {
                print(&status);
            }
            let Some(pause) = pause else { return Ok(ExitCode::SUCCESS) };
            std::thread::sleep(pause);
        }
    }
}

/// Reads it.
pub(super) fn read(context: &Context, names: Option<&Names>) -> anyhow::Result<Status> {
    let read = |d: Datapath| anyhow::Ok((d.generations()?, d.workloads()?, d.totals()?, d.budget()?));
    let (generations, workloads, totals, budget) = Datapath::reading(&context.pin_dir, read)?.unwrap_or_default();
    let names = names.map(|n| n.clone().with_paths(workloads.iter().map(|w| w.cgroup_id)));
    let row = |w: Workload| Row { name: names.as_ref().map(|n| n.of(w.cgroup_id, w.cgroup_id).name), workload: w };
    let workloads = workloads.into_iter().map(row).collect();
    Ok(Status {
        version: env!("CARGO_PKG_VERSION"),
        host: Host::read(),
        pin_dir: context.pin_dir.clone(),
        generations,
        workloads,
        reasons: totals.reasons.clone(),
        totals,
        budget,
    })
}

fn print(status: &Status) {
    println!("shared-socket {} on Linux {} ({})", status.version, status.host.kernel, status.host.machine);
    if status.workloads.is_empty() {
        println!("nothing is attached");
        return;
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["WORKLOAD", "ID", "ELIGIBILITY", "STATE"]);
    let named = status.workloads.iter().any(|r| r.name.is_some());
    if named {
        table.set_header(["WORKLOAD", "CGROUP", "ID", "ELIGIBILITY", "STATE"]);
    }
    for Row { name, workload: w } in &status.workloads {
        let name = name.as_deref().map(super::connections::printable);
        let cells = [
            w.cgroup.as_ref().map_or("(gone)".into(), |p| p.display().to_string()),
            w.cgroup_id.to_string(),
            format!("{:?}", w.eligibility).to_lowercase(),
            state(w).into(),
        ];
        table.add_row(name.into_iter().filter(|_| named).chain(cells));
    }
    println!("{table}\n");
    for g in &status.generations {
        if g.upgrading {
            println!("an upgrade was interrupted: `shared-socket upgrade` finishes it");
        }
        if !g.current {
            println!(
                "generation {} (ABI {}) serves {} halves that were connected before the upgrade, until they end",
                g.number, g.abi_version, g.sockets
            );
        }
    }
    let t = &status.totals;
    println!(
        "pairs     {} live, {} since load ({} adopted); {} handoffs, {} halves left",
        t.pairs_live, t.pairs_total, t.adopted, t.handoffs, t.left
    );
    println!("fast path {} messages, {} bytes", t.fast_messages, t.fast_bytes);
    println!("TCP path  {} messages, {} bytes (of paired sockets)", t.tcp_messages, t.tcp_bytes);
    let b = &status.budget;
    println!(
        "queues    {} of {} bytes reserved; the fullest {}, of {} bytes and {} messages a peer",
        b.total_reserved_bytes, b.total_bytes, b.peer_reserved_bytes, b.peer_bytes, b.peer_messages
    );
    let slow = status.reasons.iter().filter(|(name, _)| *name != "fast");
    for (name, count) in slow {
        let text = datapath::REASONS.iter().find(|r| r.name == name).map_or("", |r| r.text);
        println!("  {count:>12}  {name}: {text}");
    }
}

fn state(w: &Workload) -> &'static str {
    match w {
        Workload { draining: true, .. } => "draining",
        Workload { cgroup: None, .. } => "gone",
        Workload { complete: false, .. } => "incomplete",
        Workload { capture: false, .. } => "attached, no capture",
        _ => "attached",
    }
}

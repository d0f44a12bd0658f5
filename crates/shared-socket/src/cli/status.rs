//! `shared-socket status`

use std::collections::BTreeMap;
use std::process::ExitCode;

use comfy_table::{Table, presets};
use datapath::{Budget, Datapath, Generation, Host, Totals, Workload};
use serde::Serialize;

use super::Context;

#[derive(Serialize)]
struct Status {
    version: &'static str,
    host: Host,
    pin_dir: std::path::PathBuf,
    /// Oldest first; more than one after an upgrade that changed the maps.
    generations: Vec<Generation>,
    workloads: Vec<Workload>,
    totals: Totals,
    budget: Budget,
    reasons: BTreeMap<String, u64>,
}

pub(super) fn run(context: &Context) -> anyhow::Result<ExitCode> {
    let (generations, workloads, totals, budget) = match Datapath::read(&context.pin_dir)? {
        Some(datapath) => (datapath.generations()?, datapath.workloads()?, datapath.totals()?, datapath.budget()?),
        None => Default::default(),
    };
    let status = Status {
        version: env!("CARGO_PKG_VERSION"),
        host: Host::read(),
        pin_dir: context.pin_dir.clone(),
        generations,
        workloads,
        reasons: totals.reasons.clone(),
        totals,
        budget,
    };
    if context.print_document(&status)? {
        return Ok(ExitCode::SUCCESS);
    }
    println!("shared-socket {} on Linux {} ({})", status.version, status.host.kernel, status.host.machine);
    if status.workloads.is_empty() {
        println!("nothing is attached");
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["WORKLOAD", "ID", "ELIGIBILITY", "STATE"]);
    for w in &status.workloads {
        table.add_row([
            w.cgroup.as_ref().map_or("(gone)".into(), |p| p.display().to_string()),
            w.cgroup_id.to_string(),
            format!("{:?}", w.eligibility).to_lowercase(),
            state(w).into(),
        ]);
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
    Ok(ExitCode::SUCCESS)
}

fn state(w: &Workload) -> &'static str {
    match w {
        Workload { draining: true, .. } => "draining",
        Workload { cgroup: None, .. } => "gone",
        Workload { complete: false, .. } => "incomplete",
        _ => "attached",
    }
}

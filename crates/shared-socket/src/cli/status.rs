//! `shared-socket status`

use std::collections::BTreeMap;
use std::process::ExitCode;

use comfy_table::{Table, presets};
use datapath::{Datapath, Host, Totals, Workload};
use serde::Serialize;

use super::Context;

#[derive(Serialize)]
struct Status {
    version: &'static str,
    host: Host,
    pin_dir: std::path::PathBuf,
    workloads: Vec<Workload>,
    totals: Totals,
    reasons: BTreeMap<String, u64>,
}

pub(super) fn run(context: &Context) -> anyhow::Result<ExitCode> {
    let (workloads, totals) = match Datapath::read(&context.pin_dir)? {
        Some(datapath) => (datapath.workloads()?, datapath.totals()?),
        None => Default::default(),
    };
    let status = Status {
        version: env!("CARGO_PKG_VERSION"),
        host: Host::read(),
        pin_dir: context.pin_dir.clone(),
        workloads,
        reasons: totals.reasons.clone(),
        totals,
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
            if w.draining { "draining".into() } else { "attached".to_string() },
        ]);
    }
    println!("{table}\n");
    let t = &status.totals;
    println!(
        "pairs     {} live, {} since load; {} handoffs, {} halves left",
        t.pairs_live, t.pairs_total, t.handoffs, t.left
    );
    println!("fast path {} messages, {} bytes", t.fast_messages, t.fast_bytes);
    println!("TCP path  {} messages, {} bytes (of paired sockets)", t.tcp_messages, t.tcp_bytes);
    let slow = status.reasons.iter().filter(|(name, _)| *name != "fast");
    for (name, count) in slow {
        let text = datapath::REASONS.iter().find(|r| r.name == name).map_or("", |r| r.text);
        println!("  {count:>12}  {name}: {text}");
    }
    Ok(ExitCode::SUCCESS)
}

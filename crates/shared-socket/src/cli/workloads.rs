//! `shared-socket workloads`

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use comfy_table::{Table, presets};
use datapath::Datapath;
use serde::Serialize;

use super::Context;
use super::target::RuntimeArgs;
use crate::agent::Config;
use crate::discovery::{Listing, Looked, Runtime, Workload};
use crate::policy::{Decision, Policy};

/// What could be attached, what is, and why not: pods, containers, units.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  shared-socket workloads\n  shared-socket workloads --units -o json\n  \
                        shared-socket workloads --config /etc/shared-socket/agent.yaml")]
pub struct Args {
    /// List systemd units, too
    #[arg(long)]
    units: bool,
    /// Say of each what an agent with this file would do with it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    runtimes: RuntimeArgs,
}

#[derive(Serialize)]
struct Document {
    looked: Vec<Looked>,
    workloads: Vec<Row>,
    /// Attached cgroups that are none of these.
    others: Vec<datapath::Workload>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    #[serde(flatten)]
    workload: Workload,
    state: State,
    #[serde(skip_serializing_if = "Option::is_none")]
    decision: Option<Decision>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// Its own cgroups are.
    Attached(String),
    /// A cgroup above it is.
    Covered(String),
    /// It could be.
    NotAttached,
    /// Why it cannot be.
    NotPossible(String),
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Attached(how) => write!(f, "attached ({how})"),
            Self::Covered(by) => write!(f, "attached by {by}"),
            Self::NotAttached => write!(f, "-"),
            Self::NotPossible(why) => write!(f, "{why}"),
        }
    }
}

fn state(w: &Workload, attached: &BTreeMap<u64, datapath::Workload>, names: &BTreeMap<PathBuf, String>) -> State {
    let places = match &w.place {
        Err(why) => return State::NotPossible(why.clone()),
        Ok(places) => places,
    };
    if let Some(own) = places.iter().find_map(|p| attached.get(&p.id)) {
        let drains = if own.draining { ", draining" } else { "" };
        return State::Attached(format!("{}{drains}", own.eligibility));
    }
    let above = places.first().into_iter().flat_map(|p| p.path.ancestors().skip(1)).find(|p| names.contains_key(*p));
    above.map_or(State::NotAttached, |path| State::Covered(names[path].clone()))
}

impl Args {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<ExitCode> {
        let policy: Option<Policy> = match &self.config {
            Some(path) => Some(Config::read(path)?.policy()),
            None => None,
        };
        let Listing { looked, workloads } = self.runtimes.inventory()?.list();
        let attached = Datapath::reading(&context.pin_dir, |d| d.workloads())?;
        let attached: BTreeMap<u64, datapath::Workload> =
            attached.into_iter().flatten().map(|w| (w.cgroup_id, w)).collect();
        let root = datapath::cgroup2_mount()?;
        let mut names: BTreeMap<PathBuf, String> = BTreeMap::new();
        for w in attached.values() {
            if let Some(path) = &w.cgroup {
                let path = root.join(path.strip_prefix("/").unwrap_or(path));
                names.insert(path.clone(), format!("cgroup {}", path.display()));
            }
        }
        for w in workloads.iter().filter(|w| w.container.is_none()) {
            for place in w.place.iter().flatten() {
                names.entry(place.path.clone()).and_modify(|n| *n = w.to_string());
            }
        }
        let mut known: Vec<u64> = Vec::new();
        let mut rows = Vec::new();
        for w in workloads {
            let state = state(&w, &attached, &names);
            let decision = policy.as_ref().map(|p| p.decide(&w));
            if matches!(state, State::Attached(_)) {
                known.extend(w.place.iter().flatten().map(|p| p.id));
            } else if w.runtime == Runtime::Systemd && !self.units && !matches!(decision, Some(Decision::Accelerate(_)))
            {
                continue;
            }
            rows.push(Row { name: w.to_string(), workload: w, state, decision });
        }
        let others = attached.into_values().filter(|w| !known.contains(&w.cgroup_id)).collect();
        let document = Document { looked, workloads: rows, others };
        if !context.print_document(&document)? {
            print(&document);
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn print(document: &Document) {
    let mut table = Table::new();
    let decides = document.workloads.iter().any(|r| r.decision.is_some());
    let mut header = vec!["WORKLOAD", "NETWORK", "PID", "STATE"];
    if decides {
        header.push("AGENT");
    }
    table.load_style(presets::NOTHING).set_header(header);
    for row in &document.workloads {
        let mut cells = vec![
            row.name.clone(),
            if row.workload.host_network { "host" } else { "own" }.to_owned(),
            row.workload.pid.map_or_else(|| "-".to_owned(), |p| p.to_string()),
            row.state.to_string(),
        ];
        if let Some(decision) = &row.decision {
            cells.push(match decision {
                Decision::Accelerate(e) => format!("accelerates ({e})"),
                Decision::LeaveAlone(why) | Decision::NotPossible(why) => why.clone(),
            });
        }
        table.add_row(cells);
    }
    for other in &document.others {
        let name = other.cgroup.as_ref().map_or_else(|| "(gone)".to_owned(), |p| p.display().to_string());
        let state = format!("attached ({})", other.eligibility);
        table.add_row([format!("cgroup {name}"), "-".into(), "-".into(), state]);
    }
    if document.workloads.is_empty() && document.others.is_empty() {
        println!("no pods or containers were found (--units lists systemd units)");
    } else {
        println!("{table}");
    }
    for looked in &document.looked {
        if let Some(error) = &looked.error {
            eprintln!("{}: {error}", looked.backend);
        }
    }
}

//! `shared-socket bench`: the matrix of cases, sizes, placements and paths, rounds interleaved.

pub mod accelerators;
pub mod cgroups;
pub mod child;
pub mod external;
pub mod interrupt;
pub mod matrix;
pub mod peer;
pub mod plot;
pub mod report;
pub mod runner;
pub mod stats;
pub mod watcher;

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

use interrupt::{Interrupt, Interrupted};
use matrix::Cell;
use report::{Machine, Results, Row};
use runner::{Runner, Sample};

/// What to measure and how often.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The cells, in order.
    pub cells: Vec<Cell>,
    /// How many times each.
    pub rounds: u32,
    /// For how long each time.
    pub time: Duration,
}

/// Measures. Each round takes every cell by every path once, so that a drift of the machine hits all alike.
pub fn run(plan: &Plan, interrupt: &Interrupt) -> Result<Results> {
    let mut runner = Runner::new(&plan.cells, interrupt)?;
    let mut tallies: Vec<Tally> =
        plan.cells.iter().flat_map(|cell| cell.paths.iter().map(move |path| Tally::new(cell, *path))).collect();
    let progress = progress(u64::from(plan.rounds) * tallies.len() as u64);
    for round in 1..=plan.rounds {
        for tally in &mut tallies {
            let Cell { case, size, placement, .. } = &tally.cell;
            progress.set_message(format!(
                "round {round} of {}: {case} {} {placement} {}",
                plan.rounds,
                case.size_label(*size),
                tally.path
            ));
            match runner.measure(&tally.cell, tally.path, plan.time) {
                Ok(sample) => tally.samples.push(sample),
                Err(error) if error.is::<Interrupted>() => {
                    progress.finish_and_clear();
                    return Err(error);
                }
                Err(error) => tally.failures.push(format!("{error:#}")),
            }
            interrupt.check().inspect_err(|_| progress.finish_and_clear())?;
            progress.inc(1);
        }
    }
    progress.finish_and_clear();
    let rows = tallies.iter().map(|tally| Row::new(&tally.cell, tally.path, &tally.samples, &tally.failures)).collect();
    Ok(Results::new(Machine::here(), rows))
}

/// What the rounds of one row gave.
struct Tally {
    cell: Cell,
    path: matrix::Path,
    samples: Vec<Sample>,
    failures: Vec<String>,
}

impl Tally {
    fn new(cell: &Cell, path: matrix::Path) -> Self {
        Self { cell: cell.clone(), path, samples: Vec::new(), failures: Vec::new() }
    }
}

fn progress(length: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} [{elapsed}, {eta} left] {wide_msg}");
    ProgressBar::new(length).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

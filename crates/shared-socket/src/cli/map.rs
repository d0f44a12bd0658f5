//! `shared-socket map`

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::connections::{filter, read};
use super::target::RuntimeArgs;
use super::{Context, Output};
use crate::observe::filter::GRAMMAR;
use crate::observe::flows::{Mark, flows};
use crate::observe::map::{Graph, dot, svg};

/// A picture of who talks to whom: workloads as nodes, traffic as edges.
///
/// An edge is as wide as its rate, measured over --interval, and its colour is the share of its messages that were fast. -o svg
/// (the default) is a picture, -o dot is for graphviz, -o json the same graph as data.
#[derive(Debug, clap::Args)]
#[command(after_help = GRAMMAR)]
pub struct Args {
    /// Only these connections: ns core and port 6379
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,
    /// Seconds over which rates are measured
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    interval: f64,
    /// No names: runtimes are not asked whose the connections are
    #[arg(short, long)]
    numeric: bool,
    #[command(flatten)]
    runtimes: RuntimeArgs,
}

impl Args {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<ExitCode> {
        let pause = Duration::try_from_secs_f64(self.interval).map_err(|e| anyhow::anyhow!("--interval: {e}"))?;
        let filter = filter(&self.filter)?;
        let names = if self.numeric { None } else { Some(self.runtimes.names()?) };
        let before = Mark::of(&read(context, None)?);
        let began = Instant::now();
        std::thread::sleep(pause);
        let mut list = read(context, names.as_ref())?;
        let seconds = began.elapsed().as_secs_f64();
        list.retain(|c| filter.matches(c));
        let graph = Graph::of(flows(&list, &before, seconds));
        let text = match context.output {
            Output::Dot => dot(&graph),
            Output::Json | Output::Yaml => {
                context.print_document(&graph)?;
                return Ok(ExitCode::SUCCESS);
            }
            _ => svg(&graph),
        };
        std::io::stdout().write_all(text.as_bytes())?;
        Ok(ExitCode::SUCCESS)
    }
}

//! `shared-socket map`

use std::process::ExitCode;
use std::time::{Duration, Instant};

use comfy_table::{Table, presets};
use datapath::Datapath;

use super::target::RuntimeArgs;
use super::{Context, Output};
use crate::observe::{Map, Names, flows, human, read_connections};

/// A picture of what goes between workloads: nodes, and arrows as wide as the rate, blue where it is fast.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  shared-socket map -o svg > map.svg\n  shared-socket map -o dot --interval 10 | dot -Tpng > \
                        map.png\n  shared-socket map -o json"
)]
pub struct Args {
    /// How long rates are measured
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    interval: f64,
    /// Ask no runtime for names: cgroups have their paths
    #[arg(short, long)]
    numeric: bool,
    #[command(flatten)]
    runtimes: RuntimeArgs,
}

impl Args {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<ExitCode> {
        let interval = Duration::try_from_secs_f64(self.interval).map_err(|e| anyhow::anyhow!("--interval: {e}"))?;
        let names = if self.numeric { Names::new(&datapath::cgroup2_mount()?, &[]) } else { self.runtimes.names()? };
        let look = || -> anyhow::Result<_> {
            let list = match Datapath::read(&context.pin_dir)? {
                Some(datapath) => read_connections(&datapath, names.clone())?,
                None => Vec::new(),
            };
            Ok((flows::of(&list), Instant::now()))
        };
        let (before, began) = look()?;
        std::thread::sleep(interval);
        let (after, ended) = look()?;
        let time = ended - began;
        let map = Map::new(&after, &flows::rates(&before, &after, time), time.as_secs_f64());
        match context.output {
            Output::Svg => print!("{}", map.svg()),
            Output::Dot => print!("{}", map.dot()),
            _ if context.print_document(&map)? => {}
            _ => println!("{}", table(&map)),
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn table(map: &Map) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["FROM", "TO", "CONNECTIONS", "MSGS/s", "BYTES/s", "FAST"]);
    for edge in &map.edges {
        table.add_row([
            map.workloads[edge.from].to_string(),
            map.workloads[edge.to].to_string(),
            edge.flow.connections.to_string(),
            human::count(edge.rate.messages()),
            human::bytes(edge.rate.bytes()),
            edge.fast_share.map_or_else(|| "-".to_owned(), |s| format!("{:.0} %", s * 100.0)),
        ]);
    }
    table
}

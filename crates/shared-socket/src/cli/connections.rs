//! `shared-socket connections`

use std::process::ExitCode;
use std::time::Duration;

use comfy_table::{Table, presets};
use datapath::{Datapath, Path};

use super::target::RuntimeArgs;
use super::{Context, Output};
use crate::observe::filter::{Filter, GRAMMAR};
use crate::observe::{Connection, End, Key, Names, read_connections, sort};

/// One row a pair: both ends, path, reason, messages and bytes each way.
///
/// A path is `fast` (redirected), `tcp` (in the sockhash, by TCP for the reason shown) or `left` (plain TCP for good).
#[derive(Debug, clap::Args)]
#[command(after_help = GRAMMAR)]
pub struct Args {
    /// Which ones, in words: dst port 6379 and not path fast
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,
    /// Sort by these, the largest first; among equals by the next
    #[arg(short, long, value_name = "KEY", value_delimiter = ',', value_enum, default_value = "age")]
    sort: Vec<Key>,
    /// The other way round
    #[arg(short, long)]
    reverse: bool,
    /// No names: runtimes are not asked whose the connections are
    #[arg(short, long)]
    numeric: bool,
    /// Refresh every so many seconds (1 when no number is given; a filter stands before)
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1")]
    watch: Option<f64>,
    #[command(flatten)]
    runtimes: RuntimeArgs,
}

/// The filter on a command line; the error has the text with a mark below the place.
pub(super) fn filter(words: &[String]) -> anyhow::Result<Filter> {
    let text = words.join(" ");
    text.parse().map_err(|e: crate::observe::filter::Error| {
        anyhow::anyhow!("the filter is not understood {e}\n  {text}\n  {:>width$}", '^', width = e.column)
    })
}

impl Args {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<ExitCode> {
        let pause = self.watch.map(Duration::try_from_secs_f64).transpose();
        let pause = pause.map_err(|e| anyhow::anyhow!("--watch: {e}"))?;
        let filter = filter(&self.filter)?;
        let names = if self.numeric { None } else { Some(self.runtimes.names()?) };
        loop {
            let mut list = read(context, names.as_ref())?;
            list.retain(|c| filter.matches(c));
            sort(&mut list, &self.sort);
            if self.reverse {
                list.reverse();
            }
            let people = matches!(context.output, Output::Table | Output::Wide);
            if pause.is_some() && people {
                print!("\x1b[H\x1b[2J");
            }
            if !context.print_document(&list)? {
                println!("{}", table(&list, context.output == Output::Wide));
            }
            let Some(pause) = pause else { return Ok(ExitCode::SUCCESS) };
            std::thread::sleep(pause);
        }
    }
}

/// All connections of what is pinned; none when nothing is.
pub(super) fn read(context: &Context, names: Option<&Names>) -> anyhow::Result<Vec<Connection>> {
    Ok(Datapath::reading(&context.pin_dir, |d| read_connections(&d, names))?.unwrap_or_default())
}

fn table(list: &[Connection], wide: bool) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let mut header =
        vec!["CLIENT", "PROCESS", "SERVER", "PROCESS", "PATH", "REASON", "MSGS >", "BYTES >", "MSGS <", "BYTES <"];
    header.push("AGE");
    let named = list.iter().flat_map(Connection::ends).any(|e| e.workload.is_some());
    if named {
        header.insert(0, "FROM");
        header.insert(3, "TO");
    }
    if wide {
        header.extend(["STATE", "FAST-Q", "TCP-Q", "UNACKED", "RMEM", "RESERVED", "HANDOFFS", "FAST %"]);
    }
    table.set_header(header);
    for c in list {
        let name = |e: &Option<End>| e.as_ref().map_or("-".into(), |e| printable(&e.name()));
        let address = |e: &Option<End>| e.as_ref().map_or("-".into(), End::address);
        let process = |e: &Option<End>| match e {
            Some(End { pid: Some(pid), command, .. }) => {
                format!("{pid}/{}", printable(command.as_deref().unwrap_or("?")))
            }
            _ => "-".into(),
        };
        let messages = |e: &Option<End>| e.as_ref().map_or(0, End::messages).to_string();
        let bytes = |e: &Option<End>| e.as_ref().map_or(0, End::bytes).to_string();
        let mut row = vec![address(&c.client), process(&c.client), address(&c.server), process(&c.server)];
        if named {
            row.insert(0, name(&c.client));
            row.insert(3, name(&c.server));
        }
        row.extend([
            path_name(c.path).into(),
            c.reason().into(),
            messages(&c.client),
            bytes(&c.client),
            messages(&c.server),
            bytes(&c.server),
            format!("{:.0}s", c.age_seconds),
        ]);
        if wide {
            let both = |of: &dyn Fn(&End) -> String| {
                let one = |e: &Option<End>| e.as_ref().map_or("-".into(), of);
                format!("{}/{}", one(&c.client), one(&c.server))
            };
            let known = |n: Option<u64>| n.map_or("?".into(), |n| n.to_string());
            row.extend([
                both(&|e| e.state.unwrap_or("?").into()),
                both(&|e| known(e.fast_unread_bytes)),
                both(&|e| known(e.tcp_unread_bytes)),
                both(&|e| known(e.tcp_unacked_bytes)),
                both(&|e| known(e.rmem_bytes)),
                both(&|e| e.reserved_bytes.to_string()),
                both(&|e| e.handoffs.to_string()),
                format!("{:.0}", 100.0 * c.fast_share()),
            ]);
        }
        table.add_row(row);
    }
    table
}

/// What others chose (names, commands) moves no cursor.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|l| if l.is_control() { '\u{fffd}' } else { l }).collect()
}

pub(super) fn path_name(path: Path) -> &'static str {
    match path {
        Path::Fast => "fast",
        Path::Tcp => "tcp",
        Path::Left => "left",
    }
}

//! `shared-socket connections`

use std::cmp::Ordering;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use comfy_table::{Table, presets};
use datapath::{Datapath, Path};

use super::target::RuntimeArgs;
use super::{Context, Output};
use crate::observe::{Connection, End, Filter, Names, read_connections};

const WORDS: &str = "\
Filter words, joined by `and` (or nothing), `or`, `not` and brackets; src is the end that connected, dst the other:
  port N, sport N, dport N      also with < <= != >= >; src port N
  host ADDRESS[/PREFIX]         src ADDRESS, dst ADDRESS
  ns, pod, container, name      of either end, with * ? [..]; src pod, dst pod
  process COMMAND               with * ? [..]
  path fast|tcp|left            reason NAME
  state established|close-wait|...
  bytes, messages, handoffs, reserved, unread, age  with < <= = != >= >: bytes > 1M, age > 5m

Examples:
  shared-socket connections dport 6379 and not path fast
  shared-socket connections -o wide 'pod smf-* and bytes > 1M' --sort bytes
  shared-socket connections --watch 2 --sort messages --limit 20";

/// One row a pair: both ends, path, reason, messages and bytes each way.
///
/// A path is `fast` (redirected), `tcp` (in the sockhash, by TCP for the reason shown) or `left` (plain TCP for good).
#[derive(Debug, clap::Args)]
#[command(after_help = WORDS)]
pub struct Args {
    /// Only those for which all of this is true
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,
    /// In this order; several, separated by commas. Numbers have the largest first
    #[arg(long, value_enum, value_name = "KEY", value_delimiter = ',', default_value = "age")]
    sort: Vec<Key>,
    /// The other way round
    #[arg(short, long)]
    reverse: bool,
    /// The first so many
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Refresh every so many seconds (1 when no number is given)
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1")]
    watch: Option<f64>,
    /// Ask no runtime for names: cgroups have their paths
    #[arg(short, long)]
    numeric: bool,
    #[command(flatten)]
    runtimes: RuntimeArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Key {
    Age,
    Bytes,
    Messages,
    Reserved,
    Unread,
    Handoffs,
    Path,
    Reason,
    Name,
    Port,
}

impl Key {
    fn compare(self, a: &Connection, b: &Connection) -> Ordering {
        let sum = |c: &Connection, of: fn(&End) -> u64| c.ends().map(of).sum::<u64>();
        let more = |of| sum(b, of).cmp(&sum(a, of));
        match self {
            Self::Age => b.age_seconds.total_cmp(&a.age_seconds),
            Self::Bytes => more(End::bytes),
            Self::Messages => more(End::messages),
            Self::Reserved => more(|e| e.reserved_bytes),
            Self::Unread => more(|e| e.unread_bytes.unwrap_or(0)),
            Self::Handoffs => more(|e| e.handoffs),
            Self::Path => path_name(a.path).cmp(path_name(b.path)),
            Self::Reason => reason(a).cmp(reason(b)),
            Self::Name => {
                let names = |c: &Connection| c.ends().map(|e| e.workload.name.clone()).collect::<Vec<_>>();
                names(a).cmp(&names(b))
            }
            Self::Port => {
                let port = |c: &Connection| c.server.as_ref().map(|e| e.port);
                port(a).cmp(&port(b))
            }
        }
    }
}

impl Args {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<ExitCode> {
        let pause = self.watch.map(Duration::try_from_secs_f64).transpose();
        let pause = pause.map_err(|e| anyhow::anyhow!("--watch: {e}"))?;
        let text = self.filter.join(" ");
        let filter: Filter = text.parse().with_context(|| format!("the filter `{text}` is not understood"))?;
        loop {
            let mut list = match Datapath::read(&context.pin_dir)? {
                Some(datapath) => read_connections(&datapath, self.names()?)?,
                None => Vec::new(),
            };
            list.retain(|c| filter.lets_through(c));
            list.sort_by(|a, b| {
                let order =
                    self.sort.iter().map(|key| key.compare(a, b)).find(|o| o.is_ne()).unwrap_or(Ordering::Equal);
                if self.reverse { order.reverse() } else { order }
            });
            list.truncate(self.limit.unwrap_or(usize::MAX));
            if pause.is_some() && matches!(context.output, Output::Table | Output::Wide) {
                print!("\x1b[H\x1b[2J");
            }
            if !context.print_document(&list)? {
                println!("{}", table(&list, context.output == Output::Wide));
            }
            let Some(pause) = pause else { return Ok(ExitCode::SUCCESS) };
            std::thread::sleep(pause);
        }
    }

    fn names(&self) -> anyhow::Result<Names> {
        if self.numeric { Ok(Names::new(&datapath::cgroup2_mount()?, &[])) } else { self.runtimes.names() }
    }
}

fn table(list: &[Connection], wide: bool) -> Table {
    let mut header = vec![
        "CLIENT", "WORKLOAD", "SERVER", "WORKLOAD", "PATH", "REASON", "MSGS >", "BYTES >", "MSGS <", "BYTES <", "AGE",
    ];
    if wide {
        header.extend(["PROCESSES", "STATES", "HANDOFFS", "RESERVED >", "RESERVED <", "UNREAD >", "UNREAD <"]);
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for c in list {
        let of = |end: &Option<End>, text: fn(&End) -> String| end.as_ref().map_or_else(|| "-".to_owned(), text);
        let address: fn(&End) -> String = |e| {
            std::net::SocketAddr::new(e.addr.parse().unwrap_or(std::net::Ipv4Addr::UNSPECIFIED.into()), e.port)
                .to_string()
        };
        let name: fn(&End) -> String = |e| e.workload.name.clone();
        let mut row = vec![
            of(&c.client, address),
            of(&c.client, name),
            of(&c.server, address),
            of(&c.server, name),
            path_name(c.path).into(),
            reason(c).into(),
            of(&c.client, |e| e.messages().to_string()),
            of(&c.client, |e| e.bytes().to_string()),
            of(&c.server, |e| e.messages().to_string()),
            of(&c.server, |e| e.bytes().to_string()),
            format!("{:.0}s", c.age_seconds),
        ];
        if wide {
            let both = |text: fn(&End) -> String| format!("{} {}", of(&c.client, text), of(&c.server, text));
            row.push(both(|e| match e.pid {
                Some(pid) => format!("{pid}/{}", e.command.as_deref().unwrap_or("?")),
                None => "-".into(),
            }));
            row.push(both(|e| e.state.unwrap_or("?").to_owned()));
            row.push(c.ends().map(|e| e.handoffs).sum::<u64>().to_string());
            // what waits at an end was sent by the other
            let unread: fn(&End) -> String = |e| e.unread_bytes.map_or_else(|| "?".into(), |n| n.to_string());
            row.push(of(&c.server, |e| e.reserved_bytes.to_string()));
            row.push(of(&c.client, |e| e.reserved_bytes.to_string()));
            row.push(of(&c.server, unread));
            row.push(of(&c.client, unread));
        }
        table.add_row(row);
    }
    table
}

fn path_name(path: Path) -> &'static str {
    match path {
        Path::Fast => "fast",
        Path::Tcp => "tcp",
        Path::Left => "left",
    }
}

/// The reason of the end that is not fast.
fn reason(c: &Connection) -> &'static str {
    c.ends().map(|e| e.reason).find(|r| *r != "fast").unwrap_or("-")
}

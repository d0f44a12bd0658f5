//! `shared-socket connections`

use std::process::ExitCode;
use std::time::Duration;

use comfy_table::{Table, presets};
use datapath::{Datapath, Path};

use super::{Context, Output};
use crate::observe::{Connection, End, read_connections};

/// One row a pair: both ends, path, reason, messages and bytes each way.
///
/// A path is `fast` (redirected), `tcp` (in the sockhash, by TCP for the reason shown) or `left` (plain TCP for good).
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Refresh every so many seconds (1 when no number is given)
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1")]
    watch: Option<f64>,
}

impl Args {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<ExitCode> {
        let pause = self.watch.map(Duration::try_from_secs_f64).transpose();
        let pause = pause.map_err(|e| anyhow::anyhow!("--watch: {e}"))?;
        loop {
            let list = match Datapath::read(&context.pin_dir)? {
                Some(datapath) => read_connections(&datapath)?,
                None => Vec::new(),
            };
            if pause.is_some() && context.output == Output::Table {
                print!("\x1b[H\x1b[2J");
            }
            if !context.print_document(&list)? {
                println!("{}", table(&list));
            }
            let Some(pause) = pause else { return Ok(ExitCode::SUCCESS) };
            std::thread::sleep(pause);
        }
    }
}

fn table(list: &[Connection]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "CLIENT", "PROCESS", "SERVER", "PROCESS", "PATH", "REASON", "MSGS >", "BYTES >", "MSGS <", "BYTES <", "AGE",
    ]);
    for c in list {
        let address = |e: &Option<End>| e.as_ref().map_or("-".into(), |e| format!("{}:{}", e.addr, e.port));
        let process = |e: &Option<End>| match e {
            Some(End { pid: Some(pid), command, .. }) => format!("{pid}/{}", command.as_deref().unwrap_or("?")),
            _ => "-".into(),
        };
        let messages = |e: &Option<End>| e.as_ref().map_or(0, |e| e.fast_messages + e.tcp_messages).to_string();
        let bytes = |e: &Option<End>| e.as_ref().map_or(0, |e| e.fast_bytes + e.tcp_bytes).to_string();
        table.add_row([
            address(&c.client),
            process(&c.client),
            address(&c.server),
            process(&c.server),
            path_name(c.path).into(),
            reason(c).into(),
            messages(&c.client),
            bytes(&c.client),
            messages(&c.server),
            bytes(&c.server),
            format!("{:.0}s", c.age_seconds),
        ]);
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
    let ends = [&c.client, &c.server];
    ends.into_iter().flatten().map(|e| e.reason).find(|r| *r != "fast").unwrap_or("-")
}

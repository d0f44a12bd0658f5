//! `shared-socket requests`

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use comfy_table::{Table, presets};
use datapath::TapOptions;
use jiff::Timestamp;
use serde::Serialize;

use super::capture::{TapArgs, WORDS, choice};
use super::connections::printable;
use super::known::Names;
use super::{Context, Output};
use crate::bench::interrupt::Interrupt;
use crate::observe::capture::{Captured, Live};
use crate::observe::clock_offset;
use crate::observe::requests::{Glimpse, Protocol, Request, Row, SNAPLEN};

/// Messages are waited for so long before it is looked for a signal.
const PATIENCE: Duration = Duration::from_millis(100);
/// Pairs of workloads that have a row.
const ROWS: usize = 1000;

/// Requests between workloads: how many, with what success, how long each took. HTTP/1 and Redis, found out by what is said.
///
/// A glimpse of what paired connections carry, by either path, while this runs: messages are copied as by `capture`, cut to
/// --snaplen bytes, and no byte of them is kept or shown but methods, commands and status. A duration is from the first byte of a
/// request to the first byte of its answer, both as they are sent. Requests of connections that exist already are
/// seen from the next one on.
#[derive(Debug, clap::Args)]
#[command(after_help = WORDS)]
pub struct Args {
    /// Which connections, in words: dst port 6379 and pod redis-*
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,
    /// Only this protocol; also found where it does not begin as usual
    #[arg(long, value_name = "NAME", value_enum)]
    protocol: Option<Protocol>,
    /// How long to look; without --watch and --follow 5 seconds, else until interrupted
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<f64>,
    /// Show the sums every so many seconds (1 when no number is given; a filter stands before)
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1", conflicts_with = "follow")]
    watch: Option<f64>,
    /// A line for each request
    #[arg(short, long)]
    follow: bool,
    /// Look at one of so many connections only
    #[arg(long, value_name = "N", default_value_t = 1)]
    one_in: u32,
    /// Bytes of each message that are looked at
    #[arg(short, long, value_name = "BYTES", default_value_t = SNAPLEN, value_parser = clap::value_parser!(u32).range(16..))]
    snaplen: u32,
    #[command(flatten)]
    tap: TapArgs,
}

#[derive(Serialize)]
struct Document {
    /// How long was looked.
    seconds: f64,
    rows: Vec<Row>,
    /// Requests whose answers could not be found.
    lost_requests: u64,
    /// Pieces of messages that were lost.
    lost_pieces: u64,
}

#[derive(Serialize)]
struct Line<'a> {
    time: Timestamp,
    client: &'a str,
    server: &'a str,
    #[serde(flatten)]
    request: &'a Request,
}

impl Args {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<ExitCode> {
        if self.follow && context.output == Output::Yaml {
            bail!("--follow prints a line a request: -o json or -o table");
        }
        let span = |what: &str, seconds: Option<f64>| {
            seconds.map(Duration::try_from_secs_f64).transpose().map_err(|e| anyhow::anyhow!("{what}: {e}"))
        };
        let pause = span("--watch", self.watch)?;
        let until = match span("--seconds", self.seconds)? {
            None if pause.is_none() && !self.follow => Some(Duration::from_secs(5)),
            length => length,
        };
        let filter = choice(&self.filter)?;
        let options =
            TapOptions { snaplen: self.snaplen, buffer_bytes: self.tap.buffer_bytes()?, ..TapOptions::default() };
        let interrupt = Interrupt::install()?;
        let names = self.tap.names()?;
        let Some(mut live) = Live::open(&context.pin_dir, options, filter, self.one_in, names)? else {
            bail!("nothing is attached: there are no connections to look at (shared-socket attach)");
        };
        let mut glimpse = Glimpse::new(self.protocol, ROWS);
        let began = Instant::now();
        let mut shown = began;
        let mut goes_on = true;
        let is_time = || until.is_some_and(|length| began.elapsed() >= length);
        while goes_on && !is_time() && interrupt.check().is_ok() {
            let patience = until.map_or(PATIENCE, |length| PATIENCE.min(length.saturating_sub(began.elapsed())));
            goes_on = live.read(patience, |c| self.see(&mut glimpse, &c, context.output))?;
            if pause.is_some_and(|pause| shown.elapsed() >= pause) {
                shown = Instant::now();
                if matches!(context.output, Output::Table | Output::Wide) {
                    print!("\x1b[H\x1b[2J");
                }
                show(context, &document(&glimpse, began, &live))?;
            }
        }
        live.rest(|c| self.see(&mut glimpse, &c, context.output))?;
        let document = document(&glimpse, began, &live);
        drop(live); // the tap goes before anything is said
        if self.follow {
            std::io::stdout().flush()?;
        } else {
            show(context, &document)?;
        }
        if !goes_on {
            eprintln!("nothing is attached any more");
        }
        for (count, what) in [
            (document.lost_requests, "requests whose answers could not be found"),
            (document.lost_pieces, "pieces of messages lost, as the buffer was full (--buffer, --snaplen, --one-in)"),
        ] {
            if count > 0 {
                eprintln!("{count} {what}");
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    fn see(&self, glimpse: &mut Glimpse, c: &Captured, output: Output) -> anyhow::Result<()> {
        let mut wrote = Ok(());
        glimpse.see(c, |request| {
            if self.follow {
                wrote = line(c, request, output);
            }
        });
        Ok(wrote?)
    }
}

fn line(c: &Captured, request: &Request, output: Output) -> std::io::Result<()> {
    let time = Timestamp::from_nanosecond(i128::from(request.began_ns) + clock_offset()).unwrap_or_default();
    let (client, server) = (c.client.workload.name.as_str(), c.server.workload.name.as_str());
    let mut out = std::io::stdout().lock();
    if output == Output::Json {
        writeln!(out, "{}", serde_json::to_string(&Line { time, client, server, request })?)
    } else {
        let Request { protocol, what, status, request_bytes, answer_bytes, .. } = request;
        let (client, server, took) = (printable(client), printable(server), span(request.duration_ns));
        writeln!(
            out,
            "{time:.6} {client} > {server}: {protocol} {what} {status}, {took}, {request_bytes} bytes asked, {answer_bytes} answered"
        )
    }
}

fn document(glimpse: &Glimpse, began: Instant, live: &Live<Names>) -> Document {
    Document {
        seconds: began.elapsed().as_secs_f64(),
        rows: glimpse.table.rows(),
        lost_requests: glimpse.lost(),
        lost_pieces: live.counts().lost,
    }
}

fn show(context: &Context, document: &Document) -> anyhow::Result<()> {
    if !context.print_document(document)? {
        println!("{}", table(document, context.output == Output::Wide));
    }
    std::io::stdout().flush()?;
    Ok(())
}

/// `830 ns`, `12.3 us`, `4.56 ms`, `1.20 s`
pub(super) fn span(ns: u64) -> String {
    let ns = ns as f64;
    match ns {
        _ if ns < 1e3 => format!("{ns} ns"),
        _ if ns < 1e6 => format!("{:.1} us", ns / 1e3),
        _ if ns < 1e9 => format!("{:.2} ms", ns / 1e6),
        _ => format!("{:.2} s", ns / 1e9),
    }
}

fn table(document: &Document, wide: bool) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let mut header =
        vec!["CLIENT", "SERVER", "PROTOCOL", "REQUESTS", "A SECOND", "ERRORS", "P50", "P99", "MAX", "MOST"];
    if wide {
        header.extend(["P90", "BY STATUS", "BYTES ASKED", "BYTES ANSWERED"]);
    }
    table.set_header(header);
    let counts = |of: &std::collections::BTreeMap<&'static str, u64>, most: usize| {
        let mut list: Vec<_> = of.iter().collect();
        list.sort_by(|a, b| b.1.cmp(a.1));
        list.iter().take(most).map(|(name, n)| format!("{name} {n}")).collect::<Vec<_>>().join(", ")
    };
    for row in &document.rows {
        let mut cells = vec![
            printable(&row.client),
            printable(&row.server),
            row.protocol.to_string(),
            row.requests.to_string(),
            format!("{:.0}", row.requests as f64 / document.seconds.max(1e-9)),
            row.errors.to_string(),
            span(row.p50_ns),
            span(row.p99_ns),
            span(row.max_ns),
            counts(&row.by_what, 2),
        ];
        if wide {
            cells.extend([
                span(row.p90_ns),
                counts(&row.by_status, 9),
                row.request_bytes.to_string(),
                row.answer_bytes.to_string(),
            ]);
        }
        table.add_row(cells);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans() {
        let all: Vec<String> = [830, 12_345, 4_560_000, 1_200_000_000].into_iter().map(span).collect();
        assert_eq!(all, ["830 ns", "12.3 us", "4.56 ms", "1.20 s"]);
    }
}

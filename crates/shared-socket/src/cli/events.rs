//! `shared-socket events`

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use datapath::{Journal, JournalKind, REASONS, Start, now_ns};
use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};
use serde::Serialize;

use super::known::Known;
use super::target::RuntimeArgs;
use super::{Context, Output};
use crate::observe::{Event, EventFilter, Missed, clock_offset};

/// How often a follower looks.
const LOOK: Duration = Duration::from_millis(100);

/// What happened to connections and workloads: paired, fast, back on TCP and why, closed with totals, attached.
///
/// The kernel keeps the last events (about 32,000, of all CPUs) for whoever asks; nothing has to run for that. Events that
/// were overwritten before they were read, or that came too fast to be written, are counted on standard error. They are gone
/// when the last workload is detached.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  shared-socket events\n  shared-socket events --follow --kind fell_back,left\n  shared-socket events --since 5m --pod core/smf-0 --port 8080\n  shared-socket events --follow -o json | jq -c 'select(.kind == \"closed\")'"
)]
pub struct Args {
    #[command(flatten)]
    runtimes: RuntimeArgs,
    /// Go on with what comes, until interrupted
    #[arg(short, long)]
    follow: bool,
    /// How far back: a span (5m, 1h30m), a time (2026-11-27T22:00:00Z), or all. Default: all; with --follow, from now on
    #[arg(long, value_name = "SPAN|TIME|all")]
    since: Option<String>,
    /// Only these kinds of events
    #[arg(long = "kind", value_name = "KIND", value_delimiter = ',')]
    kinds: Vec<JournalKind>,
    /// Only where one end is of this pod, container, unit or cgroup; a pattern may be given
    #[arg(long = "workload", visible_alias = "pod", value_name = "NAME", value_delimiter = ',')]
    workloads: Vec<String>,
    /// Only where one end has this port
    #[arg(long = "port", value_name = "N", value_delimiter = ',')]
    ports: Vec<u16>,
    /// Only with this reason (docs/observability.md)
    #[arg(long = "reason", value_name = "REASON", value_delimiter = ',')]
    reasons: Vec<String>,
}

/// Where to begin: CLOCK_MONOTONIC in nanoseconds.
fn begin(since: &str) -> anyhow::Result<u64> {
    if since == "all" {
        return Ok(0);
    }
    if let Ok(time) = since.parse::<Timestamp>() {
        let at = (time.as_nanosecond() - clock_offset()).max(0);
        return Ok(u64::try_from(at).unwrap_or(u64::MAX));
    }
    let span: Span = since.parse().with_context(|| {
        format!("--since {since}: neither a span (5m), nor a time (2026-11-27T22:00:00Z), nor `all`")
    })?;
    let back: SignedDuration = span
        .to_duration(SpanRelativeTo::days_are_24_hours())
        .with_context(|| format!("--since {since}: a span of days or less is needed"))?;
    Ok(now_ns().saturating_sub(u64::try_from(back.as_nanos()).unwrap_or(0)))
}

impl Args {
    fn filter(&self) -> anyhow::Result<EventFilter> {
        if let Some(reason) = self.reasons.iter().find(|r| REASONS.iter().all(|known| known.name != r.as_str())) {
            let all: Vec<&str> = REASONS.iter().map(|r| r.name).collect();
            bail!("--reason {reason}: there is no such reason; there are {}", all.join(", "));
        }
        let names = self.workloads.iter().map(|name| crate::discovery::pattern(name)).collect::<Result<_, _>>()?;
        let since_ns = match &self.since {
            Some(since) => begin(since)?,
            None => 0,
        };
        Ok(EventFilter {
            kinds: self.kinds.clone(),
            names,
            ports: self.ports.clone(),
            reasons: self.reasons.clone(),
            since_ns,
        })
    }

    pub(super) fn run(self, context: &Context) -> anyhow::Result<ExitCode> {
        if context.output == Output::Yaml {
            bail!("events prints a line an event: -o json or -o table");
        }
        let filter = self.filter()?;
        let start = if self.follow && self.since.is_none() { Start::Now } else { Start::Oldest };
        let mut journal = Journal::open(&context.pin_dir, start)?;
        let mut known = Known::new(self.runtimes.clone())?;
        loop {
            let batch = journal.read(!self.follow)?;
            known.learn(batch.entries.iter().flat_map(|e| [e.cgroup, e.workload, e.peer_cgroup, e.peer_workload]));
            let offset = clock_offset();
            let events = batch.entries.iter().map(|e| Event::new(e, known.names(), offset));
            print(context.output, events.filter(|e| filter.wants(e)), Missed::of(&batch))?;
            if !self.follow {
                return Ok(ExitCode::SUCCESS);
            }
            std::thread::sleep(LOOK);
        }
    }
}

fn print(output: Output, events: impl Iterator<Item = Event>, missed: Option<Missed>) -> anyhow::Result<()> {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for event in events {
        if output == Output::Json {
            writeln!(out, "{}", serde_json::to_string(&event)?)?;
        } else {
            writeln!(out, "{event}")?;
        }
    }
    if let Some(missed) = missed {
        if output == Output::Json {
            #[derive(Serialize)]
            struct Line {
                missed: Missed,
            }
            writeln!(out, "{}", serde_json::to_string(&Line { missed })?)?;
        } else {
            out.flush()?;
            eprintln!("{missed}");
        }
    }
    out.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_span_a_time_or_all() {
        assert_eq!(begin("all").unwrap(), 0);
        let ago = |since: &str| now_ns().saturating_sub(begin(since).unwrap());
        assert!((900_000_000..3_000_000_000).contains(&ago("1s")));
        let time = Timestamp::now() - SignedDuration::from_secs(1);
        assert!((900_000_000..3_000_000_000).contains(&ago(&time.to_string())));
        for wrong in ["", "yesterday", "5x", "2026-13-01T00:00:00Z"] {
            assert!(begin(wrong).unwrap_err().to_string().contains("--since"), "{wrong}");
        }
    }
}

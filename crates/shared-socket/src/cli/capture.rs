//! `shared-socket capture`

use std::fs::OpenOptions;
use std::io::{BufWriter, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytesize::ByteSize;
use datapath::{Role, TapCounts, TapOptions, now_ns};
use jiff::Timestamp;
use serde::Serialize;

use super::connections::{filter, printable};
use super::known::Names;
use super::target::RuntimeArgs;
use super::{Context, Output};
use crate::bench::interrupt::Interrupt;
use crate::observe::capture::{Captured, Live, Party, What, Writer};
use crate::observe::clock_offset;
use crate::observe::filter::Filter;

/// Messages are waited for so long before it is looked for a signal.
const PATIENCE: Duration = Duration::from_millis(100);

/// What filters of a capture may say.
pub(super) const WORDS: &str = "\
Filter expressions, joined by `and`, `or`, `not` and parentheses (quote them for the shell):
  port N | port N-M | host ADDRESS | host NET/BITS      either end; after `src` or `dst`: one end
  pod, ns, container, name GLOB                         whose it is: `pod redis-*`, `dst ns core`
`src` is the end that connected, `dst` the one that accepted.";

const EXAMPLES: &str = "\
Examples:
  shared-socket capture pod redis-0
  shared-socket capture -w redis.pcapng dst port 6379
  shared-socket capture -w - ns core | wireshark -k -i -
  shared-socket capture --snaplen 64 --from client -c 100 -o json";

/// Copy messages of paired connections, as no packet capture can see them: to a pcapng file, to Wireshark, or as lines.
///
/// Messages of both paths are seen, from the moment at which the connection is paired until it leaves. A file has packets as TCP
/// might have sent them: the addresses, ports and sequence numbers of the connection, an interface for each workload, and comments
/// with names and paths. What could not be kept is counted in the file and at the end. While nobody captures, nothing of
/// this is loaded, and it costs nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("{WORDS}\n\n{EXAMPLES}"))]
pub struct Args {
    /// Which connections, in words: dst port 6379 and pod redis-*
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,
    /// Write pcapng to this file, which only root may read; - is standard output
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Bytes of each message that are kept; 0: all
    #[arg(short, long, value_name = "BYTES", default_value_t = 0)]
    snaplen: u32,
    /// Bytes that are kept of what each end sends on a connection, from its start
    #[arg(long, value_name = "BYTES")]
    first: Option<ByteSize>,
    /// Only what this end sends
    #[arg(long, value_name = "END", value_enum)]
    from: Option<Side>,
    /// End after so many messages
    #[arg(short, long, value_name = "N")]
    count: Option<u64>,
    /// End after so long
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<f64>,
    #[command(flatten)]
    tap: TapArgs,
}

/// An end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Side {
    /// That connected
    Client,
    /// That accepted
    Server,
}

/// Where it goes.
enum Sink {
    File(Writer<BufWriter<Box<dyn Write>>>),
    Lines(BufWriter<Box<dyn Write>>),
    Json(BufWriter<Box<dyn Write>>),
}

#[derive(Serialize)]
struct Line<'a> {
    time: Timestamp,
    what: &'static str,
    from: Role,
    client: &'a Party,
    server: &'a Party,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<std::net::SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    captured_bytes: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

/// The time of day at which it was.
fn time(c: &Captured) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(c.time_ns) + clock_offset()).unwrap_or_default()
}

fn path(reason: &'static str) -> &'static str {
    if reason == "fast" { "fast" } else { "tcp" }
}

impl<'a> Line<'a> {
    fn new(c: &'a Captured) -> Self {
        let (client, server, service, from) = (&c.client, &c.server, c.service, c.from);
        let plain = Self {
            time: time(c),
            what: "closed",
            from,
            client,
            server,
            service,
            offset: None,
            bytes: None,
            captured_bytes: None,
            path: None,
            reason: None,
        };
        match &c.what {
            What::Data { bytes, size, reason, .. } => Self {
                what: "message",
                offset: Some(c.offsets[0]),
                bytes: Some(*size),
                captured_bytes: Some(bytes.len()),
                path: reason.map(path),
                reason: *reason,
                ..plain
            },
            What::Left(reason) => Self { what: "left", reason: Some(reason), ..plain },
            What::Closed => plain,
        }
    }
}

impl Sink {
    fn open(args: &Args, output: Output) -> anyhow::Result<Self> {
        let out: Box<dyn Write> = match args.write.as_deref() {
            Some(file) if file.as_os_str() != "-" => {
                let mut options = OpenOptions::new();
                options.write(true).create(true).truncate(true).mode(0o600);
                Box::new(options.open(file).with_context(|| format!("--write: creating {}", file.display()))?)
            }
            Some(_) if std::io::stdout().is_terminal() => {
                bail!("--write -: standard output is a terminal; pipe it: capture -w - | wireshark -k -i -")
            }
            _ => Box::new(std::io::stdout()),
        };
        let out = BufWriter::new(out);
        if args.write.is_some() {
            let offset = i64::try_from(clock_offset()).unwrap_or_default();
            let writer = Writer::new(out, offset, &args.filter.join(" "), args.kept());
            return Ok(Self::File(writer.context("writing the head of the file")?));
        }
        Ok(if output == Output::Json { Self::Json(out) } else { Self::Lines(out) })
    }

    fn take(&mut self, c: &Captured) -> std::io::Result<()> {
        match self {
            Self::File(writer) => writer.write(c),
            Self::Json(out) => writeln!(out, "{}", serde_json::to_string(&Line::new(c))?),
            Self::Lines(out) => {
                let (from, to) = c.ends();
                let end = |p: &Party| format!("{} {}", printable(&p.workload.name), p.address);
                write!(out, "{:.6} {} > {}: ", time(c), end(from), end(to))?;
                match &c.what {
                    What::Data { size, reason, cut, .. } => {
                        let way = match reason {
                            Some("fast") => "fast".to_owned(),
                            Some(reason) => format!("tcp ({reason})"),
                            None => "path not known".to_owned(),
                        };
                        writeln!(out, "{size} bytes, {way}{}", if *cut { ", some of it lost" } else { "" })
                    }
                    What::Left(reason) => writeln!(out, "left: plain TCP from here on ({reason})"),
                    What::Closed => writeln!(out, "closed"),
                }
            }
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Self::File(writer) => writer.flush(),
            Self::Lines(out) | Self::Json(out) => out.flush(),
        }
    }

    fn finish(self, counts: &TapCounts) -> std::io::Result<()> {
        match self {
            Self::File(writer) => writer.finish(now_ns(), counts.lost),
            Self::Lines(mut out) | Self::Json(mut out) => out.flush(),
        }
    }
}

/// The filter of a capture.
pub(super) fn choice(words: &[String]) -> anyhow::Result<Filter> {
    let filter = filter(words)?;
    match filter.changing_word() {
        Some(word) => bail!(
            "the filter asks for `{word}`, which changes while a connection lives; what is captured is chosen by addresses, \
             ports and names (see --help)"
        ),
        None => Ok(filter),
    }
}

/// What all have who look through a tap.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct TapArgs {
    /// What may wait between the kernel and this command
    #[arg(long, value_name = "SIZE", default_value = "16MiB")]
    buffer: ByteSize,
    /// No names: runtimes are not asked whose the connections are
    #[arg(short, long)]
    numeric: bool,
    #[command(flatten)]
    runtimes: RuntimeArgs,
}

impl TapArgs {
    pub(super) fn buffer_bytes(&self) -> anyhow::Result<u32> {
        let fits = u32::try_from(self.buffer.as_u64()).ok().filter(|b| (1 << 16..=1 << 30).contains(b));
        fits.with_context(|| format!("--buffer {}: 64 KiB to 1 GiB", self.buffer))
    }

    pub(super) fn names(&self) -> anyhow::Result<Names> {
        Names::new(self.numeric, &self.runtimes)
    }
}

impl Args {
    fn kept(&self) -> u32 {
        if self.snaplen == 0 { u32::MAX } else { self.snaplen }
    }

    pub(super) fn run(self, context: &Context) -> anyhow::Result<ExitCode> {
        if matches!(context.output, Output::Yaml) {
            bail!("capture prints a line a message: -o json or -o table");
        }
        let filter = choice(&self.filter)?;
        let options = TapOptions {
            snaplen: self.kept(),
            first_bytes: self.first.map_or(u64::MAX, |b| b.as_u64()),
            from: self.from.map(|side| if side == Side::Client { Role::Client } else { Role::Server }),
            buffer_bytes: self.tap.buffer_bytes()?,
            ..TapOptions::default()
        };
        let until = self.seconds.map(Duration::try_from_secs_f64).transpose();
        let until = until.map_err(|e| anyhow::anyhow!("--seconds: {e}"))?.map(|span| Instant::now() + span);
        let interrupt = Interrupt::install()?;
        let names = self.tap.names()?;
        let Some(mut live) = Live::open(&context.pin_dir, options, filter, 1, names)? else {
            bail!("nothing is attached: there are no connections to capture (shared-socket attach)");
        };
        let mut sink = Sink::open(&self, context.output)?;
        sink.flush()?; // who reads from a pipe sees that it has begun
        let mut messages = 0u64;
        let limit = self.count.unwrap_or(u64::MAX);
        let mut goes_on = true;
        let done = (|| {
            while goes_on && messages < limit && interrupt.check().is_ok() && until.is_none_or(|at| Instant::now() < at)
            {
                let patience = until.map_or(PATIENCE, |at| PATIENCE.min(at.saturating_duration_since(Instant::now())));
                goes_on = live.read(patience, |c| take(&mut sink, &c, &mut messages, limit))?;
                sink.flush()?;
            }
            live.rest(|c| take(&mut sink, &c, &mut messages, limit))?;
            anyhow::Ok(())
        })();
        let counts = live.counts();
        drop(live); // the tap goes before anything is said
        done.and_then(|()| Ok(sink.finish(&counts)?)).map_err(|e| match &self.write {
            Some(file) if file.as_os_str() != "-" => e.context(format!("writing {}", file.display())),
            _ => e,
        })?;
        if !goes_on {
            eprintln!("nothing is attached any more");
        }
        eprintln!("{}", summary(messages, &counts));
        Ok(ExitCode::SUCCESS)
    }
}

fn take(sink: &mut Sink, c: &Captured, messages: &mut u64, limit: u64) -> anyhow::Result<()> {
    if *messages >= limit {
        return Ok(());
    }
    *messages += u64::from(matches!(c.what, What::Data { .. }));
    Ok(sink.take(c)?)
}

fn summary(messages: u64, counts: &TapCounts) -> String {
    let mut text = format!("{messages} message{} captured", if messages == 1 { "" } else { "s" });
    let parts = [
        (counts.lost, "pieces of messages lost, as the buffer was full (--buffer, --snaplen)"),
        (counts.hidden, "messages whose bytes could not be read"),
        (counts.withheld, "messages of workloads that may not be captured"),
    ];
    for (count, what) in parts.into_iter().filter(|(count, _)| *count > 0) {
        text += &format!("; {count} {what}");
    }
    text
}

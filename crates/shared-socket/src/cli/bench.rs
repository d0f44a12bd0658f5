//! `shared-socket bench`, and the hidden `bench-peer` that it starts in its pods.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Subcommand;

use crate::bench::external;
use crate::bench::interrupt::{Interrupt, Interrupted};
use crate::bench::matrix::{Case, Choice, Path, Placement, Size, parse_size};
use crate::bench::peer::{Message, Place, Work, drive, say, serve, settle};
use crate::bench::plot::Picture;
use crate::bench::{Plan, run};
use crate::cli::{Context, Output};

/// Measure TCP, the fast path, Unix sockets and the textbook sockmap program against each other
///
/// Makes two pods of network namespaces with a router and a service address between them, cgroups of its own and a
/// datapath of its own, measures, and removes all of it again, on Ctrl-C too. The host's network is not touched, nor is
/// what is attached. The whole matrix takes about twelve minutes: narrow it with the options.
///
/// Needs root. Exit status: 0 when all was measured, 1 when a measurement failed or a row of the fast path had no message
/// on it, 130 when interrupted.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    shared-socket bench --case pingpong,oneway --path tcp,fast\n  \
    shared-socket bench --case stream --size 64k,1M --placement two-core --rounds 9\n  \
    shared-socket bench -o json --plot bench.svg > bench.json")]
pub struct Args {
    /// Only these cases
    #[arg(long = "case", value_name = "CASE", value_enum, value_delimiter = ',')]
    cases: Vec<Case>,

    /// Only these sizes: bytes a message (64, 16k, 1M); for redis the number of connections (1, 50)
    #[arg(long = "size", value_name = "SIZE", value_delimiter = ',', value_parser = parse_size)]
    sizes: Vec<Size>,

    /// Only these placements
    #[arg(long = "placement", value_name = "PLACEMENT", value_enum, value_delimiter = ',')]
    placements: Vec<Placement>,

    /// Only these paths; ratios need tcp among them
    #[arg(long = "path", value_name = "PATH", value_enum, value_delimiter = ',')]
    paths: Vec<Path>,

    /// How many times everything is measured; medians are over rounds
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,

    /// How long each measurement takes
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = parse_seconds)]
    seconds: Duration,

    /// Draw the gains over TCP to a .svg or .png file
    #[arg(long, value_name = "FILE")]
    plot: Option<Picture>,
}

impl Args {
    /// Measures and prints.
    pub fn run(self, ctx: &Context) -> Result<ExitCode> {
        let choice =
            Choice { cases: self.cases.clone(), sizes: self.sizes, placements: self.placements, paths: self.paths };
        let mut cells = choice.cells()?;
        for case in [Case::Sockperf, Case::Redis] {
            let Some((program, package)) = external::missing(case) else { continue };
            if self.cases.contains(&case) {
                anyhow::bail!("--case {case} runs {program}, which is not installed; install the package {package}");
            }
            if cells.iter().any(|cell| cell.case == case) {
                eprintln!("bench: leaving {case} out: {program} is not installed (package {package})");
                cells.retain(|cell| cell.case != case);
            }
        }
        if let Some(picture) = &self.plot {
            picture.check()?;
        }
        let interrupt = Interrupt::install()?;
        let results = match run(&Plan { cells, rounds: self.rounds, time: self.seconds }, &interrupt) {
            Err(error) if error.is::<Interrupted>() => {
                eprintln!("bench: {error}");
                return Ok(ExitCode::from(130));
            }
            done => done?,
        };
        let text = match ctx.output {
            Output::Table | Output::Wide | Output::Svg | Output::Dot => results.table(),
            Output::Json => serde_json::to_string_pretty(&results)? + "\n",
            Output::Yaml => yaml_serde::to_string(&results)?,
        };
        std::io::stdout().write_all(text.as_bytes()).context("cannot write the results to standard output")?;
        if let Some(picture) = &self.plot {
            picture.draw(&results)?;
        }
        Ok(ExitCode::from(u8::from(results.is_broken())))
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    match (0.01..=3600.0).contains(&seconds) {
        true => Ok(Duration::from_secs_f64(seconds)),
        false => Err("between 0.01 and 3600 seconds".into()),
    }
}

fn parse_warm_up(text: &str) -> Result<Duration, String> {
    text.parse()
        .map_err(|_| "not a number".to_owned())
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string()))
}

/// One end of a measurement of `bench`; not for people
#[derive(Clone, Debug, clap::Args)]
pub struct PeerArgs {
    /// The network namespace to enter
    #[arg(long)]
    namespace: PathBuf,
    /// The cgroup to move into
    #[arg(long)]
    cgroup: Option<PathBuf>,
    /// The CPU to stay on
    #[arg(long)]
    cpu: Option<usize>,
    #[command(subcommand)]
    role: Role,
}

#[derive(Clone, Debug, Subcommand)]
enum Role {
    /// Listen and answer
    Serve {
        #[command(flatten)]
        part: Part,
    },
    /// Connect and measure
    Drive {
        #[command(flatten)]
        part: Part,
        /// Seconds that do not count
        #[arg(long, value_parser = parse_warm_up)]
        warm_up: Duration,
        /// For how long
        #[arg(long, value_parser = parse_seconds)]
        seconds: Duration,
    },
    /// Become another program
    Exec {
        /// It and its arguments
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

#[derive(Clone, Debug, clap::Args)]
struct Part {
    /// What to do
    #[arg(long, value_enum)]
    work: Work,
    /// Where to listen or connect to
    #[arg(long)]
    place: Place,
    /// Bytes a message
    #[arg(long)]
    size: usize,
}

impl PeerArgs {
    /// Goes to its pod and does its part. To be called before this process has a second thread.
    pub fn run(self) -> Result<ExitCode> {
        match self.work() {
            Ok(message) => say(&message).map(|()| ExitCode::SUCCESS),
            Err(error) => say(&Message::Failed(format!("{error:#}"))).map(|()| ExitCode::FAILURE),
        }
    }

    fn work(self) -> Result<Message> {
        settle(&self.namespace, self.cgroup.as_deref(), self.cpu)?;
        match self.role {
            Role::Serve { part: Part { work, place, size } } => {
                serve(work, &place, size, |place| say(&Message::Listening(place.to_string())))
            }
            Role::Drive { part: Part { work, place, size }, warm_up, seconds } => {
                drive(work, &place, size, warm_up, seconds)
            }
            Role::Exec { command } => {
                let error = Command::new(&command[0]).args(&command[1..]).exec();
                Err(error).with_context(|| format!("cannot run {}", command[0].display()))
            }
        }
        .map(Message::Report)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Bench {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn options_repeat_and_take_lists() {
        let bench = Bench::try_parse_from([
            "bench",
            "--case",
            "pingpong,crr",
            "--case",
            "nat",
            "--size",
            "64,1k",
            "--seconds",
            "0.25",
        ])
        .unwrap();
        assert_eq!(bench.args.cases, [Case::Pingpong, Case::Crr, Case::Nat]);
        assert_eq!(bench.args.sizes, [64, 1024]);
        assert_eq!((bench.args.seconds, bench.args.rounds), (Duration::from_millis(250), 5));
    }

    #[test]
    fn nonsense_is_refused() {
        for line in
            ["--rounds 0", "--seconds nan", "--seconds 0", "--seconds -1", "--case nothing", "--size x", "--plot a.gif"]
        {
            let words = std::iter::once("bench").chain(line.split(' '));
            assert!(Bench::try_parse_from(words).is_err(), "{line}");
        }
    }
}

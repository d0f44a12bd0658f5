//! The command line: a file a verb.

mod agent;
mod attach;
pub mod bench;
mod capture;
mod check;
mod connections;
mod debug;
mod detach;
mod documents;
mod events;
mod guard;
mod keyboard;
mod kinds;
mod known;
mod map;
mod requests;
mod status;
mod target;
mod top;
mod upgrade;
mod workloads;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

/// Not possible on this machine: privilege, kernel feature, cgroup v2, bpffs, version of the pins.
pub const EXIT_UNSUPPORTED: u8 = 3;
/// Some pairs could not be drained in time; they stay accelerated.
pub const EXIT_NOT_DRAINED: u8 = 4;
/// `check --strict`: this kernel can be used, but does worse than the best.
pub const EXIT_DEGRADED: u8 = 5;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed (a target that is not there, a system call that failed)
  2  the command line was not understood
  3  not possible on this machine (no root, no BTF, no cgroup v2, no bpffs, pins of another version)
  4  some pairs could not be drained in time; they stay accelerated until they can
  5  check --strict: this kernel can be used, but something is degraded";

/// Makes TCP between containers on one node as fast as the kernel allows, without changing the applications.
///
/// Connections between two sockets of attached workloads (cgroups) skip the network stack: each message goes straight
/// into the other end's receive queue. Connections to anywhere else are left alone. What is attached is pinned in a
/// bpffs and stays when this command ends; `detach` takes it away without losing a byte.
#[derive(Debug, Parser)]
#[command(version, after_help = EXIT_CODES)]
pub struct Cli {
    /// Where programs, maps and links are pinned; a directory on a bpffs
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = "/sys/fs/bpf/shared-socket",
        env = "SHARED_SOCKET_PIN_DIR"
    )]
    pin_dir: PathBuf,
    /// Where hazards are remembered across detach and reboot
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = "/var/lib/shared-socket",
        env = "SHARED_SOCKET_STATE_DIR"
    )]
    state_dir: PathBuf,
    /// Form of the output
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// More messages on standard error; twice for libbpf's
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Form of the log on standard error (the agent's is as its file says, unless this is given)
    #[arg(long, global = true, value_name = "FORM", value_enum)]
    log_format: Option<crate::agent::Format>,
    #[command(subcommand)]
    command: Command,
}

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Table,
    /// One JSON document
    Json,
    /// One YAML document
    Yaml,
    /// For people, all columns
    Wide,
    /// A picture (`map`)
    Svg,
    /// A graph for graphviz (`map`)
    Dot,
}

/// What every verb gets.
#[derive(Debug, Clone)]
pub struct Context {
    /// Form of the output.
    pub output: Output,
    /// Where the datapath is pinned.
    pub pin_dir: PathBuf,
    /// Where hazards are remembered.
    pub state_dir: PathBuf,
    /// Form of the log, where one was asked for.
    pub log_format: Option<crate::agent::Format>,
}

#[derive(Debug, Subcommand)]
// What each does is said by its Args: a word here would take the place of all that is said there.
enum Command {
    Attach(attach::Args),
    Detach(detach::Args),
    Upgrade(upgrade::Args),
    Workloads(workloads::Args),
    Agent(agent::Args),
    Status(status::Args),
    Connections(connections::Args),
    Top(top::Args),
    Map(map::Args),
    Kinds(kinds::Args),
    Events(events::Args),
    Capture(capture::Args),
    Requests(requests::Args),
    Guard(guard::Args),
    Debug(debug::Args),
    Check(check::Args),
    #[command(hide = true)]
    CheckProbe(check::ProbeArgs),
    Bench(bench::Args),
    #[command(hide = true)]
    BenchPeer(bench::PeerArgs),
    /// Print the completion script of a shell
    Completions(documents::CompletionsArgs),
    /// Write the man pages
    #[command(hide = true)]
    Man(documents::ManArgs),
}

impl Context {
    /// Prints a document as JSON or YAML; false when a table is wanted.
    pub fn print_document(&self, value: &impl serde::Serialize) -> anyhow::Result<bool> {
        use std::io::Write;
        let text = match self.output {
            Output::Table | Output::Wide => return Ok(false),
            Output::Svg | Output::Dot => {
                anyhow::bail!("pictures are made by `shared-socket map`; here -o can be table, wide, json or yaml")
            }
            Output::Json => serde_json::to_string_pretty(value)? + "\n",
            Output::Yaml => yaml_serde::to_string(value)?,
        };
        std::io::stdout().write_all(text.as_bytes())?;
        Ok(true)
    }
}

/// Parses the command line and runs it.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let level = match cli.verbose {
        0 => "warn",
        1 => "info,libbpf=warn",
        _ => "debug",
    };
    if !matches!(cli.command, Command::Agent(_)) {
        // the agent's log is as its file says
        let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| level.into());
        let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter);
        match cli.log_format {
            Some(crate::agent::Format::Json) => log.json().flatten_event(true).init(),
            _ => log.without_time().init(),
        }
    }
    let context =
        Context { output: cli.output, pin_dir: cli.pin_dir, state_dir: cli.state_dir, log_format: cli.log_format };
    let result = match cli.command {
        Command::Attach(args) => args.run(&context),
        Command::Detach(args) => args.run(&context),
        Command::Upgrade(args) => args.run(&context),
        Command::Workloads(args) => args.run(&context),
        Command::Agent(args) => args.run(&context),
        Command::Status(args) => args.run(&context),
        Command::Connections(args) => args.run(&context),
        Command::Top(args) => args.run(&context),
        Command::Map(args) => args.run(&context),
        Command::Debug(args) => args.run(&context),
        Command::Kinds(args) => args.run(&context),
        Command::Events(args) => args.run(&context),
        Command::Capture(args) => args.run(&context),
        Command::Requests(args) => args.run(&context),
        Command::Guard(args) => args.run(&context),
        Command::Check(args) => args.run(&context),
        Command::CheckProbe(args) => args.run(),
        Command::Bench(args) => args.run(&context),
        Command::BenchPeer(args) => args.run(),
        Command::Completions(args) => args.run(),
        Command::Man(args) => args.run(),
    };
    result.unwrap_or_else(|error| {
        // a closed pipe (`| head`) is no failure of ours
        if error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe) {
            return ExitCode::SUCCESS;
        }
        eprintln!("error: {error:#}");
        let unsupported = error.chain().any(|e| e.downcast_ref().is_some_and(datapath::Error::is_unsupported));
        ExitCode::from(if unsupported { EXIT_UNSUPPORTED } else { 1 })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_command_line_panics(args in proptest::collection::vec(
            prop_oneof![
                "\\PC{0,20}",
                "(attach|detach|status|connections|bench|--all|--cgroup|--pid|--pin-dir|-o|json|--timeout|--max-pairs)",
                "--(budget-bytes|total-budget-bytes|budget-messages|min-messages|size|seconds)=[-0-9a-zA-Z.]{0,22}",
            ], 0..7)
        ) {
            let _ = Cli::try_parse_from(std::iter::once("shared-socket".to_owned()).chain(args));
        }

        #[test]
        fn budgets_are_taken_in_their_range_only(value in any::<u64>(), peer in any::<u32>()) {
            let total = format!("--total-budget-bytes={value}");
            let parsed = Cli::try_parse_from(["shared-socket", "attach", "--cgroup", "x", &total]);
            prop_assert_eq!(parsed.is_ok(), (1u64 << 20..=1 << 41).contains(&value));
            let bytes = format!("--budget-bytes={peer}");
            let parsed = Cli::try_parse_from(["shared-socket", "attach", "--cgroup", "x", &bytes]);
            prop_assert_eq!(parsed.is_ok(), (4096u32..=1 << 30).contains(&peer));
        }
    }
}

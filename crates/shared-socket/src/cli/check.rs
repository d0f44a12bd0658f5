//! `shared-socket check`, and the hidden `check-probe` that it starts.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use super::{Context, EXIT_DEGRADED, EXIT_UNSUPPORTED};
use crate::bench::interrupt::{Interrupt, Interrupted};
use crate::check::{self, State};

/// Find out what this kernel can do, and what it does to applications.
///
/// Tries every feature that is needed, and looks for every known hazard of the kernel's sockmap with real connections in a
/// network namespace and a cgroup of its own, which are gone afterwards. Nothing that is attached is touched. What is found
/// configures `attach` and is kept in /run/shared-socket until the kernel changes.
///
/// Needs root. Exit status: 0 when this kernel can be used, 3 when it cannot; with --strict 5 when it can be used but
/// does worse than the best kernels; 130 when interrupted.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  shared-socket check\n  shared-socket check -o json | jq .state\n  \
    shared-socket check --strict || echo 'look closer'")]
pub struct Args {
    /// Exit with 5 when something is degraded that is not so on every kernel
    #[arg(long)]
    strict: bool,
}

/// What `check` starts.
#[derive(Debug, clap::Args)]
pub struct ProbeArgs {
    /// All probes, not only those that configure the datapath
    #[arg(long)]
    all: bool,
    /// The cgroup to move into
    #[arg(long)]
    cgroup: Option<PathBuf>,
    /// The process that this one must not outlive
    #[arg(long)]
    parent: u32,
}

impl Args {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<ExitCode> {
        let interrupt = Interrupt::install()?;
        let report = match check::run(&interrupt) {
            Err(e) if e.downcast_ref::<Interrupted>().is_some() => {
                eprintln!("{e}");
                return Ok(ExitCode::from(130));
            }
            other => other?,
        };
        if !context.print_document(&report)? {
            let width = comfy_table::Table::new().width().unwrap_or(160).max(100);
            std::io::stdout().write_all(report.text(width).as_bytes())?;
        }
        Ok(match report.state {
            State::NotPossible => ExitCode::from(EXIT_UNSUPPORTED),
            State::Degraded if self.strict => ExitCode::from(EXIT_DEGRADED),
            _ => ExitCode::SUCCESS,
        })
    }
}

impl ProbeArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        check::child::run(self.all, self.cgroup, self.parent).map(|()| ExitCode::SUCCESS)
    }
}

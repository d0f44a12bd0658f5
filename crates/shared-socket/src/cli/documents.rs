//! `shared-socket completions` and `shared-socket man`: from the definition of the command line itself.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;

use super::Cli;

/// Print the completion script of a shell.
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// bash, zsh, fish, elvish or powershell
    shell: Shell,
}

/// Write the man pages.
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// The folder to write to
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl CompletionsArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        clap_complete::generate(self.shell, &mut Cli::command(), "shared-socket", &mut std::io::stdout());
        Ok(ExitCode::SUCCESS)
    }
}

impl ManArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        std::fs::create_dir_all(&self.out).with_context(|| format!("creating {}", self.out.display()))?;
        clap_mangen::generate_to(Cli::command(), &self.out)
            .with_context(|| format!("writing man pages to {}", self.out.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}

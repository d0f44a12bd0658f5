//! `shared-socket top`

use std::process::ExitCode;

use super::Context;

/// todo
#[derive(Debug, clap::Args)]
pub struct Args {}

impl Args {
    pub(super) fn run(self, _context: &Context) -> anyhow::Result<ExitCode> {
        Ok(ExitCode::SUCCESS)
    }
}

//! `shared-socket agent`

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt, reload};

use super::Context;
use crate::agent::{Config, Format, Options, SetLevel};

/// The node's daemon: attaches what its file names, as pods and containers come and go.
///
/// What it attaches stays accelerated when it ends, is killed, or is upgraded; --drain-on-exit (or the file) has it
/// detached. The file is read again when it changes: one that cannot be used is told, and the one before stays in force.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  shared-socket agent --config /etc/shared-socket/agent.yaml\n  \
                        shared-socket agent --check")]
pub struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = "/etc/shared-socket/agent.yaml")]
    config: PathBuf,
    /// Detach what the agent attached when it ends, without losing a byte
    #[arg(long)]
    drain_on_exit: bool,
    /// Read the configuration file, say whether it can be used, and end
    #[arg(long)]
    check: bool,
}

/// The log, and the handle by which its level is changed.
fn log(config: &Config, format: Option<Format>) -> SetLevel {
    let from_environment = EnvFilter::try_from_default_env().ok();
    let fixed = from_environment.is_some();
    let filter = from_environment.unwrap_or_else(|| EnvFilter::new(config.log.level.filter()));
    let (filter, handle) = reload::Layer::new(filter);
    let layer = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let registry = tracing_subscriber::registry().with(filter);
    match format.unwrap_or(config.log.format) {
        Format::Text => registry.with(layer.with_target(false)).init(),
        Format::Json => registry.with(layer.json().flatten_event(true)).init(),
    }
    Box::new(move |level| {
        if !fixed {
            let _ = handle.reload(EnvFilter::new(level.filter()));
        }
    })
}

impl Args {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<ExitCode> {
        let config = Config::read(&self.config)?;
        if self.check {
            println!("{} can be used", self.config.display());
            return Ok(ExitCode::SUCCESS);
        }
        let set_level = log(&config, context.log_format);
        let options = Options {
            config: self.config,
            pin_dir: context.pin_dir.clone(),
            state_dir: context.state_dir.clone(),
            drain_on_exit: self.drain_on_exit,
        };
        crate::agent::run(options, config, set_level)?;
        Ok(ExitCode::SUCCESS)
    }
}

//! `shared-socket guard`

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use datapath::{Event, Guard, What};

use super::{Context, Output};

/// Watch over what is attached: print its events, and reset connections that are stuck.
///
/// A connection is stuck when its application has turned to splice(2) or TCP_ZEROCOPY_RECEIVE while bytes of the fast path
/// are unread, which those calls cannot see. It has --grace to read them by recv; then the connection is reset rather
/// than left to hang. Needs Linux 6.5 to reset, and a kernel with trampolines to notice (`shared-socket check` says).
/// An end whose peer has reset the connection, which the kernel did not tell it, is stuck as well.
/// Runs until it is ended, whether anything is attached or not. Nothing depends on it: acceleration goes on without.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  shared-socket guard\n  shared-socket guard --grace 5 -o json")]
pub struct Args {
    /// How long a connection may be stuck; a second at least
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    grace: f64,
    /// End when nothing is attached (any more)
    #[arg(long)]
    while_attached: bool,
}

impl Args {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<ExitCode> {
        let grace = Duration::try_from_secs_f64(self.grace)?.max(Duration::from_secs(1));
        if context.output == Output::Yaml {
            bail!("guard prints a line an event: -o json or -o table");
        }
        let mut guard = Guard::new(context.pin_dir.clone(), grace);
        let mut failed = Ok(());
        loop {
            let attached = guard.serve(Duration::from_secs(2), |event| {
                if failed.is_ok() {
                    failed = print(context.output, event);
                }
            })?;
            std::mem::replace(&mut failed, Ok(()))?;
            if !attached {
                if self.while_attached {
                    return Ok(ExitCode::SUCCESS);
                }
                std::thread::sleep(Duration::from_secs(2));
            }
        }
    }
}

fn print(output: Output, event: &Event) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if output == Output::Json {
        writeln!(out, "{}", serde_json::to_string(event)?)?;
    } else {
        let end = |e: Option<datapath::Endpoint>| {
            e.map_or_else(|| "?".to_owned(), |e| std::net::SocketAddr::new(e.addr, e.port).to_string())
        };
        let what = match event.what {
            What::Stuck => "stuck: bytes of the fast path are unread, and it reads in a way that does not see them",
            What::Refused => "refused an option (EBUSY): it would have hidden bytes of the fast path that are unread",
            What::Reset => "reset: it was still stuck",
            What::Untold => "stuck: its peer has reset the connection, and the kernel has dropped that RST",
            What::Unknown => "an event of a later version",
        };
        writeln!(
            out,
            "{:.6} {} -> {} (socket {}, cgroup {}): {what} ({})",
            event.time_ns as f64 / 1e9,
            end(event.local),
            end(event.remote),
            event.cookie,
            event.cgroup_id,
            event.hazards.join(" ")
        )?;
    }
    out.flush()?;
    Ok(())
}

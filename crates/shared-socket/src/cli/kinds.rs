//! `shared-socket kinds`

use std::path::PathBuf;
use std::process::ExitCode;

use comfy_table::{Table, presets};
use datapath::{Datapath, Kind};
use serde::Serialize;

use super::Context;
use super::target::TargetArgs;
use crate::memory::Memory;

/// What was learned: one row a kind of connection, and why it is or is not accelerated.
///
/// A kind is a listener (all sockets it accepts), or a cgroup and a destination (all connections to it). With
/// --eligibility safe a kind is accelerated when several of its connections, on TCP, showed only what is safe. One that
/// shows a hazard stays on TCP, also after a detach or a reboot.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  shared-socket kinds -o json\n  shared-socket kinds forget --cgroup system.slice/nginx.service"
)]
pub struct Args {
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// List them
    List,
    /// Forget what was learned, in the kernel and in the state directory: those kinds are learned anew
    Forget(TargetArgs),
}

#[derive(Serialize)]
struct Forgotten {
    kinds: usize,
    remembered: usize,
}

impl Args {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<ExitCode> {
        match self.what {
            None | Some(What::List) => list(context),
            Some(What::Forget(targets)) => forget(context, &targets),
        }
    }
}

/// All of what is pinned; none when nothing is.
pub(super) fn read(context: &Context) -> datapath::Result<Vec<Kind>> {
    Ok(Datapath::reading(&context.pin_dir, |d| d.kinds())?.unwrap_or_default())
}

fn list(context: &Context) -> anyhow::Result<ExitCode> {
    let kinds = read(context)?;
    if !context.print_document(&kinds)? {
        println!("{}", table(&kinds));
    }
    Ok(ExitCode::SUCCESS)
}

fn table(kinds: &[Kind]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["CGROUP", "KIND", "GOOD", "MESSAGES", "ELIGIBLE", "HAZARDS"]);
    for kind in kinds {
        table.add_row([
            kind.cgroup.as_ref().map_or_else(|| format!("(gone, id {})", kind.cgroup_id), |p| p.display().to_string()),
            match kind.key.addr {
                Some(addr) => format!("to {}", std::net::SocketAddr::new(addr, kind.key.port)),
                None => format!("listener {}", kind.key.port),
            },
            kind.good.to_string(),
            if kind.lives > 0 { format!("{:.0}", kind.messages) } else { "-".into() },
            if kind.eligible { "yes" } else { "no" }.into(),
            if kind.hazards.is_empty() { "-".into() } else { kind.hazards.join(" ") },
        ]);
    }
    table
}

fn forget(context: &Context, targets: &TargetArgs) -> anyhow::Result<ExitCode> {
    let all = targets.is_empty();
    let found = targets.find()?.into_iter().map(|n| (n.found.id, n.found.path));
    let (ids, paths): (Vec<u64>, Vec<PathBuf>) = found.unzip();
    // the file first: what an attach in between would read is forgotten in the kernel after it
    let remembered = Memory::new(&context.state_dir).forget((!all).then_some(&paths))?;
    let kinds = match Datapath::open(&context.pin_dir)? {
        Some(datapath) => datapath.forget_kinds((!all).then_some(&ids))?,
        None => 0,
    };
    if !context.print_document(&Forgotten { kinds, remembered })? {
        println!("forgot {kinds} kinds, and the remembered hazards of {remembered}");
    }
    Ok(ExitCode::SUCCESS)
}

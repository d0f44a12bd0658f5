//! `shared-socket upgrade`

use std::process::ExitCode;

use anyhow::bail;
use datapath::{Changes, Datapath, Generation, Upgrade};
use serde::Serialize;

use super::Context;

/// Put this version's programs under live connections.
///
/// Where this version uses the same maps as what is attached, live connections have the new programs with their next
/// message. Otherwise live connections keep what they have until they end, and new ones get the new. Either way no byte is
/// lost and no connection is reset. An upgrade that was interrupted is finished by the next `upgrade` or `attach`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Pairs at most, from now on; another number needs new maps
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4_000_000))]
    max_pairs: Option<u32>,
    /// Bytes queued to one peer at most, from now on
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(4096..=1 << 30))]
    budget_bytes: Option<u32>,
    /// Messages queued to one peer at most, from now on
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    budget_messages: Option<u32>,
    /// Bytes queued to all peers together at most, from now on
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1 << 20..=1 << 41))]
    total_budget_bytes: Option<u64>,
    /// Leave connections on TCP whose kind carries fewer messages a connection, both ways
    #[arg(long, value_name = "N")]
    min_messages: Option<u32>,
}

#[derive(Serialize)]
struct Report {
    result: &'static str,
    generations: Vec<Generation>,
}

impl Args {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<ExitCode> {
        let changes = Changes {
            max_pairs: self.max_pairs,
            budget_bytes: self.budget_bytes,
            budget_messages: self.budget_messages,
            total_budget_bytes: self.total_budget_bytes,
            min_messages: self.min_messages,
            kernel: Some(crate::check::configuration()?),
        };
        let Some((datapath, done)) = Datapath::upgrade(&context.pin_dir, &changes)? else {
            bail!(
                "nothing is attached (no pins in {}), so there is nothing to upgrade: `shared-socket attach` loads this \
                 version",
                context.pin_dir.display()
            );
        };
        let result = match done {
            Upgrade::InPlace => "in place",
            Upgrade::NewGeneration => "new generation",
        };
        let report = Report { result, generations: datapath.generations()? };
        if !context.print_document(&report)? {
            let old: u64 = report.generations.iter().filter(|g| !g.current).map(|g| g.sockets).sum();
            match done {
                Upgrade::InPlace => println!("upgraded in place: live connections have the new programs"),
                Upgrade::NewGeneration if old == 0 => println!("upgraded: the new programs and maps are in use"),
                Upgrade::NewGeneration => println!(
                    "upgraded: new connections have the new programs and maps; {old} live halves keep the old ones until \
                     they end"
                ),
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

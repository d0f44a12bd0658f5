//! `shared-socket debug`

use std::fs::File;
use std::io::{IsTerminal, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use datapath::{Datapath, Host};
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};

use super::{Context, connections, kinds, status};

/// What a bug report needs.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Write one archive: versions, what check found, status, connections, kinds, pins, programs
    ///
    /// No payload, no environment and no command line of any process is in it; MANIFEST.txt in it says what is.
    Dump(Dump),
}

#[derive(Debug, clap::Args)]
struct Dump {
    /// The archive; `-` is standard output
    #[arg(short, long, value_name = "FILE.tar.gz", default_value = "shared-socket-debug.tar.gz")]
    write: PathBuf,
    /// Leave addresses and ports out
    #[arg(long)]
    no_addresses: bool,
    /// Put the last lines of this file in: the agent's log
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// How many lines
    #[arg(long, value_name = "N", default_value_t = 1000, requires = "log")]
    log_lines: usize,
}

/// What is put into the archive, and what its manifest says of it.
struct Part {
    name: &'static str,
    about: &'static str,
    content: anyhow::Result<Vec<u8>>,
}

/// Keys whose values are addresses or ports.
const ADDRESSES: [&str; 8] = ["addr", "address", "port", "local", "remote", "destination", "listener", "host_ip"];

/// Takes addresses out of a document, wherever they are.
fn scrub(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                if ADDRESSES.contains(&key.as_str()) && !field.is_null() {
                    *field = "(left out)".into();
                } else {
                    scrub(field);
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(scrub),
        _ => {}
    }
}

/// The last lines, of at most 4 MiB.
fn tail(path: &Path, lines: usize) -> anyhow::Result<Vec<u8>> {
    const MOST: u64 = 4 << 20;
    let what = || format!("reading {}", path.display());
    let mut file = File::open(path).with_context(what)?;
    let length = file.metadata().with_context(what)?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MOST))).with_context(what)?;
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes).with_context(what)?;
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    Ok((all[all.len().saturating_sub(lines)..].join("\n") + "\n").into_bytes())
}

fn pins(root: &Path) -> Vec<u8> {
    let mut list = Vec::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(folder) = todo.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                todo.push(entry.path());
            }
            list.push(entry.path().display().to_string());
        }
    }
    list.sort();
    (list.join("\n") + "\n").into_bytes()
}

impl Args {
    pub(super) fn run(self, context: &Context) -> anyhow::Result<ExitCode> {
        let What::Dump(dump) = self.what;
        dump.run(context)
    }
}

impl Dump {
    fn parts(&self, context: &Context) -> Vec<Part> {
        let document = |name, about, value: anyhow::Result<Value>| {
            let content = value.and_then(|mut value| {
                if self.no_addresses {
                    scrub(&mut value);
                }
                Ok(serde_json::to_vec_pretty(&value)?)
            });
            Part { name, about, content }
        };
        let version = json!({
            "version": env!("CARGO_PKG_VERSION"), "host": Host::read(), "kernel": datapath::Kernel::read(),
            "programs_id": datapath::programs_id().to_string(),
        });
        let kinds = kinds::read(context).map(|list| json!(list)).map_err(anyhow::Error::from);
        let programs = Datapath::read(&context.pin_dir).map_err(anyhow::Error::from);
        let programs = programs.map(|d| json!(d.map(|d| d.programs()).unwrap_or_default()));
        let mut parts = vec![
            document("version.json", "version, kernel, architecture", Ok(version)),
            document(
                "check.json",
                "what `shared-socket check` found before; null: it was not run",
                Ok(json!(crate::check::kept())),
            ),
            document(
                "status.json",
                "attached cgroups, totals, reasons, budget",
                status::read(context, None).and_then(|s| Ok(serde_json::to_value(s)?)),
            ),
            document(
                "connections.json",
                "live pairs: addresses and ports, process ids and command names, counters, queues, states; no payload",
                connections::read(context, None).and_then(|c| Ok(serde_json::to_value(c)?)),
            ),
            document("kinds.json", "what was learned of each kind of connection", kinds),
            document("programs.json", "ids and run counts of the programs", programs),
            Part { name: "pins.txt", about: "names of the pins", content: Ok(pins(&context.pin_dir)) },
        ];
        if let Some(log) = &self.log {
            let content = tail(log, self.log_lines);
            parts.push(Part { name: "agent.log", about: "the last lines of the log that was named", content });
        }
        parts
    }

    fn run(&self, context: &Context) -> anyhow::Result<ExitCode> {
        let parts = self.parts(context);
        let mut manifest = format!("shared-socket {} debug dump\n\n", env!("CARGO_PKG_VERSION"));
        for Part { name, about, content } in &parts {
            manifest += &match content {
                Ok(bytes) => format!("{name:<18} {:>9} bytes  {about}\n", bytes.len()),
                Err(why) => format!("{name:<18}    MISSING        {about}: {why:#}\n"),
            };
        }
        manifest += "\nNot in here: what connections carry, environments, command lines, files of any application";
        manifest += if self.no_addresses { ", addresses and ports" } else { "" };
        manifest += ".\n";

        let what = || format!("writing {}", self.write.display());
        let to: Box<dyn Write> = if self.write.as_os_str() == "-" {
            if std::io::stdout().is_terminal() {
                anyhow::bail!("the archive is not for a terminal; name a file with -w, or redirect standard output");
            }
            Box::new(std::io::stdout())
        } else {
            // whose connections are whose is not everybody's business
            let mut options = File::options();
            Box::new(options.write(true).create(true).truncate(true).mode(0o600).open(&self.write).with_context(what)?)
        };
        let mut archive = tar::Builder::new(GzEncoder::new(to, Compression::default()));
        let contents = parts.iter().filter_map(|p| Some((p.name, p.content.as_ref().ok()?.as_slice())));
        for (name, bytes) in std::iter::once(("MANIFEST.txt", manifest.as_bytes())).chain(contents) {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o600);
            archive.append_data(&mut header, format!("shared-socket-debug/{name}"), bytes).with_context(what)?;
        }
        archive.into_inner().and_then(GzEncoder::finish).and_then(|mut to| to.flush()).with_context(what)?;
        if self.write.as_os_str() != "-" {
            print!("{manifest}\nwritten to {}\n", self.write.display());
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_left_out_everywhere() {
        let mut value = json!([{"client": {"addr": "10.0.0.1", "port": 5, "bytes": 7}, "local": {"addr": "x"}, "destination": null}]);
        scrub(&mut value);
        assert_eq!(
            value,
            json!([{"client": {"addr": "(left out)", "port": "(left out)", "bytes": 7}, "local": "(left out)", "destination": null}])
        );
    }
}

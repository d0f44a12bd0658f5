//! The process that runs the probes: in a network namespace of its own, ended with the check that started it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use super::hazards::{self, Finding};
use crate::bench::interrupt::Interrupt;

/// All probes together take about a second; an emulated machine is slower.
const LIMIT: Duration = Duration::from_secs(30);

/// Starts the process, collects what it finds, and lets nothing of it live on.
pub fn probe(all: bool, cgroup: Option<&Path>, interrupt: &Interrupt) -> Result<Vec<Finding>> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("shared-socket").arg("check-probe").arg("--parent").arg(std::process::id().to_string());
    if all {
        command.arg("--all");
    }
    if let Some(cgroup) = cgroup {
        command.arg("--cgroup").arg(cgroup);
    }
    let mut process = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Ctrl-C is for the check, which ends its probes itself
        .process_group(0)
        .spawn()
        .context("cannot start the probes: /proc/self/exe check-probe")?;
    let (sender, lines) = channel();
    let output = process.stdout.take();
    std::thread::spawn(move || {
        for line in output.into_iter().flat_map(|out| BufReader::new(out).lines().map_while(Result::ok)) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let mut findings = Vec::new();
    let end = Instant::now() + LIMIT;
    let result = loop {
        match lines.recv_timeout(Duration::from_millis(50)) {
            Ok(line) => match serde_json::from_str(&line) {
                Ok(finding) => findings.push(finding),
                Err(e) => break Err(anyhow::anyhow!("the probes said {line:?}: {e}")),
            },
            Err(RecvTimeoutError::Disconnected) => break Ok(()),
            Err(RecvTimeoutError::Timeout) if Instant::now() > end => {
                tracing::warn!("the probes took longer than {LIMIT:?}: what they had not said by then is unknown");
                break Ok(());
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        if let Err(e) = interrupt.check() {
            break Err(e);
        }
    };
    // killed by now or soon: the probes that hang, if any, hang in it
    let ended = process.try_wait();
    let _ = process.kill();
    let status = process.wait();
    result?;
    if findings.is_empty() {
        let mut said = String::new();
        if let Some(mut errors) = process.stderr.take() {
            use std::io::Read;
            let _ = errors.read_to_string(&mut said);
        }
        let ended = ended.ok().flatten().or(status.ok()).map(|s| s.to_string()).unwrap_or_default();
        bail!("the probes could not start ({ended}): {}", said.trim().trim_start_matches("error: "));
    }
    Ok(findings)
}

/// What the process does: to be called before it has a second thread.
pub fn run(all: bool, cgroup: Option<PathBuf>, parent: u32) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL).context("prctl(PR_SET_PDEATHSIG)")?;
    if std::os::unix::process::parent_id() != parent {
        bail!("the check that started this is gone");
    }
    if let Some(cgroup) = &cgroup {
        std::fs::write(cgroup.join("cgroup.procs"), "0")
            .with_context(|| format!("cannot move into the cgroup {}", cgroup.display()))?;
    }
    hazards::note_ulps();
    unshare(CloneFlags::CLONE_NEWNET).context(
        "cannot make a network namespace: unshare(CLONE_NEWNET); this needs CAP_SYS_ADMIN (in a container: --privileged)",
    )?;
    datapath::probe::loopback_up().context("cannot bring lo up in the network namespace")?;
    let mut out = std::io::stdout();
    hazards::run(all, cgroup.as_deref(), |finding| {
        writeln!(out, "{}", serde_json::to_string(finding)?)?;
        Ok(out.flush()?)
    })
}

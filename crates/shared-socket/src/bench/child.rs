//! A process of the bench: started in a pod, listened to line by line, killed and reaped when it is let go.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use std::os::unix::process::CommandExt as _;

use super::interrupt::Interrupt;
use super::peer::{Message, Report};
use crate::lab::Namespace;

/// Where a process runs.
#[derive(Clone, Copy, Debug)]
pub struct Seat<'a> {
    /// The network namespace.
    pub namespace: &'a Namespace,
    /// The cgroup.
    pub cgroup: &'a Path,
    /// The CPU.
    pub cpu: usize,
}

/// A running process of this bench.
#[derive(Debug)]
pub struct Child {
    what: String,
    process: std::process::Child,
    lines: Receiver<String>,
    errors: Option<JoinHandle<String>>,
    interrupt: Interrupt,
}

/// How often a wait looks whether a signal has come.
const GLANCE: Duration = Duration::from_millis(50);

impl Child {
    /// Starts `bench-peer` in a seat with the rest of its arguments; `what` is for messages.
    pub fn start(what: &str, seat: Seat<'_>, arguments: &[String], interrupt: &Interrupt) -> Result<Self> {
        let mut process = Command::new("/proc/self/exe")
            .arg0("shared-socket")
            .arg("bench-peer")
            .arg("--namespace")
            .arg(seat.namespace.path())
            .arg("--cgroup")
            .arg(seat.cgroup)
            .arg("--cpu")
            .arg(seat.cpu.to_string())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C is for the bench, which takes its children down itself.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start the {what}: /proc/self/exe bench-peer {}", arguments.join(" ")))?;
        let (sender, lines) = channel();
        let stdout = process.stdout.take();
        std::thread::spawn(move || {
            for line in stdout.into_iter().flat_map(|out| BufReader::new(out).lines().map_while(Result::ok)) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let stderr = process.stderr.take();
        let errors = std::thread::spawn(move || {
            let mut text = Vec::new();
            if let Some(mut stderr) = stderr {
                let _ = stderr.read_to_end(&mut text);
            }
            String::from_utf8_lossy(&text).trim().to_owned()
        });
        Ok(Self { what: what.to_owned(), process, lines, errors: Some(errors), interrupt: interrupt.clone() })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The place where a server listens.
    pub fn listening(&mut self, timeout: Duration) -> Result<String> {
        match self.message(timeout)? {
            Message::Listening(place) => Ok(place),
            other => bail!("the {} said {other:?} before it listened", self.what),
        }
    }

    /// What a peer measured.
    pub fn report(&mut self, timeout: Duration) -> Result<Report> {
        match self.message(timeout)? {
            Message::Report(report) => Ok(report),
            Message::Failed(why) => bail!("the {} failed: {why}", self.what),
            Message::Listening(_) => bail!("the {} listens twice", self.what),
        }
    }

    /// Everything the process prints until it ends by itself, which it must do with success.
    pub fn output(&mut self, timeout: Duration) -> Result<String> {
        let until = Instant::now() + timeout;
        let mut text = String::new();
        while let Some(line) = self.line(until)? {
            text.push_str(&line);
            text.push('\n');
        }
        let status = self.end(until)?;
        if !status.success() {
            let said = self.said();
            bail!("the {} ended with {status}: {} {said}", self.what, text.trim());
        }
        Ok(text)
    }

    /// Waits until the process itself listens on a TCP port of its namespace.
    pub fn wait_for_port(&mut self, port: u16, timeout: Duration) -> Result<()> {
        let until = Instant::now() + timeout;
        let table = format!("/proc/{}/net/tcp", self.id());
        loop {
            if std::fs::read_to_string(&table).is_ok_and(|text| listens(&text, port)) {
                return Ok(());
            }
            if let Some(status) = self.process.try_wait()? {
                let (printed, said) = (self.lines.try_iter().collect::<Vec<_>>().join("; "), self.said());
                bail!("the {} ended with {status} before it listened: {printed} {said}", self.what);
            }
            self.interrupt.check()?;
            if Instant::now() > until {
                bail!("the {} does not listen on port {port} after {timeout:?}", self.what);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn message(&mut self, timeout: Duration) -> Result<Message> {
        let Some(line) = self.line(Instant::now() + timeout)? else {
            let status = self.end(Instant::now() + Duration::from_secs(1))?;
            let said = self.said();
            bail!("the {} ended with {status} and said nothing more: {said}", self.what);
        };
        serde_json::from_str(&line).with_context(|| format!("the {} said {line:?}", self.what))
    }

    fn line(&mut self, until: Instant) -> Result<Option<String>> {
        loop {
            match self.lines.recv_timeout(GLANCE) {
                Ok(line) => return Ok(Some(line)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.interrupt.check()?;
            if Instant::now() > until {
                bail!("the {} (pid {}) hangs: not a word in time", self.what, self.id());
            }
        }
    }

    fn end(&mut self, until: Instant) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.process.try_wait()? {
                return Ok(status);
            }
            self.interrupt.check()?;
            if Instant::now() > until {
                bail!("the {} (pid {}) does not end", self.what, self.id());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// What an ended process left on its standard error.
    fn said(&mut self) -> String {
        self.errors.take().and_then(|errors| errors.join().ok()).unwrap_or_default()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Whether a `/proc/net/tcp` shows a listener on the port.
fn listens(table: &str, port: u16) -> bool {
    let suffix = format!(":{port:04X}");
    table.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, _remote, state) = (fields.next(), fields.next(), fields.next());
        state == Some("0A") && local.is_some_and(|local| local.ends_with(&suffix))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_found_by_state_and_port() {
        let table = "  sl  local_address rem_address   st tx_queue\n\
                     0: 02004D0A:18EB 00000000:0000 0A 00000000:00000000\n\
                     1: 02004D0A:18EC 01004D0A:18EB 01 00000000:00000000\n";
        assert!(listens(table, 0x18EB));
        assert!(!listens(table, 0x18EC));
        assert!(!listens("", 1));
    }
}

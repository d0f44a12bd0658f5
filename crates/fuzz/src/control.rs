//! What happens to the product while the connections live: attach, detach and whatever other verbs this build has, at
//! random times, and the death of those commands.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use shared_socket::bench::cgroups::Pods;

use crate::stream::Random;

/// The product's command line, and what it is used on.
#[derive(Debug)]
pub struct Control {
    /// The binary under test.
    pub binary: PathBuf,
    /// Its pins.
    pub pin_dir: PathBuf,
    /// The two workloads.
    pub pods: Pods,
    /// `safe` or `all`.
    pub eligibility: String,
    /// More options of attach.
    pub attach_options: Vec<String>,
    verbs: Vec<String>,
    state_dir: tempfile::TempDir,
}

/// Sums of what the product said, over every load of its programs.
#[derive(Clone, Debug, Default)]
pub struct Sums {
    /// Attach commands that did what they were asked.
    pub attaches: u64,
    /// Detach commands that left nothing.
    pub detaches: u64,
    /// Detach commands that could not drain in time (exit 4).
    pub undrained: u64,
    /// Other verbs.
    pub others: u64,
    /// Commands killed on their way.
    pub killed: u64,
    /// From `status`: the last look at each load.
    pub fast_messages: u64,
    /// From `status`.
    pub fast_bytes: u64,
    /// From `status`.
    pub tcp_messages: u64,
    /// From `status`.
    pub tcp_bytes: u64,
    /// From `status`.
    pub pairs: u64,
    /// From `status`.
    pub handoffs: u64,
    /// From `status`: messages and connections by reason.
    pub reasons: std::collections::BTreeMap<String, u64>,
    /// From `status`: tries to leave that were put off because a message was in flight.
    pub leave_in_flight: u64,
    /// From `status`: tries to leave that were put off because something was unread.
    pub leave_unread: u64,
    /// From `status`, in a debug load: races held open, and how often something came in between.
    pub held: Vec<(u64, u64)>,
    last: Option<Value>,
}

/// What can be done to the product. A verb that this build does not have is left out: add yours here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    AttachBoth,
    AttachOne,
    DetachAll,
    DetachOne,
    Status,
    Connections,
    Upgrade,
    /// Kinds are learned anew: the first stream of a kind again, and other first times.
    Forget,
    KillAttach,
    KillDetach,
    KillUpgrade,
}

/// (operation, verb it needs, weight)
const OPERATIONS: &[(Operation, &str, u64)] = &[
    (Operation::AttachBoth, "attach", 30),
    (Operation::AttachOne, "attach", 8),
    (Operation::DetachAll, "detach", 10),
    (Operation::DetachOne, "detach", 8),
    (Operation::Status, "status", 6),
    (Operation::Connections, "connections", 6),
    (Operation::Upgrade, "upgrade", 12),
    (Operation::Forget, "kinds", 12),
    (Operation::KillAttach, "attach", 4),
    (Operation::KillDetach, "detach", 4),
    (Operation::KillUpgrade, "upgrade", 4),
];

impl Control {
    /// Asks the binary which verbs it has.
    pub fn new(binary: &Path, pin_dir: PathBuf, pods: Pods, eligibility: &str, options: &[String]) -> Result<Self> {
        let help = Command::new(binary)
            .arg("--help")
            .output()
            .with_context(|| format!("cannot run {}; build it with `make build`", binary.display()))?;
        let help = String::from_utf8_lossy(&help.stdout).into_owned();
        let verbs = help
            .lines()
            .skip_while(|line| !line.starts_with("Commands:"))
            .skip(1)
            .take_while(|line| line.starts_with("  "))
            .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
            .collect::<Vec<_>>();
        if !verbs.iter().any(|verb| verb == "attach") {
            bail!("{} --help names no verb attach: is it the right program?", binary.display());
        }
        Ok(Self {
            binary: binary.to_owned(),
            pin_dir,
            pods,
            eligibility: eligibility.to_owned(),
            attach_options: options.to_vec(),
            verbs,
            state_dir: tempfile::tempdir().context("cannot make a state directory")?,
        })
    }

    fn command(&self, arguments: &[String]) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--pin-dir").arg(&self.pin_dir).arg("--state-dir").arg(self.state_dir.path());
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs a command to its end; what it printed, when it ended with one of `codes`.
    fn run(&self, arguments: &[String], codes: &[i32]) -> Result<(i32, String)> {
        let done = self.command(arguments).output().context("cannot run the product")?;
        let code = done.status.code().unwrap_or(-1);
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        if !codes.contains(&code) {
            let why = String::from_utf8_lossy(&done.stderr).into_owned();
            bail!("shared-socket {}: {}: {} {}", arguments.join(" "), done.status, why.trim(), said.trim());
        }
        Ok((code, said))
    }

    fn attach_arguments(&self, cgroups: &[&Path]) -> Vec<String> {
        let mut arguments = vec!["attach".to_owned(), "--eligibility".to_owned(), self.eligibility.clone()];
        arguments.extend(self.attach_options.iter().cloned());
        for cgroup in cgroups {
            arguments.push("--cgroup".to_owned());
            arguments.push(cgroup.display().to_string());
        }
        arguments
    }

    fn detach_arguments(target: Option<&Path>, timeout: f64) -> Vec<String> {
        let mut arguments = vec!["detach".to_owned()];
        match target {
            None => arguments.push("--all".to_owned()),
            Some(cgroup) => arguments.extend(["--cgroup".to_owned(), cgroup.display().to_string()]),
        }
        arguments.extend(["--timeout".to_owned(), timeout.to_string()]);
        arguments
    }

    /// Attaches both workloads.
    pub fn attach(&self, sums: &mut Sums) -> Result<()> {
        self.run(&self.attach_arguments(&self.pods.both()), &[0])?;
        sums.attaches += 1;
        Ok(())
    }

    /// Detaches everything; true when nothing is left.
    pub fn detach(&self, timeout: f64, sums: &mut Sums) -> Result<bool> {
        self.look(sums)?;
        let (code, _) = self.run(&Self::detach_arguments(None, timeout), &[0, 4])?;
        if code == 0 {
            sums.detaches += 1;
        } else {
            sums.undrained += 1;
        }
        Ok(code == 0)
    }

    /// What `status` says.
    pub fn status(&self) -> Result<Value> {
        let (_, said) = self.run(&["status".to_owned(), "-o".to_owned(), "json".to_owned()], &[0])?;
        serde_json::from_str(&said).with_context(|| format!("status -o json said {said:?}"))
    }

    /// What `connections` says.
    pub fn connections(&self) -> Result<String> {
        Ok(self.run(&["connections".to_owned(), "-o".to_owned(), "json".to_owned()], &[0])?.1)
    }

    /// The rows of `connections` with a port.
    pub fn rows_of(&self, port: u16) -> String {
        let rows: Value = self.connections().ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        let has = |row: &&Value| ["client", "server"].iter().any(|end| row[end]["port"].as_u64() == Some(port.into()));
        rows.as_array().into_iter().flatten().filter(has).map(|row| format!("{row}\n")).collect()
    }

    /// Reads the totals and adds them up over loads: numbers that fall mean that the programs were loaded anew.
    pub fn look(&self, sums: &mut Sums) -> Result<Value> {
        let status = self.status()?;
        sums.add(status.clone());
        Ok(status)
    }

    /// One random operation; a pause before it.
    pub fn step(&self, random: &mut Random, sums: &mut Sums) -> Result<String> {
        std::thread::sleep(Duration::from_millis(random.between(20, 900)));
        let possible: Vec<_> =
            OPERATIONS.iter().filter(|(_, verb, _)| self.verbs.iter().any(|have| have == verb)).collect();
        let mut at = random.below(possible.iter().map(|(_, _, weight)| weight).sum());
        let mut operation = Operation::AttachBoth;
        for (candidate, _, weight) in possible {
            if at < *weight {
                operation = *candidate;
                break;
            }
            at -= weight;
        }
        let one = *random.pick(&self.pods.both());
        let timeout = *random.pick(&[0.0, 0.2, 1.0]);
        match operation {
            Operation::AttachBoth => self.attach(sums)?,
            Operation::AttachOne => {
                self.run(&self.attach_arguments(&[one]), &[0])?;
                sums.attaches += 1;
            }
            Operation::DetachAll => {
                self.detach(timeout, sums)?;
            }
            Operation::DetachOne => {
                self.look(sums)?;
                // not attached at the moment: exit 1 says so
                let (code, _) = self.run(&Self::detach_arguments(Some(one), timeout), &[0, 1, 4])?;
                match code {
                    0 => sums.detaches += 1,
                    4 => sums.undrained += 1,
                    _ => {}
                }
            }
            Operation::Status => {
                self.look(sums)?;
                sums.others += 1;
            }
            Operation::Connections => {
                self.connections()?;
                sums.others += 1;
            }
            Operation::Upgrade => {
                // nothing attached: exit 1 says so
                self.run(&["upgrade".to_owned()], &[0, 1])?;
                sums.others += 1;
            }
            Operation::Forget => {
                self.run(&["kinds".to_owned(), "forget".to_owned()], &[0])?;
                sums.others += 1;
            }
            Operation::KillAttach => self.kill(self.attach_arguments(&self.pods.both()), random, sums)?,
            Operation::KillDetach => {
                self.look(sums)?;
                self.kill(Self::detach_arguments(None, timeout), random, sums)?;
            }
            Operation::KillUpgrade => self.kill(vec!["upgrade".to_owned()], random, sums)?,
        }
        Ok(format!("{operation:?}"))
    }

    /// Starts a command and kills it somewhere on its way.
    fn kill(&self, arguments: Vec<String>, random: &mut Random, sums: &mut Sums) -> Result<()> {
        let mut child = self
            .command(&arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start the product")?;
        let end = Instant::now() + Duration::from_millis(random.between(0, 250));
        while Instant::now() < end && child.try_wait()?.is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        if child.try_wait()?.is_none() {
            child.kill().context("cannot kill the command")?;
            sums.killed += 1;
        }
        child.wait()?;
        Ok(())
    }
}

impl Sums {
    fn number(value: &Value, name: &str) -> u64 {
        value["totals"][name].as_u64().unwrap_or(0)
    }

    fn add(&mut self, now: Value) {
        let last = self.last.take().unwrap_or_default();
        // the programs were loaded anew: everything counts from 0
        let fresh = Self::number(&now, "pairs_total") < Self::number(&last, "pairs_total");
        let grown = |name: &str| {
            let before = if fresh { 0 } else { Self::number(&last, name) };
            Self::number(&now, name).saturating_sub(before)
        };
        self.fast_messages += grown("fast_messages");
        self.fast_bytes += grown("fast_bytes");
        self.tcp_messages += grown("tcp_messages");
        self.tcp_bytes += grown("tcp_bytes");
        self.pairs += grown("pairs_total");
        self.handoffs += grown("handoffs");
        self.leave_in_flight += grown("leave_in_flight");
        self.leave_unread += grown("leave_unread");
        let held =
            |value: &Value, window: usize, part: usize| value["totals"]["held"][window][part].as_u64().unwrap_or(0);
        let windows = now["totals"]["held"].as_array().map_or(0, Vec::len);
        self.held.resize(self.held.len().max(windows), (0, 0));
        for (window, sum) in self.held.iter_mut().enumerate() {
            let add = |part| {
                let before = if fresh { 0 } else { held(&last, window, part) };
                held(&now, window, part).saturating_sub(before)
            };
            *sum = (sum.0 + add(0), sum.1 + add(1));
        }
        for (name, count) in now["reasons"].as_object().into_iter().flatten() {
            let before = if fresh { 0 } else { last["reasons"][name].as_u64().unwrap_or(0) };
            *self.reasons.entry(name.clone()).or_default() += count.as_u64().unwrap_or(0).saturating_sub(before);
        }
        self.last = Some(now);
    }
}

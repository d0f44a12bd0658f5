//! A fuzzer over the whole life of connections: random operations on random sockets at both ends, while Shared Socket is
//! attached, detached and killed at random times. Every byte is checked, and how each stream ended is held against what
//! plain TCP allows. With `--plain` nothing is attached: the model must hold for TCP itself.
//!
//! `--soak` makes many short connections instead and watches the kernel's memory.
#![forbid(unsafe_code)]

mod control;
mod end;
mod judge;
mod plan;
mod soak;
mod stream;
mod worker;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use serde::Serialize;
use shared_socket::bench::cgroups::{Cgroups, sweep};
use shared_socket::bench::interrupt::Interrupt;
use shared_socket::lab::{Lab, Namespace};

use control::{Control, Sums};
use end::Record;
use judge::{Context, judge, judge_alone};
use plan::{Mix, Plan};
use stream::Random;
use worker::Said;

/// Fuzz the whole life of connections.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    worker: Option<Hidden>,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, clap::Subcommand)]
enum Hidden {
    /// A process of a run
    #[command(hide = true)]
    Worker(worker::Args),
}

/// What to run.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Seed; without it the clock's. What the sockets do follows from it; how they interleave does not
    #[arg(long)]
    seed: Option<u64>,
    /// For how long new connections are made
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Connections at a time, over all jobs
    #[arg(long, default_value_t = 48)]
    connections: u32,
    /// Connections in all, at most
    #[arg(long, default_value_t = u32::MAX)]
    count: u32,
    /// Connections a second at most, over all jobs: for a soak beside other work
    #[arg(long)]
    rate: Option<u32>,
    /// Client processes, and as many servers
    #[arg(long, default_value_t = 2)]
    jobs: u32,
    /// Which pairs are accelerated: `safe` or `all`
    #[arg(long, default_value = "safe")]
    eligibility: String,
    /// What the connections do; without it that of the eligibility
    #[arg(long, value_enum)]
    mix: Option<Mix>,
    /// Nothing is attached: the model against TCP itself
    #[arg(long)]
    plain: bool,
    /// Attached all the time: no control operations
    #[arg(long)]
    steady: bool,
    /// An end whose blocking call says EAGAIN closes, as many applications do, instead of trying again
    #[arg(long)]
    give_up: bool,
    /// Kill client and server processes now and then
    #[arg(long)]
    kill: bool,
    /// Many short connections, and the kernel's memory watched
    #[arg(long)]
    soak: bool,
    /// The binary under test; without it the one next to this program
    #[arg(long)]
    binary: Option<PathBuf>,
    /// More options for attach, separated by spaces; how often this is repeated does not matter
    #[arg(long, allow_hyphen_values = true, default_value = "--min-messages 0")]
    attach_options: String,
    /// Print every failure whole, with the operations before it
    #[arg(long)]
    trace: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// The end of a run.
#[derive(Debug, Default, Serialize)]
struct Report {
    seed: u64,
    seconds: f64,
    connections: u64,
    unfinished: u64,
    operations: u64,
    bytes_checked: u64,
    anonymous: u64,
    again: BTreeMap<String, u64>,
    resets: BTreeMap<String, u64>,
    early_errors: u64,
    /// Resets that were dropped on their way, or made void by a segment that was dropped before them. TCP itself loses one
    /// in about a million connections of this kind (`--plain --mix all --seconds 800`), as these set `SO_RCVBUF` while they run.
    lost_resets: u64,
    longest_stall_ms: u64,
    fast_messages: u64,
    fast_bytes: u64,
    tcp_messages: u64,
    tcp_bytes: u64,
    fast_share: f64,
    pairs: u64,
    handoffs: u64,
    reasons: BTreeMap<String, u64>,
    leave_in_flight: u64,
    leave_unread: u64,
    /// Races held open (`--debug-spin`), by window: how often, and how often something came in between.
    held: BTreeMap<String, (u64, u64)>,
    attaches: u64,
    detaches: u64,
    detaches_not_drained: u64,
    other_commands: u64,
    commands_killed: u64,
    processes_killed: u64,
    kernel: BTreeMap<String, u64>,
    memory: Option<soak::Memory>,
    failures: Vec<String>,
    failed: u64,
}

struct Process {
    child: Child,
    input: Option<ChildStdin>,
}

impl Drop for Process {
    fn drop(&mut self) {
        // both fail only when it has ended already
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A run under way.
struct Run<'a> {
    options: &'a Options,
    mix: Mix,
    seed: u64,
    context: Context,
    report: Report,
    halves: HashMap<u32, Record>,
    /// Connections that lasted long, and what was seen of them.
    stuck: HashMap<u32, String>,
    /// Packets that full queues of the machine had dropped when the run began.
    dropped: u64,
    /// Server workers that were killed, and when.
    killed_servers: Vec<(u32, Instant)>,
    /// First and last connection of killed clients.
    killed_clients: Vec<(u32, u32)>,
    said: Receiver<(usize, Said)>,
    sender: Sender<(usize, Said)>,
}

/// `enum window` of bpf/abi.h.
const WINDOWS: [&str; 6] = ["delivery", "leave", "enter", "tie", "delete", "release"];

/// Connections that a client process may number.
const BLOCK: u32 = 1 << 22;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.worker {
        Some(Hidden::Worker(args)) => worker::run(args).map(|()| ExitCode::SUCCESS),
        None => conduct(&cli.options),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn conduct(options: &Options) -> Result<ExitCode> {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let seed = options.seed.unwrap_or(clock.as_micros() as u64 & 0xffff_ffff);
    let all = options.eligibility == "all";
    let mix = options.mix.unwrap_or(match (options.soak, all) {
        (true, _) => Mix::Churn,
        (false, true) => Mix::All,
        (false, false) => Mix::Safe,
    });
    eprintln!("seed {seed}, eligibility {}, {mix:?}", if options.plain { "none" } else { &options.eligibility });
    let (sender, said) = channel();
    let mut run = Run {
        options,
        mix,
        seed,
        context: Context { all: all && !options.plain },
        report: Report { seed, ..Report::default() },
        halves: HashMap::new(),
        stuck: HashMap::new(),
        dropped: packets_dropped()?,
        killed_servers: Vec::new(),
        killed_clients: Vec::new(),
        said,
        sender,
    };
    let sums = run.go()?;
    run.conclude(&sums);
    let report = run.report;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(if report.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Run<'_> {
    fn go(&mut self) -> Result<Sums> {
        let options = self.options;
        let root = datapath_root()?;
        sweep(&root);
        let interrupt = Interrupt::install()?;
        let cgroups = Cgroups::new(&root)?;
        let lab = Lab::new()?;
        lab.translate()?;
        for pod in [lab.client(), lab.server()] {
            // TIME_WAIT is memory too: where memory is watched it must not be what grows
            pod.sysctl("ipv4/tcp_max_tw_buckets", if options.soak { "8192" } else { "200000" })?;
        }
        let pods = cgroups.fast.clone();
        let binary = match &options.binary {
            Some(binary) => binary.clone(),
            None => std::env::current_exe()?.with_file_name("shared-socket"),
        };
        let pin_dir = PathBuf::from(format!("/sys/fs/bpf/shared-socket-bench-{}", std::process::id()));
        let extra: Vec<String> = options.attach_options.split_whitespace().map(str::to_owned).collect();
        let control = Control::new(&binary, pin_dir, pods.clone(), &options.eligibility, &extra)?;
        let mut sums = Sums::default();
        let before = kernel_counters(&lab)?;

        let servers: Vec<(u32, &Namespace, &Path)> = (0..options.jobs)
            .flat_map(|number| {
                [(number, lab.server(), pods.server.as_path()), (number, lab.client(), pods.client.as_path())]
            })
            .collect();
        let mut processes: Vec<Option<Process>> = Vec::new();
        for (slot, (number, namespace, cgroup)) in servers.iter().enumerate() {
            processes.push(Some(self.start(slot, namespace, cgroup, *number, None)?));
        }
        for _ in &servers {
            match self.said.recv_timeout(Duration::from_secs(20)) {
                Ok((_, Said::Ready)) => {}
                other => bail!("a server did not come up: {other:?}"),
            }
        }
        if !options.plain {
            control.attach(&mut sums)?;
        }
        let mut clients = Vec::new();
        let mut block = 0;
        for job in 0..options.jobs {
            let slot = servers.len() + job as usize;
            let work = Some((block * BLOCK, options.seconds));
            processes.push(Some(self.start(slot, lab.client(), &pods.client, job, work)?));
            clients.push((slot, block));
            block += 1;
        }

        let began = Instant::now();
        let end = began + Duration::from_secs(options.seconds);
        let (stop, stopped) = channel::<()>();
        let outcome = std::thread::scope(|scope| -> Result<Sums> {
            let control = &control;
            let seed = self.seed;
            let controller = scope.spawn(move || -> Result<(Sums, Vec<String>)> {
                let mut sums = sums;
                let mut failures = Vec::new();
                let mut random = Random::new(seed, 0xc0de);
                while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                    if options.plain {
                        std::thread::sleep(Duration::from_millis(100));
                    } else if options.steady || options.soak {
                        std::thread::sleep(Duration::from_millis(500));
                        control.look(&mut sums)?;
                    } else if let Err(error) = control.step(&mut random, &mut sums) {
                        failures.push(format!("command: {error:#}"));
                    }
                }
                Ok((sums, failures))
            });
            let conducted =
                self.conduct(&lab, &pods, &servers, &mut processes, &mut clients, &mut block, end, control, &interrupt);
            drop(stop);
            let (sums, failures) = match controller.join() {
                Ok(result) => result?,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            for failure in failures {
                self.fail(failure);
            }
            conducted?;
            Ok(sums)
        });
        let mut sums = match outcome {
            Ok(sums) => sums,
            Err(error) => {
                drop(processes);
                let _ = control.detach(5.0, &mut Sums::default());
                return Err(error);
            }
        };
        self.report.seconds = began.elapsed().as_secs_f64();
        let after = kernel_counters(&lab)?;
        self.report.kernel =
            after.into_iter().map(|(name, n)| (name.clone(), n - before.get(&name).unwrap_or(&0))).collect();
        drop(processes);
        if !options.plain {
            self.check_nothing_stays(&control, &mut sums)?;
        }
        Ok(sums)
    }

    /// Starts a server, or a client with the number of its first connection and the seconds it has.
    fn start(
        &self,
        slot: usize,
        namespace: &Namespace,
        cgroup: &Path,
        number: u32,
        work: Option<(u32, u64)>,
    ) -> Result<Process> {
        let options = self.options;
        let mut command = Command::new("/proc/self/exe");
        command.arg("worker").arg("--namespace").arg(namespace.path()).arg("--cgroup").arg(cgroup);
        command.args(["--seed", &self.seed.to_string(), "--worker", &number.to_string()]);
        let mix = clap::ValueEnum::to_possible_value(&self.mix).map(|value| value.get_name().to_owned());
        command.args(["--mix", &mix.unwrap_or_default()]);
        if self.mix == Mix::Safe {
            command.arg("--waitall");
        }
        if options.give_up {
            command.arg("--give-up");
        }
        match work {
            None => {
                command.arg("--server");
            }
            Some((first, seconds)) => {
                let threads = (options.connections / options.jobs).max(1);
                command.args(["--threads", &threads.to_string(), "--first", &first.to_string()]);
                command.args(["--seconds", &seconds.to_string(), "--servers", &options.jobs.to_string()]);
                command.args(["--count", &(options.count / options.jobs).max(1).to_string()]);
                if let Some(rate) = options.rate {
                    command.args(["--rate", &(f64::from(rate) / f64::from(options.jobs)).to_string()]);
                }
            }
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a worker: /proc/self/exe worker")?;
        let sender = self.sender.clone();
        let stdout = child.stdout.take();
        std::thread::spawn(move || {
            for line in stdout.into_iter().flat_map(|out| BufReader::new(out).lines().map_while(Result::ok)) {
                match serde_json::from_str(&line) {
                    Ok(said) => {
                        if sender.send((slot, said)).is_err() {
                            break;
                        }
                    }
                    Err(_) => eprintln!("{line}"),
                }
            }
        });
        Ok(Process { input: child.stdin.take(), child })
    }

    /// Collects what the workers say until all clients are done and all servers have come to rest.
    #[allow(clippy::too_many_arguments)]
    fn conduct(
        &mut self,
        lab: &Lab,
        pods: &shared_socket::bench::cgroups::Pods,
        servers: &[(u32, &Namespace, &Path)],
        processes: &mut [Option<Process>],
        clients: &mut [(usize, u32)],
        block: &mut u32,
        end: Instant,
        control: &Control,
        interrupt: &Interrupt,
    ) -> Result<()> {
        let options = self.options;
        let mut random = Random::new(self.seed, 0xdead);
        let mut running: BTreeSet<usize> = clients.iter().map(|(slot, _)| *slot).collect();
        let mut next_kill = Instant::now() + Duration::from_secs(5);
        let mut memory = options.soak.then(|| soak::Watch::new(lab));
        let grace = end + end::HANG + Duration::from_secs(90);
        while !running.is_empty() {
            interrupt.check()?;
            if let Some(watch) = &mut memory {
                watch.look(self.report.connections, control)?;
            }
            match self.said.recv_timeout(Duration::from_millis(200)) {
                Ok((slot, Said::Done)) => {
                    running.remove(&slot);
                }
                Ok((_, Said::Stuck(connection, port, what))) => self.look_at(lab, control, connection, port, &what),
                Ok((_, said)) => self.hear(said),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("all workers have ended"),
            }
            if Instant::now() > grace {
                for slot in &running {
                    let seen = processes[*slot].as_mut().map(|process| look_at_process(lab, process));
                    self.fail(format!("HANG: a client process does not come to an end: {}", seen.unwrap_or_default()));
                }
                break;
            }
            if options.kill && Instant::now() > next_kill && Instant::now() + Duration::from_secs(8) < end {
                next_kill = Instant::now() + Duration::from_millis(random.between(500, 4000));
                if random.percent(50) {
                    // a client; its successor numbers its connections anew
                    let at = random.below(clients.len() as u64) as usize;
                    let (slot, old) = clients[at];
                    if !running.contains(&slot) {
                        continue;
                    }
                    self.killed_clients.push((old * BLOCK, old * BLOCK + (BLOCK - 1)));
                    processes[slot] = None;
                    let left = end.saturating_duration_since(Instant::now()).as_secs().max(1);
                    let work = Some((*block * BLOCK, left));
                    clients[at].1 = *block;
                    *block += 1;
                    processes[slot] = Some(self.start(slot, lab.client(), &pods.client, at as u32, work)?);
                } else {
                    let slot = random.below(servers.len() as u64) as usize;
                    let (number, namespace, cgroup) = servers[slot];
                    self.killed_servers.push((number, Instant::now()));
                    processes[slot] = None;
                    processes[slot] = Some(self.start(slot, namespace, cgroup, number, None)?);
                }
                self.report.processes_killed += 1;
            }
        }
        // the servers come to rest
        for process in processes[..servers.len()].iter_mut().flatten() {
            process.input = None;
        }
        let until = Instant::now() + Duration::from_secs(110);
        loop {
            match self.said.recv_timeout(Duration::from_millis(200)) {
                Ok((_, Said::Stuck(connection, port, what))) => self.look_at(lab, control, connection, port, &what),
                Ok((_, said)) => self.hear(said),
                Err(_) => {
                    let mut left = false;
                    for process in processes[..servers.len()].iter_mut().flatten() {
                        left |= process.child.try_wait()?.is_none();
                    }
                    if !left || Instant::now() > until {
                        break;
                    }
                }
            }
        }
        self.report.memory = memory.map(|watch| watch.verdict()).transpose()?;
        Ok(())
    }

    /// What there is to see of a connection that may hang, in both namespaces and in the datapath, for its failure's text.
    fn look_at(&mut self, lab: &Lab, control: &Control, connection: u32, port: u16, what: &str) {
        let mut text = format!("{what}\n");
        for pod in [lab.client(), lab.server()] {
            let both = format!("sport = :{port} or dport = :{port}");
            let out = pod.within(|| Ok(Command::new("ss").args(["-tinmoeOH", "state", "all", &both]).output()?));
            text += &out.map_or_else(
                |error| format!("ss: {error:#}\n"),
                |out| String::from_utf8_lossy(&out.stdout).into_owned(),
            );
        }
        text += &control.rows_of(port);
        self.stuck.entry(connection).or_default().push_str(&text);
    }

    fn hear(&mut self, said: Said) {
        match said {
            Said::Ready | Said::Done | Said::Stuck(..) => {}
            Said::Anonymous(None) => self.report.anonymous += 1,
            Said::Anonymous(Some(why)) => self.fail(format!("server: {why}")),
            Said::Refused(worker, why) => {
                if !self.was_server_killed(worker, Duration::from_secs(3)) {
                    self.fail(why);
                }
            }
            Said::Record(record) => self.record(*record),
        }
    }

    fn was_server_killed(&self, worker: u32, within: Duration) -> bool {
        self.killed_servers.iter().any(|(number, at)| *number == worker && at.elapsed() < within)
    }

    fn was_client_killed(&self, connection: u32) -> bool {
        self.killed_clients.iter().any(|(first, last)| (*first..=*last).contains(&connection))
    }

    fn record(&mut self, record: Record) {
        self.report.operations += record.operations;
        self.report.bytes_checked += record.got;
        self.report.longest_stall_ms = self.report.longest_stall_ms.max(record.stall);
        let Some(other) = self.halves.remove(&record.connection) else {
            self.halves.insert(record.connection, record);
            return;
        };
        let (client, server) = if record.server { (other, record) } else { (record, other) };
        self.report.connections += 1;
        let mut verdict = judge(&client, &server, self.context);
        for name in &verdict.again {
            *self.report.again.entry((*name).to_owned()).or_default() += 1;
        }
        for name in std::mem::take(&mut verdict.resets) {
            *self.report.resets.entry(name).or_default() += 1;
        }
        self.report.early_errors += verdict.early;
        for what in std::mem::take(&mut verdict.untold) {
            let seen = self.stuck.get(&client.connection).map_or("", String::as_str);
            if has_dropped(seen) || packets_dropped().is_ok_and(|now| now > self.dropped) {
                self.report.lost_resets += 1;
            } else {
                verdict.failures.push(format!("{what}; what there was to see: {seen}"));
            }
        }
        if !verdict.failures.is_empty() {
            self.explain(&verdict.failures, &[&client, &server]);
        } else if self.options.trace && !verdict.again.is_empty() {
            for record in [&client, &server].iter().filter(|record| !record.again.is_empty()) {
                eprintln!("{verdict:?} {:?}\n  {}", record.again, record.trace.join("\n  "));
            }
        }
    }

    fn explain(&mut self, failures: &[String], records: &[&Record]) {
        let connection = records[0].connection;
        let plan = Plan::new(self.seed, connection, self.mix);
        for failure in failures {
            self.fail(format!("connection {connection} ({:?}): {failure}", plan.route));
        }
        if self.options.trace || self.report.failed < 20 {
            eprintln!("{plan:?}");
            for record in records {
                eprintln!("{record:?}\n  {}", record.trace.join("\n  "));
            }
            eprintln!("{}", self.stuck.remove(&connection).unwrap_or_default());
        }
    }

    fn fail(&mut self, what: String) {
        self.report.failed += 1;
        if self.report.failures.len() < 100 {
            eprintln!("FAILURE: {what}");
            self.report.failures.push(what);
        }
    }

    /// When all sockets are closed nothing of them is left in the maps, and detach takes everything away.
    fn check_nothing_stays(&mut self, control: &Control, sums: &mut Sums) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(15);
        loop {
            let status = control.look(sums)?;
            let totals = &status["totals"];
            let left: Vec<String> = ["halves", "published", "announced", "pairs_live"]
                .into_iter()
                .filter(|name| totals[*name].as_u64().unwrap_or(0) > 0)
                .map(|name| format!("{name} {}", totals[name]))
                .collect();
            if left.is_empty() {
                break;
            }
            if Instant::now() > until {
                self.fail(format!("all sockets are closed, and still: {}", left.join(", ")));
                break;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        if !control.detach(10.0, sums)? {
            self.fail("the last detach could not drain, with all sockets closed".to_owned());
        }
        if control.pin_dir.exists() {
            self.fail(format!("the last detach left {}", control.pin_dir.display()));
        }
        Ok(())
    }

    /// Connections of which one end is known only, and the sums.
    fn conclude(&mut self, sums: &Sums) {
        let mut alone: Vec<Record> = self.halves.drain().map(|(_, record)| record).collect();
        alone.sort_by_key(|record| record.connection);
        self.report.unfinished = alone.len() as u64;
        for record in &alone {
            let plan = Plan::new(self.seed, record.connection, self.mix);
            let killed =
                self.was_client_killed(record.connection) || self.was_server_killed(record.worker, Duration::MAX);
            let failures = judge_alone(record, &plan, killed);
            if !failures.is_empty() {
                self.explain(&failures, &[record]);
            }
        }
        let report = &mut self.report;
        report.attaches = sums.attaches;
        report.detaches = sums.detaches;
        report.detaches_not_drained = sums.undrained;
        report.other_commands = sums.others;
        report.commands_killed = sums.killed;
        report.fast_messages = sums.fast_messages;
        report.fast_bytes = sums.fast_bytes;
        report.tcp_messages = sums.tcp_messages;
        report.tcp_bytes = sums.tcp_bytes;
        report.fast_share = sums.fast_bytes as f64 / report.bytes_checked.max(1) as f64;
        report.pairs = sums.pairs;
        report.handoffs = sums.handoffs;
        report.reasons = sums.reasons.clone();
        report.leave_in_flight = sums.leave_in_flight;
        report.leave_unread = sums.leave_unread;
        report.held = WINDOWS.iter().map(|name| (*name).to_owned()).zip(sums.held.iter().copied()).collect();
        if report.lost_resets > 1 + report.connections / 300_000 {
            let more = report.lost_resets;
            self.fail(format!("{more} resets were lost, which TCP does more rarely"));
        }
        let report = &self.report;
        if let Some(memory) = &report.memory
            && let Some(why) = memory.grows()
        {
            self.fail(format!("memory: {why}"));
        }
    }
}

/// Where cgroup v2 is mounted.
fn datapath_root() -> Result<PathBuf> {
    let text = std::fs::read_to_string("/proc/mounts").context("read /proc/mounts")?;
    text.lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .and_then(|fields| fields.get(1).map(PathBuf::from))
        .context("no cgroup2 mount in /proc/mounts: mount -t cgroup2 none /sys/fs/cgroup")
}

/// Does a socket of this text (`ss -m`) say that segments to it were dropped? In any state but that of a listener: an end
/// that waits for the other's bytes after its own FIN is in FIN-WAIT-2.
fn has_dropped(text: &str) -> bool {
    let connections = text.lines().filter(|line| !line.starts_with("LISTEN"));
    let drops = connections
        .filter_map(|line| line.split("skmem:(").nth(1)?.split(')').next()?.rsplit(",d").next()?.parse::<u64>().ok());
    drops.sum::<u64>() > 0
}

/// What a client's process is doing: the system call, its place in the kernel and the sockets of each thread.
fn look_at_process(lab: &Lab, process: &mut Process) -> String {
    if let Ok(Some(status)) = process.child.try_wait() {
        return format!("it has ended without a word: {status}");
    }
    let id = process.child.id();
    let mut text = format!("process {id}");
    for task in std::fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten() {
        text += &format!("\n  thread {}: {}", task.file_name().display(), worker::look_at_task(&task.path()));
    }
    let sockets = lab.client().within(|| Ok(Command::new("ss").args(["-tinmoepOH", "state", "connected"]).output()?));
    let sockets = sockets.map_or_else(|e| format!("{e:#}"), |out| String::from_utf8_lossy(&out.stdout).into_owned());
    let own = format!("pid={id},");
    sockets.lines().filter(|line| line.contains(&own)).fold(text, |text, line| text + "\n  " + line)
}

/// Packets that the kernel has dropped because a processor's queue of received packets was full (`netdev_max_backlog`).
fn packets_dropped() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/net/softnet_stat").context("read /proc/net/softnet_stat")?;
    let counts = text.lines().filter_map(|line| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok());
    Ok(counts.sum())
}

/// Counters of both pods that tell of trouble.
fn kernel_counters(lab: &Lab) -> Result<BTreeMap<String, u64>> {
    const NAMES: &[&str] = &[
        "RetransSegs",
        "OutRsts",
        "TCPAbortOnMemory",
        "TCPAbortOnData",
        "TCPAbortOnClose",
        "TCPAbortOnTimeout",
        "TCPRcvQDrop",
        "TCPBacklogDrop",
        "TCPZeroWindowDrop",
        "PruneCalled",
        "RcvPruned",
        "ListenOverflows",
        "TCPTimeouts",
    ];
    let mut sums = BTreeMap::new();
    for pod in [lab.client(), lab.server()] {
        let text = pod.within(|| {
            let read = |file: &str| std::fs::read_to_string(file).with_context(|| format!("read {file}"));
            Ok(read("/proc/thread-self/net/netstat")? + &read("/proc/thread-self/net/snmp")?)
        })?;
        let lines: Vec<&str> = text.lines().collect();
        for pair in lines.chunks(2).filter(|pair| pair.len() == 2) {
            for (name, value) in pair[0].split_whitespace().zip(pair[1].split_whitespace()) {
                if NAMES.contains(&name) {
                    *sums.entry(name.to_owned()).or_default() += value.parse().unwrap_or(0);
                }
            }
        }
    }
    Ok(sums)
}

fn print(report: &Report) {
    let line = |map: &BTreeMap<String, u64>| {
        map.iter().filter(|(_, n)| **n > 0).map(|(name, n)| format!("{name} {n}")).collect::<Vec<_>>().join(", ")
    };
    println!("seed          {}", report.seed);
    println!(
        "connections   {} in {:.1} s ({} with one end known)",
        report.connections, report.seconds, report.unfinished
    );
    println!("operations    {}", report.operations);
    println!("bytes checked {}", report.bytes_checked);
    println!(
        "fast path     {} messages, {} bytes ({:.0} % of the bytes), {} pairs, {} handoffs",
        report.fast_messages,
        report.fast_bytes,
        100.0 * report.fast_share,
        report.pairs,
        report.handoffs
    );
    println!("TCP path      {} messages, {} bytes (of paired sockets)", report.tcp_messages, report.tcp_bytes);
    println!("reasons       {}", line(&report.reasons));
    println!(
        "commands      {} attaches, {} detaches, {} not drained in time, {} others, {} killed; {} processes killed",
        report.attaches,
        report.detaches,
        report.detaches_not_drained,
        report.other_commands,
        report.commands_killed,
        report.processes_killed
    );
    println!(
        "leaves put off {} with a message in flight, {} with bytes unread",
        report.leave_in_flight, report.leave_unread
    );
    for (window, (passed, hit)) in report.held.iter().filter(|(_, (passed, _))| *passed > 0) {
        println!("held open     {window}: {passed} times, something came in between {hit} times");
    }
    println!("kernel        {}", line(&report.kernel));
    println!("longest stall {} ms", report.longest_stall_ms);
    println!(
        "blocking recv that said EAGAIN: {}",
        if report.again.is_empty() { "0".into() } else { line(&report.again) }
    );
    println!("resets        {}", line(&report.resets));
    println!("errors of send one call early, crossing a close: {}", report.early_errors);
    println!("resets lost behind dropped segments: {}", report.lost_resets);
    if let Some(memory) = &report.memory {
        println!("{memory}");
    }
    for failure in &report.failures {
        println!("FAILURE {failure}");
    }
    println!("failures      {}", report.failed);
}

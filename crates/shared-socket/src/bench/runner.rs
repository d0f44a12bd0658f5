//! Runs one measurement: two processes in two pods, by one path.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::accelerators::Accelerators;
use super::cgroups::{Cgroups, PREFIX, Pods, RUN, sweep};
use super::child::{Child, Seat};
use super::external::External;
use super::interrupt::Interrupt;
use super::matrix::{Case, Cell, Path, Placement, Size, Unit};
use super::peer::{Place, Report, Work};
use super::stats::Percentiles;
use super::watcher::{Watched, Watcher};
use crate::lab::Lab;

/// What one measurement gave: a rate is in bytes or in things a second.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// The p50 in microseconds, or the rate.
    pub value: f64,
    /// 90th percentile in microseconds.
    pub p90: Option<f64>,
    /// 99th percentile.
    pub p99: Option<f64>,
    /// 99.9th percentile.
    pub p999: Option<f64>,
    /// Messages by the fast path meanwhile.
    pub fast: u64,
    /// Messages of attached halves by TCP meanwhile.
    pub tcp: u64,
    /// Calls that said `EAGAIN` on a blocking socket.
    pub again: u64,
    /// Writes that said `ENOMEM`.
    pub nomem: u64,
    /// What was seen by who looked at the messages.
    pub watched: Watched,
}

impl Sample {
    /// Of latencies.
    pub fn latency(latency: Percentiles) -> Self {
        let Percentiles { p50, p90, p99, p999 } = latency;
        Self { value: p50, p90: Some(p90), p99: Some(p99), p999: Some(p999), ..Self::default() }
    }

    /// Of a rate.
    pub fn rate(value: f64) -> Self {
        Self { value, ..Self::default() }
    }

    /// Into the unit of its row.
    fn scaled(mut self, unit: Unit) -> Self {
        self.value *= match unit {
            Unit::Micros => 1.0,
            Unit::Gigabits => 8e-9,
            Unit::Thousands => 1e-3,
        };
        self
    }
}

/// All that measurements need. Its parts are taken down in the order of the fields.
#[derive(Debug)]
pub struct Runner {
    accelerators: Accelerators,
    cgroups: Cgroups,
    lab: Lab,
    sockets: TempDir,
    cpus: Vec<usize>,
    interrupt: Interrupt,
}

/// How long beyond its time a measurement may take before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(20);

impl Runner {
    /// Makes the namespaces and cgroups and loads what the cells need.
    pub fn new(cells: &[Cell], interrupt: &Interrupt) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!(
                "bench makes network namespaces and cgroups and loads BPF programs, which needs root; run it with sudo"
            );
        }
        let mount = datapath::cgroup2_mount().context("bench puts its processes into cgroups of their own")?;
        sweep(&mount);
        let cpus = allowed_cpus()?;
        if cpus.len() < 2 && cells.iter().any(|cell| cell.placement == Placement::TwoCore) {
            bail!("this process may use one CPU only ({cpus:?}); measure --placement one-core, or give it two CPUs");
        }
        let cgroups = Cgroups::new(&mount)?;
        let lab = Lab::new()?;
        if cells.iter().any(|cell| cell.case == Case::Nat) {
            lab.translate()?;
        }
        interrupt.check()?;
        let wants = |is: fn(Path) -> bool| cells.iter().any(|cell| cell.paths.iter().any(|path| is(*path)));
        let mut accelerators = Accelerators::default();
        if wants(Path::is_accelerated) {
            accelerators.attach_fast(&cgroups.fast)?;
        }
        if wants(|path| path == Path::Tuple) {
            accelerators.attach_tuple(&cgroups.tuple)?;
        }
        interrupt.check()?;
        let sockets = sockets()?;
        Ok(Self { accelerators, cgroups, lab, sockets, cpus, interrupt: interrupt.clone() })
    }

    /// Takes one measurement of `time`, in the unit of its row.
    pub fn measure(&mut self, cell: &Cell, path: Path, time: Duration) -> Result<Sample> {
        let before = self.accelerators.messages(path)?;
        let watcher = Watcher::start(path, self.accelerators.pin_dir())?;
        let mut sample = self.sample(cell, path, time)?.scaled(cell.case.unit(cell.size));
        if let (Some(before), Some(after)) = (before, self.accelerators.messages(path)?) {
            sample.fast = after.fast.saturating_sub(before.fast);
            sample.tcp = after.tcp.saturating_sub(before.tcp);
        }
        sample.watched = watcher.map(Watcher::end).transpose()?.unwrap_or_default();
        Ok(sample)
    }

    fn sample(&self, cell: &Cell, path: Path, time: Duration) -> Result<Sample> {
        let pods = match path {
            Path::Tcp | Path::Uds => &self.cgroups.plain,
            Path::Fast | Path::Captured | Path::Requests => &self.cgroups.fast,
            Path::Tuple => &self.cgroups.tuple,
        };
        let Pods { client, server } = pods;
        let server = if cell.case == Case::Remote { &self.cgroups.plain.server } else { server };
        let [first, second] = self.places_of(cell.placement)?;
        let client = Seat { namespace: self.lab.client(), cgroup: client, cpu: first };
        let server = Seat { namespace: self.lab.server(), cgroup: server, cpu: second };
        let external =
            External { client, server, address: self.lab.server_address(), time, interrupt: &self.interrupt };
        let latency = cell.case.unit(cell.size) == Unit::Micros;
        let work = match cell.case {
            Case::Sockperf => return external.sockperf(cell.size),
            Case::Redis => return external.redis(cell.size),
            Case::Crr => Work::Crr,
            _ if latency => Work::Pingpong,
            _ => Work::Flow,
        };
        let pair = Pair { client, server, work, size: cell.size, time };
        let place = match path {
            Path::Uds => Place::Unix(self.sockets.path().join("socket")),
            _ => Place::Tcp(SocketAddr::new(self.lab.server_address(), 0)),
        };
        let through = (cell.case == Case::Nat).then(|| self.lab.service_address());
        let report = self.run(&pair, &place, through)?;
        let mut sample = match (report.latency, report.rate) {
            (Some(latency), _) => Sample::latency(latency),
            (None, Some(rate)) => Sample::rate(rate),
            (None, None) => bail!("neither end measured anything"),
        };
        (sample.again, sample.nomem) = (report.again, report.nomem);
        Ok(sample)
    }

    /// Runs our own peers; the counts of both ends are added.
    fn run(&self, pair: &Pair<'_>, place: &Place, through: Option<std::net::IpAddr>) -> Result<Report> {
        let warm_up = (pair.time / 10).min(Duration::from_millis(200));
        if let Place::Unix(path) = place {
            remove_if_there(path)?;
        }
        let common = ["--work".to_owned(), name(pair.work), "--size".to_owned(), pair.size.to_string()];
        let with = |verb: &str, place: &str| -> Vec<String> {
            let words = [verb.to_owned(), "--place".to_owned(), place.to_owned()];
            words.into_iter().chain(common.iter().cloned()).collect()
        };
        let mut server = Child::start("server", pair.server, &with("serve", &place.to_string()), &self.interrupt)?;
        let mut place: Place = server.listening(PATIENCE)?.parse().map_err(|e: String| anyhow!(e))?;
        if let (Place::Tcp(address), Some(through)) = (&mut place, through) {
            address.set_ip(through);
        }
        let mut drive = with("drive", &place.to_string());
        for (option, time) in [("--warm-up", warm_up), ("--seconds", pair.time)] {
            drive.extend([option.to_owned(), time.as_secs_f64().to_string()]);
        }
        let mut client = Child::start("client", pair.client, &drive, &self.interrupt)?;
        let timeout = PATIENCE + warm_up + pair.time;
        let mut report = client.report(timeout)?;
        if pair.work != Work::Crr {
            // That of connect-request-close listens until it is killed.
            let other = server.report(timeout)?;
            report.latency = report.latency.or(other.latency);
            report.rate = report.rate.or(other.rate);
            report.again += other.again;
            report.nomem += other.nomem;
        }
        Ok(report)
    }

    fn places_of(&self, placement: Placement) -> Result<[usize; 2]> {
        match (placement, self.cpus.as_slice()) {
            (Placement::OneCore, [first, ..]) => Ok([*first, *first]),
            (Placement::TwoCore, [first, second, ..]) => Ok([*first, *second]),
            _ => bail!("not enough CPUs for {placement}"),
        }
    }
}

/// Two of our own peers and what they do.
struct Pair<'a> {
    client: Seat<'a>,
    server: Seat<'a>,
    work: Work,
    size: Size,
    time: Duration,
}

fn name(work: Work) -> String {
    clap::ValueEnum::to_possible_value(&work).map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn remove_if_there(path: &std::path::Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// A directory for Unix sockets, where root alone can write, so that the sweep is safe.
fn sockets() -> Result<TempDir> {
    let run = std::path::Path::new(RUN);
    sweep(run);
    let name = format!("{PREFIX}{}", std::process::id());
    let directory = tempfile::Builder::new().prefix(&name).rand_bytes(0).tempdir_in(run);
    directory.context("cannot make a directory for Unix sockets in /run; is it there and writable?")
}

/// The CPUs this process may use, in order.
fn allowed_cpus() -> Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0)).context("sched_getaffinity")?;
    Ok((0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect())
}

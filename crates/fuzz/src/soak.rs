//! The kernel's memory under connections that come and go: samples, and whether they grow.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::Serialize;
use shared_socket::lab::Lab;

use crate::control::Control;

/// One look.
#[derive(Clone, Debug, Serialize)]
struct Sample {
    seconds: f64,
    connections: u64,
    /// /proc/meminfo, KiB.
    slab: u64,
    unreclaimable: u64,
    percpu: u64,
    /// Sockets of TCP in the two pods, and pages that they hold.
    sockets: u64,
    time_wait: u64,
    pages: u64,
    /// Records in the maps.
    halves: u64,
    handshakes: u64,
}

/// Samples under way.
pub struct Watch<'a> {
    lab: &'a Lab,
    began: Instant,
    next: Instant,
    samples: Vec<Sample>,
}

/// What came of them.
#[derive(Debug, Serialize)]
pub struct Memory {
    samples: Vec<Sample>,
    /// KiB of slab that cannot be reclaimed, a thousand connections; least squares over the second half.
    slope: f64,
    /// Growth over the second half in KiB, by the same line.
    growth: f64,
}

const EVERY: Duration = Duration::from_secs(5);

impl<'a> Watch<'a> {
    /// Begins.
    pub fn new(lab: &'a Lab) -> Self {
        Self { lab, began: Instant::now(), next: Instant::now(), samples: Vec::new() }
    }

    /// Takes a sample when it is time.
    pub fn look(&mut self, connections: u64, control: &Control) -> Result<()> {
        if Instant::now() < self.next {
            return Ok(());
        }
        self.next = Instant::now() + EVERY;
        let meminfo = std::fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
        let field = |name: &str| {
            meminfo
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
                .unwrap_or(0)
        };
        let (mut sockets, mut time_wait, mut pages) = (0, 0, 0);
        for (number, pod) in [self.lab.client(), self.lab.server()].into_iter().enumerate() {
            let text = pod.within(|| {
                std::fs::read_to_string("/proc/thread-self/net/sockstat").context("read /proc/thread-self/net/sockstat")
            })?;
            let words: Vec<&str> =
                text.lines().find_map(|line| line.strip_prefix("TCP:")).unwrap_or("").split_whitespace().collect();
            let value = |name: &str| {
                words.chunks(2).find(|pair| pair[0] == name).and_then(|pair| pair.get(1)?.parse().ok()).unwrap_or(0u64)
            };
            sockets += value("inuse");
            time_wait += value("tw");
            if number == 0 {
                pages = value("mem"); // one number for the whole machine
            }
        }
        let totals = control.status()?["totals"].take();
        let total = |name: &str| totals[name].as_u64().unwrap_or(0);
        let sample = Sample {
            seconds: self.began.elapsed().as_secs_f64(),
            connections,
            slab: field("Slab"),
            unreclaimable: field("SUnreclaim"),
            percpu: field("Percpu"),
            sockets,
            time_wait,
            pages,
            halves: total("halves"),
            handshakes: total("published") + total("announced"),
        };
        eprintln!("{}", serde_json::to_string(&sample)?);
        self.samples.push(sample);
        Ok(())
    }

    /// The line through the second half.
    pub fn verdict(self) -> Result<Memory> {
        let late = &self.samples[self.samples.len() / 2..];
        let count = late.len() as f64;
        let mean = |of: &dyn Fn(&Sample) -> f64| late.iter().map(of).sum::<f64>() / count.max(1.0);
        let x = |sample: &Sample| sample.connections as f64 / 1000.0;
        let y = |sample: &Sample| sample.unreclaimable as f64;
        let (mx, my) = (mean(&x), mean(&y));
        let over: f64 = late.iter().map(|s| (x(s) - mx) * (y(s) - my)).sum();
        let under: f64 = late.iter().map(|s| (x(s) - mx).powi(2)).sum();
        let slope = if under > 0.0 { over / under } else { 0.0 };
        let span = late.last().map_or(0.0, x) - late.first().map_or(0.0, x);
        Ok(Memory { slope, growth: slope * span, samples: self.samples })
    }
}

impl Memory {
    /// Why this is not flat. A connection has two sockets and two records, about 8 KiB: one leaked in a hundred is 80 KiB
    /// a thousand. What other processes of the machine do stays below 32 MiB.
    pub fn grows(&self) -> Option<String> {
        let leaks = self.slope > 80.0 && self.growth > 32.0 * 1024.0;
        let worst = self.samples.iter().map(|sample| sample.halves).max().unwrap_or(0);
        if leaks {
            return Some(format!("{:.1} KiB a thousand connections, {:.0} KiB in all", self.slope, self.growth));
        }
        (worst > 20_000).then(|| format!("{worst} records in the maps: halves are not taken away"))
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "   seconds  connections  slab KiB  unreclaim  per-CPU  sockets  TIME_WAIT  pages  halves  handshakes"
        )?;
        let step = self.samples.len().div_ceil(12).max(1);
        for sample in self.samples.iter().step_by(step) {
            writeln!(
                f,
                "{:>10.0} {:>12} {:>9} {:>10} {:>8} {:>8} {:>10} {:>6} {:>7} {:>11}",
                sample.seconds,
                sample.connections,
                sample.slab,
                sample.unreclaimable,
                sample.percpu,
                sample.sockets,
                sample.time_wait,
                sample.pages,
                sample.halves,
                sample.handshakes
            )?;
        }
        write!(
            f,
            "memory        {:+.2} KiB of unreclaimable slab a thousand connections over the second half ({:+.0} KiB in all)",
            self.slope, self.growth
        )
    }
}

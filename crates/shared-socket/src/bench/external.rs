//! Other people's benchmarks, when they are installed: sockperf and redis-benchmark.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};

use super::child::{Child, Seat};
use super::interrupt::Interrupt;
use super::matrix::{Case, Size, Unit};
use super::runner::Sample;
use super::stats::Percentiles;

/// sockperf's own default.
const SOCKPERF_PORT: u16 = 11111;
/// Redis's own default.
const REDIS_PORT: u16 = 6379;
/// For a server to begin to listen, and for a client to end after its time.
const PATIENCE: Duration = Duration::from_secs(20);

/// The programs that a case needs, with the Debian package of each.
pub fn programs(case: Case) -> &'static [(&'static str, &'static str)] {
    match case {
        Case::Sockperf => &[("sockperf", "sockperf")],
        Case::Redis => &[("redis-server", "redis-server"), ("redis-benchmark", "redis-tools")],
        _ => &[],
    }
}

/// The first program of the case that is not installed, with its package.
pub fn missing(case: Case) -> Option<(&'static str, &'static str)> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = |program: &str| std::env::split_paths(&path).any(|directory| directory.join(program).is_file());
    programs(case).iter().copied().find(|(program, _)| !installed(program))
}

/// One measurement by another program.
#[derive(Clone, Copy, Debug)]
pub struct External<'a> {
    /// Where the client runs.
    pub client: Seat<'a>,
    /// Where the server runs.
    pub server: Seat<'a>,
    /// The server's address.
    pub address: IpAddr,
    /// For how long (sockperf takes whole seconds).
    pub time: Duration,
    /// What may stop it.
    pub interrupt: &'a Interrupt,
}

impl External<'_> {
    /// Runs sockperf: ping-pong for 64 bytes, throughput otherwise. Its throughput is what the sender sent.
    pub fn sockperf(&self, size: Size) -> Result<Sample> {
        let seconds = self.time.as_secs_f64().ceil().max(1.0);
        let address = self.address.to_string();
        let port = SOCKPERF_PORT.to_string();
        let mut server = self.server(&["sockperf", "server", "--tcp", "-i", &address, "-p", &port])?;
        server.wait_for_port(SOCKPERF_PORT, PATIENCE)?;
        let latency = Case::Sockperf.unit(size) == Unit::Micros;
        let (verb, size, time) =
            (if latency { "ping-pong" } else { "throughput" }, size.to_string(), seconds.to_string());
        let text =
            self.client(&["sockperf", verb, "--tcp", "-i", &address, "-p", &port, "-m", &size, "-t", &time], seconds)?;
        match latency {
            true => sockperf_latency(&text).map(Sample::latency),
            false => sockperf_rate(&text).map(Sample::rate),
        }
        .with_context(|| format!("sockperf {verb} printed:\n{text}"))
    }

    /// Runs redis-benchmark GET with this many connections.
    pub fn redis(&self, connections: Size) -> Result<Sample> {
        let address = self.address.to_string();
        let port = REDIS_PORT.to_string();
        #[rustfmt::skip]
        let mut server = self.server(&[
            "redis-server", "--bind", &address, "--port", &port, "--protected-mode", "no", "--save", "",
            "--appendonly", "no", "--daemonize", "no",
        ])?;
        server.wait_for_port(REDIS_PORT, PATIENCE)?;
        // It wants a number of requests, not a time: about as many as TCP does in that time.
        let per_second = if connections == 1 { 8_000.0 } else { 40_000.0 };
        let seconds = self.time.as_secs_f64();
        let requests = format!("{:.0}", (per_second * seconds).max(1_000.0));
        let connections = connections.to_string();
        #[rustfmt::skip]
        let text = self.client(&[
            "redis-benchmark", "-h", &address, "-p", &port, "-c", &connections, "-n", &requests, "-t", "get", "--csv",
        ], seconds * 5.0)?;
        redis_rate(&text).with_context(|| format!("redis-benchmark printed:\n{text}"))
    }

    fn server(&self, command: &[&str]) -> Result<Child> {
        Child::start(command[0], self.server, &exec(command), self.interrupt)
    }

    fn client(&self, command: &[&str], seconds: f64) -> Result<String> {
        let mut child = Child::start(command[0], self.client, &exec(command), self.interrupt)?;
        child.output(PATIENCE + Duration::from_secs_f64(seconds))
    }
}

/// The arguments of `bench-peer` that run a command in its place.
fn exec(command: &[&str]) -> Vec<String> {
    ["exec", "--"].iter().chain(command).map(|word| (*word).to_owned()).collect()
}

/// Reads `---> percentile 99.900 =   12.345` lines. sockperf's latency is half a round trip.
fn sockperf_latency(text: &str) -> Result<Percentiles> {
    let at = |name: &str| -> Result<f64> {
        let value = text.lines().find_map(|line| line.split_once(&format!("percentile {name}"))?.1.split_once('='));
        let (_, value) = value.ok_or_else(|| anyhow!("no percentile {name}"))?;
        value.trim().parse().with_context(|| format!("percentile {name} is {value:?}"))
    };
    Ok(Percentiles { p50: at("50.000")?, p90: at("90.000")?, p99: at("99.000")?, p999: at("99.900")? })
}

/// Reads `BandWidth is 127.300 MBps (1018.400 Mbps)`; its MBps are of 2^20 bytes, and so are its Mbps. Bytes a second.
fn sockperf_rate(text: &str) -> Result<f64> {
    let words: Vec<&str> =
        text.split_once("BandWidth is").map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
    match words.as_slice() {
        [number, "MBps", ..] => {
            let mebibytes: f64 = number.parse().with_context(|| format!("the bandwidth is {number:?}"))?;
            Ok(mebibytes * f64::from(1 << 20))
        }
        _ => bail!("no line \"BandWidth is ... MBps\""),
    }
}

/// Reads `"GET","48000.00",avg,min,p50,p95,p99,max` (milliseconds). Older versions stop after the rate.
fn redis_rate(text: &str) -> Result<Sample> {
    let line = text.lines().find(|line| line.starts_with("\"GET\"")).ok_or_else(|| anyhow!("no line \"GET\""))?;
    let fields: Vec<f64> = line.split(',').skip(1).filter_map(|field| field.trim_matches('"').parse().ok()).collect();
    let rate = *fields.first().ok_or_else(|| anyhow!("no rate in {line:?}"))?;
    let mut sample = Sample::rate(rate);
    sample.p99 = fields.get(5).map(|milliseconds| milliseconds * 1000.0);
    Ok(sample)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockperf_percentiles() {
        let text = "sockperf: ---> <MAX> observation =  250.000\n\
                    sockperf: ---> percentile 99.999 =  200.000\n\
                    sockperf: ---> percentile 99.990 =  100.000\n\
                    sockperf: ---> percentile 99.900 =   30.514\n\
                    sockperf: ---> percentile 99.000 =   20.250\n\
                    sockperf: ---> percentile 90.000 =   15.000\n\
                    sockperf: ---> percentile 75.000 =   12.000\n\
                    sockperf: ---> percentile 50.000 =   11.117\n";
        let got = sockperf_latency(text).unwrap();
        assert_eq!(got, Percentiles { p50: 11.117, p90: 15.0, p99: 20.25, p999: 30.514 });
        assert!(sockperf_latency("sockperf: ERROR").unwrap_err().to_string().contains("no percentile 50.000"));
    }

    #[test]
    fn sockperf_bandwidth() {
        let text = "sockperf: Summary: Message Rate is 130355 [msg/sec]\nsockperf: Summary: BandWidth is 127.000 MBps (1016.000 Mbps)\n";
        assert_eq!(sockperf_rate(text).unwrap(), 127.0 * 1048576.0);
        assert!(sockperf_rate("nothing").is_err());
    }

    #[test]
    fn redis_csv_of_old_and_new_versions() {
        let new = "\"test\",\"rps\",\"avg_latency_ms\"\n\"GET\",\"48000.00\",\"0.9\",\"0.1\",\"0.8\",\"1.2\",\"1.5\",\"3.0\"\n";
        let sample = redis_rate(new).unwrap();
        assert_eq!((sample.value, sample.p99), (48000.0, Some(1500.0)));
        assert_eq!(redis_rate("\"GET\",\"6900.00\"\n").unwrap().value, 6900.0);
        assert!(redis_rate("Could not connect").is_err());
    }
}

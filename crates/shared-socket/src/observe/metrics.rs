//! What Prometheus scrapes: read from the maps when it asks, in the OpenMetrics text format.
//!
//! Counters are those of the datapath that is pinned; they start again at 0 when it is removed or a new generation takes
//! over, which is how a counter may behave.

use std::fmt;
use std::path::{Path, PathBuf};

use datapath::{Budget, Datapath, Totals};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

/// The media type of [`scrape`]'s answer.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// One look at the datapath.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    totals: Totals,
    budget: Budget,
    attached: u64,
    draining: u64,
    generations: u64,
    max_halves: u64,
}

impl Reading {
    /// Of what is pinned; all zeros when nothing is.
    pub fn take(pin_dir: &Path) -> datapath::Result<Self> {
        let Some(datapath) = Datapath::read(pin_dir)? else { return Ok(Self::default()) };
        let workloads = datapath.workloads()?;
        let draining = workloads.iter().filter(|w| w.draining).count() as u64;
        Ok(Self {
            totals: datapath.totals()?,
            budget: datapath.budget()?,
            attached: workloads.len() as u64 - draining,
            draining,
            generations: datapath.generations()?.len() as u64,
            max_halves: datapath.max_halves()?,
        })
    }
}

/// What the agent knows besides.
#[derive(Debug, Clone, Default)]
pub struct Agent {
    /// All that shall be attached is, and every runtime answers.
    pub ready: bool,
    /// The file on the disk is in force.
    pub config_good: bool,
    /// Rounds so far.
    pub rounds: u64,
    /// Workloads that shall be attached.
    pub wanted: u64,
    /// Of these, those that cannot or could not be.
    pub failed: u64,
}

#[derive(Debug)]
struct Scrape {
    pin_dir: PathBuf,
    agent: Agent,
}

struct Families<'a>(DescriptorEncoder<'a>);

type Labelled<'a> = [([(&'static str, &'a str); 1], u64)];

impl Families<'_> {
    fn gauge(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: u64) -> fmt::Result {
        let encoder = self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(encoder)
    }

    fn gauges(&mut self, name: &str, help: &str, unit: Option<&Unit>, values: &Labelled<'_>) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for (labels, value) in values {
            ConstGauge::new(i64::try_from(*value).unwrap_or(i64::MAX)).encode(encoder.encode_family(labels)?)?;
        }
        Ok(())
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let encoder = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(encoder)
    }

    fn counters(&mut self, name: &str, help: &str, unit: Option<&Unit>, values: &Labelled<'_>) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, unit, MetricType::Counter)?;
        for (labels, value) in values {
            ConstCounter::new(*value).encode(encoder.encode_family(labels)?)?;
        }
        Ok(())
    }

    fn of_agent(&mut self, agent: &Agent, read: bool) -> fmt::Result {
        self.gauge(
            "agent_ready",
            "1 when all that shall be attached is, and every runtime answers",
            None,
            agent.ready.into(),
        )?;
        self.gauge("agent_config_good", "1 when the file on the disk is in force", None, agent.config_good.into())?;
        self.counter("agent_rounds", "Rounds of the agent", agent.rounds)?;
        self.gauge("agent_wanted_workloads", "Workloads that shall be attached", None, agent.wanted)?;
        self.gauge("agent_failed_workloads", "Workloads that shall be attached and cannot be", None, agent.failed)?;
        self.gauge("datapath_readable", "1 when what is pinned could be read for this scrape", None, read.into())
    }

    fn of_datapath(&mut self, r: &Reading) -> fmt::Result {
        let (t, b) = (&r.totals, &r.budget);
        let path = |fast, tcp| [([("path", "fast")], fast), ([("path", "tcp")], tcp)];
        let bytes = Some(&Unit::Bytes);
        let states = [([("state", "attached")], r.attached), ([("state", "draining")], r.draining)];
        self.gauges("workloads", "Cgroups that are attached", None, &states)?;
        self.gauge("generations", "Generations of programs and maps that are pinned", None, r.generations)?;
        self.gauge("pairs_live", "Connections with both ends in the sockhash", None, t.pairs_live)?;
        self.counter("pairs", "Connections that were paired", t.pairs_total)?;
        self.counter(
            "adopted_pairs",
            "Of these, connections that existed before their workload was attached",
            t.adopted,
        )?;
        let messages = path(t.fast_messages, t.tcp_messages);
        self.counters("messages", "Messages of paired sockets, by the path that they took", None, &messages)?;
        let sent = path(t.fast_bytes, t.tcp_bytes);
        self.counters("sent", "Bytes of paired sockets, by the path that they took", bytes, &sent)?;
        let reasons: Vec<_> = t.reasons.iter().map(|(name, n)| ([("reason", name.as_str())], *n)).collect();
        self.counters(
            "reasons",
            "Messages and connections by reason; `fast` are those on the fast path",
            None,
            &reasons,
        )?;
        self.counter("handoffs", "Changes from the TCP path to the fast path", t.handoffs)?;
        self.counter("left_halves", "Halves taken out of the sockhash by the leave protocol", t.left)?;
        self.counter(
            "stuck_halves",
            "Halves that were found stuck: bytes unread that their application cannot see",
            t.stuck,
        )?;
        self.counter("reset_connections", "Connections that were reset, as they stayed stuck", t.reset)?;
        self.counter("refused_options", "Socket options that would have hidden unread bytes", t.refused_options)?;
        let limits = [([("scope", "peer")], b.peer_bytes), ([("scope", "all")], b.total_bytes)];
        self.gauges("budget", "Bytes that may be queued, to one peer and to all", bytes, &limits)?;
        let used = [([("scope", "peer")], b.peer_reserved_bytes), ([("scope", "all")], b.total_reserved_bytes)];
        self.gauges("reserved", "Bytes that are reserved in queues: of the fullest peer, and of all", bytes, &used)?;
        let fill = [([("map", "halves")], t.halves), ([("map", "handshakes")], t.published + t.announced)];
        self.gauges("map_entries", "Entries of the maps", None, &fill)?;
        self.gauges("map_max_entries", "Room in the maps", None, &[([("map", "halves")], r.max_halves)])
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let reading =
            Reading::take(&self.pin_dir).inspect_err(|e| tracing::warn!("a scrape could not read the maps: {e}"));
        let mut families = Families(encoder);
        families.of_agent(&self.agent, reading.is_ok())?;
        reading.map_or(Ok(()), |r| families.of_datapath(&r))
    }
}

/// The text for one scrape.
pub fn scrape(pin_dir: &Path, agent: Agent) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("shared_socket");
    registry.register_collector(Box::new(Scrape { pin_dir: pin_dir.to_path_buf(), agent }));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_pinned() {
        let folder = tempfile::tempdir().unwrap();
        let agent = Agent { ready: true, config_good: true, rounds: 3, wanted: 2, failed: 0 };
        insta::assert_snapshot!(scrape(&folder.path().join("none"), agent).unwrap());
    }
}

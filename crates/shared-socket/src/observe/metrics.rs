//! What Prometheus scrapes: read from the maps when it asks, in the OpenMetrics text format.
//!
//! Counters are those of the datapath that is pinned; they start again at 0 when it is removed or a new generation takes
//! over, which is how a counter may behave. Every family is one of [`FAMILIES`], from which docs/metrics.md is made.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use datapath::{Budget, Counters, Datapath, Flow, Histogram, JournalLoss, ProgramCost, SLOTS, Totals};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::names::{Name, Names};
use super::requests::Row;

/// The media type of [`Metrics::scrape`]'s answer.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

const PREFIX: &str = "shared_socket";

/// A family of metrics.
struct Family {
    name: &'static str,
    kind: MetricType,
    unit: Option<Unit>,
    labels: &'static [&'static str],
    help: &'static str,
}

type LabelNames = &'static [&'static str];

const fn gauge(name: &'static str, labels: LabelNames, help: &'static str) -> Family {
    Family { name, kind: MetricType::Gauge, unit: None, labels, help }
}

const fn counter(name: &'static str, labels: LabelNames, help: &'static str) -> Family {
    Family { name, kind: MetricType::Counter, unit: None, labels, help }
}

const fn measured(kind: MetricType, name: &'static str, unit: Unit, labels: LabelNames, help: &'static str) -> Family {
    Family { name, kind, unit: Some(unit), labels, help }
}

macro_rules! flow_labels {
    ($($more:literal),*) => {
        &[
            "client_namespace",
            "client_pod",
            "client_container",
            "server_namespace",
            "server_pod",
            "server_container",
            $($more),*
        ]
    };
}

macro_rules! families {
    ($($id:ident = $family:expr;)*) => {
        $(static $id: Family = $family;)*
        /// All of them, in the order in which they are written.
        static FAMILIES: &[&Family] = &[$(&$id),*];
    };
}

families! {
    AGENT_READY = gauge("agent_ready", &[], "1 when all that shall be attached is, and every runtime answers");
    AGENT_CONFIG_GOOD = gauge("agent_config_good", &[], "1 when the file on the disk is in force, and those of endpoints.tls are");
    AGENT_ROUNDS = counter("agent_rounds", &[], "Rounds of the agent");
    AGENT_WANTED = gauge("agent_wanted_workloads", &[], "Workloads that shall be attached");
    AGENT_FAILED = gauge("agent_failed_workloads", &[], "Workloads that shall be attached and cannot be");
    DATAPATH_READABLE = gauge("datapath_readable", &[], "1 when what is pinned could be read for this scrape");
    WORKLOADS = gauge("workloads", &["state"], "Cgroups that are attached; state: attached, draining");
    GENERATIONS = gauge("generations", &[], "Generations of programs and maps that are pinned");
    PAIRS_LIVE = gauge("pairs_live", &[], "Connections with both ends in the sockhash");
    PAIRS = counter("pairs", &[], "Connections that were paired");
    ADOPTED = counter(
        "adopted_pairs", &[],
        "Of these, connections that existed before their workload was attached"
    );
    MESSAGES = counter("messages", &["path"], "Messages of paired sockets, by the path that they took: fast, tcp");
    SENT = measured(MetricType::Counter, "sent", Unit::Bytes, &["path"], "Bytes of paired sockets, by the path that they took: fast, tcp");
    FAST_RATIO = gauge("fast_messages_ratio", &[], "Part of all messages of paired sockets that took the fast path, since load");
    REASONS = counter("reasons", &["reason"], "Messages and connections by reason; `fast` are those on the fast path");
    HANDOFFS = counter("handoffs", &[], "Changes from the TCP path to the fast path");
    LEFT = counter("left_halves", &[], "Halves taken out of the sockhash by the leave protocol");
    STUCK = counter("stuck_halves", &[], "Halves that were found stuck: bytes unread that their application cannot see");
    RESET = counter("reset_connections", &[], "Connections that were reset, as they stayed stuck");
    REFUSED = counter("refused_options", &[], "Socket options that would have hidden unread bytes");
    BUDGET = measured(MetricType::Gauge, "budget", Unit::Bytes, &["scope"], "Bytes that may be queued; scope: peer (to one), all");
    RESERVED = measured(
        MetricType::Gauge, "reserved", Unit::Bytes, &["scope"],
        "Bytes that are reserved in queues; scope: peer (the fullest), all"
    );
    MAP_ENTRIES = gauge("map_entries", &["map"], "Entries of the maps; map: halves, handshakes, flows");
    MAP_MAX_ENTRIES = gauge("map_max_entries", &["map"], "Room in the maps; map: halves, flows");
    JOURNAL_WRITTEN = counter("journal_events", &[], "Events that were written to the journal (shared-socket events)");
    JOURNAL_LOST = counter("journal_lost_events", &[], "Events that could not be written to the journal");
    JOURNAL_SUPPRESSED = counter(
        "journal_suppressed_events", &["kind"],
        "Events that came too fast to be written to the journal, by their kind"
    );
    VERDICTS = measured(
        MetricType::Histogram, "verdict_duration", Unit::Seconds, &[],
        "How long the verdict on a message takes, of one message in 256 of each half. The sum is estimated from the buckets"
    );
    PROGRAM_RUNS = counter(
        "program_runs", &["program"],
        "How often each program of the kernel half ran; only where kernel.bpf_stats_enabled is set. The verdict counts as \
         shared_socket_stub"
    );
    PROGRAM_SECONDS = measured(MetricType::Counter, "program_run", Unit::Seconds, &["program"], "And how long, in all; likewise");
    FLOW_PAIRS_LIVE = gauge("flow_pairs_live", flow_labels!(), "Connections between two workloads with both ends in the sockhash");
    FLOW_PAIRS = counter("flow_pairs", flow_labels!(), "Connections between two workloads that were paired");
    FLOW_ADOPTED = counter(
        "flow_adopted_pairs", flow_labels!(),
        "Of these, connections that existed before their workload was attached"
    );
    FLOW_MESSAGES = counter(
        "flow_messages", flow_labels!("sender", "path"),
        "Messages between two workloads; sender: client, server; path: fast, tcp"
    );
    FLOW_SENT = measured(
        MetricType::Counter, "flow_sent", Unit::Bytes, flow_labels!("sender", "path"),
        "Bytes between two workloads; sender: client, server; path: fast, tcp"
    );
    FLOW_HANDOFFS = counter("flow_handoffs", flow_labels!(), "Changes from the TCP path to the fast path between two workloads");
    FLOW_LEFT = counter("flow_left_halves", flow_labels!(), "Halves taken out of the sockhash by the leave protocol");
    FLOW_SIZES = measured(
        MetricType::Histogram, "flow_message_size", Unit::Bytes, flow_labels!(),
        "Messages between two workloads by their size, both ways and both paths"
    );
    FLOW_WAITS = measured(
        MetricType::Histogram, "flow_message_wait", Unit::Seconds, flow_labels!(),
        "How long sampled messages of the fast path waited for their reader. The sum is estimated from the buckets"
    );
    FLOW_DURATIONS = measured(
        MetricType::Histogram, "flow_connection_duration", Unit::Seconds, flow_labels!(),
        "How long connections lasted that are gone"
    );
    FLOW_STARTS = measured(
        MetricType::Histogram, "flow_time_to_handoff", Unit::Seconds, flow_labels!(),
        "How long the ends that became fast took for it, from being established (or adopted). The sum is estimated from the buckets"
    );
    REQUESTS = counter(
        "requests", flow_labels!("protocol", "status"),
        "Requests that were answered, while the agent looks (requests.enabled); protocol: http1, redis; status: 2xx to 5xx, ok, error"
    );
    REQUEST_DURATIONS = measured(
        MetricType::Histogram, "request_duration", Unit::Seconds, flow_labels!("protocol"),
        "From the first byte of a request to the first byte of its answer, both as they are sent"
    );
    REQUESTS_LOST = counter("lost_requests", &[], "Requests whose answers could not be found");
    TAP_LOST = counter("tap_lost_pieces", &[], "Pieces of messages that the agent did not come to look at in time");
}

/// One look at the datapath.
#[derive(Debug, Clone, Default)]
struct Reading {
    totals: Totals,
    budget: Budget,
    flows: Vec<Flow>,
    attached: u64,
    draining: u64,
    generations: u64,
    max_halves: u64,
    flow_room: (u64, u64),
    journal: JournalLoss,
    costs: Option<Vec<ProgramCost>>,
}

impl Reading {
    /// Of what is pinned; all zeros when nothing is.
    fn take(pin_dir: &Path) -> datapath::Result<Self> {
        Ok(Datapath::reading(pin_dir, |d| Self::of(&d))?.unwrap_or_default())
    }

    fn of(datapath: &Datapath) -> datapath::Result<Self> {
        let workloads = datapath.workloads()?;
        let draining = workloads.iter().filter(|w| w.draining).count() as u64;
        let counts = datapath.counts()?;
        Ok(Self {
            totals: counts.totals,
            budget: counts.budget,
            flows: counts.flows,
            attached: workloads.len() as u64 - draining,
            draining,
            generations: datapath.generation_count(),
            max_halves: datapath.max_halves()?,
            flow_room: datapath.flow_room()?,
            journal: datapath.journal_loss()?,
            costs: datapath.program_costs(),
        })
    }
}

/// What the agent knows besides.
#[derive(Debug, Clone, Default)]
pub struct Agent {
    /// All that shall be attached is, and every runtime answers.
    pub ready: bool,
    /// The file on the disk is in force, and those of `endpoints.tls` are.
    pub config_good: bool,
    /// Rounds so far.
    pub rounds: u64,
    /// Workloads that shall be attached.
    pub wanted: u64,
    /// Of these, those that cannot or could not be.
    pub failed: u64,
    /// Whose the cgroups are.
    pub names: Arc<Names>,
    /// Pairs of workloads that have labels of their own; the others are summed as `other`.
    pub max_flows: usize,
    /// What was seen of requests, if the agent looks.
    pub requests: Requests,
}

/// What was seen of requests.
#[derive(Debug, Clone, Default)]
pub struct Requests {
    /// By client, server and protocol, with the ends' names.
    pub rows: Vec<(Name, Name, Row)>,
    /// Requests whose answers could not be found.
    pub lost: u64,
    /// Pieces of messages that were lost.
    pub lost_pieces: u64,
}

/// An end of a flow, as its labels name it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Who {
    namespace: String,
    pod: String,
    container: String,
}

impl From<&Name> for Who {
    fn from(name: &Name) -> Self {
        match (&name.pod, &name.container) {
            (Some(pod), container) => Self {
                namespace: name.namespace.clone().unwrap_or_default(),
                pod: pod.clone(),
                container: container.clone().unwrap_or_default(),
            },
            (None, Some(container)) => Self::only(container),
            (None, None) if name.name.ends_with("(gone)") => Self::only("gone"),
            (None, None) => Self::only(&name.name),
        }
    }
}

impl Who {
    fn only(container: &str) -> Self {
        Self { namespace: String::new(), pod: String::new(), container: container.to_owned() }
    }
}

type Ends = (Who, Who);

/// What must not change from scrape to scrape: a series that comes and goes looks like a counter that was reset.
#[derive(Debug, Default)]
struct Memory {
    /// Names are kept when their cgroups are gone, as what was counted is.
    who: HashMap<u64, Who>,
    /// Of these, cgroups that no runtime has told of: one may yet.
    by_path: BTreeSet<u64>,
    /// Flows that have labels of their own.
    chosen: BTreeSet<Ends>,
}

impl Memory {
    /// Names of the cgroups that are not known yet, of which `names` may tell. The cgroups' folder is walked once for each.
    fn learn(&mut self, flows: &[Flow], names: &Names) {
        let ids = flows.iter().flat_map(|f| [f.client, f.server]).filter(|id| !matches!(*id, 0 | u64::MAX));
        let unknown: BTreeSet<u64> = ids.filter(|id| !self.who.contains_key(id)).collect();
        self.name(names, &self.by_path.clone());
        if !unknown.is_empty() {
            self.name(&names.clone().with_paths(unknown.iter().copied()), &unknown);
        }
    }

    fn name(&mut self, names: &Names, ids: &BTreeSet<u64>) {
        for id in ids {
            let name = names.of(*id, *id);
            let is_told = name.pod.is_some() || name.container.is_some();
            if !is_told && self.who.contains_key(id) {
                continue;
            }
            let who = Who::from(&name);
            if is_told {
                self.by_path.remove(id);
            } else {
                self.by_path.insert(*id);
            }
            self.who.insert(*id, who);
        }
    }

    fn ends(&self, flow: &Flow) -> Ends {
        let other = || Who::only("other");
        if flow.is_other() {
            return (other(), other());
        }
        let who = |id: u64| if id == 0 { Who::only("none") } else { self.who.get(&id).cloned().unwrap_or_else(other) };
        (who(flow.client), who(flow.server))
    }

    /// Sums by names: the containers of a pod that was made anew are its own again. The `most` that carry the most bytes have
    /// labels of their own. Who has them keeps them until another carries twice as much.
    fn sums(&mut self, flows: &[Flow], most: usize) -> BTreeMap<Ends, Flow> {
        let mut sums: BTreeMap<Ends, Flow> = BTreeMap::new();
        for flow in flows {
            *sums.entry(self.ends(flow)).or_default() += flow;
        }
        let others = (Who::only("other"), Who::only("other"));
        self.chosen.retain(|ends| sums.contains_key(ends));
        while self.chosen.len() > most {
            self.chosen.pop_last();
        }
        let mut rest: Vec<(&Ends, u64)> =
            sums.iter().filter(|(ends, _)| !self.chosen.contains(*ends)).map(|(ends, f)| (ends, f.bytes())).collect();
        rest.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        for (ends, bytes) in rest.into_iter().filter(|(ends, _)| **ends != others) {
            if self.chosen.len() < most {
                self.chosen.insert(ends.clone());
                continue;
            }
            let least = self.chosen.iter().min_by_key(|ends| sums[*ends].bytes()).cloned();
            let Some(least) = least.filter(|least| bytes / 2 > sums[least].bytes()) else { break };
            self.chosen.remove(&least);
            self.chosen.insert(ends.clone());
        }
        let mut told = BTreeMap::new();
        for (ends, flow) in sums {
            let place = if self.chosen.contains(&ends) { ends } else { others.clone() };
            *told.entry(place).or_insert_with(Flow::default) += &flow;
        }
        told
    }
}

/// The upper bounds of a histogram's buckets, as the last slot of each and its bound.
fn bounds(first: usize, last: usize, bound: impl Fn(usize) -> f64) -> Vec<(usize, f64)> {
    (first..=last).step_by(2).map(|slot| (slot, bound(slot))).collect()
}

/// 63 B, 255 B ... 1 MiB - 1: slot n holds what is below 2^(n+1).
fn size_bounds() -> Vec<(usize, f64)> {
    bounds(5, 19, |slot| (1u64 << (slot + 1)) as f64 - 1.0)
}

/// About 1 us, 4 us ... 1 s.
fn wait_bounds() -> Vec<(usize, f64)> {
    bounds(9, 29, |slot| (1u64 << (slot + 1)) as f64 / 1e9)
}

/// About 64 ns, 256 ns ... 16 us.
fn verdict_bounds() -> Vec<(usize, f64)> {
    bounds(5, 13, |slot| (1u64 << (slot + 1)) as f64 / 1e9)
}

/// About 33 us, 131 us ... 2 min.
fn start_bounds() -> Vec<(usize, f64)> {
    bounds(4, 26, |slot| (1u64 << (slot + 1 + 10)) as f64 / 1e9)
}

/// About 2 ms, 8 ms ... 10 h.
fn duration_bounds() -> Vec<(usize, f64)> {
    bounds(0, 24, |slot| (1u64 << (slot + 1 + 20)) as f64 / 1e9)
}

fn buckets(histogram: &Histogram, bounds: &[(usize, f64)]) -> Vec<(f64, u64)> {
    let mut from = 0;
    let mut list: Vec<(f64, u64)> = Vec::with_capacity(bounds.len() + 1);
    for (last, bound) in bounds {
        list.push((*bound, histogram.0[from..=*last].iter().sum()));
        from = last + 1;
    }
    list.push((f64::INFINITY, histogram.0[from..SLOTS].iter().sum()));
    list
}

/// The middle of each slot.
fn estimated_sum(histogram: &Histogram) -> f64 {
    (0..).zip(histogram.0).map(|(slot, n)| 1.5 * f64::from(slot).exp2() * n as f64).sum()
}

type Labels<'a> = Vec<(&'static str, &'a str)>;

fn labels(ends: &Ends) -> Labels<'_> {
    let (c, s) = ends;
    vec![
        ("client_namespace", &c.namespace),
        ("client_pod", &c.pod),
        ("client_container", &c.container),
        ("server_namespace", &s.namespace),
        ("server_pod", &s.pod),
        ("server_container", &s.container),
    ]
}

struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn describe(&mut self, family: &'static Family) -> Result<MetricEncoder<'_>, fmt::Error> {
        self.0.encode_descriptor(family.name, family.help, family.unit.as_ref(), family.kind)
    }

    fn one(&mut self, family: &'static Family, value: u64) -> fmt::Result {
        let encoder = self.describe(family)?;
        write_value(family.kind, value, encoder)
    }

    fn many<'l>(&mut self, family: &'static Family, rows: impl IntoIterator<Item = (Labels<'l>, u64)>) -> fmt::Result {
        let mut encoder = self.describe(family)?;
        for (labels, value) in rows {
            debug_assert!(labels.iter().map(|(name, _)| name).eq(family.labels), "{}: {labels:?}", family.name);
            write_value(family.kind, value, encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn of_agent(&mut self, agent: &Agent, read: bool) -> fmt::Result {
        self.one(&AGENT_READY, agent.ready.into())?;
        self.one(&AGENT_CONFIG_GOOD, agent.config_good.into())?;
        self.one(&AGENT_ROUNDS, agent.rounds)?;
        self.one(&AGENT_WANTED, agent.wanted)?;
        self.one(&AGENT_FAILED, agent.failed)?;
        self.one(&DATAPATH_READABLE, read.into())
    }

    fn of_datapath(&mut self, r: &Reading) -> fmt::Result {
        let (t, b) = (&r.totals, &r.budget);
        let path = |fast, tcp| [(vec![("path", "fast")], fast), (vec![("path", "tcp")], tcp)];
        let scope = |peer, all| [(vec![("scope", "peer")], peer), (vec![("scope", "all")], all)];
        let map = |name| vec![("map", name)];
        let states = [(vec![("state", "attached")], r.attached), (vec![("state", "draining")], r.draining)];
        self.many(&WORKLOADS, states)?;
        self.one(&GENERATIONS, r.generations)?;
        self.one(&PAIRS_LIVE, t.pairs_live)?;
        self.one(&PAIRS, t.pairs_total)?;
        self.one(&ADOPTED, t.adopted)?;
        self.many(&MESSAGES, path(t.fast_messages, t.tcp_messages))?;
        self.many(&SENT, path(t.fast_bytes, t.tcp_bytes))?;
        let all = (t.fast_messages + t.tcp_messages).max(1);
        ConstGauge::new(t.fast_messages as f64 / all as f64).encode(self.describe(&FAST_RATIO)?)?;
        self.many(&REASONS, t.reasons.iter().map(|(name, n)| (vec![("reason", name.as_str())], *n)))?;
        self.one(&HANDOFFS, t.handoffs)?;
        self.one(&LEFT, t.left)?;
        self.one(&STUCK, t.stuck)?;
        self.one(&RESET, t.reset)?;
        self.one(&REFUSED, t.refused_options)?;
        self.many(&BUDGET, scope(b.peer_bytes, b.total_bytes))?;
        self.many(&RESERVED, scope(b.peer_reserved_bytes, b.total_reserved_bytes))?;
        let fill =
            [(map("halves"), t.halves), (map("handshakes"), t.published + t.announced), (map("flows"), r.flow_room.0)];
        self.many(&MAP_ENTRIES, fill)?;
        self.many(&MAP_MAX_ENTRIES, [(map("halves"), r.max_halves), (map("flows"), r.flow_room.1)])?;
        self.one(&JOURNAL_WRITTEN, r.journal.written)?;
        self.one(&JOURNAL_LOST, r.journal.lost)?;
        let suppressed = r.journal.suppressed.iter().map(|(kind, n)| (vec![("kind", kind.name())], *n));
        self.many(&JOURNAL_SUPPRESSED, suppressed)?;
        let verdicts = buckets(&t.verdicts, &verdict_bounds());
        let sum = estimated_sum(&t.verdicts) / 1e9;
        self.describe(&VERDICTS)?.encode_histogram::<NoLabelSet>(sum, t.verdicts.count(), &verdicts, None)?;
        if let Some(costs) = &r.costs {
            let program = |c: &ProgramCost| vec![("program", c.name.clone())];
            let mut encoder = self.describe(&PROGRAM_RUNS)?;
            for c in costs {
                ConstCounter::new(c.runs).encode(encoder.encode_family(&program(c))?)?;
            }
            let mut encoder = self.describe(&PROGRAM_SECONDS)?;
            for c in costs {
                ConstCounter::new(c.nanoseconds as f64 / 1e9).encode(encoder.encode_family(&program(c))?)?;
            }
        }
        Ok(())
    }

    fn of_requests(&mut self, requests: &Requests) -> fmt::Result {
        // two names may be one to labels, and a series must not come twice
        #[derive(Default)]
        struct Sum<'a> {
            by_status: BTreeMap<&'a str, u64>,
            durations: Histogram,
            duration_ns: u64,
        }
        let mut sums: BTreeMap<(Ends, String), Sum<'_>> = BTreeMap::new();
        for (client, server, row) in &requests.rows {
            let sum = sums.entry(((client.into(), server.into()), row.protocol.to_string())).or_default();
            for (status, n) in &row.by_status {
                *sum.by_status.entry(status).or_default() += n;
            }
            sum.durations += &Histogram(row.durations_log2);
            sum.duration_ns += row.duration_ns;
        }
        fn with<'l>(ends: &'l Ends, more: &[(&'static str, &'l str)]) -> Labels<'l> {
            labels(ends).into_iter().chain(more.iter().copied()).collect()
        }
        let by_status = sums.iter().flat_map(|((ends, protocol), sum)| {
            sum.by_status.iter().map(move |(status, n)| (with(ends, &[("protocol", protocol), ("status", status)]), *n))
        });
        self.many(&REQUESTS, by_status)?;
        let mut encoder = self.describe(&REQUEST_DURATIONS)?;
        for ((ends, protocol), Sum { durations, duration_ns, .. }) in &sums {
            let labels = with(ends, &[("protocol", protocol)]);
            let buckets = buckets(durations, &wait_bounds());
            let sum = *duration_ns as f64 / 1e9;
            encoder.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, durations.count(), &buckets, None)?;
        }
        self.one(&REQUESTS_LOST, requests.lost)?;
        self.one(&TAP_LOST, requests.lost_pieces)
    }

    fn of_flows(&mut self, flows: &BTreeMap<Ends, Flow>) -> fmt::Result {
        type Read = fn(&Flow) -> u64;
        let single: [(&'static Family, Read); 5] = [
            (&FLOW_PAIRS_LIVE, |f| f.pairs_live),
            (&FLOW_PAIRS, |f| f.pairs),
            (&FLOW_ADOPTED, |f| f.adopted),
            (&FLOW_HANDOFFS, |f| f.handoffs),
            (&FLOW_LEFT, |f| f.left),
        ];
        for (family, read) in single {
            self.many(family, flows.iter().map(|(ends, f)| (labels(ends), read(f))))?;
        }
        type ReadPath = fn(&Counters) -> [u64; 2];
        let by_path: [(&'static Family, ReadPath); 2] =
            [(&FLOW_MESSAGES, |c| [c.fast_messages, c.tcp_messages]), (&FLOW_SENT, |c| [c.fast_bytes, c.tcp_bytes])];
        for (family, read) in by_path {
            let rows = flows.iter().flat_map(|(ends, f)| {
                [("client", &f.client_sent), ("server", &f.server_sent)].into_iter().flat_map(move |(sender, c)| {
                    ["fast", "tcp"].into_iter().zip(read(c)).map(move |(path, n)| {
                        let mut row = labels(ends);
                        row.extend([("sender", sender), ("path", path)]);
                        (row, n)
                    })
                })
            });
            self.many(family, rows)?;
        }
        type ReadAll = fn(&Flow) -> (Histogram, f64);
        type Bounds = Vec<(usize, f64)>;
        let histograms: [(&'static Family, Bounds, ReadAll); 4] = [
            (&FLOW_SIZES, size_bounds(), |f| (f.sizes, f.bytes() as f64)),
            (&FLOW_WAITS, wait_bounds(), |f| (f.waits, estimated_sum(&f.waits) / 1e9)),
            (&FLOW_DURATIONS, duration_bounds(), |f| (f.durations, f.duration_ns as f64 / 1e9)),
            (&FLOW_STARTS, start_bounds(), |f| (f.starts, estimated_sum(&f.starts) * 1024.0 / 1e9)),
        ];
        for (family, bounds, read) in histograms {
            let mut encoder = self.describe(family)?;
            for (ends, flow) in flows {
                let (histogram, sum) = read(flow);
                let buckets = buckets(&histogram, &bounds);
                let labels = labels(ends);
                let mut row = encoder.encode_family(&labels)?;
                row.encode_histogram::<NoLabelSet>(sum, histogram.count(), &buckets, None)?;
            }
        }
        Ok(())
    }
}

fn write_value(kind: MetricType, value: u64, encoder: MetricEncoder<'_>) -> fmt::Result {
    match kind {
        MetricType::Counter => ConstCounter::new(value).encode(encoder),
        _ => ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(encoder),
    }
}

/// Answers scrapes, and remembers from one to the next what must not change.
#[derive(Debug)]
pub struct Metrics {
    pin_dir: PathBuf,
    memory: Mutex<Memory>,
}

#[derive(Debug)]
struct Scrape {
    agent: Agent,
    reading: Option<Reading>,
    flows: BTreeMap<Ends, Flow>,
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut families = Families(encoder);
        families.of_agent(&self.agent, self.reading.is_some())?;
        families.of_requests(&self.agent.requests)?;
        let Some(reading) = &self.reading else { return Ok(()) };
        families.of_datapath(reading)?;
        families.of_flows(&self.flows)
    }
}

impl Metrics {
    /// Of what is pinned below a directory.
    pub fn new(pin_dir: PathBuf) -> Self {
        Self { pin_dir, memory: Mutex::default() }
    }

    /// The text for one scrape.
    pub fn scrape(&self, agent: Agent) -> Result<String, fmt::Error> {
        let reading =
            Reading::take(&self.pin_dir).inspect_err(|e| tracing::warn!("a scrape could not read the maps: {e}")).ok();
        let flows = {
            let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
            // before the agent's first round nobody has a name, and what is told without one is another series
            let flows = reading.as_ref().filter(|_| agent.names.are_known()).map_or(&[][..], |r| &r.flows);
            memory.learn(flows, &agent.names);
            memory.sums(flows, agent.max_flows)
        };
        let mut registry = Registry::with_prefix(PREFIX);
        registry.register_collector(Box::new(Scrape { agent, reading, flows }));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

/// docs/metrics.md.
pub fn reference() -> String {
    let mut text = String::from(
        "<!-- Made from crates/shared-socket/src/observe/metrics.rs by `UPDATE_DOCS=1 cargo test -p shared-socket metrics`. -->\n\
         # Metrics\n\n\
         What the agent serves at `/metrics`, in the OpenMetrics text format. [observability.md](observability.md#metrics) says how \
         they are meant.\n\n\
         | name | type | labels | meaning |\n|---|---|---|---|\n",
    );
    for family in FAMILIES {
        let unit = family.unit.as_ref().map_or(String::new(), |u| format!("_{}", u.as_str()));
        let total = if matches!(family.kind, MetricType::Counter) { "_total" } else { "" };
        let labels: Vec<String> = family.labels.iter().map(|l| format!("`{l}`")).collect();
        let _ = writeln!(
            text,
            "| `{PREFIX}_{}{unit}{total}` | {} | {} | {} |",
            family.name,
            family.kind.as_str(),
            labels.join(", "),
            family.help
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent() -> Agent {
        Agent { ready: true, config_good: true, rounds: 3, wanted: 2, failed: 0, max_flows: 2, ..Agent::default() }
    }

    #[test]
    fn nothing_is_pinned() {
        let folder = tempfile::tempdir().unwrap();
        insta::assert_snapshot!(Metrics::new(folder.path().join("none")).scrape(agent()).unwrap());
    }

    #[test]
    fn the_reference_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, reference()).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(
            found,
            reference(),
            "{} is stale: UPDATE_DOCS=1 cargo test -p shared-socket metrics",
            path.display()
        );
    }

    #[test]
    fn every_family_is_written_as_the_reference_says() {
        let mut waits = Histogram::default();
        waits.0[10] = 4;
        let flow = Flow { client: 7, server: 8, waits, ..Flow::default() };
        let cost = ProgramCost { name: "p".into(), runs: 1, nanoseconds: 5 };
        let mut totals = Totals::default();
        totals.reasons.insert("fast".into(), 1);
        let mut journal = JournalLoss::default();
        journal.suppressed.insert(datapath::JournalKind::Connect, 1);
        let reading = Reading { costs: Some(vec![cost]), totals, journal, ..Reading::default() };
        let flows = Memory::default().sums(&[flow], 2);
        let mut registry = Registry::with_prefix(PREFIX);
        registry.register_collector(Box::new(Scrape { agent: agent(), reading: Some(reading), flows }));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let mut described: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("# TYPE ")).collect();
        let mut expected: Vec<String> = FAMILIES
            .iter()
            .map(|f| {
                let unit = f.unit.as_ref().map_or(String::new(), |u| format!("_{}", u.as_str()));
                format!("{PREFIX}_{}{unit} {}", f.name, f.kind.as_str())
            })
            .collect();
        described.sort_unstable();
        expected.sort_unstable();
        assert_eq!(described, expected);
        let count = text.lines().find(|l| l.starts_with("shared_socket_flow_message_wait_seconds_count"));
        assert!(count.is_some_and(|line| line.ends_with("} 4")), "{text}");
    }

    #[test]
    fn only_so_many_flows_have_labels_of_their_own() {
        let mut memory = Memory::default();
        for id in 1..=5 {
            memory.who.insert(id, Who::only(&format!("w{id}")));
        }
        let flow = |id, bytes| {
            let client_sent = Counters { fast_bytes: bytes, fast_messages: 1, ..Counters::default() };
            Flow { client: id, server: id, client_sent, ..Flow::default() }
        };
        let told = |memory: &mut Memory, flows: &[Flow]| -> Vec<(String, u64)> {
            memory.sums(flows, 2).into_iter().map(|((c, _), f)| (c.container, f.bytes())).collect()
        };
        let first = told(&mut memory, &[flow(1, 10), flow(2, 100), flow(3, 50)]);
        assert_eq!(first, [("other".into(), 10), ("w2".into(), 100), ("w3".into(), 50)]);
        // a little more is not enough: series would come and go
        let second = told(&mut memory, &[flow(1, 90), flow(2, 100), flow(3, 50)]);
        assert_eq!(second, [("other".into(), 90), ("w2".into(), 100), ("w3".into(), 50)]);
        let third = told(&mut memory, &[flow(1, 110), flow(2, 100), flow(3, 50)]);
        assert_eq!(third, [("other".into(), 50), ("w1".into(), 110), ("w2".into(), 100)]);
        // two cgroups of one name, as of a container that was made anew, are one
        memory.who.insert(4, Who::only("w1"));
        let fourth = told(&mut memory, &[flow(1, 110), flow(4, 5), flow(2, 100)]);
        assert_eq!(fourth.iter().map(|(_, n)| n).sum::<u64>(), 215);
    }

    #[test]
    fn buckets_hold_all() {
        let mut histogram = Histogram::default();
        for (at, n) in histogram.0.iter_mut().enumerate() {
            *n = at as u64 + 1;
        }
        for bounds in [size_bounds(), wait_bounds(), duration_bounds(), verdict_bounds(), start_bounds()] {
            let buckets = buckets(&histogram, &bounds);
            assert_eq!(buckets.iter().map(|(_, n)| n).sum::<u64>(), histogram.count());
            assert!(buckets.is_sorted_by(|a, b| a.0 < b.0));
        }
        assert_eq!(buckets(&histogram, &size_bounds())[0], (63.0, 21), "0 to 63 bytes: slots 0 to 5");
    }
}

//! Sums of requests: who asks whom, what, with what success, and how long it takes.

use std::collections::{BTreeMap, HashMap};

use datapath::SLOTS;
use hdrhistogram::Histogram;
use serde::{Serialize, Serializer};

use super::{Protocol, Request};

/// Durations are told no longer than this: an hour.
const LONGEST_NS: u64 = 3_600_000_000_000;
/// Name of both ends of a row that has what had no room.
const OTHER: &str = "other";

/// What was asked by one workload of another.
#[derive(Debug, Clone)]
struct Sums {
    requests: u64,
    errors: u64,
    request_bytes: u64,
    answer_bytes: u64,
    by_status: BTreeMap<&'static str, u64>,
    by_what: BTreeMap<&'static str, u64>,
    /// Counts of 32 bits: half the memory, and they stop at the top.
    durations: Histogram<u32>,
    durations_log2: datapath::Histogram,
    duration_ns: u64,
}

impl Sums {
    fn new() -> Self {
        Self {
            requests: 0,
            errors: 0,
            request_bytes: 0,
            answer_bytes: 0,
            by_status: BTreeMap::new(),
            by_what: BTreeMap::new(),
            durations: Histogram::new(3).expect("3 digits are allowed"),
            durations_log2: datapath::Histogram::default(),
            duration_ns: 0,
        }
    }

    fn add(&mut self, request: &Request) {
        self.requests += 1;
        self.errors += u64::from(request.status.is_error());
        self.request_bytes = self.request_bytes.saturating_add(request.request_bytes);
        self.answer_bytes = self.answer_bytes.saturating_add(request.answer_bytes);
        *self.by_status.entry(request.status.class()).or_default() += 1;
        *self.by_what.entry(request.what).or_default() += 1;
        let duration_ns = request.duration_ns.min(LONGEST_NS);
        // It grows as it needs to, up to an hour
        let _ = self.durations.record(duration_ns);
        self.durations_log2.0[(duration_ns.max(1).ilog2() as usize).min(SLOTS - 1)] += 1;
        self.duration_ns = self.duration_ns.saturating_add(duration_ns);
    }

    fn row(&self, client: &str, server: &str, protocol: Protocol) -> Row {
        let quantile = |q| self.durations.value_at_quantile(q);
        Row {
            client: client.to_owned(),
            server: server.to_owned(),
            protocol,
            requests: self.requests,
            errors: self.errors,
            request_bytes: self.request_bytes,
            answer_bytes: self.answer_bytes,
            by_status: self.by_status.clone(),
            by_what: self.by_what.clone(),
            p50_ns: quantile(0.5),
            p90_ns: quantile(0.9),
            p99_ns: quantile(0.99),
            max_ns: self.durations.max(),
            duration_ns: self.duration_ns,
            durations_log2: self.durations_log2.0,
        }
    }
}

/// Requests of one workload to another by one protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Who asks.
    pub client: String,
    /// Who answers.
    pub server: String,
    /// How.
    pub protocol: Protocol,
    /// Requests that were answered.
    pub requests: u64,
    /// Of these, those that the server could not do.
    pub errors: u64,
    /// Bytes of the requests.
    pub request_bytes: u64,
    /// Bytes of the answers.
    pub answer_bytes: u64,
    /// Requests by [`super::Status::class`].
    pub by_status: BTreeMap<&'static str, u64>,
    /// Requests by method or command.
    pub by_what: BTreeMap<&'static str, u64>,
    /// Half of the answers took no longer.
    pub p50_ns: u64,
    /// Nine of ten.
    pub p90_ns: u64,
    /// All but one of a hundred.
    pub p99_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// All together.
    pub duration_ns: u64,
    /// Durations by their power of two: slot n counts those of [2^n, 2^(n+1)) ns, the first also 0, and the last all above.
    pub durations_log2: [u64; SLOTS],
}

/// Sums by client, server and protocol.
#[derive(Debug, Clone)]
pub struct Table {
    max_rows: usize,
    rows: usize,
    /// By client and server: to look one up by borrowed names costs no memory.
    sums: HashMap<String, HashMap<String, BTreeMap<Protocol, Sums>>>,
    /// What had no room.
    other: BTreeMap<Protocol, Sums>,
}

impl Table {
    /// An empty one. What comes when there are `max_rows` goes to one more row for each protocol, named `other`.
    pub fn new(max_rows: usize) -> Self {
        Self { max_rows, rows: 0, sums: HashMap::new(), other: BTreeMap::new() }
    }

    /// Counts a request.
    pub fn add(&mut self, client: &str, server: &str, request: &Request) {
        let known = self.sums.get_mut(client).and_then(|of| of.get_mut(server));
        if let Some(sums) = known.and_then(|of| of.get_mut(&request.protocol)) {
            sums.add(request);
            return;
        }
        let place = if self.rows < self.max_rows && (client, server) != (OTHER, OTHER) {
            self.rows += 1;
            self.sums.entry(client.to_owned()).or_default().entry(server.to_owned()).or_default()
        } else {
            &mut self.other
        };
        place.entry(request.protocol).or_insert_with(Sums::new).add(request);
    }

    /// All rows, the most requests first.
    pub fn rows(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = Vec::with_capacity(self.rows + self.other.len());
        for (client, servers) in &self.sums {
            for (server, sums) in servers {
                rows.extend(sums.iter().map(|(protocol, sums)| sums.row(client, server, *protocol)));
            }
        }
        rows.extend(self.other.iter().map(|(protocol, sums)| sums.row(OTHER, OTHER, *protocol)));
        let key = |row: &Row| (row.client.clone(), row.server.clone(), row.protocol);
        rows.sort_by(|a, b| b.requests.cmp(&a.requests).then_with(|| key(a).cmp(&key(b))));
        rows
    }

    /// Nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.sums.is_empty() && self.other.is_empty()
    }
}

/// As its rows.
impl Serialize for Table {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.rows())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    fn request(what: &'static str, status: Status, duration_ns: u64) -> Request {
        let protocol = if matches!(status, Status::Http(_)) { Protocol::Http1 } else { Protocol::Redis };
        Request { protocol, what, status, began_ns: 7, duration_ns, request_bytes: 10, answer_bytes: 100 }
    }

    #[test]
    fn sums() {
        let mut table = Table::new(9);
        assert!(table.is_empty());
        table.add("web", "redis", &request("GET", Status::Ok, 1 << 20));
        for n in 1..=1000 {
            table.add("web", "api", &request("GET", Status::Http(200), n * 1000));
        }
        table.add("web", "api", &request("POST", Status::Http(404), 0));
        table.add("web", "api", &request("POST", Status::Http(503), u64::MAX));
        table.add("web", "redis", &request("HSET", Status::Error, 1));
        let rows = table.rows();
        assert_eq!(rows.len(), 2);
        let (api, redis) = (&rows[0], &rows[1]);
        assert_eq!((api.requests, api.errors, api.request_bytes, api.answer_bytes), (1002, 1, 10_020, 100_200));
        assert_eq!(api.by_status, BTreeMap::from([("2xx", 1000), ("4xx", 1), ("5xx", 1)]));
        assert_eq!(api.by_what, BTreeMap::from([("GET", 1000), ("POST", 2)]));
        assert!(api.p50_ns.abs_diff(500_000) < 1000 && api.p90_ns.abs_diff(900_000) < 2000, "{api:?}");
        assert!(api.p99_ns.abs_diff(991_000) < 2000 && api.max_ns.abs_diff(LONGEST_NS) < LONGEST_NS / 1000, "{api:?}");
        assert_eq!(api.durations_log2.iter().sum::<u64>(), 1002);
        assert_eq!((api.durations_log2[0], api.durations_log2[SLOTS - 1]), (1, 1));
        assert_eq!((redis.protocol, redis.requests, redis.errors), (Protocol::Redis, 2, 1));
        assert_eq!((redis.durations_log2[0], redis.durations_log2[20]), (1, 1));
    }

    #[test]
    fn rows_are_bounded() {
        let mut table = Table::new(2);
        for n in 0..100 {
            table.add(&format!("web-{n}"), "api", &request("GET", Status::Http(200), 5));
        }
        table.add("web-1", "api", &request("GET", Status::Http(200), 5));
        table.add("other", "other", &request("GET", Status::Ok, 5));
        let rows: Vec<_> = table.rows().into_iter().map(|r| (r.client, r.requests)).collect();
        let row = |name: &str, n| (name.to_owned(), n);
        assert_eq!(rows, [row("other", 98), row("web-1", 2), row("other", 1), row("web-0", 1)]);
    }

    #[test]
    fn json() {
        let mut table = Table::new(2);
        table.add("web", "redis", &request("GET", Status::Ok, 900));
        let json = serde_json::to_value(&table).unwrap();
        assert_eq!(json[0]["client"], "web");
        assert_eq!(json[0]["protocol"], "redis");
        assert_eq!(json[0]["by_what"]["GET"], 1);
        assert_eq!(json[0]["p99_ns"], 900);
    }
}

//! What the screen knows of requests.

use std::collections::HashMap;

use crate::observe::requests::{Protocol, Row, Seen};

/// By what rows are sorted: the most first, names from A.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Requests a second.
    #[default]
    Rate,
    /// Requests in all.
    Requests,
    /// Errors.
    Errors,
    /// The median.
    P50,
    /// What one of a hundred takes longer than.
    P99,
    /// The longest.
    Max,
    /// Who asks.
    Client,
    /// Who answers.
    Server,
}

impl Order {
    const ALL: [Self; 8] =
        [Self::Rate, Self::Requests, Self::Errors, Self::P50, Self::P99, Self::Max, Self::Client, Self::Server];

    /// The one behind it.
    fn next(self) -> Self {
        Self::ALL[(self as usize + 1) % Self::ALL.len()]
    }
}

/// Requests between workloads, as they are drawn.
#[derive(Debug, Default)]
pub struct Requests {
    /// Which connections the tap is for, in words: it is chosen once. Empty: all.
    pub filter: String,
    /// Why it is not for those of the command line.
    pub note: Option<String>,
    /// Sorted, each with the requests a second of the last interval.
    pub rows: Vec<(Row, f64)>,
    /// What was seen until the last look; its rows are in `rows`.
    pub seen: Seen,
    /// By what they are sorted.
    pub order: Order,
    /// Since rows were taken in.
    seconds: f64,
}

type Id = (String, String, Protocol);

fn id(row: &Row) -> Id {
    (row.client.clone(), row.server.clone(), row.protocol)
}

impl Requests {
    /// Of the connections that a filter with this text lets through.
    pub fn new(filter: impl Into<String>, note: Option<String>) -> Self {
        Self { filter: filter.into(), note, ..Self::default() }
    }

    /// Takes in what was seen so far, so many seconds after the last time; not while it is paused.
    pub(super) fn sample(&mut self, seen: Seen, seconds: f64, paused: bool) {
        self.seconds += seconds;
        if paused {
            return;
        }
        let seconds = std::mem::take(&mut self.seconds);
        let before: HashMap<Id, u64> = self.rows.iter().map(|(row, _)| (id(row), row.requests)).collect();
        let rate = |row: &Row| match seconds {
            0.0 => 0.0,
            _ => row.requests.saturating_sub(before.get(&id(row)).copied().unwrap_or(0)) as f64 / seconds,
        };
        self.seen = seen;
        self.rows = std::mem::take(&mut self.seen.rows)
            .into_iter()
            .map(|row| (rate(&row), row))
            .map(|(r, row)| (row, r))
            .collect();
    }

    pub(super) fn sort_by_next(&mut self) {
        self.order = self.order.next();
    }

    /// Of equals, those with more requests come first, and then as they are named.
    pub(super) fn arrange(&mut self, reverse: bool) {
        let order = self.order;
        self.rows.sort_by(|(a, a_rate), (b, b_rate)| {
            let by = match order {
                Order::Rate => b_rate.total_cmp(a_rate),
                Order::Requests => b.requests.cmp(&a.requests),
                Order::Errors => b.errors.cmp(&a.errors),
                Order::P50 => b.p50_ns.cmp(&a.p50_ns),
                Order::P99 => b.p99_ns.cmp(&a.p99_ns),
                Order::Max => b.max_ns.cmp(&a.max_ns),
                Order::Client => a.client.cmp(&b.client),
                Order::Server => a.server.cmp(&b.server),
            };
            by.then_with(|| b.requests.cmp(&a.requests)).then_with(|| id(a).cmp(&id(b)))
        });
        if reverse {
            self.rows.reverse();
        }
    }
}

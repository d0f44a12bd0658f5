//! The web page, and the data behind it: `/`, `/api/connections`, `/api/flows`, `/api/map`, `/api/reasons`.
//!
//! The page is complete in itself: it asks nobody but the agent, and its policy lets it do no more. All of it only reads.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Query, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

use super::serve::{Shared, told};
use crate::observe::filter::Filter;
use crate::observe::flows::{Flow, Mark, Rate, flows};
use crate::observe::map::{Graph, svg};
use crate::observe::{Connection, Key, read_connections, sort};
use datapath::Datapath;

/// However many look, the maps are read so often.
const FRESH: Duration = Duration::from_millis(900);
/// Rows in an answer, unless it is asked for fewer.
const ROWS: usize = 10_000;

/// One look, and what has changed since the one before.
#[derive(Debug)]
struct Sample {
    at: Instant,
    list: Vec<Connection>,
    rates: Vec<Rate>,
    flows: Vec<Flow>,
}

#[derive(Debug, Clone)]
struct Page {
    shared: Shared,
    last: Arc<Mutex<Option<Arc<Sample>>>>,
}

type Failed = (StatusCode, String);

impl Page {
    fn sample(&self) -> anyhow::Result<Arc<Sample>> {
        // whoever comes meanwhile waits, and gets the same
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sample) = last.as_ref().filter(|s| s.at.elapsed() < FRESH) {
            return Ok(sample.clone());
        }
        let (pin_dir, names) = {
            let told = told(&self.shared);
            (told.pin_dir.clone(), told.names.clone())
        };
        let list = Datapath::reading(&pin_dir, |d| read_connections(&d, Some(&names)))?.unwrap_or_default();
        let at = Instant::now();
        let (before, seconds) = match last.as_ref() {
            Some(s) => (Mark::of(&s.list), (at - s.at).as_secs_f64()),
            None => (Mark::default(), 0.0),
        };
        let rates = list.iter().map(|c| Rate::of(c, &before, seconds)).collect();
        let flows = flows(&list, &before, seconds);
        let sample = Arc::new(Sample { at, list, rates, flows });
        *last = Some(sample.clone());
        Ok(sample)
    }

    /// Reading takes a while with ten thousand pairs: on a thread of its own.
    async fn look<T: Send + 'static>(
        self,
        work: impl FnOnce(&Sample) -> Result<T, Failed> + Send + 'static,
    ) -> Result<T, Failed> {
        let failed = |why: String| (StatusCode::INTERNAL_SERVER_ERROR, format!("reading the connections: {why}\n"));
        tokio::task::spawn_blocking(move || {
            let sample = self.sample().map_err(|e| failed(format!("{e:#}")))?;
            work(&sample)
        })
        .await
        .unwrap_or_else(|e| Err(failed(e.to_string())))
    }
}

#[derive(Debug, Deserialize)]
struct Wanted {
    #[serde(default)]
    filter: String,
    sort: Option<String>,
    #[serde(default)]
    reverse: bool,
    limit: Option<usize>,
}

#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    connection: Connection,
    reason: &'static str,
    rate: Rate,
}

#[derive(Serialize)]
struct Rows {
    /// All that there are.
    total: usize,
    /// Of these, those that the filter lets through.
    matched: usize,
    /// Of these, the first.
    connections: Vec<Row>,
}

async fn connections(State(page): State<Page>, Query(wanted): Query<Wanted>) -> Result<Json<Rows>, Failed> {
    let bad = |why: String| (StatusCode::BAD_REQUEST, format!("{why}\n"));
    let filter: Filter = wanted.filter.parse().map_err(|e| bad(format!("the filter is not understood {e}")))?;
    let keys = wanted.sort.iter().flat_map(|s| s.split(','));
    let keys: Vec<Key> = keys
        .map(|key| clap::ValueEnum::from_str(key, true))
        .collect::<Result<_, String>>()
        .map_err(|e| bad(format!("sort: {e}")))?;
    let rows = page.look(move |sample| {
        let mut chosen: Vec<Connection> = sample.list.iter().filter(|c| filter.matches(c)).cloned().collect();
        sort(&mut chosen, if keys.is_empty() { &[Key::Age] } else { &keys });
        if wanted.reverse {
            chosen.reverse();
        }
        let matched = chosen.len();
        chosen.truncate(wanted.limit.unwrap_or(ROWS));
        let rates: std::collections::HashMap<u64, Rate> =
            sample.list.iter().map(Connection::id).zip(sample.rates.iter().copied()).collect();
        let row = |c: Connection| Row {
            reason: c.reason(),
            rate: rates.get(&c.id()).copied().unwrap_or_default(),
            connection: c,
        };
        let connections = chosen.into_iter().map(row).collect();
        Ok(Rows { total: sample.list.len(), matched, connections })
    });
    rows.await.map(Json)
}

async fn all_flows(State(page): State<Page>) -> Result<Json<Vec<Flow>>, Failed> {
    page.look(|sample| Ok(sample.flows.clone())).await.map(Json)
}

async fn map(State(page): State<Page>) -> Result<Json<Graph>, Failed> {
    page.look(|sample| Ok(Graph::of(sample.flows.clone()))).await.map(Json)
}

async fn map_svg(State(page): State<Page>) -> Result<Response, Failed> {
    let drawn = page.look(|sample| Ok(svg(&Graph::of(sample.flows.clone())))).await?;
    Ok(([(header::CONTENT_TYPE, "image/svg+xml")], drawn).into_response())
}

#[derive(Serialize)]
struct Reason {
    name: String,
    count: u64,
    text: &'static str,
}

async fn reasons(State(page): State<Page>) -> Result<Json<Vec<Reason>>, Failed> {
    let pin_dir = told(&page.shared).pin_dir.clone();
    let read = move || -> anyhow::Result<Vec<Reason>> {
        let totals = Datapath::reading(&pin_dir, |d| d.totals())?.unwrap_or_default();
        let text = |name: &str| datapath::REASONS.iter().find(|r| r.name == name).map_or("", |r| r.text);
        let mut list: Vec<Reason> =
            totals.reasons.into_iter().map(|(name, count)| Reason { text: text(&name), name, count }).collect();
        list.sort_by_key(|b| std::cmp::Reverse(b.count));
        Ok(list)
    };
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(list)) => Ok(Json(list)),
        Ok(Err(e)) => Err((StatusCode::INTERNAL_SERVER_ERROR, format!("reading the totals: {e:#}\n"))),
        Err(e) => Err((StatusCode::INTERNAL_SERVER_ERROR, format!("reading the totals: {e}\n"))),
    }
}

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// An address, or this machine by its name. A page of somebody else's, in the browser of who may ask us, would come with a
/// name of its own that leads here (DNS rebinding).
fn is_ours(host: &str) -> bool {
    let name = host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(host, |(name, _)| name);
    let bare = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    name == "localhost" || bare.parse::<std::net::IpAddr>().is_ok()
}

/// What is never kept, framed or taken for something else, and not told to whoever comes by a strange name.
async fn guarded(request: axum::extract::Request, next: axum::middleware::Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default();
    if !is_ours(host) {
        return (StatusCode::FORBIDDEN, "ask by address, or as localhost\n").into_response();
    }
    let mut answer = next.run(request).await;
    let set = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in set {
        answer.headers_mut().insert(name, axum::http::HeaderValue::from_static(value));
    }
    answer
}

fn file(kind: &'static str, text: &'static str) -> axum::routing::MethodRouter<Page> {
    get(move || async move { ([(header::CONTENT_TYPE, kind)], text) })
}

/// The routes of the page.
pub fn router(shared: Shared) -> Router {
    Router::new()
        .route("/", file("text/html; charset=utf-8", include_str!("page/index.html")))
        .route("/page.css", file("text/css; charset=utf-8", include_str!("page/page.css")))
        .route("/page.js", file("text/javascript; charset=utf-8", include_str!("page/page.js")))
        .route("/api/connections", get(connections))
        .route("/api/flows", get(all_flows))
        .route("/api/map", get(map))
        .route("/api/map.svg", get(map_svg))
        .route("/api/reasons", get(reasons))
        .layer(axum::middleware::from_fn(guarded))
        .with_state(Page { shared, last: Arc::default() })
}

#[cfg(test)]
mod tests {
    use super::is_ours;

    #[test]
    fn hosts() {
        for host in ["127.0.0.1", "127.0.0.1:9465", "[::1]:9465", "[::1]", "10.0.0.7:80", "localhost", "localhost:9465"]
        {
            assert!(is_ours(host), "{host}");
        }
        for host in
            ["", "evil.example", "evil.example:9465", "localhost.evil.example:9465", "127.0.0.1.evil.example", "x:y"]
        {
            assert!(!is_ours(host), "{host}");
        }
    }
}

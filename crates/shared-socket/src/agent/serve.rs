//! /healthz, /readyz, /workloads and /metrics; the web page is in `page`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;

use super::config::Served;
use super::reconcile::Row;
use super::requests;
use super::tls::{self, Listener, Tls};
use crate::discovery::kubernetes;
use crate::observe::Names;
use crate::observe::metrics::{self, Metrics};
use crate::observe::requests::Looking;
use crate::policy::Decision;

/// A round that takes longer counts as hanging.
const LONGEST_ROUND: Duration = Duration::from_secs(120);

/// What the agent tells of itself.
#[derive(Debug, Default)]
pub struct Told {
    /// A round has begun and not ended yet.
    pub busy_since: Option<Instant>,
    /// Why it is not ready; `None` when it is.
    pub unready: Option<String>,
    /// Why the file on the disk is not used; the one before it is in force.
    pub config_error: Option<String>,
    /// Why the files of `endpoints.tls` are not used as they are now; those before are.
    pub tls_error: Option<String>,
    /// The Kubernetes API, where a selector needs it.
    pub kubernetes: Option<kubernetes::View>,
    /// What runs, and what is done with it.
    pub workloads: Vec<Row>,
    /// Whose the cgroups are.
    pub names: Arc<Names>,
    /// Rounds so far.
    pub rounds: u64,
    /// Where the datapath is pinned.
    pub pin_dir: PathBuf,
    /// Pairs of workloads that have labels of their own.
    pub max_flows: usize,
    /// Who looks at requests.
    pub requests: Option<Looking>,
}

impl Told {
    /// What the agent can go on without.
    fn remarks(&self) -> Vec<String> {
        let config = self.config_error.as_ref().map(|why| format!("with the configuration before this: {why}"));
        let tls = self.tls_error.as_ref().map(|why| format!("with the certificate before this: {why}"));
        config.into_iter().chain(tls).chain(self.kubernetes.as_ref().and_then(kubernetes::View::trouble)).collect()
    }
}

/// Shared with the loop.
pub type Shared = Arc<Mutex<Told>>;

/// No panic of another thread makes it unreadable.
pub fn told(shared: &Shared) -> std::sync::MutexGuard<'_, Told> {
    shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

async fn healthz(State(shared): State<Shared>) -> (StatusCode, String) {
    match told(&shared).busy_since {
        Some(since) if since.elapsed() > LONGEST_ROUND => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("hanging for {} s\n", since.elapsed().as_secs()))
        }
        _ => (StatusCode::OK, "ok\n".into()),
    }
}

async fn readyz(State(shared): State<Shared>) -> (StatusCode, String) {
    let told = told(&shared);
    match &told.unready {
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        None => {
            let all: Vec<String> = std::iter::once("ok".to_owned()).chain(told.remarks()).collect();
            (StatusCode::OK, format!("{}\n", all.join(", ")))
        }
    }
}

#[derive(Serialize)]
struct Page {
    #[serde(skip_serializing_if = "Option::is_none")]
    unready: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    config_error: Option<String>,
    /// Why the Kubernetes API is not heard, where a selector needs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    kubernetes_error: Option<String>,
    workloads: Vec<Row>,
}

async fn workloads(State(shared): State<Shared>) -> Json<Page> {
    let told = told(&shared);
    Json(Page {
        unready: told.unready.clone(),
        config_error: told.config_error.clone(),
        kubernetes_error: told.kubernetes.as_ref().and_then(kubernetes::View::trouble),
        workloads: told.workloads.clone(),
    })
}

/// The maps are read on a thread of their own: ten thousand pairs take a while.
async fn metrics(State(shared): State<Shared>, metrics: Arc<Metrics>) -> Response {
    let agent = {
        let told = told(&shared);
        let wanted: Vec<&Row> =
            told.workloads.iter().filter(|r| !matches!(r.decision, Decision::LeaveAlone(_))).collect();
        metrics::Agent {
            ready: told.unready.is_none(),
            config_good: told.config_error.is_none() && told.tls_error.is_none(),
            rounds: told.rounds,
            wanted: wanted.len() as u64,
            failed: wanted.iter().filter(|r| !r.attached).count() as u64,
            names: told.names.clone(),
            max_flows: told.max_flows,
            requests: told.requests.as_ref().map(requests::read).unwrap_or_default(),
        }
    };
    match tokio::task::spawn_blocking(move || metrics.scrape(agent)).await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be written\n").into_response(),
    }
}

/// What is served at an address.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    /// The key below `endpoints`.
    what: &'static str,
    router: Router,
    tls: Option<Tls>,
}

/// What is served at which address.
pub fn servers(served: &Served, shared: &Shared) -> Vec<Server> {
    let page = || super::page::router(shared.clone());
    let http = |address, router: Router| {
        let tls = served.tls.clone();
        let demands = tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        let router = if demands { router.layer(axum::middleware::from_fn(tls::demand)) } else { router };
        Server { address, what: "http", router, tls }
    };
    match (served.http, served.page) {
        (Some(address), Some(at)) if address == at => vec![http(address, plain(shared.clone()).merge(page()))],
        (address, at) => {
            let http = address.map(|address| http(address, plain(shared.clone())));
            let page = at.map(|address| Server { address, what: "page", router: page(), tls: None });
            http.into_iter().chain(page).collect()
        }
    }
}

fn plain(shared: Shared) -> Router {
    let scraped = Arc::new(Metrics::new(told(&shared).pin_dir.clone()));
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/workloads", get(workloads))
        .route("/metrics", get(move |shared| metrics(shared, scraped.clone())))
        .with_state(shared)
}

impl Server {
    /// Serves until it is aborted. An address that cannot be had is tried again: the agent works without.
    pub async fn serve(self, shared: Shared) {
        let Self { address, what, .. } = self;
        let mut warned = false;
        loop {
            if let Err(why) = self.try_serve(&shared).await
                && !std::mem::replace(&mut warned, true)
            {
                tracing::error!("endpoints.{what} {address} cannot be served: {why:#}; it is tried again");
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }

    async fn try_serve(&self, shared: &Shared) -> anyhow::Result<()> {
        let Self { address, what, router, tls } = self;
        let tcp = tokio::net::TcpListener::bind(address).await?;
        let router = router.clone();
        match tls {
            Some(tls) => {
                let listener = Listener::new(tcp, tls.clone(), shared.clone())
                    .map_err(|problem| problem.why.context(format!("endpoints.tls.{}", problem.key)))?;
                tracing::info!(%address, "serving endpoints.{what} with TLS");
                axum::serve(listener, router.into_make_service_with_connect_info::<tls::Peer>()).await?;
            }
            None => {
                tracing::info!(%address, "serving endpoints.{what}");
                axum::serve(tcp, router).await?;
            }
        }
        Ok(())
    }
}

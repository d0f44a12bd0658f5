//! The client: kube's, with limits on time, errors by their HTTP status, and pace.

use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::http::{HeaderValue, Request, Response, StatusCode, header};
use kube::Client;
use kube::client::{Body, ClientBuilder, DynBody};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::response::{Status, StatusDetails};
use tower::{BoxError, Service};

use super::Changed;

/// A request without an answer counts as lost after [`patience`].
const PATIENCE: Duration = Duration::from_secs(30);
/// A watch on which nothing comes for so many times that long is dead: the API sends a bookmark every minute.
const SILENCE: u32 = 3;
/// A watch that ends within this time ended at once; the time between the beginnings of two such, and how far that
/// grows.
pub(super) const SHORT: Duration = Duration::from_secs(5);
pub(super) const GAP: Duration = Duration::from_secs(1);
pub(super) const LARGEST_GAP: Duration = Duration::from_secs(30);
/// What is read of the text of an error.
const LARGEST_ERROR: usize = 8192;

/// Debug: tests do not wait for minutes.
fn patience() -> Duration {
    let seconds = std::env::var("SHARED_SOCKET_DEBUG_API_PATIENCE").ok().and_then(|text| text.parse().ok());
    seconds.map_or(PATIENCE, Duration::from_secs)
}

/// When a watch may begin: kube's watcher begins the next one at once when one ends without an error, for ever.
#[derive(Debug, Default)]
pub(super) struct Pace {
    last: Option<Instant>,
    gap: Duration,
}

impl Pace {
    /// A watch is to begin now: when it may.
    pub(super) fn next(&mut self, now: Instant) -> Instant {
        let at = match self.last {
            Some(last) if now < last + SHORT => {
                self.gap = (self.gap * 2).clamp(GAP, LARGEST_GAP);
                now.max(last + self.gap)
            }
            _ => {
                self.gap = Duration::ZERO;
                now
            }
        };
        self.last = Some(at);
        at
    }
}

/// What kube's client leaves to others: a limit on the time to an answer, errors of a watch by their HTTP status, and
/// pace.
pub(super) struct Polite<S> {
    inner: S,
    pace: Arc<Mutex<Pace>>,
    /// A watch has begun.
    heard: Changed,
}

impl<S> Service<Request<Body>> for Polite<S>
where
    S: Service<Request<Body>, Response = Response<Box<DynBody>>, Error = BoxError>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let is_watch = request.uri().query().is_some_and(|q| q.split('&').any(|p| p == "watch=true"));
        let answer = self.inner.call(request); // nothing happens before it is awaited
        let (pace, heard) = (Arc::clone(&self.pace), Arc::clone(&self.heard));
        Box::pin(async move {
            if is_watch {
                let at = pace.lock().unwrap_or_else(PoisonError::into_inner).next(Instant::now());
                tokio::time::sleep_until(at.into()).await;
            }
            let late = |_| BoxError::from(format!("no answer in {} s", patience().as_secs()));
            let answer = tokio::time::timeout(patience(), answer).await.map_err(late)??;
            if !answer.status().is_success() {
                return Err(kube::Error::Api(Box::new(refusal(answer).await)).into());
            }
            if is_watch {
                heard();
            }
            Ok(answer)
        })
    }
}

/// What an answer that is none says, whoever gave it: a Status, or the text of a proxy.
pub(super) async fn refusal(answer: Response<Box<DynBody>>) -> Status {
    let (head, body) = answer.into_parts();
    let text = tokio::time::timeout(patience(), axum::body::to_bytes(axum::body::Body::new(body), LARGEST_ERROR)).await;
    let text = text.ok().and_then(Result::ok).unwrap_or_default();
    let retry = head.headers.get(header::RETRY_AFTER).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    status(head.status, &text, retry)
}

pub(super) fn status(code: StatusCode, text: &[u8], retry: Option<u32>) -> Status {
    let mut status = serde_json::from_slice::<Status>(text).unwrap_or_default();
    status.code = code.as_u16();
    if status.message.is_empty() {
        let line = String::from_utf8_lossy(text).lines().next().unwrap_or_default().trim().to_owned();
        status.message = if line.is_empty() || line.starts_with(['{', '<']) {
            code.canonical_reason().unwrap_or_default().to_owned()
        } else {
            line.chars().take(200).collect()
        };
    }
    if let Some(seconds) = retry {
        let none = StatusDetails {
            name: String::new(),
            group: String::new(),
            kind: String::new(),
            uid: String::new(),
            causes: Vec::new(),
            retry_after_seconds: 0,
        };
        status.details.get_or_insert(none).retry_after_seconds = seconds;
    }
    status
}

/// With what the files say now, and where it is.
pub(super) async fn connect(
    kubeconfig: Option<&Path>,
    pace: &Arc<Mutex<Pace>>,
    heard: Changed,
) -> anyhow::Result<(Client, String)> {
    let mut config = match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path)?;
            let is_proxied = file.clusters.iter().any(|c| c.cluster.as_ref().is_some_and(|c| c.proxy_url.is_some()));
            let mut config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
            if !is_proxied {
                config.proxy_url = None; // kube takes the environment's, which is not meant for this
            }
            config
        }
        None => kube::Config::incluster().map_err(|e| {
            anyhow::anyhow!(
                "{e}: this is no pod with a service account's token; name a file by kubernetesApi.kubeconfig"
            )
        })?,
    };
    config.connect_timeout = Some(patience() / 3);
    config.read_timeout = Some(patience() * SILENCE);
    config.default_retry = false; // it would hide for minutes that the API refuses
    let agent = concat!("shared-socket/", env!("CARGO_PKG_VERSION"));
    config.headers.push((header::USER_AGENT, HeaderValue::from_static(agent)));
    let at = config.cluster_url.to_string();
    let polite = tower::layer::layer_fn(|inner| Polite { inner, pace: Arc::clone(pace), heard: Arc::clone(&heard) });
    Ok((ClientBuilder::try_from(config)?.with_layer(&polite).build(), at.trim_end_matches('/').to_owned()))
}

//! What CRI cannot know, from the Kubernetes API: labels of namespaces, and the Services that a pod is an endpoint of.
//! Nobody is asked unless a selector needs it.
//!
//! Each kind is listed in pages and then watched (kube's watcher). Little is kept of it: labels of namespaces, and of
//! EndpointSlices the pods of this node where its name is known (NODE_NAME), about 100 bytes for each pod of a Service.
//! What was known stays in force while the API is away; what has never been heard is `None` in a [`Workload`].

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::http::{HeaderValue, Request, Response, StatusCode, header};
use kube::api::ObjectMeta;
use kube::client::{Body, ClientBuilder, DynBody};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::response::{Status, StatusDetails};
use kube::core::{ClusterResourceScope, NamespaceResourceScope};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Resource};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tower::{BoxError, Service};

use super::Workload;
use crate::policy::Needs;

/// Objects a page: EndpointSlices with a hundred endpoints each are megabytes, which are in memory more than once.
const PAGE: u32 = 100;
/// A request without an answer counts as lost after [`patience`].
const PATIENCE: Duration = Duration::from_secs(30);
/// A watch on which nothing comes for so many times that long is dead: the API sends a bookmark every minute.
const SILENCE: u32 = 3;
/// A watch that ends within this time ended at once; the time between the beginnings of two such, and how far that
/// grows.
const SHORT: Duration = Duration::from_secs(5);
const GAP: Duration = Duration::from_secs(1);
const LARGEST_GAP: Duration = Duration::from_secs(30);
/// The same trouble is logged again after this.
const TELL_AGAIN: Duration = Duration::from_secs(600);
/// So often the API may fail to go on with a watch before all is listed again.
const PATIENT: u32 = 3;
/// What is read of the text of an error.
const LARGEST_ERROR: usize = 8192;

/// Debug: tests do not wait for minutes.
fn patience() -> Duration {
    let seconds = std::env::var("SHARED_SOCKET_DEBUG_API_PATIENCE").ok().and_then(|text| text.parse().ok());
    seconds.map_or(PATIENCE, Duration::from_secs)
}

/// Called when something changed that a selector can see.
pub type Changed = Arc<dyn Fn() + Send + Sync>;

// ---- what is read: the few fields that are needed, so that nothing else is decoded

#[derive(Debug, Clone, Deserialize)]
struct Namespace {
    metadata: ObjectMeta,
}

#[derive(Debug, Clone, Deserialize)]
struct EndpointSlice {
    metadata: ObjectMeta,
    /// `null` where there are none.
    endpoints: Option<Vec<Endpoint>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    node_name: Option<String>,
    target_ref: Option<TargetRef>,
}

#[derive(Debug, Clone, Deserialize)]
struct TargetRef {
    kind: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
}

macro_rules! resource {
    ($of:ty, $scope:ty, $kind:literal, $plural:literal, $group:literal) => {
        impl Resource for $of {
            type DynamicType = ();
            type Scope = $scope;

            fn kind(_: &()) -> std::borrow::Cow<'_, str> {
                $kind.into()
            }

            fn group(_: &()) -> std::borrow::Cow<'_, str> {
                $group.into()
            }

            fn version(_: &()) -> std::borrow::Cow<'_, str> {
                "v1".into()
            }

            fn plural(_: &()) -> std::borrow::Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

resource!(Namespace, ClusterResourceScope, "Namespace", "namespaces", "");
resource!(EndpointSlice, NamespaceResourceScope, "EndpointSlice", "endpointslices", "discovery.k8s.io");

// ---- what is kept

type Labels = BTreeMap<String, String>;

/// Of an EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Backing {
    /// NAMESPACE/NAME of the Service.
    service: String,
    /// NAMESPACE/NAME of each pod behind it.
    pods: Vec<String>,
}

/// What is known of one kind of object, by the object's name.
#[derive(Debug)]
struct Table<T> {
    /// `None` before the first complete list.
    known: Option<BTreeMap<String, T>>,
    /// The list that is being read.
    fresh: Option<BTreeMap<String, T>>,
    /// Why the API is not heard at the moment.
    trouble: Option<String>,
    /// When which trouble was logged.
    logged: BTreeMap<Kind, Instant>,
    /// This trouble was, and so is its end.
    is_logged: bool,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { known: None, fresh: None, trouble: None, logged: BTreeMap::new(), is_logged: false }
    }
}

impl<T: PartialEq> Table<T> {
    /// An object and what is to be kept of it, if anything; whether that changes what is known.
    fn put(&mut self, name: String, kept: Option<T>) -> bool {
        let Some(known) = &mut self.known else { return false };
        match kept {
            Some(kept) if known.get(&name) == Some(&kept) => false,
            Some(kept) => {
                known.insert(name, kept);
                true
            }
            None => known.remove(&name).is_some(),
        }
    }

    /// What was known until now stays until the list is complete.
    fn begin(&mut self) {
        self.fresh = Some(BTreeMap::new());
    }

    fn listed(&mut self, name: String, kept: Option<T>) {
        if let Some(kept) = kept {
            self.fresh.get_or_insert_default().insert(name, kept);
        }
    }

    /// Whether the list is another than what was known.
    fn complete(&mut self) -> bool {
        let fresh = self.fresh.take();
        let changed = self.known != fresh;
        self.known = fresh;
        changed
    }

    fn heard(&mut self, what: &str) {
        self.trouble = None;
        if std::mem::take(&mut self.is_logged) {
            tracing::info!("the Kubernetes API answers for {what} again");
        }
    }

    fn failed(&mut self, kind: Kind, text: String) {
        if kind.is_ordinary() {
            tracing::debug!("{text}");
            return;
        }
        if self.logged.get(&kind).is_none_or(|at| at.elapsed() > TELL_AGAIN) {
            self.logged.insert(kind, Instant::now());
            self.is_logged = true;
            tracing::warn!("{text}; what was known stays in force, and it is tried again");
        } else {
            tracing::debug!("{text}");
        }
        self.trouble = Some(text);
    }
}

type Shared<T> = Arc<Mutex<Table<T>>>;

/// No panic of another thread makes it unreadable.
fn locked<T>(table: &Mutex<Table<T>>) -> MutexGuard<'_, Table<T>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A kind of object that is followed.
trait Followed: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static {
    type Kept: PartialEq + Send + Sync + 'static;
    /// As RBAC has it.
    const WHAT: &str;

    /// The name that it is kept by, and what is kept.
    fn keep(self, node: Option<&str>) -> (String, Option<Self::Kept>);
}

impl Followed for Namespace {
    type Kept = Labels;
    const WHAT: &str = "namespaces";

    fn keep(self, _: Option<&str>) -> (String, Option<Labels>) {
        (self.metadata.name.unwrap_or_default(), Some(self.metadata.labels.unwrap_or_default()))
    }
}

impl Followed for EndpointSlice {
    type Kept = Backing;
    const WHAT: &str = "endpointslices.discovery.k8s.io";

    /// Nothing of a slice without pods of this node. Ready or not is the same: a pod that is slow is not to be
    /// detached.
    fn keep(self, node: Option<&str>) -> (String, Option<Backing>) {
        let space = self.metadata.namespace.unwrap_or_default();
        let name = format!("{space}/{}", self.metadata.name.unwrap_or_default());
        let Some(service) = self.metadata.labels.unwrap_or_default().remove("kubernetes.io/service-name") else {
            return (name, None);
        };
        let is_here = |e: &Endpoint| match (&e.node_name, node) {
            (Some(of), Some(node)) => of == node,
            _ => true,
        };
        let pod = |e: Endpoint| {
            let target = e.target_ref.filter(|t| t.kind.as_deref() == Some("Pod"))?;
            Some(format!("{}/{}", target.namespace.as_deref().unwrap_or(&space), target.name?))
        };
        let mut pods: Vec<String> =
            self.endpoints.unwrap_or_default().into_iter().filter(is_here).filter_map(pod).collect();
        pods.sort_unstable();
        pods.dedup();
        pods.shrink_to_fit();
        let backing = Backing { service: format!("{space}/{service}"), pods };
        (name, Some(backing).filter(|b| !b.pods.is_empty()))
    }
}

// ---- what goes wrong

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// What was watched is too old: all is listed again.
    Gone,
    /// A watch broke off; the next request tells whether that means something.
    Broke,
    /// Nobody answers.
    Away,
    /// No permission.
    Forbidden,
    /// Nobody knows us, or any more.
    Unauthorized,
    /// Too many requests.
    Throttled,
    /// Another error of the API's.
    Failed,
    /// No answer of a Kubernetes API.
    Strange,
}

impl Kind {
    fn is_ordinary(self) -> bool {
        matches!(self, Self::Gone | Self::Broke)
    }

    fn of(error: &watcher::Error) -> Self {
        use watcher::Error as E;
        match error {
            E::WatchError(status) => Self::of_status(status),
            E::InitialListFailed(e) | E::WatchStartFailed(e) | E::WatchFailed(e) => match e {
                kube::Error::Api(status) => Self::of_status(status),
                kube::Error::SerdeError(_)
                | kube::Error::FromUtf8(_)
                | kube::Error::LinesCodecMaxLineLengthExceeded => Self::Strange,
                kube::Error::ReadEvents(_) => Self::Broke,
                _ => Self::Away,
            },
            E::NoResourceVersion => Self::Strange,
        }
    }

    fn of_status(status: &Status) -> Self {
        match status.code {
            401 => Self::Unauthorized,
            403 => Self::Forbidden,
            410 => Self::Gone,
            429 => Self::Throttled,
            _ => Self::Failed,
        }
    }
}

fn status_of(error: &watcher::Error) -> Option<&Status> {
    use watcher::Error as E;
    match error {
        E::WatchError(status) => Some(status),
        E::InitialListFailed(e) | E::WatchStartFailed(e) | E::WatchFailed(e) => match e {
            kube::Error::Api(status) => Some(status),
            _ => None,
        },
        E::NoResourceVersion => None,
    }
}

/// The last of its causes says the most.
fn cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(deeper) = last.source() {
        last = deeper;
    }
    last.to_string()
}

fn explain(what: &str, at: &str, error: &watcher::Error) -> String {
    let detail = match status_of(error) {
        Some(s) if s.message.is_empty() => format!("{} {}", s.code, s.reason),
        Some(s) => format!("{} {}", s.code, s.message),
        None => cause(error),
    };
    match Kind::of(error) {
        Kind::Forbidden => format!(
            "the Kubernetes API at {at} refuses {what} ({detail}): the agent's service account needs the ClusterRole \
             shared-socket (get, list and watch of namespaces and endpointslices.discovery.k8s.io), which the Helm \
             chart makes with kubernetesApi.enabled=true"
        ),
        Kind::Unauthorized => {
            format!("the Kubernetes API at {at} does not know the agent ({detail}), asked for {what}")
        }
        Kind::Away => format!("the Kubernetes API at {at} does not answer for {what}: {detail}"),
        Kind::Strange => format!("the Kubernetes API at {at} is not understood, asked for {what}: {detail}"),
        Kind::Throttled | Kind::Failed => format!("the Kubernetes API at {at} fails, asked for {what}: {detail}"),
        Kind::Gone => format!("{what} are listed again: {detail}"),
        Kind::Broke => format!("the watch of {what} broke off: {detail}"),
    }
}

/// The watcher goes on with the version that it has, where that cannot help: after a line that was not understood it
/// would leave out what the line said, and HTTP's own 410 it does not know.
fn begins_anew(error: &watcher::Error, failures: u32) -> bool {
    use watcher::Error as E;
    let is_watch = matches!(error, E::WatchStartFailed(_) | E::WatchFailed(_));
    match Kind::of(error) {
        Kind::Gone | Kind::Strange => is_watch,
        Kind::Unauthorized => true, // with what the files say now
        Kind::Failed => is_watch && failures >= PATIENT,
        _ => false,
    }
}

// ---- the client

/// When a watch may begin: kube's watcher begins the next one at once when one ends without an error, for ever.
#[derive(Debug, Default)]
struct Pace {
    last: Option<Instant>,
    gap: Duration,
}

impl Pace {
    /// A watch is to begin now: when it may.
    fn next(&mut self, now: Instant) -> Instant {
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
struct Polite<S> {
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
async fn refusal(answer: Response<Box<DynBody>>) -> Status {
    let (head, body) = answer.into_parts();
    let text = tokio::time::timeout(patience(), axum::body::to_bytes(axum::body::Body::new(body), LARGEST_ERROR)).await;
    let text = text.ok().and_then(Result::ok).unwrap_or_default();
    let retry = head.headers.get(header::RETRY_AFTER).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    status(head.status, &text, retry)
}

fn status(code: StatusCode, text: &[u8], retry: Option<u32>) -> Status {
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
async fn connect(
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

/// Follows one kind of object until it is aborted.
async fn follow<K: Followed>(source: Source, shared: Shared<K::Kept>, changed: Changed) {
    let Source { kubeconfig, node } = source;
    let mut backoff = watcher::DefaultBackoff::default();
    let pace = Arc::default();
    let of_heard = Arc::clone(&shared);
    let heard: Changed = Arc::new(move || locked(&of_heard).heard(K::WHAT));
    let table = || locked(&shared);
    loop {
        let (client, at) = match connect(kubeconfig.as_deref(), &pace, Arc::clone(&heard)).await {
            Ok(made) => made,
            Err(e) => {
                let place = kubeconfig.as_ref().map_or_else(String::new, |path| format!(" {}", path.display()));
                table().failed(Kind::Away, format!("the Kubernetes API{place} cannot be asked for {}: {e:#}", K::WHAT));
                tokio::time::sleep(backoff.next().unwrap_or(LARGEST_GAP)).await;
                continue;
            }
        };
        let mut failures = 0;
        let mut events = pin!(watcher(Api::<K>::all(client), watcher::Config::default().page_size(PAGE)));
        while let Some(event) = events.next().await {
            let error = match event {
                Ok(event) => {
                    failures = 0;
                    let is_other = match event {
                        watcher::Event::Init => {
                            table().begin();
                            false
                        }
                        watcher::Event::InitApply(object) => {
                            let (name, kept) = object.keep(node.as_deref());
                            table().listed(name, kept);
                            false
                        }
                        watcher::Event::InitDone => table().complete(),
                        watcher::Event::Apply(object) => {
                            let (name, kept) = object.keep(node.as_deref());
                            table().put(name, kept)
                        }
                        watcher::Event::Delete(object) => {
                            let (name, _) = object.keep(node.as_deref());
                            table().put(name, None)
                        }
                    };
                    if is_other {
                        changed();
                    }
                    continue;
                }
                Err(error) => error,
            };
            failures += 1;
            table().failed(Kind::of(&error), explain(K::WHAT, &at, &error));
            // the watcher's own way to be slowed down forgets how often the API failed with each list that it begins
            let asked =
                status_of(&error).and_then(|s| s.details.as_ref()).map_or(0, |d| d.retry_after_seconds.min(300));
            let pause = backoff.next().unwrap_or(LARGEST_GAP).max(Duration::from_secs(asked.into()));
            tokio::time::sleep(pause).await;
            if begins_anew(&error, failures) {
                break;
            }
        }
    }
}

// ---- for the agent

/// Where the API is, and who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The file that says so; as a pod does it otherwise.
    pub kubeconfig: Option<PathBuf>,
    /// Name of this node: endpoints on others are not kept.
    pub node: Option<String>,
}

/// What the agent's rounds and pages see of it.
#[derive(Debug, Clone)]
pub struct View {
    namespaces: Option<Shared<Labels>>,
    slices: Option<Shared<Backing>>,
}

impl View {
    /// All that the selectors need was listed at least once.
    pub fn is_complete(&self) -> bool {
        self.namespaces.as_ref().is_none_or(|t| locked(t).known.is_some())
            && self.slices.as_ref().is_none_or(|t| locked(t).known.is_some())
    }

    /// What is not as it shall be, in a sentence.
    pub fn trouble(&self) -> Option<String> {
        let is_complete = self.is_complete();
        let namespaces = self.namespaces.as_ref().and_then(|t| locked(t).trouble.clone());
        let slices = || self.slices.as_ref().and_then(|t| locked(t).trouble.clone());
        let silent = || (!is_complete).then(|| "the Kubernetes API has not answered yet".to_owned());
        let why = namespaces.or_else(slices).or_else(silent)?;
        let until = if is_complete { "what was known stays in force" } else { "nothing is detached before it answers" };
        Some(format!("{why}; {until}"))
    }

    /// Fills in what is known of pods.
    pub fn fill(&self, workloads: &mut [Workload]) {
        if let Some(known) = self.namespaces.as_ref().map(|t| locked(t)).as_ref().and_then(|t| t.known.as_ref()) {
            for w in workloads.iter_mut().filter(|w| w.pod.is_some()) {
                // a namespace that is not known yet is in doubt, and not without labels
                w.namespace_labels = w.namespace.as_ref().and_then(|space| known.get(space)).cloned();
            }
        }
        if let Some(known) = self.slices.as_ref().map(|t| locked(t)).as_ref().and_then(|t| t.known.as_ref()) {
            let key = |w: &Workload| Some(format!("{}/{}", w.namespace.as_deref()?, w.pod.as_deref()?));
            let here: HashSet<String> = workloads.iter().filter_map(key).collect();
            let mut services: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
            for backing in known.values() {
                for pod in backing.pods.iter().filter(|pod| here.contains(*pod)) {
                    services.entry(pod).or_default().insert(&backing.service);
                }
            }
            for w in workloads.iter_mut() {
                if let Some(key) = key(w) {
                    let of = services.get(key.as_str()).into_iter().flatten();
                    w.services = Some(of.map(|s| (*s).to_owned()).collect());
                }
            }
        }
    }
}

/// A task that follows one kind of object, and what it has found.
struct Following<T> {
    found: Shared<T>,
    task: JoinHandle<()>,
}

impl<T: PartialEq + Send + Sync + 'static> Following<T> {
    fn start<K: Followed<Kept = T>>(source: &Source, on: &Handle, changed: &Changed) -> Self {
        tracing::info!(node = source.node, "the Kubernetes API is asked for {}", K::WHAT);
        let found = Shared::default();
        let task = on.spawn(follow::<K>(source.clone(), Arc::clone(&found), Arc::clone(changed)));
        Self { found, task }
    }
}

impl<T> Drop for Following<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// All that is followed; it ends when this is dropped.
pub struct Kubernetes {
    source: Source,
    namespaces: Option<Following<Labels>>,
    slices: Option<Following<Backing>>,
}

impl Kubernetes {
    /// Asks nobody yet.
    pub fn new(source: Source) -> Self {
        Self { source, namespaces: None, slices: None }
    }

    /// Where the API is.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Follows what is needed now, and forgets what is not needed any more.
    pub fn follow(&mut self, needs: Needs, on: &Handle, changed: &Changed) -> View {
        let source = &self.source;
        let namespaces = || Following::start::<Namespace>(source, on, changed);
        let slices = || Following::start::<EndpointSlice>(source, on, changed);
        self.namespaces = needs.namespace_labels.then(|| self.namespaces.take().unwrap_or_else(namespaces));
        self.slices = needs.services.then(|| self.slices.take().unwrap_or_else(slices));
        View {
            namespaces: self.namespaces.as_ref().map(|f| Arc::clone(&f.found)),
            slices: self.slices.as_ref().map(|f| Arc::clone(&f.found)),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::discovery::Runtime;

    fn slice(endpoints: serde_json::Value) -> EndpointSlice {
        // as an API server of 1.34 sends it
        serde_json::from_value(json!({
            "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4",
            "metadata": {
                "name": "web-x7k2p", "generateName": "web-", "namespace": "shop", "resourceVersion": "4711",
                "uid": "5a5f1d5e-92ea-4dc1-8a0c-3f3a1d6d2c5e", "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                    "kubernetes.io/service-name": "web"
                },
                "managedFields": [{"manager": "kube-controller-manager", "operation": "Update",
                                   "fieldsType": "FieldsV1", "apiVersion": "discovery.k8s.io/v1", "fieldsV1": {}}]
            },
            "endpoints": endpoints, "ports": [{"name": "", "port": 80, "protocol": "TCP"}]
        }))
        .unwrap()
    }

    fn endpoint(pod: &str, node: &str, ready: bool) -> serde_json::Value {
        json!({
            "addresses": ["10.0.0.7"], "nodeName": node,
            "conditions": {"ready": ready, "serving": ready, "terminating": false},
            "targetRef": {"kind": "Pod", "namespace": "shop", "name": pod, "uid": "7f3b8f0e-0d9c-4b53"}
        })
    }

    #[test]
    fn pods_of_a_slice() {
        let all = json!([
            endpoint("b", "here", false),
            endpoint("a", "here", true),
            endpoint("a", "here", true),
            endpoint("c", "there", true),
            {"addresses": ["10.0.0.9"], "targetRef": {"kind": "Node", "name": "here"}},
            {"addresses": ["10.0.0.8"]},
            {"addresses": ["10.0.0.6"], "targetRef": {"kind": "Pod", "name": "of-the-slices-namespace"}},
            {"addresses": ["10.0.0.5"], "targetRef": {"kind": "Pod"}, "nodeName": null},
        ]);
        let (name, kept) = slice(all.clone()).keep(Some("here"));
        let kept = kept.unwrap();
        assert_eq!((&*name, &*kept.service), ("shop/web-x7k2p", "shop/web"));
        assert_eq!(kept.pods, ["shop/a", "shop/b", "shop/of-the-slices-namespace"]);
        let (_, kept) = slice(all).keep(None);
        assert_eq!(kept.unwrap().pods.len(), 4, "without the node's name all are kept");
    }

    #[test]
    fn slices_of_nobody() {
        assert_eq!(slice(serde_json::Value::Null).keep(None).1, None);
        assert_eq!(slice(json!([])).keep(None).1, None);
        assert_eq!(slice(json!([endpoint("a", "there", true)])).keep(Some("here")).1, None);
        let mut made_by_hand = slice(json!([endpoint("a", "here", true)]));
        made_by_hand.metadata.labels = None;
        assert_eq!(made_by_hand.keep(None).1, None, "of no Service");
    }

    #[test]
    fn namespaces() {
        let read = |text: &str| serde_json::from_str::<Namespace>(text).unwrap().keep(Some("here"));
        let (name, kept) =
            read(r#"{"metadata": {"name": "core", "labels": {"kubernetes.io/metadata.name": "core", "tier": "x"}}}"#);
        assert_eq!((&*name, kept.unwrap()["tier"].as_str()), ("core", "x"));
        assert_eq!(read(r#"{"metadata": {"name": "bare"}}"#), ("bare".into(), Some(Labels::new())));
    }

    #[test]
    fn what_was_known_stays_until_a_list_is_complete() {
        let mut table = Table::<u8>::default();
        table.begin();
        table.listed("a".into(), Some(1));
        table.listed("b".into(), None);
        assert!(table.known.is_none() && !table.put("c".into(), Some(1)), "not yet");
        assert!(table.complete());
        assert_eq!(table.known, Some([("a".to_owned(), 1)].into()));
        assert!(!table.put("a".into(), Some(1)), "nothing new");
        assert!(table.put("a".into(), Some(2)) && table.put("b".into(), Some(3)) && table.put("b".into(), None));
        assert!(!table.put("b".into(), None));
        table.begin();
        table.listed("z".into(), Some(1));
        table.begin(); // the list broke off and begins again
        table.listed("a".into(), Some(2));
        assert_eq!(table.known, Some([("a".to_owned(), 2)].into()));
        assert!(!table.complete(), "the same");
        table.begin();
        assert!(table.complete(), "what is not in the list is gone");
    }

    fn pod(namespace: &str, name: &str, container: Option<&str>) -> Workload {
        Workload {
            runtime: Runtime::Cri,
            namespace: Some(namespace.into()),
            pod: Some(name.into()),
            uid: None,
            container: container.map(Into::into),
            id: String::new(),
            labels: Labels::new(),
            annotations: Labels::new(),
            namespace_labels: None,
            services: None,
            host_network: false,
            pid: None,
            place: Ok(Vec::new()),
        }
    }

    #[test]
    fn pods_get_what_is_known() {
        let view = View { namespaces: Some(Shared::default()), slices: Some(Shared::default()) };
        let docker = Workload { runtime: Runtime::Docker, namespace: None, pod: None, ..pod("", "", Some("x")) };
        let mut all = [pod("shop", "a", None), pod("shop", "a", Some("c")), pod("new", "b", None), docker];
        view.fill(&mut all);
        assert!(all.iter().all(|w| w.namespace_labels.is_none() && w.services.is_none()) && !view.is_complete());
        assert!(view.trouble().unwrap().contains("has not answered yet; nothing is detached"));
        let labels = Labels::from([("tier".to_owned(), "front".to_owned())]);
        locked(view.namespaces.as_ref().unwrap()).known = Some([("shop".to_owned(), labels.clone())].into());
        assert!(!view.is_complete());
        let backing = |service: &str, pods: &[&str]| Backing {
            service: service.into(),
            pods: pods.iter().map(|p| (*p).to_owned()).collect(),
        };
        locked(view.slices.as_ref().unwrap()).known = Some(
            [
                ("shop/web-v4".to_owned(), backing("shop/web", &["shop/a", "shop/elsewhere"])),
                ("shop/web-v6".to_owned(), backing("shop/web", &["shop/a"])),
                ("shop/api-1".to_owned(), backing("shop/api", &["shop/a"])),
            ]
            .into(),
        );
        assert!(view.is_complete() && view.trouble().is_none());
        view.fill(&mut all);
        let services: BTreeSet<String> = ["shop/api".to_owned(), "shop/web".to_owned()].into();
        for w in &all[..2] {
            assert_eq!((&w.namespace_labels, &w.services), (&Some(labels.clone()), &Some(services.clone())));
        }
        assert_eq!(
            (&all[2].namespace_labels, &all[2].services),
            (&None, &Some(BTreeSet::new())),
            "in doubt, and of none"
        );
        assert_eq!((&all[3].namespace_labels, &all[3].services), (&None, &None));
    }

    fn api(code: u16) -> kube::Error {
        kube::Error::Api(Box::new(status(StatusCode::from_u16(code).unwrap(), b"", None)))
    }

    #[test]
    fn when_all_is_listed_again() {
        use watcher::Error as E;
        let strange = || kube::Error::SerdeError(serde_json::from_str::<u8>("{").unwrap_err());
        for (error, failures, expected) in [
            (E::WatchStartFailed(api(410)), 1, true),
            (E::WatchFailed(strange()), 1, true),
            (E::WatchFailed(api(410)), 1, true),
            (E::WatchStartFailed(api(500)), 1, false),
            (E::WatchStartFailed(api(504)), PATIENT, true), // a version of the future: etcd was restored
            (E::WatchStartFailed(api(429)), 9, false),
            (E::WatchStartFailed(api(403)), 9, false),
            (E::WatchStartFailed(api(401)), 1, true),
            (E::WatchFailed(kube::Error::ReadEvents(std::io::Error::other("reset"))), 9, false),
            (E::WatchStartFailed(kube::Error::Service("refused".into())), 9, false),
            (E::InitialListFailed(api(410)), 1, false), // the watcher does so by itself
        ] {
            assert_eq!(begins_anew(&error, failures), expected, "{error:?}");
        }
    }

    #[test]
    fn errors_are_told_so_that_something_can_be_done() {
        let refused = br#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","reason":"Forbidden",
            "code":403,"message":"namespaces is forbidden: User \"system:serviceaccount:a:b\" cannot list it"}"#;
        let error = kube::Error::Api(Box::new(status(StatusCode::FORBIDDEN, refused, None)));
        let text = explain("namespaces", "https://10.0.0.1", &watcher::Error::InitialListFailed(error));
        for part in ["https://10.0.0.1 refuses namespaces", "system:serviceaccount:a:b", "ClusterRole shared-socket"] {
            assert!(text.contains(part), "{text}");
        }
        let throttled = status(StatusCode::TOO_MANY_REQUESTS, b"Too many requests, please try again later.\n", Some(7));
        assert_eq!(throttled.details.as_ref().unwrap().retry_after_seconds, 7);
        let text = explain("namespaces", "x", &watcher::Error::WatchStartFailed(kube::Error::Api(Box::new(throttled))));
        assert!(text.ends_with("429 Too many requests, please try again later."), "{text}");
        assert_eq!(status(StatusCode::BAD_GATEWAY, b"<html>\n", None).message, "Bad Gateway");
        assert_eq!(status(StatusCode::BAD_GATEWAY, &[0xff; 9], None).code, 502);
    }

    #[test]
    fn watches_that_end_at_once_are_not_begun_in_a_loop() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let (mut now, mut begun) = (start, 0);
        while now < start + Duration::from_secs(600) {
            now = pace.next(now);
            begun += 1;
        }
        assert!((20..=30).contains(&begun), "{begun}");
        now += Duration::from_secs(290); // one that lived as long as they do
        assert_eq!(pace.next(now), now);
        assert_eq!(pace.next(now), now + GAP);
        now += GAP + SHORT;
        assert_eq!(pace.next(now), now);
    }

    #[test]
    fn troubles_are_remembered_until_it_is_heard() {
        let mut table = Table::<u8>::default();
        table.failed(Kind::Gone, "old".into());
        table.failed(Kind::Broke, "broke".into());
        assert_eq!(table.trouble, None);
        table.failed(Kind::Away, "away".into());
        table.failed(Kind::Broke, "broke".into());
        assert_eq!(table.trouble.as_deref(), Some("away"));
        table.heard("x");
        assert_eq!(table.trouble, None);
    }
}

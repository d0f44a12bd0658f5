//! What CRI cannot know, from the Kubernetes API: labels of namespaces, and the Services that a pod is an endpoint of.
//! Nobody is asked unless a selector needs it.
//!
//! Each kind is listed in pages and then watched (kube's watcher). Little is kept of it: labels of namespaces, and of
//! EndpointSlices the pods of this node where its name is known (NODE_NAME), about 100 bytes for each pod of a Service.
//! What was known stays in force while the API is away; what has never been heard is `None` in a [`Workload`].

mod client;
mod objects;
mod table;
mod trouble;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use kube::Api;
use kube::runtime::watcher::{self, watcher};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;

use super::Workload;
use crate::policy::Needs;
use client::{LARGEST_GAP, connect};
use objects::{Backing, EndpointSlice, Followed, Labels, Namespace};
use table::{Shared, locked};
use trouble::{Kind, begins_anew, explain, status_of};

/// Objects a page: EndpointSlices with a hundred endpoints each are megabytes, which are in memory more than once.
const PAGE: u32 = 100;

/// Called when something changed that a selector can see.
pub type Changed = Arc<dyn Fn() + Send + Sync>;

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

    use std::time::Instant;

    use axum::http::StatusCode;

    use super::client::{GAP, Pace, SHORT, status};
    use super::table::Table;
    use super::trouble::PATIENT;
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

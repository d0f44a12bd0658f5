//! Pods and containers of a CRI v1 runtime (containerd, CRI-O), by its socket. No API server is asked: the runtime has the
//! names, labels and annotations that kubelet gave it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use super::{Backend, Found, Known, Runtime, Workload, first_socket, is_of_pod, of_container, socket_path};
use api::runtime_service_client::RuntimeServiceClient;

#[allow(missing_docs, clippy::all, rustdoc::all)]
mod api {
    tonic::include_proto!("runtime.v1");
}

/// Where runtimes listen; a node has one of them.
const USUAL: [&str; 5] = [
    "/run/containerd/containerd.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/var/run/crio/crio.sock",
    "/run/cri-dockerd.sock",
];
const PATIENCE: Duration = Duration::from_secs(10);
/// An answer of a node with a thousand containers is some megabytes; tonic's own limit is 4 MiB.
const LARGEST: usize = 64 << 20;

/// The socket that was asked for, or the one that is there.
pub fn endpoint(asked: Option<&str>) -> anyhow::Result<Option<PathBuf>> {
    match asked {
        Some(text) => Ok(Some(socket_path(text)?)),
        None => Ok(first_socket(&USUAL)),
    }
}

/// A connection that is made when it is used, and made again after the runtime was restarted.
pub fn channel(socket: &Path) -> Channel {
    let socket = socket.to_path_buf();
    // the URI is for HTTP's sake only
    Endpoint::from_static("http://localhost").connect_timeout(PATIENCE).connect_with_connector_lazy(tower::service_fn(
        move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        },
    ))
}

fn request<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(PATIENCE);
    request
}

/// The runtime does not know GetContainerEvents.
#[derive(Debug, thiserror::Error)]
#[error("the runtime has no events")]
pub struct NoEvents;

/// Waits for changes: ends with [`NoEvents`], or another error when the connection breaks.
pub async fn watch(socket: &Path, mut changed: impl FnMut()) -> anyhow::Result<()> {
    let mut client = RuntimeServiceClient::new(channel(socket)).max_decoding_message_size(LARGEST);
    let mut events = match client.get_container_events(api::GetEventsRequest {}).await {
        Err(e) if e.code() == tonic::Code::Unimplemented => return Err(NoEvents.into()),
        answer => answer.map_err(|e| explain(socket, &e))?.into_inner(),
    };
    changed(); // what happened before the stream began
    while events.message().await.map_err(|e| explain(socket, &e))?.is_some() {
        changed();
    }
    bail!("the runtime at {} has ended its stream of events", socket.display())
}

/// tonic's own words for a socket that is not there do not name it.
fn explain(socket: &Path, status: &tonic::Status) -> anyhow::Error {
    let mut cause = std::error::Error::source(status);
    let (mut io, mut deepest) = (None, status.message().to_owned());
    while let Some(error) = cause {
        io = error.downcast_ref::<std::io::Error>().or(io);
        deepest = error.to_string();
        cause = error.source();
    }
    let at = socket.display();
    match io.map(std::io::Error::kind) {
        Some(std::io::ErrorKind::NotFound) => {
            anyhow::anyhow!("no runtime socket at {at}; name it with --runtime-endpoint unix:///PATH")
        }
        Some(std::io::ErrorKind::ConnectionRefused) => {
            anyhow::anyhow!("nobody listens at {at}: is the runtime running?")
        }
        Some(std::io::ErrorKind::PermissionDenied) => anyhow::anyhow!("no permission to connect to {at}; run as root"),
        _ if status.code() == tonic::Code::Unimplemented => {
            anyhow::anyhow!("what listens at {at} does not speak CRI v1 ({})", status.message())
        }
        Some(_) => anyhow::anyhow!("the connection to the runtime at {at} broke: {deepest}"),
        None if status.code() == tonic::Code::Unknown && deepest != status.message() => {
            anyhow::anyhow!("the connection to the runtime at {at} broke: {deepest}")
        }
        None => anyhow::anyhow!("the runtime at {at} answered: {} ({:?})", status.message(), status.code()),
    }
}

/// A sandbox or a container: what does not change while its id lives.
#[derive(Debug, Clone)]
struct Facts {
    pid: Option<u32>,
    host_network: bool,
    /// It has another kernel than this.
    elsewhere: bool,
    place: Result<Found, String>,
}

/// The runtime, by its socket.
pub struct Cri {
    socket: PathBuf,
    tokio: tokio::runtime::Runtime,
    client: RuntimeServiceClient<Channel>,
    known: Known<Facts>,
}

/// What a runtime says of itself in the verbose form: no part of CRI, but the same in containerd and CRI-O.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Info {
    pid: Option<i64>,
    runtime_type: Option<String>,
    runtime_handler: Option<String>,
}

impl Info {
    fn parse(info: &std::collections::HashMap<String, String>) -> Self {
        info.get("info").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
    }

    /// A runtime whose containers have a kernel of their own, or none that would see our programs.
    fn other_kernel(&self, handler: &str) -> Option<String> {
        let names =
            [handler, self.runtime_handler.as_deref().unwrap_or(""), self.runtime_type.as_deref().unwrap_or("")];
        let known = ["kata", "runsc", "gvisor", "firecracker", "cloud-hypervisor", "qemu", "hyperv", "libkrun"];
        let name = names.into_iter().find(|name| known.iter().any(|k| name.to_lowercase().contains(k)))?;
        Some(format!("not on this kernel: it runs under {name}, in a virtual machine or a sandbox of its own"))
    }

    fn facts(&self, handler: &str, host_network: bool) -> Facts {
        let pid = self.pid.and_then(|p| u32::try_from(p).ok()).filter(|p| *p > 0);
        let other_kernel = self.other_kernel(handler);
        let elsewhere = other_kernel.is_some();
        let place = match (other_kernel, pid) {
            (Some(why), _) => Err(why),
            (None, Some(pid)) => of_container(pid),
            (None, None) => Err("the runtime does not say which process it is".into()),
        };
        Facts { pid, host_network, elsewhere, place }
    }
}

impl Cri {
    /// Connects when it is used.
    pub fn new(socket: PathBuf) -> anyhow::Result<Self> {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting tokio")?;
        let guard = tokio.enter();
        let client = RuntimeServiceClient::new(channel(&socket)).max_decoding_message_size(LARGEST);
        drop(guard);
        Ok(Self { socket, tokio, client, known: Known::new() })
    }

    fn sandbox(&mut self, sandbox: &api::PodSandbox) -> anyhow::Result<Option<Facts>> {
        let request = request(api::PodSandboxStatusRequest { pod_sandbox_id: sandbox.id.clone(), verbose: true });
        let answer = match self.tokio.block_on(self.client.pod_sandbox_status(request)) {
            Err(e) if e.code() == tonic::Code::NotFound => return Ok(None), // removed meanwhile
            answer => answer.map_err(|e| explain(&self.socket, &e))?.into_inner(),
        };
        let options = answer.status.and_then(|s| s.linux).and_then(|l| l.namespaces).and_then(|n| n.options);
        let host_network = options.is_some_and(|o| o.network == api::NamespaceMode::Node as i32);
        Ok(Some(Info::parse(&answer.info).facts(&sandbox.runtime_handler, host_network)))
    }

    fn container(&mut self, id: &str, handler: &str, host_network: bool) -> anyhow::Result<Option<Facts>> {
        let request = request(api::ContainerStatusRequest { container_id: id.to_owned(), verbose: true });
        let answer = match self.tokio.block_on(self.client.container_status(request)) {
            Err(e) if e.code() == tonic::Code::NotFound => return Ok(None),
            answer => answer.map_err(|e| explain(&self.socket, &e))?.into_inner(),
        };
        Ok(Some(Info::parse(&answer.info).facts(handler, host_network)))
    }

    /// Known, or asked for; one that ended a moment ago is asked for again the next time.
    fn facts(
        &mut self,
        id: &str,
        ask: impl FnOnce(&mut Self) -> anyhow::Result<Option<Facts>>,
    ) -> anyhow::Result<Option<Facts>> {
        if let Some(facts) = self.known.0.get(id) {
            return Ok(Some(facts.clone()));
        }
        let facts = ask(self)?;
        if let Some(found) = facts.as_ref().filter(|f| f.pid.is_some()) {
            self.known.0.insert(id.to_owned(), found.clone());
        }
        Ok(facts)
    }
}

/// The pod's own cgroup: the parent of its sandbox's, or of a container's. Where there is none, all that it has.
fn place_of_pod(uid: &str, sandbox: &Facts, containers: &[Facts]) -> Result<Vec<Found>, String> {
    let places = || std::iter::once(sandbox).chain(containers).filter_map(|f| f.place.as_ref().ok());
    for place in places() {
        if let Some(parent) = place.path.parent().filter(|p| is_of_pod(p, uid)) {
            let id = datapath::cgroup_id(parent).map_err(|e| e.to_string())?;
            return Ok(vec![Found { path: parent.to_path_buf(), id }]);
        }
    }
    let mut all: Vec<Found> = places().cloned().collect();
    all.dedup();
    match (&sandbox.place, all.is_empty()) {
        (Err(why), true) => Err(why.clone()),
        _ => Ok(all),
    }
}

impl Backend for Cri {
    fn describe(&self) -> String {
        format!("CRI runtime at {}", self.socket.display())
    }

    fn list(&mut self) -> anyhow::Result<Vec<Workload>> {
        let ready = api::PodSandboxStateValue { state: api::PodSandboxState::SandboxReady as i32 };
        let filter = api::PodSandboxFilter { state: Some(ready), ..Default::default() };
        let sandboxes = self
            .tokio
            .block_on(self.client.list_pod_sandbox(request(api::ListPodSandboxRequest { filter: Some(filter) })))
            .map_err(|e| explain(&self.socket, &e))?
            .into_inner()
            .items;
        let running = api::ContainerStateValue { state: api::ContainerState::ContainerRunning as i32 };
        let filter = api::ContainerFilter { state: Some(running), ..Default::default() };
        let containers = self
            .tokio
            .block_on(self.client.list_containers(request(api::ListContainersRequest { filter: Some(filter) })))
            .map_err(|e| explain(&self.socket, &e))?
            .into_inner()
            .containers;
        self.known.keep(sandboxes.iter().map(|s| &*s.id).chain(containers.iter().map(|c| &*c.id)));
        let mut found = Vec::new();
        for sandbox in sandboxes {
            let Some(facts) = self.facts(&sandbox.id, |s| s.sandbox(&sandbox))? else { continue };
            let metadata = sandbox.metadata.unwrap_or_default();
            let pod = Workload {
                runtime: Runtime::Cri,
                namespace: Some(metadata.namespace),
                pod: Some(metadata.name),
                uid: Some(metadata.uid.clone()),
                container: None,
                id: sandbox.id.clone(),
                labels: sandbox.labels.into_iter().collect(),
                annotations: sandbox.annotations.into_iter().collect(),
                namespace_labels: None,
                services: None,
                host_network: facts.host_network,
                pid: facts.pid,
                place: Ok(Vec::new()),
            };
            let mut of_pod = Vec::new();
            for container in containers.iter().filter(|c| c.pod_sandbox_id == sandbox.id) {
                let ask = |s: &mut Self| s.container(&container.id, &sandbox.runtime_handler, facts.host_network);
                let Some(mut own) = self.facts(&container.id, ask)? else { continue };
                if facts.elsewhere {
                    own.place.clone_from(&facts.place); // only the sandbox tells the runtime's type
                }
                found.push(Workload {
                    container: Some(container.metadata.clone().unwrap_or_default().name),
                    id: container.id.clone(),
                    pid: own.pid,
                    place: own.place.clone().map(|f| vec![f]),
                    ..pod.clone()
                });
                of_pod.push(own);
            }
            found.push(Workload { place: place_of_pod(&metadata.uid, &facts, &of_pod), ..pod });
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(text: &str) -> Info {
        Info::parse(&[("info".to_owned(), text.to_owned())].into_iter().collect())
    }

    #[test]
    fn what_runtimes_say() {
        let containerd = info(r#"{"sandboxID":"x","pid":4711,"runtimeType":"io.containerd.runc.v2","config":{}}"#);
        assert_eq!((containerd.pid, containerd.other_kernel("")), (Some(4711), None));
        assert!(info(r#"{"pid":1,"runtimeType":"io.containerd.kata.v2"}"#).other_kernel("").is_some());
        assert!(info(r#"{"pid":1}"#).other_kernel("runsc").is_some());
        assert!(info(r#"{"pid":1}"#).other_kernel("crun").is_none());
        for odd in ["", "null", "[]", "{\"pid\":\"x\"}", "{\"pid\":-1}"] {
            assert_eq!(info(odd).facts("", false).pid, None, "{odd}");
        }
    }

    #[test]
    fn a_socket_that_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none.sock");
        let error = Cri::new(path.clone()).unwrap().list().unwrap_err().to_string();
        assert!(error.contains(&format!("no runtime socket at {}", path.display())), "{error}");
        let silent = std::os::unix::net::UnixListener::bind(&path).unwrap();
        drop(silent);
        let error = Cri::new(path).unwrap().list().unwrap_err().to_string();
        assert!(error.contains("nobody listens"), "{error}");
    }
}

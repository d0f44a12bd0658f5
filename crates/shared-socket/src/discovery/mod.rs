//! From what the user names to cgroups. Each backend knows one way in which workloads are made on this node.
//!
//! [`Inventory`] asks the backends what there is, [`Target`] says what the user means, [`Target::find`] brings the two
//! together: cgroups, or an error that lists what could have been meant.

mod cgroup;
mod cri;
mod docker;
pub mod kubernetes;
mod labels;
mod pid;
mod podman;
mod systemd;
mod target;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use anyhow::bail;
use serde::Serialize;

pub use cgroup::from_path;
pub use cri::{Cri, NoEvents, endpoint as cri_endpoint, watch as watch_cri};
pub use labels::Selector;
pub use pid::{enter_host_cgroups, from_pid};
pub use target::{Named, Target, find_all, pattern};

/// A cgroup that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    /// Absolute path of the cgroup.
    pub path: PathBuf,
    /// Its id.
    pub id: u64,
}

/// Who runs a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// A CRI runtime, for Kubernetes: containerd, CRI-O.
    Cri,
    /// The Docker Engine, or what speaks its API.
    Docker,
    /// Podman.
    Podman,
    /// systemd, whose units are cgroups.
    Systemd,
}

/// What could be attached: a pod, a container, a unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Workload {
    /// Who runs it.
    pub runtime: Runtime,
    /// Namespace of the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name of the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Unique id of the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Name of the container or the unit; none: the whole pod, with all containers that it has and will have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The runtime's id of it.
    pub id: String,
    /// Labels: of the pod where there is one.
    pub labels: BTreeMap<String, String>,
    /// Annotations: of the pod where there is one.
    pub annotations: BTreeMap<String, String>,
    /// Labels of the pod's namespace; none: not known. From the Kubernetes API alone, see [`kubernetes`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace_labels: Option<BTreeMap<String, String>>,
    /// Services that the pod is an endpoint of, as NAMESPACE/NAME; none: not known. From the Kubernetes API alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub services: Option<BTreeSet<String>>,
    /// It shares the network namespace of the node.
    pub host_network: bool,
    /// Its first process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Its cgroups; more than one for a pod that has none of its own. Else why it cannot be attached.
    #[serde(serialize_with = "place")]
    pub place: Result<Vec<Found>, String>,
}

fn place<S: serde::Serializer>(place: &Result<Vec<Found>, String>, to: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    #[serde(rename_all = "snake_case")]
    enum Place<'a> {
        Cgroups(&'a [Found]),
        NotPossible(&'a str),
    }
    match place {
        Ok(cgroups) => Place::Cgroups(cgroups),
        Err(why) => Place::NotPossible(why),
    }
    .serialize(to)
}

impl std::fmt::Display for Workload {
    /// As [`Target`] takes it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let container = self.container.as_deref();
        match (self.runtime, &self.namespace, &self.pod) {
            (Runtime::Cri, Some(namespace), Some(pod)) => {
                write!(f, "{namespace}/{pod}")?;
                container.map_or(Ok(()), |c| write!(f, "/{c}"))
            }
            (Runtime::Cri, ..) => write!(f, "{}", container.unwrap_or(&self.id)),
            (Runtime::Docker, ..) => write!(f, "docker/{}", container.unwrap_or(&self.id)),
            (Runtime::Podman, ..) => write!(f, "podman/{}", container.unwrap_or(&self.id)),
            (Runtime::Systemd, ..) => write!(f, "unit/{}", container.unwrap_or(&self.id)),
        }
    }
}

/// One way in which workloads are made on this node.
pub trait Backend: Send {
    /// Whom it asks, and where: for messages.
    fn describe(&self) -> String;
    /// What runs at the moment. What is known of an id already is not asked for again.
    fn list(&mut self) -> anyhow::Result<Vec<Workload>>;
}

/// What a backend answered.
#[derive(Debug, Clone, Serialize)]
pub struct Looked {
    /// Whom, and where.
    pub backend: String,
    /// How many workloads it has.
    pub workloads: usize,
    /// Why it did not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// All backends of this node.
pub struct Inventory {
    backends: Vec<Box<dyn Backend>>,
    endpoints: Endpoints,
    sockets: BTreeSet<PathBuf>,
}

/// What they answered.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Listing {
    /// Who was asked.
    pub looked: Vec<Looked>,
    /// What runs, by name.
    pub workloads: Vec<Workload>,
}

/// Where the sockets of runtimes are: environment variables and options win over the usual places.
#[derive(Debug, Clone, Default)]
pub struct Endpoints {
    /// CRI, as `unix:///path` or `/path`.
    pub cri: Option<String>,
    /// Docker.
    pub docker: Option<String>,
    /// Podman.
    pub podman: Option<String>,
    /// Run the command `podman` where its service does not run: for somebody who waits, not for an agent that asks often.
    pub commands: bool,
}

/// `unix:///path`, or a path.
pub fn socket_path(endpoint: &str) -> anyhow::Result<PathBuf> {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    if !path.starts_with('/') {
        bail!("the endpoint {endpoint:?} is not understood; give a socket as unix:///run/containerd/containerd.sock");
    }
    Ok(PathBuf::from(path))
}

/// The first of these that is there.
fn first_socket(usual: &[&str]) -> Option<PathBuf> {
    usual.iter().map(PathBuf::from).find(|p| p.exists())
}

/// The sockets of runtimes that are there, or were asked for.
fn sockets(endpoints: &Endpoints) -> BTreeSet<PathBuf> {
    let cri = cri::endpoint(endpoints.cri.as_deref());
    let docker = docker::endpoint(endpoints.docker.as_deref());
    let podman = podman::endpoint(endpoints.podman.as_deref());
    [cri, docker, podman].into_iter().filter_map(|found| found.ok().flatten()).collect()
}

/// Why an engine cannot be asked.
fn no_answer(socket: &Path, engine: &str, option: &str, error: &std::io::Error) -> anyhow::Error {
    let at = socket.display();
    match error.kind() {
        std::io::ErrorKind::NotFound => {
            anyhow::anyhow!("nothing is at {at}: is {engine} running? {option} unix:///PATH names another socket")
        }
        std::io::ErrorKind::ConnectionRefused => anyhow::anyhow!("nobody listens at {at}: is {engine} running?"),
        std::io::ErrorKind::PermissionDenied => anyhow::anyhow!("no permission to connect to {at}; run as root"),
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => {
            anyhow::anyhow!("{engine} at {at} does not answer")
        }
        _ => anyhow::anyhow!("asking {engine} at {at}: {error}"),
    }
}

impl Inventory {
    /// The backends that this node has. An endpoint that was asked for is there even when nothing listens: it will say so.
    pub fn new(endpoints: &Endpoints) -> anyhow::Result<Self> {
        let mut backends: Vec<Box<dyn Backend>> = Vec::new();
        if let Some(path) = cri::endpoint(endpoints.cri.as_deref())? {
            backends.push(Box::new(Cri::new(path)?));
        }
        let podman = podman::Podman::find(endpoints.podman.as_deref(), endpoints.commands)?;
        if let Some(path) = docker::endpoint(endpoints.docker.as_deref())? {
            // the package podman-docker has Docker's socket be Podman's: one of them is enough
            let same =
                |of: &podman::Podman| of.socket().is_some_and(|s| s.canonicalize().ok() == path.canonicalize().ok());
            if endpoints.docker.is_some() || !podman.as_ref().is_some_and(same) {
                backends.push(Box::new(docker::Docker::new(path)?));
            }
        }
        if let Some(backend) = podman {
            backends.push(Box::new(backend));
        }
        backends.push(Box::new(systemd::Systemd::new()));
        Ok(Self { backends, endpoints: endpoints.clone(), sockets: sockets(endpoints) })
    }

    /// Takes in runtimes that were not there before. One that is gone stays: it does not answer, which is not the same as
    /// having nothing.
    pub fn refresh(&mut self) -> anyhow::Result<()> {
        let now = sockets(&self.endpoints);
        if now != self.sockets && now.is_superset(&self.sockets) {
            *self = Self::new(&self.endpoints)?;
        }
        Ok(())
    }

    /// Asks all of them.
    pub fn list(&mut self) -> Listing {
        let mut listing = Listing::default();
        for backend in &mut self.backends {
            let (workloads, error) = match backend.list() {
                Ok(found) => (found, None),
                Err(e) => (Vec::new(), Some(format!("{e:#}"))),
            };
            listing.looked.push(Looked { backend: backend.describe(), workloads: workloads.len(), error });
            listing.workloads.extend(workloads);
        }
        listing.workloads.sort_by_cached_key(|w| (w.runtime, w.to_string()));
        listing
    }
}

/// What was found out about ids that live on: a cgroup does not change while its container lives.
#[derive(Debug)]
struct Known<T>(HashMap<String, T>);

impl<T> Known<T> {
    fn new() -> Self {
        Self(HashMap::new())
    }

    /// Forgets all but these.
    fn keep<'a>(&mut self, ids: impl Iterator<Item = &'a str>) {
        let ids: std::collections::HashSet<&str> = ids.collect();
        self.0.retain(|id, _| ids.contains(id.as_str()));
    }
}

/// The cgroup of a container by its first process; why it cannot be attached otherwise.
fn of_container(pid: u32) -> Result<Found, String> {
    let found = from_pid(pid).map_err(|e| format!("{e:#}"))?;
    if datapath::cgroup2_mount().is_ok_and(|root| found.path == root) {
        return Err(
            "its runtime keeps it in the root of the cgroup v2 hierarchy, as on hosts whose controllers are on cgroup \
             v1 (boot with systemd.unified_cgroup_hierarchy=1, or set the runtime's cgroup driver to v2), or it was \
             started with `--cgroups=disabled`"
                .into(),
        );
    }
    Ok(found)
}

/// The cgroup of a container of Docker or Podman, which both name after its id. Its first process may be in one below:
/// systemd and Docker in a container move themselves. Where none of this name is above it, the cgroup is not the
/// container's alone.
fn of_container_called(pid: u32, id: &str) -> Result<Found, String> {
    let own = of_container(pid)?;
    let named = |p: &&Path| p.file_name().is_some_and(|name| name.to_string_lossy().contains(id));
    let Some(path) = own.path.ancestors().find(named) else {
        return Err(format!(
            "it has no cgroup of its own: its process {pid} is in {}, with whatever else is there; start it without \
             `--cgroups=disabled`",
            own.path.display()
        ));
    };
    let id = datapath::cgroup_id(path).map_err(|e| e.to_string())?;
    Ok(Found { path: path.to_path_buf(), id })
}

/// Does this process share the network namespace of process 1, which is the node's? Not all APIs tell, and with
/// `--network container:…` the answer is another container's. Process 1 can be out of reach even for root: then what
/// this command runs in is taken for the node's.
fn shares_network_of_node(pid: u32) -> bool {
    let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net"));
    matches!((of("1").or_else(|_| of("self")), of(&pid.to_string())), (Ok(node), Ok(own)) if node == own)
}

/// One life of a container. Docker's and Podman's keep their id when they are started again, and get another process
/// and another cgroup.
#[derive(Debug, Clone)]
struct Life {
    pid: u32,
    started: u64,
    host_network: bool,
    place: Result<Found, String>,
}

impl Life {
    /// None if the process has ended.
    fn of(pid: u32, id: &str) -> Option<Self> {
        let started = started(pid)?;
        Some(Self { pid, started, host_network: shares_network_of_node(pid), place: of_container_called(pid, id) })
    }

    fn goes_on(&self) -> bool {
        started(self.pid) == Some(self.started)
    }
}

/// When a process began: with its number, what it is. None if it has ended, even if nobody has noticed yet.
fn started(pid: u32) -> Option<u64> {
    let stat = procfs::process::Process::new(i32::try_from(pid).ok()?).and_then(|p| p.stat()).ok()?;
    (!matches!(stat.state, 'Z' | 'X')).then_some(stat.starttime)
}

/// Is this the directory that kubelet makes for a pod? Its name holds the uid, with `_` for `-` where systemd makes it.
fn is_of_pod(path: &Path, uid: &str) -> bool {
    let name = path.file_name().map(|n| n.to_string_lossy().replace('_', "-")).unwrap_or_default();
    !uid.is_empty() && name.contains(&uid.replace('_', "-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_by_both_drivers() {
        let uid = "0b1a5c1e-9c5d-4c43-8f9e-1d2c3b4a5968";
        let cgroupfs = Path::new("/sys/fs/cgroup/kubepods/besteffort/pod0b1a5c1e-9c5d-4c43-8f9e-1d2c3b4a5968");
        let systemd = Path::new(
            "/sys/fs/cgroup/kubepods.slice/kubepods-besteffort.slice/\
             kubepods-besteffort-pod0b1a5c1e_9c5d_4c43_8f9e_1d2c3b4a5968.slice",
        );
        assert!(is_of_pod(cgroupfs, uid) && is_of_pod(systemd, uid));
        assert!(!is_of_pod(cgroupfs.parent().unwrap(), uid) && !is_of_pod(cgroupfs, ""));
    }

    #[test]
    fn a_life_ends_with_its_process() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let life = Life::of(child.id(), "0123").unwrap();
        assert!(life.goes_on() && life.host_network && life.place.is_err(), "{life:?}");
        assert!(!Life { started: life.started - 1, ..life.clone() }.goes_on(), "its number was given to another");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!life.goes_on() && Life::of(child.id(), "0123").is_none());
    }

    #[test]
    fn endpoints_are_sockets() {
        assert_eq!(socket_path("unix:///run/x.sock").unwrap(), Path::new("/run/x.sock"));
        assert_eq!(socket_path("/run/x.sock").unwrap(), Path::new("/run/x.sock"));
        for bad in ["", "run/x.sock", "tcp://1.2.3.4:5", "unix://x"] {
            assert!(socket_path(bad).is_err(), "{bad}");
        }
    }
}

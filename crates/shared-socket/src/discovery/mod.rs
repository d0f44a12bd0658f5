//! From what the user names to cgroups. Each backend knows one way in which workloads are made on this node.
//!
//! [`Inventory`] asks the backends what there is, [`Target`] says what the user means, [`Target::find`] brings the two
//! together: cgroups, or an error that lists what could have been meant.

mod cgroup;
mod cri;
mod docker;
mod labels;
mod pid;
mod podman;
mod systemd;
mod target;

use std::collections::{BTreeMap, HashMap};
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

impl Inventory {
    /// The backends that this node has. An endpoint that was asked for is there even when nothing listens: it will say so.
    pub fn new(endpoints: &Endpoints) -> anyhow::Result<Self> {
        let mut backends: Vec<Box<dyn Backend>> = Vec::new();
        if let Some(path) = cri::endpoint(endpoints.cri.as_deref())? {
            backends.push(Box::new(Cri::new(path)?));
        }
        if let Some(path) = docker::endpoint(endpoints.docker.as_deref())? {
            backends.push(Box::new(docker::Docker::new(path, Runtime::Docker)?));
        }
        if let Some(backend) = podman::find(endpoints.podman.as_deref())? {
            backends.push(backend);
        }
        backends.push(Box::new(systemd::Systemd::new()));
        Ok(Self { backends })
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
            "its runtime keeps it in the root of the cgroup v2 hierarchy, as on hosts whose controllers are on \
                    cgroup v1; boot with systemd.unified_cgroup_hierarchy=1, or set the runtime's cgroup driver to v2"
                .into(),
        );
    }
    Ok(found)
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
    fn endpoints_are_sockets() {
        assert_eq!(socket_path("unix:///run/x.sock").unwrap(), Path::new("/run/x.sock"));
        assert_eq!(socket_path("/run/x.sock").unwrap(), Path::new("/run/x.sock"));
        for bad in ["", "run/x.sock", "tcp://1.2.3.4:5", "unix://x"] {
            assert!(socket_path(bad).is_err(), "{bad}");
        }
    }
}

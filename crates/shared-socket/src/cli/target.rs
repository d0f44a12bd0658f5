//! Targets on the command line: names of containers, pods and units, cgroups, processes.

use std::path::PathBuf;

use anyhow::Context as _;

use crate::discovery::{Endpoints, Inventory, Named, Selector, Target, find_all};
use crate::observe::Names;

/// How a node's runtimes are found.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct RuntimeArgs {
    /// Socket of the CRI runtime; found by itself at the usual places
    #[arg(long, value_name = "SOCKET", env = "CONTAINER_RUNTIME_ENDPOINT")]
    runtime_endpoint: Option<String>,
    /// Socket of Docker; by default DOCKER_HOST or /run/docker.sock
    #[arg(long, value_name = "SOCKET")]
    docker_endpoint: Option<String>,
    /// Socket of Podman; by default /run/podman/podman.sock, else the command `podman` is asked
    #[arg(long, value_name = "SOCKET")]
    podman_endpoint: Option<String>,
}

impl RuntimeArgs {
    fn endpoints(&self) -> Endpoints {
        Endpoints {
            cri: self.runtime_endpoint.clone(),
            docker: self.docker_endpoint.clone(),
            podman: self.podman_endpoint.clone(),
            commands: false,
        }
    }

    /// Everything that runs workloads here.
    pub fn inventory(&self) -> anyhow::Result<Inventory> {
        crate::discovery::enter_host_cgroups();
        Inventory::new(&Endpoints { commands: true, ..self.endpoints() })
    }

    /// Whose the cgroups of this node are. Runtimes that do not answer are passed over, and no command of theirs is run:
    /// what is theirs has paths for names.
    pub fn names(&self) -> anyhow::Result<Names> {
        crate::discovery::enter_host_cgroups();
        let listing = Inventory::new(&self.endpoints())?.list();
        for error in listing.looked.iter().filter_map(|looked| looked.error.as_ref()) {
            tracing::info!("names: {error}");
        }
        Ok(Names::new(&datapath::cgroup2_mount()?, &listing.workloads))
    }
}

/// What to act on.
#[derive(Debug, Clone, clap::Args)]
pub struct TargetArgs {
    /// CONTAINER, pod/POD, NAMESPACE/POD, NAMESPACE/POD/CONTAINER, docker/NAME, podman/NAME or unit/NAME; with * ? [..] a
    /// pattern. A pod means all containers that it has and will have
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Only in this namespace; without names and labels: all of its pods
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Pods with these labels, as with kubectl: app=web,tier!=cache,canary,!old,zone in (a,b)
    #[arg(short = 'l', long = "selector", value_name = "LABELS")]
    labels: Option<String>,
    /// A cgroup v2 directory: absolute, or relative to the cgroup2 mount
    #[arg(long = "cgroup", value_name = "PATH")]
    cgroups: Vec<PathBuf>,
    /// The cgroup of this process
    #[arg(long = "pid", value_name = "PID")]
    pids: Vec<u32>,
    #[command(flatten)]
    runtimes: RuntimeArgs,
}

impl TargetArgs {
    /// Nothing was named.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
            && self.cgroups.is_empty()
            && self.pids.is_empty()
            && self.labels.is_none()
            && self.namespace.is_none()
    }

    fn targets(&self) -> anyhow::Result<Vec<Target>> {
        let mut targets: Vec<Target> = self.cgroups.iter().cloned().map(Target::Cgroup).collect();
        targets.extend(self.pids.iter().copied().map(Target::Pid));
        for name in &self.names {
            targets.push(name.parse()?);
        }
        let labels = match &self.labels {
            Some(text) => Some((text.clone(), text.parse::<Selector>().context("--selector")?)),
            None => None,
        };
        if labels.is_some() || (self.namespace.is_some() && self.names.is_empty()) {
            targets.push(Target::Pods(self.namespace.clone(), labels));
        }
        Ok(targets)
    }

    /// All of them, or an error and nothing: a typo in the second must not leave the first half-done.
    pub fn find(&self) -> anyhow::Result<Vec<Named>> {
        find_all(&self.targets()?, self.namespace.as_deref(), &mut self.runtimes.inventory()?)
    }
}

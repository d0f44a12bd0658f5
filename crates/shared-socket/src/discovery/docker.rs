//! Containers by the Docker Engine API: Docker itself, and Podman's service, which speaks it too.

use std::path::PathBuf;

use anyhow::Context;
use bollard::query_parameters::{InspectContainerOptions, ListContainersOptionsBuilder};

use super::{Backend, Found, Known, Runtime, Workload, first_socket, of_container, socket_path};

const USUAL: [&str; 2] = ["/run/docker.sock", "/var/run/docker.sock"];
const PATIENCE_SECONDS: u64 = 10;

/// The socket that was asked for (also by DOCKER_HOST), or the one that is there.
pub fn endpoint(asked: Option<&str>) -> anyhow::Result<Option<PathBuf>> {
    let environment = std::env::var("DOCKER_HOST").ok().filter(|h| h.starts_with("unix://"));
    match asked.or(environment.as_deref()) {
        Some(text) => Ok(Some(socket_path(text)?)),
        None => Ok(first_socket(&USUAL)),
    }
}

/// What speaks the Docker Engine API at a socket.
pub struct Docker {
    socket: PathBuf,
    runtime: Runtime,
    tokio: tokio::runtime::Runtime,
    known: Known<(Option<u32>, Result<Found, String>)>,
}

impl Docker {
    /// Connects when it is used.
    pub fn new(socket: PathBuf, runtime: Runtime) -> anyhow::Result<Self> {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting tokio")?;
        Ok(Self { socket, runtime, tokio, known: Known::new() })
    }
}

/// The first process of a container, as `docker inspect` and `podman ps` tell it.
pub fn placed(pid: Option<i64>) -> (Option<u32>, Result<Found, String>) {
    let pid = pid.and_then(|p| u32::try_from(p).ok()).filter(|p| *p > 0);
    let place = pid.map_or_else(|| Err("it has no process at the moment".into()), of_container);
    (pid, place)
}

impl Backend for Docker {
    fn describe(&self) -> String {
        let name = if self.runtime == Runtime::Podman { "Podman" } else { "Docker" };
        format!("{name} at {}", self.socket.display())
    }

    fn list(&mut self) -> anyhow::Result<Vec<Workload>> {
        let Self { socket, runtime, tokio, known } = self;
        let at = socket.display().to_string();
        tokio.block_on(async {
            let what = || format!("asking {at} for its containers; is it running?");
            let client = bollard::Docker::connect_with_unix(&at, PATIENCE_SECONDS, bollard::API_DEFAULT_VERSION)
                .with_context(what)?
                .negotiate_version()
                .await
                .with_context(what)?;
            let containers =
                client.list_containers(Some(ListContainersOptionsBuilder::new().build())).await.with_context(what)?;
            known.keep(containers.iter().filter_map(|c| c.id.as_deref()));
            let mut found = Vec::new();
            for container in containers {
                let Some(id) = container.id else { continue };
                let name = container.names.unwrap_or_default().into_iter().next().unwrap_or_else(|| id.clone());
                let name = name.trim_start_matches('/').to_owned();
                if name.starts_with("k8s_") {
                    continue; // kubelet's, by way of cri-dockerd: the CRI backend knows it better
                }
                let (pid, place) = match known.0.get(&id) {
                    Some(facts) => facts.clone(),
                    None => {
                        let Ok(all) = client.inspect_container(&id, None::<InspectContainerOptions>).await else {
                            continue; // removed meanwhile
                        };
                        let facts = placed(all.state.and_then(|s| s.pid));
                        if facts.0.is_some() {
                            known.0.insert(id.clone(), facts.clone());
                        }
                        facts
                    }
                };
                found.push(Workload {
                    runtime: *runtime,
                    namespace: None,
                    pod: None,
                    uid: None,
                    container: Some(name),
                    id,
                    labels: container.labels.unwrap_or_default().into_iter().collect(),
                    annotations: Default::default(),
                    host_network: container.host_config.and_then(|h| h.network_mode).is_some_and(|m| m == "host"),
                    pid,
                    place: place.map(|f| vec![f]),
                });
            }
            Ok(found)
        })
    }
}

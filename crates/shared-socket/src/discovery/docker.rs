//! Containers by the Docker Engine API: Docker itself, and what else speaks it, as Podman's service does.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use bollard::errors::Error;
use bollard::query_parameters::{InspectContainerOptions, ListContainersOptionsBuilder};

use super::{Backend, Known, Life, Runtime, Workload, first_socket, no_answer, socket_path};

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
    tokio: tokio::runtime::Runtime,
    known: Known<Life>,
}

impl Docker {
    /// Connects when it is used.
    pub fn new(socket: PathBuf) -> anyhow::Result<Self> {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting tokio")?;
        Ok(Self { socket, tokio, known: Known::new() })
    }
}

/// The client's own words for a socket that nobody serves are no help.
fn explain(socket: &Path, error: Error) -> anyhow::Error {
    let known = |error: &std::io::Error| no_answer(socket, "Docker", "--docker-endpoint", error);
    match &error {
        Error::SocketNotFoundError(_) => return known(&std::io::ErrorKind::NotFound.into()),
        Error::RequestTimeoutError => return known(&std::io::ErrorKind::TimedOut.into()),
        _ => {}
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(e) = cause {
        if let Some(io) = e.downcast_ref::<std::io::Error>() {
            return known(io);
        }
        cause = e.source();
    }
    anyhow!(error).context(format!("asking {} for its containers", socket.display()))
}

/// The name of a container. Links (`--link`) are names, too: /OTHER/ALIAS.
fn name(names: &[String], id: &str) -> String {
    let own = names.iter().map(|n| n.trim_start_matches('/')).find(|n| !n.contains('/'));
    own.unwrap_or(id).to_owned()
}

impl Backend for Docker {
    fn describe(&self) -> String {
        format!("Docker at {}", self.socket.display())
    }

    fn list(&mut self) -> anyhow::Result<Vec<Workload>> {
        let Self { socket, tokio, known } = self;
        let at = socket.display().to_string();
        let what = |e| explain(socket, e);
        tokio.block_on(async {
            let client = bollard::Docker::connect_with_unix(&at, PATIENCE_SECONDS, bollard::API_DEFAULT_VERSION)
                .map_err(what)?
                .negotiate_version()
                .await
                .map_err(what)?;
            // Docker tells of paused ones unasked, Podman does not; others have no process.
            let states = HashMap::from([("status", vec!["running", "paused"])]);
            let options = ListContainersOptionsBuilder::new().filters(&states).build();
            let containers = client.list_containers(Some(options)).await.map_err(what)?;
            known.keep(containers.iter().filter_map(|c| c.id.as_deref()));
            let mut found = Vec::new();
            for container in containers {
                let Some(id) = container.id else { continue };
                let name = name(container.names.as_deref().unwrap_or_default(), &id);
                if name.starts_with("k8s_") {
                    continue; // kubelet's, by way of cri-dockerd: the CRI backend knows it better
                }
                let life = match known.0.get(&id).filter(|life| life.goes_on()) {
                    Some(life) => Ok(life.clone()),
                    None => match client.inspect_container(&id, None::<InspectContainerOptions>).await {
                        Err(Error::DockerResponseServerError { status_code: 404, .. }) => continue, // removed meanwhile
                        Err(e) => Err(format!("Docker does not say which process it is: {e}")),
                        Ok(all) => {
                            let pid = all.state.and_then(|s| s.pid).and_then(|p| u32::try_from(p).ok());
                            let Some(life) = pid.filter(|p| *p > 0).and_then(|pid| Life::of(pid, &id)) else {
                                continue; // ended meanwhile
                            };
                            if life.place.is_ok() {
                                known.0.insert(id.clone(), life.clone());
                            }
                            Ok(life)
                        }
                    },
                };
                found.push(Workload {
                    runtime: Runtime::Docker,
                    namespace: None,
                    pod: None,
                    uid: None,
                    container: Some(name),
                    id,
                    labels: container.labels.unwrap_or_default().into_iter().collect(),
                    annotations: Default::default(),
                    namespace_labels: None,
                    services: None,
                    host_network: life.as_ref().is_ok_and(|l| l.host_network),
                    pid: life.as_ref().ok().map(|l| l.pid),
                    place: life.and_then(|l| l.place).map(|f| vec![f]),
                });
            }
            Ok(found)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_no_name() {
        let name = |all: &[&str]| name(&all.iter().map(ToString::to_string).collect::<Vec<_>>(), "0123");
        assert_eq!(name(&["/client/db", "/postgres"]), "postgres");
        assert_eq!(name(&["web"]), "web");
        assert_eq!(name(&[]), "0123");
    }

    #[test]
    fn a_socket_that_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none.sock");
        let list = || format!("{:#}", Docker::new(path.clone()).unwrap().list().unwrap_err());
        assert!(list().contains(&format!("nothing is at {}", path.display())), "{}", list());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(list().contains("nobody listens"), "{}", list());
    }
}

//! Podman's containers: by its service, or where that does not run (it need not) by its command.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};
use serde::Deserialize;

use super::docker::{Docker, placed};
use super::{Backend, Runtime, Workload, first_socket, socket_path};

const USUAL: [&str; 1] = ["/run/podman/podman.sock"];

/// The backend that this node has.
pub fn find(asked: Option<&str>) -> anyhow::Result<Option<Box<dyn Backend>>> {
    let socket = match asked {
        Some(text) => Some(socket_path(text)?),
        None => first_socket(&USUAL),
    };
    if let Some(socket) = socket {
        return Ok(Some(Box::new(Docker::new(socket, Runtime::Podman)?)));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let program = std::env::split_paths(&path).map(|dir| dir.join("podman")).find(|p| p.is_file());
    Ok(program.map(|program| Box::new(Podman { program }) as Box<dyn Backend>))
}

/// `podman ps`.
struct Podman {
    program: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    id: String,
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    pid: Option<i64>,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    is_infra: bool,
}

fn parse(text: &[u8]) -> anyhow::Result<Vec<Workload>> {
    let text = if text.trim_ascii().is_empty() { b"[]" } else { text };
    let rows: Vec<Row> = serde_json::from_slice(text)?;
    let found = rows.into_iter().filter(|row| !row.is_infra).map(|row| {
        let (pid, place) = placed(row.pid);
        Workload {
            runtime: Runtime::Podman,
            namespace: None,
            pod: None,
            uid: None,
            container: Some(row.names.into_iter().next().unwrap_or_else(|| row.id.clone())),
            id: row.id,
            labels: row.labels.unwrap_or_default(),
            annotations: BTreeMap::new(),
            host_network: false,
            pid,
            place: place.map(|f| vec![f]),
        }
    });
    Ok(found.collect())
}

impl Backend for Podman {
    fn describe(&self) -> String {
        format!("Podman by `{} ps`", self.program.display())
    }

    fn list(&mut self) -> anyhow::Result<Vec<Workload>> {
        let what = || format!("asking `{} ps --format json`", self.program.display());
        let output = Command::new(&self.program).args(["ps", "--format", "json"]).output().with_context(what)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{} failed: {}", what(), said.lines().last().unwrap_or("no message"));
        }
        parse(&output.stdout).with_context(what)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rows_of_podman_4() {
        let text = br#"[{"Id":"abc","Names":["web"],"Pid":0,"Labels":null,"IsInfra":false,"State":"running"},
            {"Id":"def","Names":["x-infra"],"Pid":5,"IsInfra":true}]"#;
        let found = parse(text).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].to_string(), "podman/web");
        assert!(found[0].place.is_err());
        assert_eq!(parse(b"\n").unwrap(), []);
    }

    proptest! {
        #[test]
        fn anything_is_taken_or_refused(text in "\\PC{0,60}") {
            let _ = parse(text.as_bytes());
        }
    }
}

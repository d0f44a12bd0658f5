//! systemd's units: each is a cgroup of its own name. No bus is needed, and none is asked.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{Backend, Found, Runtime, Workload};

const DEPTH: usize = 8;
/// What containers and pods are in: those are named by their runtimes.
const OF_RUNTIMES: [&str; 3] = ["kubepods", "libpod", "machine.slice"];

/// The units that have a cgroup.
#[derive(Debug, Default)]
pub struct Systemd;

impl Systemd {
    /// It has no state.
    pub fn new() -> Self {
        Self
    }
}

/// The unit that this directory is. systemd puts `_` before a name that the kernel keeps for itself.
fn unit(name: &str) -> Option<&str> {
    let name = name.strip_prefix('_').unwrap_or(name);
    let known = [".service", ".scope", ".socket", ".mount", ".slice"];
    known.iter().any(|end| name.ends_with(end) && name.len() > end.len()).then_some(name)
}

/// Below these are more units: slices, and what the manager of a user's units runs.
fn has_units(unit: &str) -> bool {
    unit.ends_with(".slice") || (unit.starts_with("user@") && unit.ends_with(".service"))
}

/// Only from unit to unit: what is no unit is not systemd's, and a container below it may have a systemd of its own.
fn walk(dir: &Path, depth: usize, found: &mut Vec<Workload>) {
    let Ok(entries) = fs::read_dir(dir) else { return }; // removed meanwhile
    for entry in entries.flatten() {
        if !entry.file_type().is_ok_and(|t| t.is_dir()) {
            continue;
        }
        let name = entry.file_name().to_string_lossy().into_owned();
        if OF_RUNTIMES.iter().any(|of| name.starts_with(of)) {
            continue;
        }
        let (Some(unit), Ok(meta)) = (unit(&name), entry.metadata()) else { continue };
        let path = entry.path();
        found.push(Workload {
            runtime: Runtime::Systemd,
            namespace: None,
            pod: None,
            uid: None,
            container: Some(unit.to_owned()),
            id: unit.to_owned(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            namespace_labels: None,
            services: None,
            host_network: true,
            pid: None,
            place: Ok(vec![Found { path: path.clone(), id: meta.ino() }]),
        });
        if depth > 0 && has_units(unit) {
            walk(&path, depth - 1, found);
        }
    }
}

impl Backend for Systemd {
    fn describe(&self) -> String {
        "systemd units in the cgroup tree".into()
    }

    fn list(&mut self) -> anyhow::Result<Vec<Workload>> {
        let mut found = Vec::new();
        walk(&datapath::cgroup2_mount()?, DEPTH, &mut found);
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_units() {
        for (name, is) in [
            ("nginx.service", Some("nginx.service")),
            ("_cgroup.service", Some("cgroup.service")),
            ("user@1000.service", Some("user@1000.service")),
            ("system.slice", Some("system.slice")),
            (".service", None),
            ("pod123", None),
        ] {
            assert_eq!(unit(name), is, "{name}");
        }
    }

    #[test]
    fn a_tree_of_cgroups() {
        let root = tempfile::tempdir().unwrap();
        for dir in [
            "system.slice/nginx.service/worker.service",
            "kubepods.slice/a.slice",
            "user.slice/u.slice/x.scope",
            "user.slice/user-7.slice/user@7.service/app.slice/nginx.service",
            "docker/0123/system.slice/nginx.service",
        ] {
            fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        let mut found = Vec::new();
        walk(root.path(), DEPTH, &mut found);
        let mut names: Vec<String> = found.iter().map(ToString::to_string).collect();
        names.sort();
        assert_eq!(
            names,
            [
                "unit/app.slice",
                "unit/nginx.service",
                "unit/nginx.service",
                "unit/system.slice",
                "unit/u.slice",
                "unit/user-7.slice",
                "unit/user.slice",
                "unit/user@7.service",
                "unit/x.scope"
            ]
        );
    }
}

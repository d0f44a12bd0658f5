//! Whose a cgroup is: pods and containers by name, for people and for labels.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::discovery::Workload;

/// A workload, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Name {
    /// Namespace of the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name of the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Name of the container or the unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The whole name, as `shared-socket attach` takes it; of a cgroup that is no runtime's, its path.
    pub name: String,
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.name)
    }
}

impl From<&Workload> for Name {
    fn from(w: &Workload) -> Self {
        Self { namespace: w.namespace.clone(), pod: w.pod.clone(), container: w.container.clone(), name: w.to_string() }
    }
}

/// What is known of the cgroups of this node at one moment.
#[derive(Debug, Clone, Default)]
pub struct Names {
    /// Where cgroup v2 is mounted.
    root: PathBuf,
    /// Of cgroups that a runtime told of.
    by_path: BTreeMap<PathBuf, Name>,
    by_id: HashMap<u64, PathBuf>,
}

impl Names {
    /// From what the runtimes told. Where a pod and its only container have one cgroup, the container's name is used.
    pub fn new(root: &Path, workloads: &[Workload]) -> Self {
        let mut names = Self { root: root.to_path_buf(), ..Self::default() };
        for w in workloads {
            for place in w.place.iter().flatten() {
                names.by_id.insert(place.id, place.path.clone());
                let better = names.by_path.get(&place.path).is_none_or(|n| n.container.is_none());
                if better {
                    names.by_path.insert(place.path.clone(), w.into());
                }
            }
        }
        names
    }

    /// Whether anybody has looked yet.
    pub fn are_known(&self) -> bool {
        !self.root.as_os_str().is_empty()
    }

    /// Looks up the paths of cgroups that no runtime told of: a socket's may lie below its container's.
    #[must_use]
    pub fn with_paths(mut self, ids: impl IntoIterator<Item = u64>) -> Self {
        let unknown: BTreeSet<u64> = ids.into_iter().filter(|id| !self.by_id.contains_key(id)).collect();
        let unknown: Vec<u64> = unknown.into_iter().collect();
        if !unknown.is_empty() {
            if self.root.as_os_str().is_empty() {
                // the agent's, before its first round
                self.root = datapath::cgroup2_mount().unwrap_or_default();
            }
            for (id, below) in datapath::cgroup_paths(&self.root, &unknown) {
                self.by_id.insert(id, self.root.join(below.strip_prefix("/").unwrap_or(&below)));
            }
        }
        self
    }

    /// Whose a cgroup is: of the deepest that has a name, itself or above. `attached` is a cgroup above it, for when it is
    /// gone.
    pub fn of(&self, cgroup: u64, attached: u64) -> Name {
        let Some(path) = self.by_id.get(&cgroup).or_else(|| self.by_id.get(&attached)) else {
            return Name { name: format!("cgroup {cgroup} (gone)"), ..Name::default() };
        };
        if let Some(name) = path.ancestors().find_map(|p| self.by_path.get(p)) {
            return name.clone();
        }
        let below = path.strip_prefix(&self.root).unwrap_or(path);
        Name { name: format!("/{}", below.display()), ..Name::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::{Found, Runtime};

    fn workload(pod: &str, container: Option<&str>, path: &str, id: u64) -> Workload {
        Workload {
            runtime: Runtime::Cri,
            namespace: Some("core".into()),
            pod: Some(pod.into()),
            uid: None,
            container: container.map(str::to_owned),
            id: "1".into(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            namespace_labels: None,
            services: None,
            host_network: false,
            pid: None,
            place: Ok(vec![Found { path: path.into(), id }]),
        }
    }

    #[test]
    fn the_deepest_name_counts() {
        let list = [workload("smf", None, "/cg/pods/a", 7), workload("smf", Some("main"), "/cg/pods/a/c", 8)];
        let mut names = Names::new(Path::new("/cg"), &list);
        names.by_id.insert(9, "/cg/pods/a/c/inner".into());
        names.by_id.insert(10, "/cg/other".into());
        assert_eq!(names.of(9, 7).name, "core/smf/main");
        assert_eq!(names.of(7, 7).name, "core/smf");
        assert_eq!(names.of(99, 7).to_string(), "core/smf");
        assert_eq!(names.of(10, 7).name, "/other");
        assert_eq!(names.of(99, 98).name, "cgroup 99 (gone)");
    }
}

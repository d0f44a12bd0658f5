//! What may be fast: from what runs on this node to the cgroups that shall be attached.

use std::collections::BTreeMap;
use std::path::PathBuf;

use globset::GlobMatcher;
use serde::{Deserialize, Serialize};

use crate::discovery::{Runtime, Workload, pattern};

/// A shell pattern, checked when it is read.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct Pattern {
    text: String,
    matcher: GlobMatcher,
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let matcher = pattern(&text).map_err(|e| format!("{e:#}"))?;
        Ok(Self { text, matcher })
    }
}

impl Pattern {
    fn is_match(&self, name: &str) -> bool {
        self.text == name || self.matcher.is_match(name)
    }

    fn is_all(&self) -> bool {
        self.text == "*"
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

/// Which pairs of a workload are accelerated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Eligibility {
    /// What was observed to be safe.
    #[default]
    Safe,
    /// Every pair.
    All,
}

impl From<Eligibility> for datapath::Eligibility {
    fn from(e: Eligibility) -> Self {
        match e {
            Eligibility::Safe => Self::Safe,
            Eligibility::All => Self::All,
        }
    }
}

/// Is what no selector names accelerated?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Only what a selector names.
    #[default]
    OptIn,
    /// Every pod, but what a selector names.
    OptOut,
}

/// All that is given must hold; of a list, one entry. At least one field must be given.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    /// Namespaces of pods.
    #[serde(default)]
    pub namespaces: Vec<Pattern>,
    /// Names of pods.
    #[serde(default)]
    pub pods: Vec<Pattern>,
    /// Labels of pods, or of containers of Docker and Podman.
    #[serde(default)]
    pub labels: BTreeMap<String, Pattern>,
    /// Annotations of pods.
    #[serde(default)]
    pub annotations: BTreeMap<String, Pattern>,
    /// Names of containers: only those of a pod, and not the whole pod. Also of Docker and Podman.
    #[serde(default)]
    pub containers: Vec<Pattern>,
    /// systemd units.
    #[serde(default)]
    pub units: Vec<Pattern>,
    /// Which pairs; the file's default otherwise.
    pub eligibility: Option<Eligibility>,
}

fn one_of(patterns: &[Pattern], name: Option<&str>) -> bool {
    patterns.is_empty() || name.is_some_and(|n| patterns.iter().any(|p| p.is_match(n)))
}

fn all_of(wanted: &BTreeMap<String, Pattern>, has: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, pattern)| has.get(key).is_some_and(|value| pattern.is_match(value)))
}

impl Selector {
    /// It says nothing.
    pub fn is_empty(&self) -> bool {
        Self { eligibility: self.eligibility, ..Self::default() } == *self
    }

    fn is_of_pods(&self) -> bool {
        !self.namespaces.is_empty() || !self.pods.is_empty() || !self.annotations.is_empty()
    }

    /// The whole pod, whatever containers it has.
    fn is_of_whole_pods(&self) -> bool {
        self.units.is_empty() && (self.containers.is_empty() || self.containers.iter().any(Pattern::is_all))
    }

    fn matches(&self, w: &Workload) -> bool {
        if w.runtime == Runtime::Systemd {
            return !self.units.is_empty() && one_of(&self.units, w.container.as_deref());
        }
        if !self.units.is_empty() {
            return false;
        }
        let labels = all_of(&self.labels, &w.labels);
        if w.pod.is_none() {
            // Docker and Podman have neither pods nor namespaces
            return !self.is_of_pods() && labels && one_of(&self.containers, w.container.as_deref());
        }
        labels
            && one_of(&self.namespaces, w.namespace.as_deref())
            && one_of(&self.pods, w.pod.as_deref())
            && all_of(&self.annotations, &w.annotations)
            && match &w.container {
                None => self.is_of_whole_pods(),
                Some(name) => !self.is_of_whole_pods() && one_of(&self.containers, Some(name)),
            }
    }
}

/// What the annotation of a pod says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Annotation {
    Yes,
    No,
    All,
}

/// A cgroup that shall be attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Wanted {
    /// Absolute path.
    pub path: PathBuf,
    /// Which pairs.
    pub eligibility: Eligibility,
    /// Of what.
    pub name: String,
}

/// What is done with a workload, for `workloads` and the agent's page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// It shall be attached.
    Accelerate(Eligibility),
    /// Nobody asked for it, or somebody asked for the opposite: why.
    LeaveAlone(String),
    /// It cannot be attached: why.
    NotPossible(String),
}

/// The rules.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// What happens to what no selector names.
    pub mode: Mode,
    /// What is accelerated (opt-in), or left alone (opt-out).
    pub selectors: Vec<Selector>,
    /// The annotation of pods that wins over the selectors.
    pub annotation: String,
    /// Where a selector says nothing.
    pub eligibility: Eligibility,
}

impl Policy {
    fn annotated(&self, w: &Workload) -> Result<Option<Annotation>, String> {
        let Some(value) = w.annotations.get(&self.annotation) else { return Ok(None) };
        match value.as_str() {
            "true" => Ok(Some(Annotation::Yes)),
            "false" => Ok(Some(Annotation::No)),
            "all" => Ok(Some(Annotation::All)),
            other => {
                Err(format!("its annotation {}: {other:?} is neither \"true\", \"false\" nor \"all\"", self.annotation))
            }
        }
    }

    /// What is done with this workload. A pod's containers are covered by their pod, so they stand for themselves only where
    /// a selector names containers.
    pub fn decide(&self, w: &Workload) -> Decision {
        let rule = self.selectors.iter().find(|s| s.matches(w));
        let named = rule.map(|s| s.eligibility.unwrap_or(self.eligibility));
        let whole_pod = w.pod.is_some() && w.container.is_none();
        let wanted = match (self.annotated(w), self.mode) {
            (Err(why), _) => Err(why),
            (Ok(Some(Annotation::No)), _) => Err(format!("its annotation {} is \"false\"", self.annotation)),
            (Ok(Some(Annotation::Yes)), mode) if whole_pod => {
                Ok(if mode == Mode::OptIn { named.unwrap_or(self.eligibility) } else { self.eligibility })
            }
            (Ok(Some(Annotation::All)), _) if whole_pod => Ok(Eligibility::All),
            (Ok(Some(_)), _) => Err("it is covered by its pod".into()),
            (Ok(None), Mode::OptIn) => named.ok_or_else(|| "no selector names it (opt-in)".into()),
            (Ok(None), Mode::OptOut) if named.is_some() => Err("a selector names it (opt-out)".into()),
            (Ok(None), Mode::OptOut) if !whole_pod => {
                Err(if w.pod.is_some() { "it is covered by its pod".into() } else { "it is no pod (opt-out)".into() })
            }
            (Ok(None), Mode::OptOut) if self.is_divided(w) => {
                Err("a selector names one of its containers (opt-out): its others cannot be told from it".into())
            }
            (Ok(None), Mode::OptOut) => Ok(self.eligibility),
        };
        match (wanted, &w.place) {
            (Err(why), _) => Decision::LeaveAlone(why),
            (Ok(_), Err(why)) => Decision::NotPossible(why.clone()),
            (Ok(eligibility), Ok(_)) => Decision::Accelerate(eligibility),
        }
    }

    /// Opt-out names containers of this pod: a cgroup of the pod would cover them.
    fn is_divided(&self, pod: &Workload) -> bool {
        self.selectors.iter().any(|s| {
            !s.is_of_whole_pods() && s.units.is_empty() && {
                let whole = Selector { containers: Vec::new(), ..s.clone() };
                whole.matches(pod)
            }
        })
    }

    /// All cgroups that shall be attached. One that two rules name gets the bolder eligibility.
    pub fn wanted(&self, workloads: &[Workload]) -> BTreeMap<u64, Wanted> {
        let mut found: BTreeMap<u64, Wanted> = BTreeMap::new();
        for w in workloads {
            let Decision::Accelerate(eligibility) = self.decide(w) else { continue };
            for place in w.place.iter().flatten() {
                let wanted = Wanted { path: place.path.clone(), eligibility, name: w.to_string() };
                let entry = found.entry(place.id).or_insert(wanted);
                if eligibility == Eligibility::All {
                    entry.eligibility = Eligibility::All;
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::Found;

    fn policy(mode: Mode, selectors: &str) -> Policy {
        let selectors: Vec<Selector> = yaml_serde::from_str(selectors).unwrap();
        Policy { mode, selectors, annotation: "shared-socket.io/accelerate".into(), eligibility: Eligibility::Safe }
    }

    fn pod(namespace: &str, name: &str, annotation: Option<&str>) -> Workload {
        Workload {
            runtime: Runtime::Cri,
            namespace: Some(namespace.into()),
            pod: Some(name.into()),
            uid: None,
            container: None,
            id: name.into(),
            labels: [("app".to_owned(), name[..3].to_owned())].into(),
            annotations: annotation
                .map(|a| ("shared-socket.io/accelerate".to_owned(), a.to_owned()))
                .into_iter()
                .collect(),
            host_network: false,
            pid: None,
            place: Ok(vec![Found { path: format!("/c/{name}").into(), id: name.len() as u64 }]),
        }
    }

    fn container(of: &Workload, name: &str) -> Workload {
        Workload { container: Some(name.into()), ..of.clone() }
    }

    fn is(policy: &Policy, w: &Workload) -> Option<Eligibility> {
        match policy.decide(w) {
            Decision::Accelerate(e) => Some(e),
            _ => None,
        }
    }

    const SAFE: Option<Eligibility> = Some(Eligibility::Safe);
    const ALL: Option<Eligibility> = Some(Eligibility::All);

    #[test]
    fn opt_in() {
        let p = policy(Mode::OptIn, "[{namespaces: ['5gc-*'], labels: {app: smf}}, {pods: [web-*], eligibility: all}]");
        assert_eq!(is(&p, &pod("5gc-a", "smf-0", None)), SAFE);
        assert_eq!(is(&p, &pod("5gc-a", "amf-0", None)), None);
        assert_eq!(is(&p, &pod("x", "web-0", None)), ALL);
        assert_eq!(is(&p, &pod("x", "web-0", Some("false"))), None);
        assert_eq!(is(&p, &pod("x", "db-00", Some("true"))), SAFE);
        assert_eq!(is(&p, &pod("x", "db-00", Some("all"))), ALL);
        assert_eq!(is(&p, &pod("x", "web-0", Some("yes"))), None);
        assert_eq!(is(&p, &container(&pod("x", "web-0", None), "c")), None, "covered by its pod");
    }

    #[test]
    fn containers_of_pods() {
        let p = policy(Mode::OptIn, "[{containers: [envoy]}]");
        let web = pod("x", "web-0", None);
        assert_eq!(is(&p, &web), None);
        assert_eq!(is(&p, &container(&web, "envoy")), SAFE);
        assert_eq!(is(&p, &container(&web, "app")), None);
        let all = policy(Mode::OptIn, "[{namespaces: [x], containers: ['*']}]");
        assert_eq!(is(&all, &web), SAFE);
        assert_eq!(is(&all, &container(&web, "envoy")), None);
    }

    #[test]
    fn opt_out() {
        let p = policy(Mode::OptOut, "[{namespaces: [kube-system]}, {pods: [web-*], containers: [app]}]");
        assert_eq!(is(&p, &pod("x", "smf-0", None)), SAFE);
        assert_eq!(is(&p, &pod("kube-system", "dns-0", None)), None);
        assert_eq!(is(&p, &pod("kube-system", "dns-0", Some("true"))), SAFE);
        assert_eq!(is(&p, &pod("x", "smf-0", Some("false"))), None);
        assert_eq!(is(&p, &pod("x", "web-0", None)), None, "one of its containers shall be left alone");
        let unit = Workload {
            runtime: Runtime::Systemd,
            namespace: None,
            pod: None,
            container: Some("nginx.service".into()),
            ..pod("x", "smf-0", None)
        };
        assert_eq!(is(&p, &unit), None);
    }

    #[test]
    fn units_and_other_runtimes() {
        let p = policy(Mode::OptIn, "[{units: [nginx.service]}, {containers: [redis*]}]");
        let unit = |name: &str| Workload {
            runtime: Runtime::Systemd,
            namespace: None,
            pod: None,
            container: Some(name.into()),
            ..pod("", "xxx", None)
        };
        assert_eq!(is(&p, &unit("nginx.service")), SAFE);
        assert_eq!(is(&p, &unit("ssh.service")), None);
        let docker = Workload { runtime: Runtime::Docker, ..unit("redis-1") };
        assert_eq!(is(&p, &docker), SAFE);
        let of_pods = policy(Mode::OptIn, "[{namespaces: ['*'], containers: [redis*]}]");
        assert_eq!(is(&of_pods, &docker), None);
    }

    #[test]
    fn one_cgroup_once() {
        let p = policy(Mode::OptIn, "[{pods: [aaa]}, {pods: [bbb], eligibility: all}]");
        let wanted = p.wanted(&[pod("x", "aaa", None), pod("x", "bbb", None), pod("x", "ccc", None)]);
        assert_eq!(wanted.len(), 1);
        assert_eq!(wanted[&3].eligibility, Eligibility::All);
    }
}

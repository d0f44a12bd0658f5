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

impl std::fmt::Display for Eligibility {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        datapath::Eligibility::from(*self).fmt(f)
    }
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
    /// Labels of the pod's namespace. Only the Kubernetes API knows them.
    #[serde(default)]
    pub namespace_labels: BTreeMap<String, Pattern>,
    /// Services, as NAMESPACE/NAME, that the pod is an endpoint of. Only the Kubernetes API knows them.
    #[serde(default)]
    pub services: Vec<Pattern>,
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

    /// It asks for what only pods have.
    fn is_of_pods(&self) -> bool {
        !self.namespaces.is_empty()
            || !self.pods.is_empty()
            || !self.annotations.is_empty()
            || !self.namespace_labels.is_empty()
            || !self.services.is_empty()
    }

    /// It names units, and what no unit has.
    pub fn is_of_units_and_pods(&self) -> bool {
        !self.units.is_empty() && (self.is_of_pods() || !self.labels.is_empty())
    }

    /// The first of its services that is not NAMESPACE/NAME, and would match none.
    pub fn bad_service(&self) -> Option<&str> {
        let is_bad = |text: &str| {
            let parts: Vec<&str> = text.split('/').collect();
            parts.len() != 2 || parts.iter().any(|p| p.is_empty())
        };
        self.services.iter().map(|p| p.text.as_str()).find(|text| is_bad(text))
    }

    /// The whole pod, whatever containers it has.
    fn is_of_whole_pods(&self) -> bool {
        self.units.is_empty() && (self.containers.is_empty() || self.containers.iter().any(Pattern::is_all))
    }

    fn matches(&self, w: &Workload) -> Match {
        if !self.matches_by_runtime(w) {
            return Match::No;
        }
        let labels = match (&w.namespace_labels, self.namespace_labels.is_empty()) {
            (_, true) => Match::Yes,
            (None, false) => Match::Unknown,
            (Some(has), false) => all_of(&self.namespace_labels, has).into(),
        };
        let services = match (&w.services, self.services.is_empty()) {
            (_, true) => Match::Yes,
            (None, false) => Match::Unknown,
            (Some(of), false) => of.iter().any(|name| self.services.iter().any(|p| p.is_match(name))).into(),
        };
        labels.min(services)
    }

    /// As far as the runtimes of this node can tell.
    fn matches_by_runtime(&self, w: &Workload) -> bool {
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

/// Does a selector name a workload? What is less comes first: all parts of a selector must say yes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Match {
    No,
    /// The Kubernetes API must say, and has not.
    Unknown,
    Yes,
}

impl From<bool> for Match {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

/// Why a workload is left alone while nobody can say whether a selector names it: in doubt it is TCP, in both modes.
const DOUBT: &str = "only the Kubernetes API can say whether a selector names it, and was not heard";

/// What of the Kubernetes API the selectors use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// Labels of namespaces.
    pub namespace_labels: bool,
    /// Services.
    pub services: bool,
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
    /// Its messages may be captured.
    pub capture: bool,
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
    /// Whose messages may be captured.
    pub capture: CapturePolicy,
}

/// Whose messages no capture may copy.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CapturePolicy {
    /// Of what these name; and of a pod, one of whose containers they name.
    pub forbid: Vec<Selector>,
    /// The annotation of pods that forbids it with "false". It cannot allow what a selector forbids.
    pub annotation: String,
}

impl Default for CapturePolicy {
    fn default() -> Self {
        Self { forbid: Vec::new(), annotation: "shared-socket.io/capture".into() }
    }
}

impl CapturePolicy {
    /// In doubt it is forbidden: what the Kubernetes API must say, and an annotation that says neither.
    fn allows(&self, w: &Workload) -> bool {
        let annotated = w.annotations.get(&self.annotation).is_none_or(|value| value == "true");
        // what is attached may be the whole pod
        let whole = |s: &Selector| Selector { containers: Vec::new(), ..s.clone() };
        let names = |s: &Selector| s.matches(w).max(if w.pod.is_some() { whole(s).matches(w) } else { Match::No });
        annotated && self.forbid.iter().all(|s| names(s) == Match::No)
    }
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

    /// What the selectors cannot do without.
    pub fn needs(&self) -> Needs {
        let all = || self.selectors.iter().chain(&self.capture.forbid);
        Needs {
            namespace_labels: all().any(|s| !s.namespace_labels.is_empty()),
            services: all().any(|s| !s.services.is_empty()),
        }
    }

    /// The first selector that names it; whether one before that may name it, too.
    fn rule(&self, w: &Workload) -> (Option<&Selector>, bool) {
        let mut doubt = false;
        for selector in &self.selectors {
            match selector.matches(w) {
                Match::Yes => return (Some(selector), doubt),
                Match::Unknown => doubt = true,
                Match::No => {}
            }
        }
        (None, doubt)
    }

    /// What is done with this workload. A pod's containers are covered by their pod, so they stand for themselves only where
    /// a selector names containers.
    pub fn decide(&self, w: &Workload) -> Decision {
        let (rule, doubt) = self.rule(w);
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
            (Ok(None), Mode::OptIn) if named.is_none() && doubt => Err(DOUBT.into()),
            (Ok(None), Mode::OptIn) => named.ok_or_else(|| "no selector names it (opt-in)".into()),
            (Ok(None), Mode::OptOut) if named.is_some() => Err("a selector names it (opt-out)".into()),
            (Ok(None), Mode::OptOut) if !whole_pod => {
                Err(if w.pod.is_some() { "it is covered by its pod".into() } else { "it is no pod (opt-out)".into() })
            }
            (Ok(None), Mode::OptOut) if doubt || self.is_divided(w) == Match::Unknown => Err(DOUBT.into()),
            (Ok(None), Mode::OptOut) if self.is_divided(w) == Match::Yes => {
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
    fn is_divided(&self, pod: &Workload) -> Match {
        let of_containers = self.selectors.iter().filter(|s| !s.is_of_whole_pods() && s.units.is_empty());
        let whole = |s: &Selector| Selector { containers: Vec::new(), ..s.clone() };
        of_containers.map(|s| whole(s).matches(pod)).max().unwrap_or(Match::No)
    }

    /// All cgroups that shall be attached. One that two rules name gets the bolder eligibility, and may be captured where both
    /// allow it.
    pub fn wanted(&self, workloads: &[Workload]) -> BTreeMap<u64, Wanted> {
        let mut found: BTreeMap<u64, Wanted> = BTreeMap::new();
        for w in workloads {
            let Decision::Accelerate(eligibility) = self.decide(w) else { continue };
            for place in w.place.iter().flatten() {
                let capture = self.capture.allows(w);
                let wanted = Wanted { path: place.path.clone(), eligibility, capture, name: w.to_string() };
                let entry = found.entry(place.id).or_insert(wanted);
                entry.capture &= capture;
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
        let annotation = "shared-socket.io/accelerate".into();
        Policy { mode, selectors, annotation, eligibility: Eligibility::Safe, capture: CapturePolicy::default() }
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
            namespace_labels: None,
            services: None,
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
    fn what_may_not_be_captured() {
        let forbid: Vec<Selector> =
            yaml_serde::from_str("[{namespaces: [pay]}, {containers: [vault]}, {namespaceLabels: {secret: 'yes'}}]")
                .unwrap();
        let capture = CapturePolicy { forbid: forbid[..1].to_vec(), ..CapturePolicy::default() };
        let web = pod("x", "web-0", None);
        assert!(capture.allows(&web) && !capture.allows(&pod("pay", "web-0", None)));
        for (value, allowed) in [("false", false), ("true", true), ("maybe", false)] {
            let annotations = [("shared-socket.io/capture".to_owned(), value.to_owned())].into();
            assert_eq!(capture.allows(&Workload { annotations, ..web.clone() }), allowed, "{value}");
        }
        let of = |n: usize| CapturePolicy { forbid: forbid[n..=n].to_vec(), ..CapturePolicy::default() };
        assert!(!of(1).allows(&web), "one of its containers may be it");
        assert!(!of(1).allows(&container(&web, "vault")));
        assert!(!of(2).allows(&web), "nobody can say");
        let mut p = policy(Mode::OptIn, "[{pods: [web-*]}]");
        assert!(p.wanted(std::slice::from_ref(&web)).values().all(|w| w.capture));
        p.capture = of(1);
        assert!(p.wanted(&[web]).values().all(|w| !w.capture));
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

    fn known(w: Workload, tier: Option<&str>, services: &[&str]) -> Workload {
        let labels = tier.map(|t| ("tier".to_owned(), t.to_owned())).into_iter().collect();
        let services = services.iter().map(|s| (*s).to_owned()).collect();
        Workload { namespace_labels: Some(labels), services: Some(services), ..w }
    }

    fn doubts(policy: &Policy, w: &Workload) -> bool {
        policy.decide(w) == Decision::LeaveAlone(DOUBT.into())
    }

    #[test]
    fn labels_of_namespaces_and_services() {
        let p = policy(
            Mode::OptIn,
            "[{namespaceLabels: {tier: 'co*'}, labels: {app: smf}}, {services: ['x/web-*', '*/db'], eligibility: all}]",
        );
        assert_eq!(p.needs(), Needs { namespace_labels: true, services: true });
        let smf = pod("x", "smf-0", None);
        assert_eq!(is(&p, &known(smf.clone(), Some("core"), &[])), SAFE);
        assert_eq!(is(&p, &known(smf.clone(), Some("edge"), &[])), None);
        assert_eq!(is(&p, &known(smf.clone(), None, &[])), None);
        assert_eq!(is(&p, &known(smf.clone(), None, &["x/other", "x/web-1"])), ALL);
        assert_eq!(is(&p, &known(smf.clone(), None, &["y/db"])), ALL);
        assert_eq!(is(&p, &known(smf.clone(), None, &["y/web-1"])), None);
        assert_eq!(is(&p, &known(smf.clone(), Some("core"), &["x/web-1"])), SAFE, "the first selector counts");
        let amf = known(pod("x", "amf-0", None), Some("core"), &[]);
        assert_eq!(is(&p, &amf), None, "all that is given must hold");
        assert_eq!(is(&p, &container(&known(smf, Some("core"), &[]), "c")), None, "covered by its pod");
    }

    #[test]
    fn what_only_pods_have_names_nothing_else() {
        let p = policy(Mode::OptIn, "[{services: ['*/*']}, {namespaceLabels: {tier: '*'}, containers: [redis]}]");
        for runtime in [Runtime::Docker, Runtime::Podman, Runtime::Systemd] {
            let w = Workload {
                runtime,
                namespace: None,
                pod: None,
                container: Some("redis".into()),
                ..pod("x", "xxx", None)
            };
            assert!(is(&p, &w).is_none() && !doubts(&p, &w), "{runtime:?}");
        }
        assert!(p.selectors.iter().all(|s| !s.is_empty()));
    }

    #[test]
    fn in_doubt_it_is_tcp() {
        let opt_in = policy(Mode::OptIn, "[{namespaceLabels: {tier: core}}, {pods: [web-0], eligibility: all}]");
        let (smf, web) = (pod("x", "smf-0", None), pod("x", "web-0", None));
        assert!(doubts(&opt_in, &smf));
        assert_eq!(is(&opt_in, &web), ALL, "a selector names it, whatever the API says");
        assert_eq!(is(&opt_in, &pod("x", "smf-0", Some("true"))), SAFE);
        let opt_out = policy(Mode::OptOut, "[{services: ['x/db'], labels: {app: smf}}]");
        assert!(doubts(&opt_out, &smf), "it may be one that shall be left alone");
        assert_eq!(is(&opt_out, &web), SAFE, "it cannot be of that selector");
        assert_eq!(is(&opt_out, &pod("x", "smf-0", Some("true"))), SAFE);
        assert_eq!(is(&opt_out, &known(smf.clone(), None, &[])), SAFE);
        assert_eq!(is(&opt_out, &known(smf.clone(), None, &["x/db"])), None);
        let divided = policy(Mode::OptOut, "[{namespaceLabels: {tier: core}, containers: [app]}]");
        assert!(doubts(&divided, &smf));
        assert_eq!(is(&divided, &known(smf.clone(), Some("core"), &[])), None);
        assert_eq!(is(&divided, &known(smf, Some("edge"), &[])), SAFE);
    }

    #[test]
    fn services_have_a_namespace() {
        for (text, bad) in [("x/web", false), ("*/*", false), ("web", true), ("/web", true), ("a/b/c", true)] {
            let p = policy(Mode::OptIn, &format!("[{{services: ['{text}']}}]"));
            assert_eq!(p.selectors[0].bad_service().is_some(), bad, "{text}");
        }
    }

    #[test]
    fn one_cgroup_once() {
        let p = policy(Mode::OptIn, "[{pods: [aaa]}, {pods: [bbb], eligibility: all}]");
        let wanted = p.wanted(&[pod("x", "aaa", None), pod("x", "bbb", None), pod("x", "ccc", None)]);
        assert_eq!(wanted.len(), 1);
        assert_eq!(wanted[&3].eligibility, Eligibility::All);
    }
}

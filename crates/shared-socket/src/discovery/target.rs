//! What the user names, and what is meant by it.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, bail};
use globset::{GlobBuilder, GlobMatcher};

use super::{Found, Inventory, Listing, Runtime, Selector, Workload, from_path, from_pid};

/// What the user asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A cgroup v2 directory, absolute or below the cgroup2 mount.
    Cgroup(PathBuf),
    /// The cgroup of a process.
    Pid(u32),
    /// A container, whoever runs it.
    Container(Option<Runtime>, String),
    /// A pod of this name; in this namespace, if one is given.
    Pod(Option<String>, String),
    /// NAMESPACE/POD/CONTAINER.
    Member(String, String, String),
    /// A systemd unit.
    Unit(String),
    /// All pods of a namespace, or with these labels, or both.
    Pods(Option<String>, Option<(String, Selector)>),
}

/// Shell patterns; `*` does not reach past a `/`.
pub fn pattern(text: &str) -> anyhow::Result<GlobMatcher> {
    // a backslash is part of the name of a unit: `a\x2db.service`
    let glob = GlobBuilder::new(text).literal_separator(true).backslash_escape(false).build();
    Ok(glob.with_context(|| format!("the pattern {text:?} is not understood"))?.compile_matcher())
}

fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '[', '{'])
}

impl FromStr for Target {
    type Err = anyhow::Error;

    /// `smf`, `pod/NAME`, `docker/NAME`, `podman/NAME`, `unit/NAME`, `NAMESPACE/POD`, `NAMESPACE/POD/CONTAINER`.
    fn from_str(text: &str) -> anyhow::Result<Self> {
        pattern(text)?;
        let parts: Vec<&str> = text.split('/').collect();
        if parts.iter().any(|p| p.is_empty()) {
            bail!(
                "the name {text:?} is not understood: CONTAINER, pod/POD, NAMESPACE/POD, NAMESPACE/POD/CONTAINER, \
                 docker/NAME, podman/NAME or unit/NAME; a cgroup by its path is --cgroup"
            );
        }
        let own = |s: &str| s.to_owned();
        Ok(match parts[..] {
            [name] => Self::Container(None, own(name)),
            ["pod", name] => Self::Pod(None, own(name)),
            ["docker", name] => Self::Container(Some(Runtime::Docker), own(name)),
            ["podman", name] => Self::Container(Some(Runtime::Podman), own(name)),
            ["unit", name] => Self::Unit(own(name)),
            [namespace, pod] => Self::Pod(Some(own(namespace)), own(pod)),
            [namespace, pod, container] => Self::Member(own(namespace), own(pod), own(container)),
            _ => bail!("the name {text:?} has too many parts: NAMESPACE/POD/CONTAINER at most"),
        })
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cgroup(path) => write!(f, "cgroup {}", path.display()),
            Self::Pid(pid) => write!(f, "process {pid}"),
            Self::Container(None, name) => write!(f, "container {name}"),
            Self::Container(Some(Runtime::Docker), name) => write!(f, "docker/{name}"),
            Self::Container(Some(_), name) => write!(f, "podman/{name}"),
            Self::Pod(None, name) => write!(f, "pod/{name}"),
            Self::Pod(Some(namespace), name) => write!(f, "{namespace}/{name}"),
            Self::Member(namespace, pod, container) => write!(f, "{namespace}/{pod}/{container}"),
            Self::Unit(name) => write!(f, "unit/{name}"),
            Self::Pods(namespace, labels) => {
                write!(f, "pods")?;
                namespace.as_ref().map_or(Ok(()), |n| write!(f, " of namespace {n}"))?;
                labels.as_ref().map_or(Ok(()), |(text, _)| write!(f, " with labels {text}"))
            }
        }
    }
}

/// A target that was found, under the name by which it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// For people.
    pub name: String,
    /// The cgroup.
    pub found: Found,
}

impl Target {
    /// Names more than one thing on purpose.
    fn is_many(&self) -> bool {
        match self {
            Self::Pods(..) => true,
            Self::Container(_, name) | Self::Unit(name) => is_pattern(name),
            Self::Pod(namespace, pod) => is_pattern(pod) || namespace.as_deref().is_some_and(is_pattern),
            Self::Member(namespace, pod, container) => [namespace, pod, container].iter().any(|p| is_pattern(p)),
            Self::Cgroup(_) | Self::Pid(_) => false,
        }
    }

    fn needs_inventory(&self) -> bool {
        !matches!(self, Self::Cgroup(_) | Self::Pid(_))
    }

    /// Within a namespace (`-n`), where the target does not name one.
    fn matches(&self, w: &Workload, namespace: Option<&str>) -> anyhow::Result<bool> {
        let like = |wanted: &str, is: &Option<String>| -> anyhow::Result<bool> {
            let matcher = pattern(wanted)?;
            Ok(is.as_deref().is_some_and(|is| is == wanted || matcher.is_match(is)))
        };
        let of_namespace = |wanted: Option<&str>| wanted.map_or(Ok(true), |n| like(n, &w.namespace));
        let is_pod = w.pod.is_some() && w.container.is_none();
        Ok(match self {
            Self::Cgroup(_) | Self::Pid(_) => false,
            Self::Container(runtime, name) => {
                w.runtime != Runtime::Systemd
                    && runtime.is_none_or(|r| r == w.runtime)
                    && like(name, &w.container)?
                    && of_namespace(namespace)?
            }
            Self::Pod(own, name) => is_pod && like(name, &w.pod)? && of_namespace(own.as_deref().or(namespace))?,
            Self::Member(own, pod, container) => {
                like(container, &w.container)? && like(pod, &w.pod)? && of_namespace(Some(own))?
            }
            Self::Unit(name) => w.runtime == Runtime::Systemd && like(name, &w.container)?,
            Self::Pods(own, labels) => {
                is_pod
                    && of_namespace(own.as_deref())?
                    && labels.as_ref().is_none_or(|(_, selector)| selector.matches(&w.labels))
            }
        })
    }

    /// What this means, of what there is.
    fn pick<'a>(&self, listing: &'a Listing, namespace: Option<&str>) -> anyhow::Result<Vec<&'a Workload>> {
        let mut found = Vec::new();
        for workload in &listing.workloads {
            if self.matches(workload, namespace)? {
                found.push(workload);
            }
        }
        match found.len() {
            0 => bail!("{self} was not found{}", hints(self, listing)),
            1 => Ok(found),
            _ if self.is_many() => Ok(found),
            // Docker's API and Podman's may tell of the same container
            _ if found.iter().all(|w| w.id == found[0].id && w.pid == found[0].pid && w.pid.is_some()) => {
                Ok(vec![found[0]])
            }
            n => {
                let mut names: Vec<String> = found.iter().map(ToString::to_string).collect();
                let mut advice = "Name one in full, or all with a pattern";
                if names.iter().collect::<std::collections::HashSet<_>>().len() < n {
                    // systemd's own and those of users' managers: only where they are tells them apart
                    advice = "Name one by its --cgroup, or all with a pattern";
                    for (name, w) in names.iter_mut().zip(&found) {
                        let place = w.place.iter().flatten().next();
                        *name += &place.map_or_else(String::new, |p| format!("  --cgroup {}", p.path.display()));
                    }
                }
                bail!("{self} is ambiguous: {n} are called that:\n  {}\n{advice}", names.join("\n  "))
            }
        }
    }
}

const CANDIDATES: usize = 5;

/// "did you mean", and who was asked.
fn hints(target: &Target, listing: &Listing) -> String {
    let (wanted, in_full) = match target {
        Target::Container(_, name) | Target::Pod(None, name) | Target::Unit(name) => (name.clone(), false),
        Target::Pod(Some(namespace), name) => (format!("{namespace}/{name}"), true),
        Target::Member(namespace, pod, container) => (format!("{namespace}/{pod}/{container}"), true),
        Target::Pods(..) | Target::Cgroup(_) | Target::Pid(_) => (String::new(), false),
    };
    let wants_pod = matches!(target, Target::Pod(..));
    let mut near: Vec<(f64, String)> = Vec::new();
    for workload in listing.workloads.iter().filter(|_| !wanted.is_empty()) {
        let full = workload.to_string();
        let is_pod = workload.container.is_none();
        let own = workload.container.as_deref().or(workload.pod.as_deref()).unwrap_or("");
        let likeness = if own == wanted {
            2.0 // the right name of another kind, or of another namespace
        } else if is_pod != wants_pod {
            0.0
        } else {
            strsim::jaro_winkler(&wanted, if in_full { &full } else { own })
        };
        if likeness > 0.8 {
            near.push((likeness, full));
        }
    }
    near.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    let best = near.first().map_or(0.0, |(likeness, _)| *likeness);
    near.retain(|(likeness, _)| *likeness > best - 0.06);
    near.truncate(CANDIDATES);
    let mut text = String::new();
    if !near.is_empty() {
        let names: Vec<String> = near.into_iter().map(|(_, name)| name).collect();
        text += &format!("; did you mean {}?", names.join(", "));
    }
    text += "\nLooked at:";
    for looked in &listing.looked {
        match &looked.error {
            Some(error) => text += &format!("\n  {}: {error}", looked.backend),
            None => text += &format!("\n  {}: {} workloads", looked.backend, looked.workloads),
        }
    }
    if !listing.looked.iter().any(|l| l.backend.starts_with("CRI")) {
        text += "\n  no CRI runtime: none of the usual sockets is there; --runtime-endpoint names another";
    }
    text + "\n`shared-socket workloads` lists what could be attached"
}

/// Finds all targets, or says what is wrong with the first that cannot be found or attached.
pub fn find_all(targets: &[Target], namespace: Option<&str>, inventory: &mut Inventory) -> anyhow::Result<Vec<Named>> {
    let listing = if targets.iter().any(Target::needs_inventory) { inventory.list() } else { Listing::default() };
    let mut found: Vec<Named> = Vec::new();
    for target in targets {
        let direct = match target {
            Target::Cgroup(path) => Some(from_path(path)?),
            Target::Pid(pid) => Some(from_pid(*pid)?),
            _ => None,
        };
        if let Some(direct) = direct {
            found.push(Named { name: target.to_string(), found: direct });
            continue;
        }
        for workload in target.pick(&listing, namespace)? {
            match &workload.place {
                Err(why) if target.is_many() => tracing::warn!("{workload} is left out: {why}"),
                Err(why) => bail!("{workload} cannot be attached: {why}"),
                Ok(places) => {
                    found.extend(places.iter().map(|f| Named { name: workload.to_string(), found: f.clone() }));
                }
            }
        }
    }
    let mut seen = std::collections::HashSet::new();
    found.retain(|named| seen.insert(named.found.id));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::discovery::Looked;

    fn of(namespace: &str, pod: &str, container: Option<&str>) -> Workload {
        Workload {
            runtime: Runtime::Cri,
            namespace: Some(namespace.into()),
            pod: Some(pod.into()),
            uid: None,
            container: container.map(Into::into),
            id: format!("{namespace}{pod}{container:?}"),
            labels: [("app".to_owned(), pod[..3].to_owned())].into(),
            annotations: Default::default(),
            namespace_labels: None,
            services: None,
            host_network: false,
            pid: None,
            place: Ok(Vec::new()),
        }
    }

    fn listing() -> Listing {
        let mut workloads = Vec::new();
        for (namespace, pod) in [("core", "smf-0"), ("core", "scp-0"), ("test", "smf-0")] {
            workloads.push(of(namespace, pod, None));
            workloads.push(of(namespace, pod, Some(&pod[..3])));
            workloads.push(of(namespace, pod, Some("envoy")));
        }
        let other = |runtime, name: &str| Workload {
            runtime,
            namespace: None,
            pod: None,
            container: Some(name.into()),
            ..of("", "xxx", None)
        };
        workloads.push(other(Runtime::Docker, "web"));
        workloads.push(other(Runtime::Systemd, "nginx.service"));
        let looked = vec![Looked { backend: "CRI runtime at /x".into(), workloads: 9, error: None }];
        Listing { looked, workloads }
    }

    fn picked(name: &str, namespace: Option<&str>) -> Result<Vec<String>, String> {
        let listing = listing();
        let target: Target = name.parse().map_err(|e| format!("{e:#}"))?;
        let found = target.pick(&listing, namespace).map_err(|e| format!("{e:#}"))?;
        Ok(found.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn names_as_people_write_them() {
        for (name, namespace, found) in [
            ("scp", None, vec!["core/scp-0/scp"]),
            ("smf", Some("core"), vec!["core/smf-0/smf"]),
            ("pod/scp-0", None, vec!["core/scp-0"]),
            ("pod/smf-0", Some("test"), vec!["test/smf-0"]),
            ("core/smf-0", None, vec!["core/smf-0"]),
            ("core/smf-0/envoy", None, vec!["core/smf-0/envoy"]),
            ("docker/web", None, vec!["docker/web"]),
            ("web", None, vec!["docker/web"]),
            ("unit/nginx.service", None, vec!["unit/nginx.service"]),
            ("s*", None, vec!["core/smf-0/smf", "core/scp-0/scp", "test/smf-0/smf"]),
            ("core/*", None, vec!["core/smf-0", "core/scp-0"]),
            ("*/smf-0/envoy", None, vec!["core/smf-0/envoy", "test/smf-0/envoy"]),
        ] {
            assert_eq!(picked(name, namespace), Ok(found.into_iter().map(Into::into).collect()), "{name}");
        }
    }

    #[test]
    fn what_is_ambiguous_is_listed() {
        insta::assert_snapshot!(picked("smf", None).unwrap_err());
        assert!(picked("pod/smf-0", None).unwrap_err().contains("core/smf-0\n  test/smf-0"));
    }

    #[test]
    fn units_of_one_name_are_told_by_their_place() {
        let unit = |id: u64| Workload {
            runtime: Runtime::Systemd,
            namespace: None,
            pod: None,
            container: Some("a\\x2db.service".into()),
            place: Ok(vec![Found { path: format!("/c/{id}.slice/a\\x2db.service").into(), id }]),
            ..of("", "xxx", None)
        };
        let listing = Listing { looked: Vec::new(), workloads: vec![unit(1), unit(2)] };
        let target: Target = "unit/a\\x2db.service".parse().unwrap();
        let error = target.pick(&listing, None).unwrap_err().to_string();
        assert!(error.contains("--cgroup /c/2.slice/a\\x2db.service"), "{error}");
        let all: Target = "unit/a\\x2d*".parse().unwrap();
        assert_eq!(all.pick(&listing, None).unwrap().len(), 2);
    }

    #[test]
    fn a_container_that_two_apis_tell_of_is_one() {
        let listing = |pid: u32| {
            let one = |runtime, pid| Workload {
                runtime,
                pid: Some(pid),
                namespace: None,
                pod: None,
                id: "0123".into(),
                ..of("", "xxx", Some("web"))
            };
            Listing { looked: Vec::new(), workloads: vec![one(Runtime::Docker, 7), one(Runtime::Podman, pid)] }
        };
        let target: Target = "web".parse().unwrap();
        assert_eq!(target.pick(&listing(7), None).unwrap().len(), 1);
        assert!(target.pick(&listing(8), None).unwrap_err().to_string().contains("docker/web\n  podman/web"));
    }

    #[test]
    fn what_is_not_there_has_a_suggestion() {
        insta::assert_snapshot!(picked("core/smf-0/smg", None).unwrap_err());
        assert!(picked("scp-0", None).unwrap_err().contains("did you mean core/scp-0?"));
        assert!(picked("unit/ngnix.service", None).unwrap_err().contains("did you mean unit/nginx.service?"));
        assert!(picked("smf", Some("nowhere")).is_err());
    }

    #[test]
    fn by_label() {
        let listing = listing();
        let target = Target::Pods(None, Some(("app=smf".into(), "app=smf".parse().unwrap())));
        let names: Vec<String> = target.pick(&listing, None).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["core/smf-0", "test/smf-0"]);
        let none = Target::Pods(Some("test".into()), Some(("app=scp".into(), "app=scp".parse().unwrap())));
        let error = none.pick(&listing, None).unwrap_err().to_string();
        assert!(error.starts_with("pods of namespace test with labels app=scp was not found"), "{error}");
    }

    proptest! {
        #[test]
        fn any_name_is_taken_or_refused(name in "[a-z*?\\[\\]{}/\\PC]{0,30}") {
            if let Ok(target) = name.parse::<Target>() {
                let _ = target.pick(&listing(), None);
            }
        }

        #[test]
        fn every_workload_is_found_by_its_own_name(at in 0usize..11) {
            let listing = listing();
            let w = &listing.workloads[at];
            let target: Target = w.to_string().parse().unwrap();
            prop_assert_eq!(target.pick(&listing, None).unwrap(), vec![w]);
        }
    }
}

//! The agent's file. What it cannot mean is refused with its line; nothing of a refused file is used.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use bytesize::ByteSize;
use serde::Deserialize;

use super::tls::Tls;
use crate::discovery::Endpoints;
use crate::observe::requests::Protocol;
use crate::policy::{CapturePolicy, Eligibility, Mode, Policy, Selector};

const LARGEST: u64 = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum ApiVersion {
    #[serde(rename = "shared-socket.io/v1")]
    V1,
}

/// Limits of the queues; what is not given keeps the default of `shared-socket attach`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Budgets {
    /// Bytes queued to one peer.
    pub per_peer_bytes: Option<ByteSize>,
    /// Messages queued to one peer.
    pub per_peer_messages: Option<u32>,
    /// Bytes queued to all peers.
    pub total_bytes: Option<ByteSize>,
    /// Pairs.
    pub pairs: Option<u32>,
    /// Kinds with fewer messages a connection stay on TCP.
    pub min_messages: Option<u32>,
}

/// Ports.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Ports {
    /// Connections to these (as the client or the server sees it) stay on TCP.
    pub leave_alone: Vec<u16>,
}

/// The CRI runtime.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RuntimeEndpoints {
    /// Its socket; found by itself when absent.
    pub endpoint: Option<String>,
    /// Docker's.
    pub docker: Option<String>,
    /// Podman's.
    pub podman: Option<String>,
}

/// The Kubernetes API, for what the runtime cannot know.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct KubernetesApi {
    /// Nobody is asked otherwise, and no selector can need it.
    pub enabled: bool,
    /// How to reach it; as a pod with a service account does when absent.
    pub kubeconfig: Option<PathBuf>,
}

/// What the agent serves.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Served {
    /// Address of /healthz, /readyz, /workloads and /metrics.
    pub http: Option<SocketAddr>,
    /// Address of the page, which shows addresses and names of processes to whoever asks; it may be the same.
    pub page: Option<SocketAddr>,
    /// For `http`: plain HTTP when absent.
    pub tls: Option<Tls>,
}

impl Default for Served {
    fn default() -> Self {
        let here = |port| Some(SocketAddr::from(([127, 0, 0, 1], port)));
        Self { http: here(9464), page: here(9465), tls: None }
    }
}

/// What /metrics tells.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// Pairs of workloads that have labels of their own, those with the most bytes; the others are summed as `other`.
    pub max_flows: usize,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { max_flows: 100 }
    }
}

/// A glimpse of the requests between workloads, for /metrics.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RequestsConfig {
    /// Messages are looked at.
    pub enabled: bool,
    /// Only this protocol; else what is found.
    pub protocol: Option<Protocol>,
    /// Of so many connections, one is looked at.
    pub one_in: u32,
    /// Bytes of each message that are looked at.
    pub snaplen: u32,
}

impl Default for RequestsConfig {
    fn default() -> Self {
        Self { enabled: false, protocol: None, one_in: 1, snaplen: 1024 }
    }
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Only what failed.
    Error,
    /// And what is strange.
    Warn,
    /// And what was done.
    #[default]
    Info,
    /// And why.
    Debug,
    /// And how.
    Trace,
}

impl Level {
    const ALL: [Self; 5] = [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];

    /// One step more or less; at an end it stays.
    #[must_use]
    pub fn step(self, more: bool) -> Self {
        let at = self as usize;
        Self::ALL[if more { (at + 1).min(Self::ALL.len() - 1) } else { at.saturating_sub(1) }]
    }

    /// As a filter of `tracing`.
    pub fn filter(self) -> &'static str {
        match self {
            // kube tells of each failure each time, and prints lists; the agent tells it once
            Self::Error => "error,kube_client=off,kube_runtime=off",
            Self::Warn => "warn,kube_client=off,kube_runtime=off",
            Self::Info => {
                "shared_socket=info,shared_socket_datapath=info,datapath=info,warn,kube_client=off,kube_runtime=off"
            }
            Self::Debug => "shared_socket=debug,shared_socket_datapath=debug,datapath=debug,info",
            Self::Trace => "trace",
        }
    }
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// A line for people.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

/// The log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Log {
    /// How much.
    pub level: Level,
    /// Its form; a change takes a restart.
    pub format: Format,
}

fn default_annotation() -> String {
    "shared-socket.io/accelerate".into()
}

/// The whole file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    #[allow(dead_code)] // its value is the check
    api_version: ApiVersion,
    #[serde(default)]
    mode: Mode,
    #[serde(default)]
    selectors: Vec<Selector>,
    #[serde(default = "default_annotation")]
    annotation: String,
    #[serde(default)]
    eligibility: Eligibility,
    #[serde(default)]
    capture: CapturePolicy,
    /// Limits of the queues.
    #[serde(default)]
    pub budgets: Budgets,
    /// Ports that stay on TCP.
    #[serde(default)]
    pub ports: Ports,
    #[serde(default)]
    runtime: RuntimeEndpoints,
    /// What the runtime cannot know.
    #[serde(default)]
    pub kubernetes_api: KubernetesApi,
    /// What is served.
    #[serde(default)]
    pub endpoints: Served,
    /// What /metrics tells.
    #[serde(default)]
    pub metrics: MetricsConfig,
    /// What is seen of requests.
    #[serde(default)]
    pub requests: RequestsConfig,
    /// Drain when the agent ends; else acceleration stays on.
    #[serde(default)]
    pub drain_on_exit: bool,
    /// The log.
    #[serde(default)]
    pub log: Log,
}

impl Config {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let what = || format!("reading {}", path.display());
        let size = std::fs::metadata(path).with_context(what)?.len();
        if size > LARGEST {
            bail!("{}: it has {size} bytes, {LARGEST} at most are read", what());
        }
        let text = std::fs::read_to_string(path).with_context(what)?;
        Self::parse(&text).with_context(|| format!("{} is not used", path.display()))
    }

    /// Checks the text of a file.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let config: Self = yaml_serde::from_str(text)?;
        let line = |what: &str| text.lines().position(|l| l.trim_start().starts_with(what)).map_or(0, |at| at + 1);
        if let Some(at) = config.selectors.iter().position(Selector::is_empty) {
            bail!(
                "selectors[{at}] (below line {}) names nothing, and would match everything: say namespaces, pods, labels, \
                 annotations, containers, units, namespaceLabels or services; `namespaces: [\"*\"]` is every pod",
                line("selectors:")
            );
        }
        if let Some(at) = config.selectors.iter().position(Selector::is_of_units_and_pods) {
            bail!("selectors[{at}] (below line {}) names units and pods: make two of it", line("selectors:"));
        }
        for (at, selector) in config.selectors.iter().enumerate() {
            if let Some(service) = selector.bad_service() {
                let line = line_of_key(text, "services");
                bail!(
                    "line {line}: selectors[{at}]: the service {service:?} is not NAMESPACE/NAME; each may be a pattern"
                );
            }
        }
        if let Some(at) = config.capture.forbid.iter().position(Selector::is_empty) {
            bail!(
                "capture.forbid[{at}] (below line {}) names nothing; `namespaces: [\"*\"]` is every pod",
                line_of_key(text, "forbid")
            );
        }
        let needs = config.policy().needs();
        for (is_needed, key) in [(needs.namespace_labels, "namespaceLabels"), (needs.services, "services")] {
            if is_needed && !config.kubernetes_api.enabled {
                bail!(
                    "line {}: {key} is what only the Kubernetes API knows, which is not asked: say \
                     `kubernetesApi: {{enabled: true}}`, too",
                    line_of_key(text, key)
                );
            }
        }
        if let Some(path) = config.kubernetes_api.kubeconfig.as_ref().filter(|path| !path.is_absolute()) {
            bail!("line {}: kubeconfig: {path:?} does not begin with /", line_of_key(text, "kubeconfig"));
        }
        if let Some(tls) = &config.endpoints.tls {
            if config.endpoints.http.is_none() {
                bail!("line {}: tls is for endpoints.http, which is null", line_of_key(text, "tls"));
            }
            tls.check().map_err(|problem| {
                let line = line_below(text, "tls", problem.key);
                problem.why.context(format!("line {line}: endpoints.tls: {}", problem.key))
            })?;
        }
        if config.annotation.is_empty() || config.capture.annotation.is_empty() {
            bail!("line {}: annotation must not be empty", line("annotation:"));
        }
        let b = &config.budgets;
        let within = |what: &str, value: Option<u64>, least: u64, most: u64| match value {
            Some(value) if !(least..=most).contains(&value) => {
                bail!("line {}: {what} is {value}; {least} to {most} is possible", line(&format!("{what}:")))
            }
            _ => Ok(()),
        };
        within("perPeerBytes", b.per_peer_bytes.map(|b| b.0), 4096, 1 << 30)?;
        within("perPeerMessages", b.per_peer_messages.map(u64::from), 1, 1 << 20)?;
        within("totalBytes", b.total_bytes.map(|b| b.0), 1 << 20, 1 << 41)?;
        within("pairs", b.pairs.map(u64::from), 1, 4_000_000)?;
        within("oneIn", Some(config.requests.one_in.into()), 1, 1 << 20)?;
        within("snaplen", Some(config.requests.snaplen.into()), 16, 1 << 16)?;
        within("maxFlows", u64::try_from(config.metrics.max_flows).ok(), 0, 10_000)?;
        if config.ports.leave_alone.len() > datapath::PORTS {
            bail!("line {}: leaveAlone has more than {} ports", line("leaveAlone:"), datapath::PORTS);
        }
        if let Some(endpoint) = &config.runtime.endpoint {
            crate::discovery::socket_path(endpoint).with_context(|| format!("line {}", line("endpoint:")))?;
        }
        Ok(config)
    }

    /// What may be fast.
    pub fn policy(&self) -> Policy {
        Policy {
            mode: self.mode,
            selectors: self.selectors.clone(),
            annotation: self.annotation.clone(),
            eligibility: self.eligibility,
            capture: self.capture.clone(),
        }
    }

    /// Where the runtimes are.
    pub fn runtimes(&self) -> Endpoints {
        let RuntimeEndpoints { endpoint, docker, podman } = self.runtime.clone();
        Endpoints { cri: endpoint, docker, podman, commands: false }
    }
}

/// Where a key stands first in or below the line of another.
fn line_below(text: &str, above: &str, key: &str) -> usize {
    let before = line_of_key(text, above) - 1;
    let rest: Vec<&str> = text.lines().skip(before).collect();
    before + line_of_key(&rest.join("\n"), key)
}

/// Where a key stands first, in whatever style; the first line otherwise.
fn line_of_key(text: &str, key: &str) -> usize {
    let is_key = |line: &str| {
        let line = line.split_once(" #").map_or(line, |(before, _)| before);
        !line.trim_start().starts_with('#')
            && line.match_indices(key).any(|(at, _)| {
                let rest = line[at + key.len()..].trim_start_matches(['"', '\'']).trim_start();
                let before = line[..at].trim_end_matches(['"', '\'']);
                rest.starts_with(':') && !before.ends_with(|c: char| c.is_alphanumeric() || "-_./".contains(c))
            })
    };
    text.lines().position(is_key).unwrap_or(0) + 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FULL: &str = r#"
apiVersion: shared-socket.io/v1
mode: opt-in
selectors:
  - namespaces: ["core", "5gc-*"]
    pods: ["smf-*"]
    labels: {app: web}
    annotations: {team: core}
    containers: ["*"]
    namespaceLabels: {tier: "core*"}
    services: ["core/*"]
    eligibility: safe
annotation: shared-socket.io/accelerate
eligibility: safe
capture: {forbid: [{namespaces: [pay]}], annotation: shared-socket.io/capture}
budgets: {perPeerBytes: 4MiB, perPeerMessages: 4096, totalBytes: 256MiB, pairs: 65536}
ports: {leaveAlone: [22, 6443]}
runtime: {endpoint: unix:///run/containerd/containerd.sock}
kubernetesApi: {enabled: true, kubeconfig: /etc/shared-socket/kubeconfig}
endpoints: {http: "127.0.0.1:9464"}
metrics: {maxFlows: 100}
requests: {enabled: true, protocol: http1, oneIn: 10, snaplen: 512}
drainOnExit: false
log: {level: info, format: text}
"#;

    fn error(text: &str) -> String {
        format!("{:#}", Config::parse(text).unwrap_err())
    }

    #[test]
    fn a_full_file() {
        let config = Config::parse(FULL).unwrap();
        assert_eq!(config.budgets.per_peer_bytes, Some(ByteSize::mib(4)));
        assert_eq!(config.ports.leave_alone, [22, 6443]);
        assert_eq!(config.policy().selectors.len(), 1);
        assert!(config.kubernetes_api.enabled && config.policy().needs().services);
    }

    #[test]
    fn the_shortest_file_accelerates_what_is_annotated() {
        let config = Config::parse("apiVersion: shared-socket.io/v1").unwrap();
        assert_eq!(config.policy().mode, Mode::OptIn);
        assert_eq!(config.endpoints, Served::default());
        assert!(!config.kubernetes_api.enabled);
    }

    #[test]
    fn every_mistake_has_its_line() {
        let head = "apiVersion: shared-socket.io/v1\n";
        let list = [
            ("", "apiVersion"),
            ("apiVersion: shared-socket.io/v2", "unknown variant"),
            (&format!("{head}selectorz: []"), "line 2"),
            (&format!("{head}mode: opt-maybe"), "line 2"),
            (&format!("{head}selectors:\n  - namespace: [a]"), "line 3"),
            (&format!("{head}selectors:\n  - namespaces: ['[']"), "line 3"),
            (&format!("{head}selectors:\n  - eligibility: all"), "below line 2"),
            (&format!("{head}selectors:\n  - {{units: [a.service], pods: [b]}}"), "make two"),
            (&format!("{head}eligibility: fast"), "line 2"),
            (&format!("{head}capture: {{forbid: [{{}}]}}"), "capture.forbid[0] (below line 2)"),
            (&format!("{head}budgets:\n  perPeerBytes: 12"), "line 3: perPeerBytes is 12"),
            (&format!("{head}budgets:\n  totalBytes: lots"), "line 3"),
            (&format!("{head}ports: {{leaveAlone: [70000]}}"), "line 2"),
            (&format!("{head}endpoints: {{http: nowhere}}"), "line 2"),
            (&format!("{head}metrics: {{maxFlow: 1}}"), "line 2"),
            (&format!("{head}metrics:\n  maxFlows: 10001"), "line 3: maxFlows is 10001"),
            (&format!("{head}runtime:\n  endpoint: tcp://x"), "line 3"),
            (&format!("{head}\tmode: opt-in"), "line"),
            (&format!("{head}selectors:\n  - namespaceLabels: {{tier: core}}"), "line 3: namespaceLabels is what only"),
            (
                &format!("{head}selectors:\n  - pods: [a]\n    # services: none\n    services: [a/b]"),
                "line 5: services is",
            ),
            (
                &format!("{head}selectors:\n  - {{\"services\": [a/b]}}\nkubernetesApi: {{enabled: false}}"),
                "line 3: services",
            ),
            (
                &format!("{head}kubernetesApi: {{enabled: true}}\nselectors: [{{services: [web]}}]"),
                "line 3: selectors[0]: the",
            ),
            (
                &format!("{head}kubernetesApi: {{enabled: true}}\nselectors: [{{units: [a], services: [a/b]}}]"),
                "make two",
            ),
            (&format!("{head}kubernetesApi:\n  enabled: yes please"), "line 3"),
            (&format!("{head}kubernetesApi:\n  kubeconfig: here"), "line 3: kubeconfig"),
            (&format!("{head}kubernetesApi: {{enable: true}}"), "line 2"),
            (&format!("{head}endpoints:\n  tls: {{certificate: /a}}"), "line 3"),
            (&format!("{head}endpoints:\n  tls: {{certificate: /a, key: /b, ca: /c}}"), "line 3"),
            (
                &format!("{head}endpoints:\n  http: null\n  tls: {{certificate: /a, key: /b}}"),
                "line 4: tls is for endpoints.http",
            ),
            (
                &format!("{head}# key: of a house\nendpoints:\n  tls:\n    certificate: a.pem\n    key: /b"),
                "line 5: endpoints.tls: certificate: \"a.pem\" does not begin with /",
            ),
            (
                &format!("{head}endpoints:\n  tls: {{certificate: /nonexistent/a, key: /b}}"),
                "line 3: endpoints.tls: certificate: reading /nonexistent/a: No such file",
            ),
            (
                &format!("{head}endpoints:\n  tls: {{certificate: /dev/zero, key: /b}}"),
                "certificate: reading /dev/zero: it is no file",
            ),
        ];
        for (text, expected) in list {
            let error = error(text);
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken_or_refused(text in "\\PC{0,80}") {
            let _ = Config::parse(&text);
        }

        #[test]
        fn any_change_of_a_good_file_is_taken_or_refused(at in 0usize..600, byte in any::<u8>()) {
            let mut text = FULL.as_bytes().to_vec();
            let at = at % text.len();
            text[at] = byte;
            if let Ok(text) = String::from_utf8(text) {
                let _ = Config::parse(&text);
            }
        }
    }
}

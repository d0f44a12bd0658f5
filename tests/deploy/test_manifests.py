"""The chart, what it renders, and the plain manifests made from it."""
import copy
import json
import shutil

import jsonschema
import pytest
import yaml
from helpers import CHART, DEPLOY, container_of, only, problems, render, run, unit_setting, version

EVERYTHING = ["--set", "priorityClass={name: node-agents, create: true}",
              "--set", "hostNetwork=true", "--set", "namespace.create=true", "--set", "image.pullSecrets=[{name: pull}]",
              "--set", "image.digest=sha256:" + 64 * "0", "--set", "extraCapabilities=[SYS_RESOURCE]",
              "--set", "podLabels={team: core}", "--set", "podAnnotations={note: x}", "--set", "env=[{name: A, value: b}]",
              "--set", "affinity={nodeAffinity: {}}", "--set", "resources.limits={memory: 1Gi}",
              "--set", "kubernetesApi.enabled=true", "--set", "config.selectors=[{services: [shop/*]}]",
              "--set", "serviceAccount.annotations={a: b}", "--set", "metrics.podMonitor={enabled: true, labels: {release: p}}",
              "--set", "metrics.prometheusRule={enabled: true, labels: {release: p}}"]
# not Kubernetes' own: there are no schemas of them here (test_pod_monitor, test_prometheus_rule)
CUSTOM = {"PodMonitor", "PrometheusRule"}
# what the operator takes of an alert
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
RULES = {
    "type": "object", "required": ["groups"], "additionalProperties": False,
    "properties": {"groups": {"type": "array", "minItems": 1, "items": {
        "type": "object", "required": ["name", "rules"], "additionalProperties": False,
        "properties": {"name": {"type": "string", "minLength": 1}, "interval": {"type": "string"}, "rules": {
            "type": "array", "items": {
                "type": "object", "required": ["alert", "expr"], "additionalProperties": False,
                "properties": {"alert": {"type": "string"}, "expr": {"type": "string"}, "labels": TEXTS, "annotations": TEXTS,
                               "for": {"type": "string", "pattern": "^[0-9]+(ms|s|m|h|d|w|y)$"}}}}}}}},
}
TLS = ["--set", "metrics.tls={secretName: agent-tls, clientCaSecretName: scrapers}"]
VARIANTS = {
    "defaults": [],
    "everything": EVERYTHING,
    "k3s": ["--set", "config.runtime.endpoint=unix:///run/k3s/containerd/containerd.sock"],
    "little": ["--set", "serviceAccount={create: false, name: mine}", "--set", "seLinuxOptions=null", "--set",
               "appArmorProfile=''", "--set", "metrics.annotations=false", "--set", "tolerations=[]", "--set", "resources={}"],
    "selectors": ["--set", "config.selectors=[{namespaces: [core, 5gc-*], labels: {app: web}, eligibility: all}]",
                  "--set", "config.budgets={perPeerBytes: 4194304, totalBytes: 256MiB}", "--set", "config.mode=opt-out",
                  "--set", "config.capture.forbid=[{namespaces: [pay]}]", "--set", "config.requests={enabled: true, oneIn: 8}"],
}


def values():
    return yaml.safe_load((CHART / "values.yaml").read_text())


def values_schema():
    return json.loads((CHART / "values.schema.json").read_text())


def daemonset(*options):
    return only(render(*options), "DaemonSet")


def test_plain_manifests_are_what_the_chart_renders(tmp_path):
    fresh = tmp_path / "fresh.yaml"
    run(DEPLOY / "render.sh", "--manifests", fresh)
    kept = DEPLOY / "manifests" / "shared-socket.yaml"
    assert fresh.read_text() == kept.read_text(), f"{kept} is stale: run `make manifests`"


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("release", ["1.25", "1.30", "1.37"])
def test_kubernetes_takes_it(release, variant):
    found = render("--kube-version", f"{release}.0", *VARIANTS[variant])
    found = [d for d in found if d["kind"] not in CUSTOM]
    assert {"DaemonSet", "ConfigMap"} <= {d["kind"] for d in found}
    assert not [p for d in found for p in problems(d, release)]


def test_kubernetes_takes_the_plain_manifests():
    documents = list(yaml.safe_load_all((DEPLOY / "manifests" / "shared-socket.yaml").read_text()))
    assert [d["kind"] for d in documents] == ["Namespace", "ServiceAccount", "ConfigMap", "DaemonSet"]
    for release in ("1.30", "1.37"):
        assert not [p for d in documents for p in problems(d, release)]
    labels = only(documents, "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "privileged"  # baseline refuses hostPID and host paths
    assert all(d["metadata"].get("namespace", "shared-socket") == "shared-socket" for d in documents)
    assert "Helm" not in yaml.safe_dump_all(documents)


def test_the_schemas_do_say_no():
    good = daemonset("--kube-version", "1.37.0")
    typo = copy.deepcopy(good)
    container_of(typo)["volumeMount"] = []
    assert problems(typo, "1.37")
    wrong = copy.deepcopy(good)
    container_of(wrong)["securityContext"]["privileged"] = "no"
    assert problems(wrong, "1.37")
    lacking = copy.deepcopy(good)
    del lacking["spec"]["selector"]
    assert problems(lacking, "1.37")
    assert any("appArmorProfile" in p for p in problems(good, "1.25"))  # a field since 1.30


def test_app_armor_before_and_after_1_30():
    old, new = daemonset("--kube-version", "1.29.9"), daemonset("--kube-version", "1.30.0")
    key = "container.apparmor.security.beta.kubernetes.io/agent"
    assert old["spec"]["template"]["metadata"]["annotations"][key] == "unconfined"
    assert "appArmorProfile" not in container_of(old)["securityContext"]
    assert key not in new["spec"]["template"]["metadata"]["annotations"]
    assert container_of(new)["securityContext"]["appArmorProfile"] == {"type": "Unconfined"}


def test_least_privilege():
    found = daemonset()
    spec, container = found["spec"]["template"]["spec"], container_of(found)
    security = container["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"], "add": ["SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "SYSLOG"]}
    assert security["privileged"] is False and security["allowPrivilegeEscalation"] is False
    assert security["readOnlyRootFilesystem"] is True
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["hostPID"] is True and "hostNetwork" not in spec and "hostIPC" not in spec
    assert spec["automountServiceAccountToken"] is False and "initContainers" not in spec
    writable = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
    assert writable == {"/bpf", "/var/lib/shared-socket", "/run/shared-socket"}
    assert "Bidirectional" not in json.dumps(spec)  # only privileged containers may have it
    paths = {v["hostPath"]["path"] for v in spec["volumes"] if "hostPath" in v}
    assert paths == {"/sys/fs/cgroup", "/sys/fs/bpf/shared-socket", "/run/containerd", "/var/lib/shared-socket",
                     "/run/shared-socket"}
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in spec["volumes"]}


def test_the_service_has_the_same_capabilities():
    want = container_of(daemonset())["securityContext"]["capabilities"]["add"]
    assert unit_setting("CapabilityBoundingSet") == ["CAP_" + c for c in want]


def test_no_word_with_the_api_server():
    quiet = render()
    assert "kubernetesApi" not in only(quiet, "ConfigMap")["data"]["agent.yaml"]
    assert daemonset()["spec"]["template"]["spec"]["automountServiceAccountToken"] is False
    assert [d["kind"] for d in quiet] == ["ServiceAccount", "ConfigMap", "DaemonSet"]
    assert only(quiet, "ServiceAccount")["automountServiceAccountToken"] is False


@pytest.mark.parametrize("option", ["kubernetesApi.enabled=true", "config.kubernetesApi={enabled: true}"])
def test_the_api_server_only_on_request(option):
    selectors = "config.selectors=[{namespaceLabels: {tier: core}}]"
    found = render("--namespace", "fast", "--set", option, "--set", selectors)
    kinds = ["ServiceAccount", "ConfigMap", "ClusterRole", "ClusterRoleBinding", "DaemonSet"]
    assert [d["kind"] for d in found] == kinds
    assert yaml.safe_load(only(found, "ConfigMap")["data"]["agent.yaml"])["kubernetesApi"] == {"enabled": True}
    role, binding = only(found, "ClusterRole"), only(found, "ClusterRoleBinding")
    may = {(group, kind, verb) for rule in role["rules"]
           for group in rule["apiGroups"] for kind in rule["resources"] for verb in rule["verbs"]}
    assert may == {(group, kind, verb) for verb in ("get", "list", "watch")
                   for group, kind in (("", "namespaces"), ("discovery.k8s.io", "endpointslices"))}
    assert binding["roleRef"] == {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
                                  "name": role["metadata"]["name"]}
    account, pods = only(found, "ServiceAccount"), only(found, "DaemonSet")["spec"]["template"]["spec"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account["metadata"]["name"], "namespace": "fast"}]
    assert pods["serviceAccountName"] == account["metadata"]["name"]
    # the token is for these pods, and not for whoever else takes the account
    assert pods["automountServiceAccountToken"] is True and account["automountServiceAccountToken"] is False
    [node] = [e for e in container_of(only(found, "DaemonSet"))["env"] if e["name"] == "NODE_NAME"]
    assert node["valueFrom"]["fieldRef"]["fieldPath"] == "spec.nodeName"  # the agent keeps endpoints of this node alone


def test_an_account_that_is_there_already_gets_the_role():
    found = render("--set", "kubernetesApi.enabled=true", "--set", "serviceAccount={create: false, name: mine}")
    assert only(found, "ClusterRoleBinding")["subjects"][0]["name"] == "mine"
    assert not [d for d in found if d["kind"] == "ServiceAccount"]


def test_the_agent_is_everywhere_and_a_change_of_configuration_restarts_nothing():
    found = daemonset()
    assert found["spec"]["template"]["spec"]["tolerations"] == [{"operator": "Exists"}]
    other = daemonset("--set", "config.mode=opt-out")
    assert other == found  # no checksum of the ConfigMap: the agent takes it up by itself
    [config] = [m for m in container_of(found)["volumeMounts"] if m["name"] == "config"]
    assert "subPath" not in config


def test_configuration_is_handed_on():
    documents = render("--set", "config.endpoints.http='[::]:9999'", "--set",
                       "config.runtime.endpoint=unix:///run/crio/crio.sock", *VARIANTS["selectors"])
    config = yaml.safe_load(only(documents, "ConfigMap")["data"]["agent.yaml"])
    assert config["mode"] == "opt-out" and config["selectors"][0]["namespaces"] == ["core", "5gc-*"]
    assert config["budgets"] == {"perPeerBytes": 4194304, "totalBytes": "256MiB"}
    found = only(documents, "DaemonSet")
    container = container_of(found)
    assert container["ports"][0]["containerPort"] == 9999
    assert found["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"] == "9999"
    for probe, path in ("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz"):
        assert container[probe]["httpGet"] == {"path": path, "port": "http"}
    mounted = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    assert mounted["runtime"] == "/run/crio"
    [runtime] = [v for v in found["spec"]["template"]["spec"]["volumes"] if v["name"] == "runtime"]
    assert runtime["hostPath"]["path"] == "/run/crio"
    assert container["args"] == ["agent", "--config", mounted["config"] + "/agent.yaml"]


def test_pod_monitor():
    found = render(*EVERYTHING)
    monitor, pods = only(found, "PodMonitor"), only(found, "DaemonSet")["spec"]["template"]
    assert monitor["metadata"]["labels"]["release"] == "p"
    assert monitor["spec"]["selector"]["matchLabels"].items() <= pods["metadata"]["labels"].items()
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in [p["name"] for p in container_of({"spec": {"template": pods}})["ports"]]


def test_prometheus_rule(tmp_path):
    """The rules are the chart's file, to the letter, and what the operator makes of them is what promtool takes."""
    assert not [d for d in render() if d["kind"] == "PrometheusRule"]
    rule, text = only(render(*EVERYTHING), "PrometheusRule"), (CHART / "rules.yaml").read_text()
    assert rule["apiVersion"] == "monitoring.coreos.com/v1" and rule["metadata"]["labels"]["release"] == "p"
    assert rule["spec"] == yaml.safe_load(text) and set(rule["spec"]) == {"groups"}
    jsonschema.validate(rule["spec"], RULES)
    assert "{{ $labels.instance }}" in json.dumps(rule["spec"])
    for spoil in ({"groups": [{"rules": []}]}, {"groups": [{"name": "a", "rules": [{"alert": "A"}]}]},
                  {"groups": [{"name": "a", "rules": [{"alert": "A", "expr": "1", "for": "soon"}]}]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(spoil, RULES)
    assert list(DEPLOY.rglob("*rules.yaml")) == [CHART / "rules.yaml"], "one file, and no copy that drifts"
    if shutil.which("promtool"):
        (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rule["spec"]))
        run("promtool", "check", "rules", tmp_path / "rules.yaml")


@pytest.mark.parametrize("release", ["1.25", "1.30", "1.37"])
@pytest.mark.parametrize("options, files", [
    (TLS, {"certificate": "tls.crt", "key": "tls.key", "clientCa": "ca.crt"}),
    (["--set", "metrics.tls.secretName=agent-tls"], {"certificate": "tls.crt", "key": "tls.key"}),
])
def test_tls(options, files, release):
    found = render("--kube-version", f"{release}.0", *EVERYTHING, *options, "--set",
                   "metrics.podMonitor.tlsConfig={serverName: agent}")
    assert not [p for d in found if d["kind"] not in CUSTOM for p in problems(d, release)]
    tls = yaml.safe_load(only(found, "ConfigMap")["data"]["agent.yaml"])["endpoints"]
    assert tls["http"] == values()["config"]["endpoints"]["http"]
    template = only(found, "DaemonSet")["spec"]["template"]
    container = container_of({"spec": {"template": template}})
    [mount] = [m for m in container["volumeMounts"] if m["name"] == "tls"]
    assert tls["tls"] == {key: f"{mount['mountPath']}/{name}" for key, name in files.items()}
    # the directory, or a renewed Secret would not arrive; only root reads the key
    assert mount["readOnly"] is True and "subPath" not in mount
    [volume] = [v for v in template["spec"]["volumes"] if v["name"] == "tls"]
    sources = {item["path"]: s["secret"]["name"] for s in volume["projected"]["sources"] for item in s["secret"]["items"]}
    assert sources == {name: "scrapers" if name == "ca.crt" else "agent-tls" for name in files.values()}
    assert volume["projected"]["defaultMode"] == 0o400
    assert all(container[probe]["httpGet"]["scheme"] == "HTTPS"
               for probe in ("startupProbe", "livenessProbe", "readinessProbe"))
    assert template["metadata"]["annotations"]["prometheus.io/scheme"] == "https"
    [endpoint] = only(found, "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert (endpoint["scheme"], endpoint["tlsConfig"]) == ("https", {"serverName": "agent"})


def test_tls_with_files_of_the_node():
    own = "config.endpoints.tls={certificate: /var/lib/shared-socket/a.crt, key: /var/lib/shared-socket/a.key}"
    found = only(render("--set", own), "DaemonSet")
    assert container_of(found)["readinessProbe"]["httpGet"]["scheme"] == "HTTPS"
    assert "tls" not in [v["name"] for v in found["spec"]["template"]["spec"]["volumes"]]


@pytest.mark.parametrize("option, said", [
    ("config.runtime.endpoint=/run/containerd/containerd.sock", "is not unix:///PATH"),
    ("config.endpoints.http=localhost", "has no port"),
    ("priorityClass.create=true", "begin with system-"),
    ("metrics.tls.clientCaSecretName=scrapers", "set metrics.tls.secretName"),
])
def test_mistakes_are_named(option, said):
    done = render("--set", option, check=False)
    assert done.returncode == 1 and said in done.stderr


def test_old_kubernetes_is_refused():
    done = render("--kube-version", "1.24.0", check=False)
    assert done.returncode == 1 and "wants Kubernetes" in done.stderr


def test_names_fit_whatever_the_release_is_called():
    long = render("--name", "x" * 60)
    assert all(len(d["metadata"]["name"]) <= 63 for d in long)
    found = daemonset("--name", "fast")
    assert found["metadata"]["name"] == "fast-shared-socket"
    # kubectl shared-socket goes by this label, whatever the release is called
    assert found["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"] == "shared-socket"
    wanted = found["spec"]["selector"]["matchLabels"]
    assert wanted.items() <= found["spec"]["template"]["metadata"]["labels"].items()


def test_notes():
    assert 'shared-socket.io/accelerate: "true"' in run(DEPLOY / "render.sh", "--notes").stdout
    drained = run(DEPLOY / "render.sh", "--notes", "--set", "config.mode=opt-out", "--set", "config.drainOnExit=true").stdout
    assert 'accelerate: "false"' in drained and "helm upgrade" not in drained


def test_values_and_their_schema():
    schema = values_schema()
    jsonschema.Draft7Validator.check_schema(schema)
    validator = jsonschema.Draft7Validator(schema)
    assert not list(validator.iter_errors(values()))
    assert set(values()) == set(schema["properties"]) - {"global"}  # helm puts `global` there
    for spoil in ({"confg": {}}, {"config": {**values()["config"], "mode": "on"}}, {"capabilities": ["CAP_BPF"]},
                  {"config": {**values()["config"], "selectors": [{"namespace": ["a"]}]}}, {"appArmorProfile": "none"},
                  {"config": {**values()["config"], "budgets": {"totalBytes": "many"}}},
                  {"kubernetesApi": {"enable": True}}, {"config": {**values()["config"], "selectors": [{"services": ["web"]}]}}):
        assert list(validator.iter_errors({**values(), **spoil})), spoil


def example():
    """The file of the Debian package with what stands there as a comment."""
    shipped = (DEPLOY / "debian" / "agent.yaml").read_text()
    lines = [line for line in shipped.splitlines() if line != "selectors: []"]
    first = lines.index("# selectors:")
    last = next(at for at in range(first, len(lines)) if not lines[at].startswith("#"))
    for at, line in enumerate(lines):
        if line.startswith(("# budgets:", "# ports:", "# runtime:")) or first <= at < last:
            lines[at] = line[2:]
    return "\n".join(lines)


def test_the_package_and_the_chart_know_one_configuration():
    schema = values_schema()
    config = {**schema["properties"]["config"], "definitions": schema["definitions"]}
    config["required"] = [r for r in config["required"] if r != "runtime"]  # found by itself on a host
    jsonschema.validate(yaml.safe_load((DEPLOY / "debian" / "agent.yaml").read_text()), config)
    full = yaml.safe_load(example())
    assert {"selectors", "budgets", "ports", "runtime"} <= set(full) and len(full["selectors"]) == 2
    jsonschema.validate(full, config)


def test_the_agent_takes_every_configuration(static, tmp_path):
    files = {variant: only(render(*options), "ConfigMap")["data"]["agent.yaml"] for variant, options in VARIANTS.items()}
    files |= {"package": (DEPLOY / "debian" / "agent.yaml").read_text(), "example": example()}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        done = run(static, "agent", "--check", "--config", tmp_path / name, check=False)
        assert done.returncode == 0, f"{name}: {done.stderr}\n{text}"
    (tmp_path / "wrong").write_text("apiVersion: shared-socket.io/v1\nmodes: opt-in\n")
    assert run(static, "agent", "--check", "--config", tmp_path / "wrong", check=False).returncode != 0


def test_one_version():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == version()
    assert container_of(daemonset())["image"] == f"ghcr.io/shared-socket/shared-socket:{version()}"


def test_helm_itself_agrees_where_it_is_installed():
    """deploy/tools/render stands in for helm; where the real one is, the two must say the same."""
    if not shutil.which("helm"):
        return
    for options in VARIANTS.values():
        values_of = {}
        for assignment in options[1::2]:
            path, _, text = assignment.partition("=")
            at = values_of
            *parents, last = path.split(".")
            for parent in parents:
                at = at.setdefault(parent, {})
            at[last] = yaml.safe_load(text)
        done = run("helm", "template", "shared-socket", CHART, "--namespace", "default", "--kube-version", "1.34.0",
                   "--values", "-", input=yaml.safe_dump(values_of))
        theirs = [d for d in yaml.safe_load_all(done.stdout) if d]
        order = lambda d: (d["kind"], d["metadata"]["name"])  # noqa: E731
        assert sorted(theirs, key=order) == sorted(render(*options), key=order)

"""Selectors by labels of namespaces and by Services: the agent on a real CRI runtime, with an API server that fails as
one does (api.py). Whatever it does, what is attached stays attached, and what was missed is made up for."""
import json
import os
import signal
import subprocess
import time

import pytest
from agent import Agent
from api import Api, certificates
from lab import wait_until
from test_agent import Traffic, is_fast, is_tcp

pytestmark = pytest.mark.product

BY_LABEL = "selectors: [{namespaceLabels: {fast: 'yes'}, eligibility: all}]\n"
BY_SERVICE = "selectors: [{services: ['shop/*'], eligibility: all}]\n"
BOTH = ("selectors:\n  - {namespaceLabels: {fast: 'yes'}, eligibility: all}\n"
        "  - {services: ['shop/*'], eligibility: all}\n")


@pytest.fixture
def api():
    made = Api().start()
    yield made
    made.stop()


@pytest.fixture
def asks(agent, api, tmp_path):
    """An agent with these selectors that may ask the API."""
    def make(selectors, *options, **kw):
        return agent(enabled(api, tmp_path) + selectors, *options, **kw)
    return make


def enabled(api, tmp_path):
    return f"kubernetesApi: {{enabled: true, kubeconfig: {api.kubeconfig(tmp_path / 'kubeconfig')}}}\n"


def since(lab):
    """When each cgroup was attached: the same as long as it is not detached in between."""
    return {w["cgroup"]: w["attached_at"] for w in lab.status()["workloads"]}


def flows(lab, traffic):
    """A whole round of it is fast: the one that is under way may be all but done."""
    with lab.expect_fast(100):
        traffic.grows()
        traffic.grows()


def ok(one, timeout=60):
    wait_until("the API is heard", lambda: one.get("/readyz") == (200, "ok\n"), timeout, 0.05)


def test_a_label_of_a_namespace(lab, runtime, pod, asks, api):
    api.namespace("core")
    a, b = pod("a", namespace="core"), pod("b", namespace="core")
    one = asks(BY_LABEL)
    ok(one)
    assert not one.rows()["core/a"]["attached"]
    client, server = a.peer(), b.peer()
    is_tcp(lab, client, server)
    api.namespace("core", fast="yes")
    took = [one.wait("core/a"), one.wait("core/b")]
    is_fast(lab, client, server)
    traffic = Traffic(client, server)
    traffic.grows()
    api.namespace("core", fast="no")
    took += [one.wait("core/a", attached=False), one.wait("core/b", attached=False)]
    traffic.grows()
    traffic.end()
    assert lab.status()["workloads"] == []
    print("seconds from label to state:", [round(t, 2) for t in took])
    assert max(took) < 2, took
    # a pod of a namespace that comes after the list
    api.namespace("late", fast="yes")
    pod("c", namespace="late")
    assert one.wait("late/c") < 2
    api.delete("namespaces", "late")
    assert one.wait("late/c", attached=False) < 2
    # nobody needs EndpointSlices: they are not asked for
    assert not api.asked(kind="endpointslices") and len(api.asked("list", "namespaces")) == 1


def test_the_pods_of_a_service(lab, runtime, pod, asks, api, monkeypatch):
    monkeypatch.setenv("NODE_NAME", "here")
    a, b = pod("a", namespace="shop"), pod("b", namespace="shop")
    pod("a", namespace="other")
    api.slice("shop/web", [], name="web-v4")  # "endpoints": null
    one = asks(BY_SERVICE)
    ok(one)
    assert lab.status()["workloads"] == []
    api.slice("shop/web", ["a", "b"], name="web-v4", node="here", ready=False)
    assert max(one.wait("shop/a"), one.wait("shop/b")) < 2
    is_fast(lab, a.peer(), b.peer())
    before = since(lab)
    api.slice("shop/web", ["a", "b"], name="web-v6", node="here", family="IPv6")
    api.slice("shop/web", ["b"], name="web-v4", node="here")
    api.slice("elsewhere/web", ["a"], node="here")
    api.slice("shop/another", ["a"], node="there")  # a pod of that name on another node
    time.sleep(1)
    assert since(lab) == before and not one.rows()["other/a"]["attached"]
    api.delete("endpointslices", "shop/web-v6")
    assert one.wait("shop/a", attached=False) < 2
    assert one.rows()["shop/b"]["attached"]
    api.delete("endpointslices", "shop/web-v4")
    assert one.wait("shop/b", attached=False) < 2
    assert not api.asked(kind="namespaces")


def test_opt_out_leaves_alone_what_may_be_named(lab, runtime, pod, asks, api):
    api.namespace("core", fast="no")
    api.namespace("shop")
    pod("a", namespace="core"), pod("b", namespace="shop")
    pod("c", namespace="shop", annotations={"shared-socket.io/accelerate": "true"})
    api.stop()
    one = asks("mode: opt-out\nselectors: [{namespaceLabels: {fast: 'no'}}]\n")
    one.wait("shop/c")
    assert {name for name, row in one.rows().items() if row["attached"]} == {"shop/c"}
    assert "Kubernetes API" in one.rows()["shop/b"]["decision"]["leave_alone"]
    api.start()
    one.wait("shop/b", timeout=40)
    assert not one.rows()["core/a"]["attached"]
    ok(one)


# What is done while c is to be attached and d to be detached, and what is done afterwards.
FAULTS = {
    "a watch that expires": (lambda api: (api.order("expire"), api.compact()), None),
    "HTTP 410 on a watch": (lambda api: (api.fault(410, ["watch"]), api.order("close")), lambda api: api.heal()),
    "410 in the stream of a watch that is begun": (lambda api: (api.order("close"), api.compact()), None),
    "429 for everything": (lambda api: (api.fault(429), api.order("close")), lambda api: api.heal()),
    "500 for everything": (lambda api: (api.fault(500), api.order("expire")), lambda api: api.heal()),
    "text instead of JSON": (lambda api: (api.fault("text"), api.order("expire")), lambda api: api.heal()),
    "403 for everything": (lambda api: (api.fault(403), api.order("expire")), lambda api: api.heal()),
    "cut in the middle of an event": (lambda api: api.order("cut"), None),
    "a malformed line": (lambda api: api.order("malformed"), None),
    "a watch that ends": (lambda api: api.order("close"), None),
    "a restart": (lambda api: api.stop(), lambda api: api.start()),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_loses_nothing(lab, runtime, pod, asks, api, fault):
    begin, end = FAULTS[fault]
    for name, fast in (("core", "yes"), ("late", "no"), ("old", "yes")):
        api.namespace(name, fast=fast)
    api.slice("shop/web", ["old"])
    a, b, _, _, _, _ = (pod("a", namespace="core"), pod("b", namespace="core"), pod("c", namespace="late"),
                        pod("d", namespace="old"), pod("new", namespace="shop"), pod("old", namespace="shop"))
    one = asks(BOTH)
    for name in ("core/a", "core/b", "old/d", "shop/old"):
        one.wait(name, timeout=20)
    ok(one)
    kept = {cgroup: at for cgroup, at in since(lab).items() if a.uid in cgroup or b.uid in cgroup}
    assert len(kept) == 2
    traffic = Traffic(a.peer(), b.peer())
    traffic.grows()
    began, lines = time.monotonic(), len(one.log().splitlines())
    begin(api)
    api.namespace("late", fast="yes")
    api.namespace("old", fast="no")
    api.slice("shop/web", ["new"])
    told = ""
    if end:
        wait_until("it is told", lambda: "Kubernetes API" in one.get("/readyz")[1] or "410" in fault, 10, 0.05)
        time.sleep(2)
        answer, told = one.get("/readyz")
        assert answer == 200, told
        assert "410" in fault or "what was known stays in force" in told, told
        assert one.rows()["old/d"]["attached"] or "410" in fault
        flows(lab, traffic)
        end(api)
        began = time.monotonic()
    one.wait("late/c", timeout=40), one.wait("shop/new", timeout=40)
    one.wait("old/d", attached=False, timeout=40), one.wait("shop/old", attached=False, timeout=40)
    took = time.monotonic() - began
    ok(one)
    flows(lab, traffic)
    traffic.end()
    assert {cgroup: at for cgroup, at in since(lab).items() if cgroup in kept} == kept, "a and b were never detached"
    said = [line for line in one.log().splitlines()[lines:] if "Kubernetes API" in line]
    print(f"{fault}: made up for after {took:.1f} s; {len(api.asked())} requests; {told.strip()}", *said, sep="\n  ")
    assert len([line for line in said if " WARN " in line]) <= 2, said  # one a kind
    assert len(api.asked()) < 40
    if "403" in fault:
        assert "ClusterRole shared-socket" in told and "system:serviceaccount:fast:shared-socket" in told


def test_connections_that_hang(lab, runtime, pod, asks, api, monkeypatch):
    """A list without an answer is given up after half a minute, a silent watch after one and a half; here after 5 and 15 s."""
    monkeypatch.setenv("SHARED_SOCKET_DEBUG_API_PATIENCE", "5")
    api.namespace("core", fast="no")
    api.slice("shop/web", ["b"])
    pod("a", namespace="core"), pod("b", namespace="shop")
    api.fault("hang", ["list"], ["endpointslices"])
    one = asks(BOTH)
    wait_until("it asks", lambda: api.asked("list", "endpointslices") and api.watches["namespaces"])
    assert "has not answered yet; nothing is detached" in one.get("/readyz")[1]
    api.order("silence", ["namespaces"])
    time.sleep(0.5)
    began = time.monotonic()
    api.namespace("core", fast="yes")
    wait_until("it is told", lambda: "no answer in 5 s" in one.get("/readyz")[1], 40, 0.2)
    assert one.get("/readyz")[0] == 200
    # healed for new requests alone: the one that hangs goes on hanging
    with api.lock:
        api.faults.clear()
    one.wait("shop/b", timeout=10)
    print(f"list: {time.monotonic() - began:.0f} s")
    one.wait("core/a", timeout=110)
    print(f"watch: {time.monotonic() - began:.0f} s")
    ok(one)


def test_an_api_that_is_away_when_the_agent_starts(lab, runtime, pod, asks, api, tmp_path):
    for name in ("core", "old"):
        api.namespace(name, fast="yes")
    a, b = pod("a", namespace="core"), pod("b", namespace="core")
    pod("d", namespace="old")
    one = asks(BY_LABEL)
    for name in ("core/a", "core/b", "old/d"):
        one.wait(name, timeout=20)
    before = since(lab)
    one.stop(signal.SIGKILL)
    api.stop()
    api.namespace("old", fast="no")
    # another eligibility where all that could be said is said without the API: not before it is heard
    one.configure(enabled(api, tmp_path) + "selectors:\n  - {namespaceLabels: {fast: 'yes'}, eligibility: all}\n"
                  "  - {namespaces: [core, shop], eligibility: safe}\n")
    one.start()
    c = pod("c", namespace="shop")
    one.wait("shop/c")
    time.sleep(3)
    now = since(lab)
    assert {cgroup: now.get(cgroup) for cgroup in before} == before
    eligibility = {w["cgroup"].split("/")[-1]: w["eligibility"] for w in lab.status()["workloads"]}
    assert eligibility[f"pod{a.uid}"] == "all" and eligibility[f"pod{c.uid}"] == "safe"
    answer, text = one.get("/readyz")
    assert answer == 200 and "does not answer" in text and "nothing is detached" in text, text
    assert "does not answer" in json.loads(one.get("/workloads")[1])["kubernetes_error"]
    assert len([line for line in one.log().splitlines() if " WARN " in line and "Kubernetes API" in line]) == 1
    is_fast(lab, a.peer(), b.peer())
    api.start()
    one.wait("old/d", attached=False, timeout=40)
    ok(one)
    now = since(lab)
    assert {cgroup: now[cgroup] for cgroup in before if cgroup in now} == {
        cgroup: at for cgroup, at in before.items() if a.uid in cgroup or b.uid in cgroup}
    assert "kubernetes_error" not in json.loads(one.get("/workloads")[1])


def test_no_permission(lab, runtime, pod, asks, api):
    api.namespace("core", fast="yes")
    pod("a", namespace="core")
    api.fault(403)
    one = asks(BY_LABEL)
    wait_until("it is told", lambda: "403" in one.get("/readyz")[1])
    text = one.get("/readyz")[1]
    assert "ClusterRole shared-socket" in text and "cannot list resource" in text, text
    assert lab.status()["workloads"] == []
    api.heal()
    one.wait("core/a", timeout=40)
    ok(one)


def test_a_kubeconfig_that_comes_later(lab, runtime, pod, agent, api, tmp_path):
    api.namespace("core", fast="yes")
    pod("a", namespace="core")
    one = agent(f"kubernetesApi: {{enabled: true, kubeconfig: {tmp_path}/later}}\n" + BY_LABEL)
    wait_until("it is told", lambda: f"{tmp_path}/later cannot be asked" in one.get("/readyz")[1])
    (tmp_path / "later").write_text("clusters: 7\n")
    time.sleep(1)
    assert one.get("/readyz")[0] == 200
    api.kubeconfig(tmp_path / "later")
    one.wait("core/a", timeout=60)
    ok(one)


def test_pages_and_the_agents_name(lab, runtime, pod, asks, api):
    """More namespaces than a page has, and a page that has expired when it is asked for."""
    for n in range(250):
        api.namespace(f"n{n:03}", fast="yes")
    pod("a", namespace="n249")
    api.stale_pages = 1
    one = asks(BY_LABEL)
    one.wait("n249/a", timeout=20)
    pages = api.asked("list", "namespaces")
    assert ["continue" in p["query"] for p in pages] == [False, True, False, True, True]
    assert {p["query"]["limit"] for p in pages} == {"100"}
    assert all(p["headers"]["User-Agent"].startswith("shared-socket/") for p in pages), pages[0]
    [watch] = api.asked("watch", "namespaces")
    assert watch["query"]["allowWatchBookmarks"] == "true"


def test_it_is_switched_on_and_off(lab, runtime, pod, agent, api, tmp_path):
    api.namespace("core", fast="yes")
    pod("a", namespace="core")
    one = agent("selectors: [{namespaces: [x]}]\n")
    assert not api.asked()
    one.configure(enabled(api, tmp_path) + "selectors: [{namespaces: [x]}]\n")
    time.sleep(1)
    assert not api.asked(), "nobody needs it"
    one.configure(enabled(api, tmp_path) + BY_LABEL)
    one.wait("core/a")
    one.configure(enabled(api, tmp_path) + BOTH)
    wait_until("both are watched", lambda: api.watches == {"namespaces": 1, "endpointslices": 1})
    assert len(api.asked("list", "namespaces")) == 1, "what is known already is not asked for again"
    one.configure(BY_LABEL)  # without the API
    wait_until("it is told", lambda: "namespaceLabels is what only the Kubernetes API knows" in one.get("/readyz")[1])
    assert "line 5" in one.get("/readyz")[1] and one.rows()["core/a"]["attached"]
    one.configure("selectors: [{namespaces: [x]}]\n")
    one.wait("core/a", attached=False)
    wait_until("nothing is watched", lambda: not any(api.watches.values()))
    assert one.get("/readyz") == (200, "ok\n")
    asked = len(api.asked())
    time.sleep(1)
    assert len(api.asked()) == asked


# The node's directories as a pod sees them: what the kubelet mounts for a service account, on a file system that tells
# who was read.
POD = """
set -e
files=$1
shift
mount -t tmpfs -o strictatime,mode=755 tmpfs /var
mkdir -p /var/run/secrets/kubernetes.io/serviceaccount
cp "$files"/ca.crt "$files"/token "$files"/namespace /var/run/secrets/kubernetes.io/serviceaccount/
touch -a -d 2001-01-01 /var/run/secrets/kubernetes.io/serviceaccount/*
exec "$@"
"""
FILES = ("ca.crt", "token", "namespace")


class InPod(Agent):
    """An agent that sees the files and the environment of a pod with a service account."""

    def start_in_pod(self, files, api):
        environment = {**os.environ, "KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(api.port),
                       "HTTPS_PROXY": "http://127.0.0.1:1"}  # which is not for this
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", POD, "sh", files,
                *self.lab.argv("agent", "--config", self.file, *self.options)]
        with open(self.log_file, "a") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        self.lab.extra.append(self.process)
        self.wait_ready()
        return self

    def account(self, name):
        return f"/proc/{self.process.pid}/root/var/run/secrets/kubernetes.io/serviceaccount/{name}"

    def was_read(self):
        return {name for name in FILES if os.stat(self.account(name)).st_atime > 1e9}


def test_in_a_pod(lab, runtime, pod, tmp_path):
    """By the service account's token and CA, over TLS; and by default by nothing of it."""
    authority, context = certificates(tmp_path)
    for name, text in ("token", "first"), ("namespace", "fast"):
        (tmp_path / name).write_text(text)
    api = Api(tls=context, token="first").start()
    api.namespace("core", fast="yes")
    pod("a", namespace="core")
    one = InPod(lab, runtime, "selectors: [{namespaces: [core]}]\n", start=False)
    try:
        one.start_in_pod(tmp_path, api)
        one.wait("core/a")
        time.sleep(1)
        assert one.was_read() == set() and not api.asked(), "nobody is asked by default"
        rss = one.rss_kib() / 1024
        assert rss < 30
        one.configure("kubernetesApi: {enabled: true}\n" + BY_LABEL.replace("yes", "no"))
        one.wait("core/a", attached=False)
        ok(one)
        assert one.was_read() == set(FILES)
        print(f"{rss:.1f} MiB by default, {one.rss_kib() / 1024:.1f} MiB with the API by TLS")
        # another token, as the kubelet exchanges it, and the one before is not known any more
        with open(one.account("token"), "w") as file:
            file.write("second")
        api.token = "second"
        api.order("expire")
        api.namespace("core", fast="no")
        one.wait("core/a", timeout=90)
        ok(one)
        # a server that somebody else has certified
        (tmp_path / "other").mkdir()
        api.stop()
        api.tls = certificates(tmp_path / "other")[1]
        api.start()
        wait_until("it is told", lambda: "certificate" in one.get("/readyz")[1], 40)
        assert one.rows()["core/a"]["attached"] and authority.exists()
    finally:
        if one.process and one.process.poll() is None:
            one.stop()
        api.stop()

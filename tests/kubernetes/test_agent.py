"""The agent on a real CRI runtime: what its file says is attached, whatever happens to pods, the runtime or itself."""
import json
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from agent import HEAD, Agent
from lab import wait_until
from runtime import GATEWAY, Runtime

pytestmark = pytest.mark.product

ON, ALL, OFF = ({"shared-socket.io/accelerate": value} for value in ("true", "all", "false"))


def is_fast(lab, a, b, connections=4, rounds=20):
    ear = b.listen(b.pod.ip)
    b.call("epoll_echo_start", ear.name)
    with lab.expect_fast(connections * rounds):
        a.call("epoll_client", b.pod.ip, ear.port, connections, rounds)


def is_tcp(lab, a, b):
    ear = b.listen(b.pod.ip)
    b.call("epoll_echo_start", ear.name)
    with lab.expect_tcp():
        a.call("epoll_client", b.pod.ip, ear.port, 4, 20)


class Traffic:
    """Small messages there and back until it is ended, on one connection; every byte is checked by the client."""

    def __init__(self, client, server):
        self.server = server
        self.ear = server.listen(server.pod.ip)
        server.call("epoll_echo_start", self.ear.name)
        self.client, self.count, self.errors, self.ended = client, 0, [], threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        try:
            while not self.ended.is_set():
                self.client.call("epoll_client", self.server.pod.ip, self.ear.port, 2, 200)
                self.count += 400
        except Exception as err:
            self.errors.append(err)

    def grows(self):
        before = self.count
        wait_until("messages flow", lambda: self.count > before or self.errors, 20)
        assert not self.errors, self.errors

    def end(self):
        self.ended.set()
        self.thread.join()
        assert not self.errors, self.errors
        assert self.server.call("echo_errors") == []


def test_annotated_pods_are_accelerated_while_they_live(lab, runtime, pod, agent):
    a, b, c = pod("a", annotations=ALL), pod("b", annotations=ALL), pod("c", annotations=OFF)
    one = agent()
    one.wait("default/a"), one.wait("default/b")
    is_fast(lab, a.peer(), b.peer())
    is_tcp(lab, c.peer(), b.peer())
    assert "annotation" in one.rows()["default/c"]["decision"]["leave_alone"]
    # one that comes later, before its first container
    d = pod("d", annotations=ALL)
    assert one.wait("default/d") < 1
    is_fast(lab, d.peer(), b.peer())
    d.remove()
    wait_until("its row is gone", lambda: "default/d" not in one.rows(), 5)


def test_selectors(lab, runtime, pod, agent):
    for name, space, app in (("smf-0", "core", "smf"), ("amf-0", "core", "amf"), ("smf-0", "test", "smf")):
        made = pod(name, namespace=space, labels={"app": app})
        made.container("main"), made.container("envoy")
    one = agent("""selectors:
  - {namespaces: [core], labels: {app: smf}}
  - {namespaces: [test], containers: [envoy], eligibility: all}
""")
    for name in ("core/smf-0", "test/smf-0/envoy"):
        one.wait(name)
    rows = one.rows()
    assert {name for name, row in rows.items() if row["attached"]} == {"core/smf-0", "test/smf-0/envoy"}
    eligibility = {w["cgroup"].split("/")[-1][:12]: w["eligibility"] for w in lab.status()["workloads"]}
    assert sorted(eligibility.values()) == ["all", "safe"]


def test_opt_out(lab, runtime, pod, agent):
    pod("dns", namespace="kube-system"), pod("web", namespace="shop"), pod("db", namespace="shop", annotations=OFF)
    one = agent("mode: opt-out\nselectors: [{namespaces: [kube-system]}]\n")
    one.wait("shop/web")
    assert [name for name, row in one.rows().items() if row["attached"]] == ["shop/web"]


def test_the_file_is_read_again(lab, runtime, pod, agent):
    a = pod("a", namespace="core")
    one = agent()
    assert not one.rows()["core/a"]["attached"]
    one.configure("selectors: [{namespaces: [core]}]\n")
    assert one.wait("core/a") < 1
    # a bad file keeps the one before, and says so, with the line
    one.configure("selectorz: []\n")
    wait_until("it is told", lambda: "selectorz" in one.get("/readyz")[1])
    status, text = one.get("/readyz")
    assert status == 200 and "line 5" in text, text
    assert "the configuration before stays in force" in one.log()
    late = pod("late", namespace="core")
    one.wait("core/late")
    # a good one again; both go, and lose nothing
    one.configure("selectors: [{namespaces: [other]}]\n")
    assert one.wait("core/a", attached=False) < 3
    one.wait("core/late", attached=False)
    assert one.get("/readyz") == (200, "ok\n")
    assert lab.status()["workloads"] == []
    assert a.running() and late.running()


def test_a_changed_eligibility_and_budget_reach_what_is_attached(lab, runtime, pod, agent):
    a, b = pod("a", namespace="core"), pod("b", namespace="core")
    one = agent("selectors: [{namespaces: [core]}]\n")
    one.wait("core/a"), one.wait("core/b")
    client, server = a.peer(), b.peer()
    traffic = Traffic(client, server)
    traffic.grows()
    one.configure("selectors: [{namespaces: [core], eligibility: all}]\nbudgets: {perPeerBytes: 1MiB, minMessages: 0}\n")
    wait_until("it is so", lambda: lab.status()["budget"]["peer_bytes"] == 1 << 20, 10)
    wait_until("all of it", lambda: {w["eligibility"] for w in lab.status()["workloads"]} == {"all"}, 10)
    traffic.grows()
    one.configure("selectors: [{namespaces: [core], eligibility: all}]\n")
    wait_until("the default again", lambda: lab.status()["budget"]["peer_bytes"] == 4 << 20, 10)
    traffic.grows()
    traffic.end()


def test_ports_that_are_left_alone(lab, runtime, pod, agent):
    a, b = pod("a", annotations=ALL), pod("b", annotations=ALL)
    client, server = a.peer(), b.peer()
    ear = server.listen(b.ip)
    server.call("epoll_echo_start", ear.name)
    one = agent(f"ports: {{leaveAlone: [{ear.port}]}}\n")
    one.wait("default/a"), one.wait("default/b")
    with lab.expect_tcp(no_halves=True):
        client.call("epoll_client", b.ip, ear.port, 4, 20)
    is_fast(lab, client, server)  # another port
    one.configure("")
    before = lab.totals()["fast_messages"]

    def fast():
        client.call("epoll_client", b.ip, ear.port, 4, 20)
        return lab.totals()["fast_messages"] > before
    wait_until("the port is not left alone any more", fast, 5)


def test_the_service_address_and_localhost(lab, runtime, pod, agent):
    a, b = pod("a", annotations=ALL), pod("b", annotations=ALL)
    agent().wait("default/b")
    client, server, beside = a.peer("one"), b.peer("two"), b.peer("beside")
    ear = server.listen(b.ip)
    server.call("epoll_echo_start", ear.name)
    runtime.iptables("-t", "nat", "-A", "PREROUTING", "-d", "10.96.0.10", "-p", "tcp", "--dport", "80",
                     "-j", "DNAT", "--to-destination", f"{b.ip}:{ear.port}")
    with lab.expect_fast(80):
        client.call("epoll_client", "10.96.0.10", 80, 4, 20)
    ear = server.listen("127.0.0.1")
    server.call("epoll_echo_start", ear.name)
    with lab.expect_fast(80):
        beside.call("epoll_client", "127.0.0.1", ear.port, 4, 20)


def test_host_network(lab, runtime, pod, agent):
    """A pod in the node's own network, and one that is not: they meet at the node's address."""
    a, node = pod("a", annotations=ALL), pod("node", annotations=ALL, host_network=True)
    one = agent()
    one.wait("default/a"), one.wait("default/node")
    assert one.rows()["default/node"]["host_network"] and not one.rows()["default/a"]["host_network"]
    client, server = a.peer(), node.peer()
    ear = server.listen(GATEWAY)
    server.call("epoll_echo_start", ear.name)
    with lab.expect_fast(80):
        client.call("epoll_client", GATEWAY, ear.port, 4, 20)


def test_containers_that_are_restarted(lab, runtime, pod, agent):
    a, b = pod("a", annotations=ALL), pod("b", annotations=ALL)
    agent().wait("default/b")
    server = b.peer("server")
    for _ in range(3):
        client = a.peer("client")
        is_fast(lab, client, server)
        client.close()


@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGKILL])
def test_a_runtime_that_is_restarted_under_traffic(lab, runtime, pod, agent, signo):
    a, b = pod("a", annotations=ALL), pod("b", annotations=ALL)
    one = agent()
    one.wait("default/a"), one.wait("default/b")
    traffic = Traffic(a.peer(), b.peer())
    traffic.grows()
    runtime.stop(signo)
    wait_until("the agent notices", lambda: one.get("/readyz")[0] == 503, 40)
    assert "CRI runtime" in one.get("/readyz")[1] and one.get("/healthz")[0] == 200
    with lab.expect_fast(100):
        traffic.grows()
    assert len(lab.status()["workloads"]) == 2
    runtime.start()
    one.wait_ready()
    c = pod("c", annotations=ALL)
    one.wait("default/c")
    traffic.end()
    is_fast(lab, c.peer(), b.peer())


def test_an_agent_that_is_killed_and_started_again(lab, runtime, pod, agent):
    a, b, gone = pod("a", annotations=ALL), pod("b", annotations=ALL), pod("gone", annotations=ALL)
    one = agent()
    for name in ("a", "b", "gone"):
        one.wait(f"default/{name}")
    traffic = Traffic(a.peer(), b.peer())
    traffic.grows()
    one.stop(signal.SIGKILL)
    with lab.expect_fast(100):
        traffic.grows()
    gone.remove()
    c = pod("c", annotations=ALL)
    one.configure("annotation: example.org/other\n")  # nothing is to be attached any more: but what was is its own
    one.start()
    wait_until("it is gone", lambda: lab.status()["workloads"] == [], 10)
    traffic.grows()
    one.configure("")
    one.wait("default/c")
    one.wait("default/a")
    traffic.grows()
    traffic.end()
    is_fast(lab, c.peer(), b.peer())


def test_programs_of_another_build_are_upgraded_under_traffic(lab, runtime, pod, agent):
    a, b = pod("a", annotations=ALL), pod("b", annotations=ALL)
    one = agent()
    one.wait("default/a"), one.wait("default/b")
    traffic = Traffic(a.peer(), b.peer())
    traffic.grows()
    assert one.stop() == 0
    ledger = f"{lab.state_dir}/agent.json"
    book = json.load(open(ledger))
    json.dump(book | {"programs": "of another build"}, open(ledger, "w"))
    one.start()
    assert "this build's programs" in one.log()
    with lab.expect_fast(100):
        traffic.grows()
    traffic.end()
    assert json.load(open(ledger))["programs"] == book["programs"]


def test_the_end(lab, runtime, pod, agent):
    """Acceleration stays on; with drainOnExit it goes, and no byte is lost."""
    a, b = pod("a", annotations=ALL), pod("b", annotations=ALL)
    client, server = a.peer(), b.peer()
    one = agent()
    one.wait("default/a"), one.wait("default/b")
    assert one.stop() == 0 and "acceleration stays on" in one.log()
    is_fast(lab, client, server)
    one.configure("drainOnExit: true\n")
    one.start()
    traffic = Traffic(client, server)
    traffic.grows()
    assert one.stop() == 0
    assert lab.status()["workloads"] == []
    traffic.grows()
    traffic.end()


def test_what_a_person_attached_is_left_alone(lab, runtime, pod, agent):
    a, b = pod("a"), pod("b", annotations=ON)
    lab.attach(a, b, eligibility="all")
    one = agent()
    one.wait("default/b")
    time.sleep(1)
    assert {w["eligibility"] for w in lab.status()["workloads"]} == {"all"}
    assert len(lab.status()["workloads"]) == 2
    one.configure("drainOnExit: true\n")
    assert one.stop() == 0
    assert len(lab.status()["workloads"]) == 2


def test_who_may_be_captured(lab, runtime, pod, agent):
    """An annotation or a selector forbids it; a change of the file reaches what is attached, whoever attached it."""
    secret = {"shared-socket.io/capture": "false"}
    a, b, c = pod("a", annotations=ALL), pod("b", annotations=ALL | secret), pod("c", annotations=ALL, namespace="pay")
    one = agent("capture: {forbid: [{namespaces: [pay]}]}\n")
    for name in ("default/a", "default/b", "pay/c"):
        one.wait(name)

    def allowed():
        shown = lab.cli("status", "-o", "json", "--runtime-endpoint", f"unix://{runtime.socket}").stdout
        return {w["name"] for w in json.loads(shown)["workloads"] if w["capture"]}

    wait_until("the policy is in force", lambda: allowed() == {"default/a"}, 5)
    ear = b.peer().listen(b.ip)
    ear.peer.call("epoll_echo_start", ear.name)
    done = subprocess.Popen(lab.argv("capture", "-o", "json", "--seconds", "4"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until("the tap is in", lambda: list(Path(lab.pin_dir).glob("g*/tap0/program")))
    with lab.expect_fast(20):
        a.peer().call("epoll_client", b.ip, ear.port, 2, 20)
    out, err = done.communicate(timeout=60)
    assert out == b"" and b"of workloads that may not be captured" in err, (out, err)
    one.configure("")
    wait_until("the other policy is in force", lambda: allowed() == {"default/a", "pay/c"}, 5)


def test_two_agents(lab, runtime, agent):
    agent()
    second = Agent(lab, runtime, start=False).start(ready=False)
    assert second.process.wait(20) == 1
    assert "another agent runs" in second.log()


def test_files_that_cannot_be_used(lab, runtime, agent, tmp_path):
    def run(text):
        path = tmp_path / "agent.yaml"
        path.write_text(text)
        done = lab.cli("agent", "--check", "--config", path)
        return done.returncode, done.stderr + done.stdout
    assert run(HEAD) == (0, f"{tmp_path}/agent.yaml can be used\n")
    for text, expected in (
        ("", "apiVersion"),
        (HEAD + "selectors:\n  - namespace: [core]\n", "unknown field `namespace`"),
        (HEAD + "selectors:\n  - namespace: [core]\n", "line 3"),
        (HEAD + "mode: opt-maybe\n", "line 2"),
    ):
        code, said = run(text)
        assert code == 1 and expected in said and "agent.yaml" in said, said
    done = lab.cli("agent", "--config", tmp_path / "none.yaml")
    assert done.returncode == 1 and "none.yaml" in done.stderr


def test_metrics(lab, runtime, pod, agent):
    """What is scraped is what `status` says, and adds up to what was sent."""
    def scrape():
        status, text = one.get("/metrics")
        assert status == 200 and text.endswith("# EOF\n")
        rows = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {name.removeprefix("shared_socket_"): float(value) for name, value in rows}
    a, b = pod("a", annotations=ALL), pod("b", annotations=ALL)
    one = agent()
    one.wait("default/a"), one.wait("default/b")
    before = scrape()
    assert before["agent_ready"] == 1 and before['workloads{state="attached"}'] == 2
    is_fast(lab, a.peer(), b.peer(), connections=4, rounds=50)
    lab.wait_empty()
    after, totals = scrape(), lab.totals()
    for path in "fast", "tcp":
        assert after[f'messages_total{{path="{path}"}}'] == totals[f"{path}_messages"]
        assert after[f'sent_bytes_total{{path="{path}"}}'] == totals[f"{path}_bytes"]
    # 4 connections, 50 rounds, a message there and one back
    assert sum(after[f'messages_total{{path="{p}"}}'] for p in ("fast", "tcp")) == 400
    assert after['reasons_total{reason="fast"}'] == after['messages_total{path="fast"}']
    assert after["pairs_total"] == 4 and after["pairs_live"] == 0
    ends = 'client_namespace="default",client_pod="a",client_container="",server_namespace="default",server_pod="b",' \
        'server_container=""'
    assert after[f"flow_pairs_total{{{ends}}}"] == 4 and after[f"flow_message_size_bytes_count{{{ends}}}"] == 400


def test_the_log_as_json(lab, runtime, pod, agent):
    pod("a", annotations=ON)
    one = agent("log: {format: json, level: debug}\n")
    one.wait("default/a")
    lines = [json.loads(line) for line in one.log().splitlines()]
    assert any(line.get("workload") == "default/a" and line["message"] == "attached" for line in lines), lines


def test_250_pods(lab):
    """Followed as they come; then nothing to do costs nothing."""
    with Runtime() as node:
        one = Agent(lab, node, "selectors: [{namespaces: ['*']}]\n")
        node.many(250)
        names = {f"default/many{n}" for n in range(250)}
        wait_until("all are attached", lambda: {n for n, r in one.rows().items() if r["attached"]} == names, 30, 0.2)
        assert len(lab.status()["workloads"]) == 250
        time.sleep(6)  # looks that are due after the last change, and adoption's
        before, began = one.cpu_seconds(), time.monotonic()
        time.sleep(10)
        share = (one.cpu_seconds() - before) / (time.monotonic() - began)
        rss = one.rss_kib()
        print(f"250 pods: {100 * share:.2f} % of a core when idle, {rss / 1024:.1f} MiB")
        assert share < 0.02 and rss < 60 << 10  # the figures are in docs/kubernetes.md; these catch a loop or a leak
        one.configure("drainOnExit: true\n")
        assert one.stop() == 0, one.log()

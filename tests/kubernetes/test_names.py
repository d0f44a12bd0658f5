"""Names on the command line: what they find in a real CRI runtime, and what bad ones get."""
import json
import socket

import pytest
from lab import wait_until

pytestmark = pytest.mark.product


@pytest.fixture
def cli(lab, runtime):
    def run(verb, *args, ok=True, endpoint=None):
        lab.attached = True
        extra = ["--min-messages", "0"] if verb == "attach" else []
        done = lab.cli(verb, "--runtime-endpoint", endpoint or f"unix://{runtime.socket}", *extra, *args)
        assert (done.returncode == 0) == ok, f"exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout if ok else done.stderr
    return run


def attached(lab):
    return {w["cgroup"] for w in lab.status()["workloads"]}


def below(runtime, cgroup):
    return "/" + str(cgroup.relative_to(runtime.mount))


def is_fast(lab, a, b):
    """Two peers, on the fast path; learning is not what is tested here."""
    ear = b.listen(b.pod.ip)
    b.call("epoll_echo_start", ear.name)
    with lab.expect_fast(80):
        a.call("epoll_client", b.pod.ip, ear.port, 4, 20)


@pytest.mark.parametrize("layout", ["cgroupfs", "systemd"])
def test_container_names(lab, runtime, pod, cli, layout):
    """`shared-socket attach smf scp`, as the idea has it: the containers, and nothing else of their pods."""
    smf, scp = pod("smf-0", namespace="core", layout=layout), pod("scp-0", namespace="core", layout=layout)
    client, server, other = smf.peer("smf"), scp.peer("scp"), smf.peer("sidecar")
    out = cli("attach", "--eligibility", "all", "smf", "scp")
    assert "core/smf-0/smf: attached" in out and "core/scp-0/scp: attached" in out
    assert attached(lab) == {below(runtime, client.cgroup), below(runtime, server.cgroup)}
    is_fast(lab, client, server)
    ear = server.listen(scp.ip)
    server.call("epoll_echo_start", ear.name)
    with lab.expect_tcp():
        other.call("epoll_client", scp.ip, ear.port, 2, 20)
    assert "detached 2 workload(s)" in cli("detach", "smf", "scp")


def test_names_in_what_is_seen(lab, runtime, pod, cli):
    """A live connection, its events, the map and `status` have the names of pods and containers; filters take them."""
    smf, scp = pod("smf-0", namespace="core"), pod("scp-0", namespace="test")
    client, server = smf.peer("smf"), scp.peer("scp")
    cli("attach", "--eligibility", "all", "smf", "scp")
    ear = server.listen(scp.ip)
    c = client.connect(scp.ip, ear.port)
    s = ear.accept()
    with lab.expect_fast(8):
        for _ in range(10):
            c.send(b"question")
            assert s.read(8) == b"question"
            s.send(b"answer")
            assert c.read(6) == b"answer"
    row, = json.loads(cli("connections", "-o", "json", "pod smf-* and dst ns test"))
    names = {"namespace": "core", "pod": "smf-0", "container": "smf", "name": "core/smf-0/smf"}
    assert row["client"]["workload"] == names
    assert row["server"]["workload"]["name"] == "test/scp-0/scp"
    assert json.loads(cli("connections", "-o", "json", "dst pod smf-0")) == []
    assert "core/smf-0/smf" in cli("status")
    svg = cli("map", "-o", "svg", "--interval", "0.1")
    assert "core/smf-0/smf" in svg and "test/scp-0/scp" in svg
    events = [json.loads(line) for line in cli("events", "-o", "json", "--pod", "core/smf-0/smf").splitlines()]
    assert any(e["kind"] == "handoff" and e.get("peer", {}).get("pod") == "scp-0" for e in events), events
    assert cli("events", "-o", "json", "--pod", "core/nobody").strip() == ""
    c.close()
    s.close()


def test_pods_by_name_namespace_label_and_pattern(lab, runtime, pod, cli):
    made = {name: pod(name, namespace=space, labels={"app": name[:3]})
            for name, space in (("smf-0", "core"), ("smf-1", "core"), ("amf-0", "test"))}
    for args, wanted in (
        (["pod/smf-0"], ["smf-0"]),
        (["core/smf-1"], ["smf-1"]),
        (["pod/amf-*"], ["amf-0"]),
        (["core/*"], ["smf-0", "smf-1"]),
        (["-l", "app=smf"], ["smf-0", "smf-1"]),
        (["-l", "app in (smf,amf)", "-n", "test"], ["amf-0"]),
        (["-n", "core"], ["smf-0", "smf-1"]),
        (["-n", "core", "pod/smf-0"], ["smf-0"]),
    ):
        cli("attach", *args)
        assert attached(lab) == {below(runtime, made[name].cgroup) for name in wanted}, args
        cli("detach", *args)


def test_a_pod_means_all_containers_that_it_has_and_will_have(lab, runtime, pod, cli):
    a, b = pod("a"), pod("b")
    server = b.peer()
    cli("attach", "--eligibility", "all", "pod/a", "pod/b")
    is_fast(lab, a.peer("late"), server)
    # inside one pod, over localhost
    one, two = a.peer("one"), a.peer("two")
    ear = one.listen("127.0.0.1")
    one.call("epoll_echo_start", ear.name)
    with lab.expect_fast(80):
        two.call("epoll_client", "127.0.0.1", ear.port, 4, 20)
    listed = json.loads(cli("workloads", "-o", "json"))
    states = {row["name"]: row["state"] for row in listed["workloads"]}
    assert states["default/a"] == {"attached": "all"} and states["default/a/late"] == {"covered": "default/a"}


def test_workloads(lab, runtime, pod, cli):
    a, host = pod("a", namespace="core"), pod("node", namespace="core", host_network=True)
    a.container("main"), host.container("main")
    cli("attach", "core/node")
    table = cli("workloads")
    rows = {line.split()[0]: line for line in table.splitlines()[1:]}
    assert "attached (safe)" in rows["core/node"] and " host " in rows["core/node"]
    assert "attached by core/node" in rows["core/node/main"] and " own " in rows["core/a"]
    assert rows["core/a"].rstrip().endswith("-")
    listed = json.loads(cli("workloads", "-o", "json"))
    row = next(r for r in listed["workloads"] if r["name"] == "core/a/main")
    assert row["state"] == "not_attached" and row["uid"] == a.uid and row["runtime"] == "cri"
    assert row["place"]["cgroups"][0]["path"].startswith(str(a.cgroup))


def test_what_a_bad_name_gets(lab, runtime, pod, cli):
    """An error that helps, and nothing attached: also not what was named beside it."""
    pod("smf-0", namespace="core").container("smf")
    pod("smf-0", namespace="test").container("smf")
    pod("scp-0", namespace="core").container("scp")
    for args, expected in (
        (["scp", "smg"], "container smg was not found; did you mean"),
        (["scp", "smf"], "core/smf-0/smf\n  test/smf-0/smf"),
        (["scp", "pod/smf-0"], "pod/smf-0 is ambiguous"),
        (["scp", "core/smf-1"], "did you mean core/smf-0"),
        (["scp-0"], "did you mean core/scp-0?"),
        (["scp", "unit/no-such.service"], "unit/no-such.service was not found"),
        (["scp", "a/b/c/d"], "too many parts"),
        (["scp", "core/[a"], "is not understood"),
        (["scp", "-l", "app in web"], "selector"),
        (["scp", "-l", "app=web"], "pods with labels app=web was not found"),
        ([], "nothing to attach"),
    ):
        error = cli("attach", *args, ok=False)
        assert expected in error, (args, error)
        assert attached(lab) == set(), args


def test_a_runtime_that_is_not_there(lab, runtime, cli, tmp_path):
    nowhere = tmp_path / "none.sock"
    error = cli("attach", "smf", endpoint=f"unix://{nowhere}", ok=False)
    assert f"no runtime socket at {nowhere}" in error and "--runtime-endpoint" in error
    with socket.socket(socket.AF_UNIX) as refusing:
        refusing.bind(str(nowhere))
    assert "nobody listens" in cli("attach", "smf", endpoint=str(nowhere), ok=False)
    assert "is not understood" in cli("attach", "smf", endpoint="tcp://127.0.0.1:1", ok=False)
    with socket.socket(socket.AF_UNIX) as odd:
        path = tmp_path / "odd.sock"
        odd.bind(str(path))
        odd.listen()
        odd.settimeout(10)

        def answer():
            connection, _ = odd.accept()
            connection.recv(100)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()
        import threading
        thread = threading.Thread(target=answer)
        thread.start()
        assert str(path) in cli("attach", "smf", endpoint=str(path), ok=False)
        thread.join()
    assert "nobody" not in cli("workloads", endpoint=str(tmp_path / "gone"))  # told on stderr; units are there


def test_a_pod_that_ends_takes_its_attachment_with_it(lab, runtime, pod, cli):
    a, b = pod("a"), pod("b")
    cli("attach", "pod/a", "pod/b")
    a.remove()

    def forgotten():
        cli("attach", "pod/b")  # any command that changes something forgets what is gone
        return attached(lab) == {below(runtime, b.cgroup)}
    wait_until("it is forgotten", forgotten, pause=0.5)

"""Podman, its Docker-compatible API, and systemd's units, by name on the command line and in the agent's file."""
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from agent import Agent
from engines import Podman
from lab import cgroup2_mount, wait_until
from runtime import kill_cgroup, remove_cgroup

pytestmark = pytest.mark.product

# As `--network host` has it where Podman is the machine's; what runs there does not talk.
HOST_NETWORK = ["--network", f"ns:/proc/{os.getpid()}/ns/net"]
NO_CGROUP = ["--runtime", "crun", "--cgroups", "disabled"]


@pytest.fixture(scope="module")
def node():
    with Podman() as made:
        yield made


@pytest.fixture
def podman(lab, node):
    """The node, without containers at the end of each test: before `lab` ends, which wants no connection left."""
    yield node
    if not node.process:
        node.start()
    node.clear()


@pytest.fixture
def cli(lab):
    def run(verb, *args, ok=True):
        lab.attached = True
        extra = ["--min-messages", "0"] if verb == "attach" else []
        done = lab.cli(verb, *extra, *args)
        assert (done.returncode == 0) == ok, f"exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout if ok else done.stderr
    return run


@pytest.fixture(params=["service", "command"])
def ask(request, podman, cli, monkeypatch):
    """The command line, where Podman is asked by its service, or where that does not run by the command `podman`."""
    options = ["--podman-endpoint", podman.endpoint]
    if request.param == "command":
        if os.path.exists("/run/podman/podman.sock"):
            pytest.skip("this host has a Podman service of its own")
        podman.stop()
        monkeypatch.setenv("PATH", f"{podman.command.parent}:{os.environ['PATH']}")
        options = []
    return lambda verb, *args, **kw: cli(verb, *options, *args, **kw)


def attached(lab):
    return {w["cgroup"] for w in lab.status()["workloads"]}


def below(cgroup):
    return "/" + str(cgroup.relative_to(cgroup2_mount()))


def rows(ask, *args):
    return {row["name"]: row for row in json.loads(ask("workloads", "-o", "json", *args))["workloads"]}


def is_fast(lab, a, b, ip):
    ear = b.listen(ip)
    b.call("epoll_echo_start", ear.name)
    with lab.expect_fast(80):
        a.call("epoll_client", ip, ear.port, 4, 20)


def path_of(row):
    return row["place"]["cgroups"][0]["path"]


# ---- Podman

def test_what_is_told_of_containers(lab, podman, ask):
    web = podman.container("web", labels={"app": "web", "tier": ""})
    host = podman.container("host", options=HOST_NETWORK)
    shares = podman.container("shares", options=["--network", f"container:{host.id}"])
    none = podman.container("none", options=["--network", "none"])
    ended = podman.container("ended")
    ended.stop()
    podman.podman("create", "--name", "never", "--pull=never", "sst.test/busybox:1")
    podman.podman("pause", "none")
    listed = {name: row for name, row in rows(ask).items() if name.startswith("podman/")}
    assert set(listed) == {"podman/web", "podman/host", "podman/shares", "podman/none"}
    row = listed["podman/web"]
    assert (row["runtime"], row["container"], row["id"], row["pid"]) == ("podman", "web", web.id, web.pid)
    assert row["labels"] == {"app": "web", "tier": ""} and row["state"] == "not_attached"
    assert path_of(row) == str(web.cgroup) and web.id in web.cgroup.name
    assert row["place"]["cgroups"][0]["id"] == web.cgroup.stat().st_ino
    assert {name for name, row in listed.items() if row["host_network"]} == {"podman/host", "podman/shares"}
    assert listed["podman/none"]["pid"] == none.pid and shares.pid
    table = {line.split()[0]: line.split()[1] for line in ask("workloads").splitlines()[1:] if line.strip()}
    assert (table["podman/web"], table["podman/host"]) == ("own", "host")


def test_names_and_patterns(lab, podman, ask):
    made = {name: podman.container(name) for name in ("web-1", "web-2", "db")}
    for names, wanted in (
        (["podman/db"], ["db"]),
        (["db"], ["db"]),
        (["podman/web-*"], ["web-1", "web-2"]),
        (["web-[12]", "db"], ["web-1", "web-2", "db"]),
    ):
        out = ask("attach", *names)
        assert all(f"podman/{name}: attached" in out for name in wanted), out
        assert attached(lab) == {below(made[name].cgroup) for name in wanted}, names
        ask("detach", *names)
    for names, expected in (
        (["db", "web"], "container web was not found; did you mean podman/web-1, podman/web-2?"),
        (["db", "docker/web-1"], "docker/web-1 was not found; did you mean podman/web-1?"),
        (["podman/no-*"], "podman/no-* was not found"),
    ):
        error = ask("attach", *names, ok=False)
        assert expected in error and "Podman " in error, error
        assert attached(lab) == set(), names


def test_traffic_between_containers_attached_by_name(lab, podman, ask):
    a, b, other = podman.peer("a"), podman.peer("b"), podman.peer("other")
    ask("attach", "--eligibility", "all", "podman/a", "b")
    is_fast(lab, a, b, b.ip)
    ear = b.listen(b.ip)
    b.call("epoll_echo_start", ear.name)
    with lab.expect_tcp():
        other.call("epoll_client", b.ip, ear.port, 2, 20)
    assert "detached 2 workload(s)" in ask("detach", "a", "b")


def test_a_container_that_is_started_again(lab, podman, ask):
    web, other = podman.peer("web"), podman.peer("other")
    ask("attach", "--eligibility", "all", "web", "other")
    is_fast(lab, other, web, web.ip)
    first, inode = web.pid, web.cgroup.stat().st_ino
    web.process.connection.shutdown(socket.SHUT_RDWR)
    web.container.stop()
    assert "podman/web" not in rows(ask)
    assert "podman/web was not found" in ask("attach", "podman/web", ok=False)
    web.restart()
    row = rows(ask)["podman/web"]
    assert row["pid"] == web.pid != first and row["state"] == "not_attached"
    assert row["place"]["cgroups"][0]["id"] == web.cgroup.stat().st_ino != inode
    ask("attach", "--eligibility", "all", "web")
    is_fast(lab, other, web, web.ip)


def test_pods(lab, podman, ask):
    """Its containers share a network, and are each a workload; what holds the network is none."""
    podman.new_pod("pair")
    one, two = podman.peer("one", of_pod="pair"), podman.peer("two", of_pod="pair")
    names = {name for name in rows(ask) if name.startswith("podman/")}
    assert names == {"podman/one", "podman/two"}
    ask("attach", "--eligibility", "all", "one", "two")
    assert attached(lab) == {below(one.cgroup), below(two.cgroup)} and one.cgroup.parent == two.cgroup.parent
    is_fast(lab, one, two, "127.0.0.1")


def test_a_container_whose_process_moves_down(lab, podman, ask):
    """As systemd in a container does, and Docker: the container's cgroup is the one that the runtime made."""
    web, other = podman.peer("web"), podman.peer("other")
    inner = web.cgroup / "init.scope"
    inner.mkdir()
    (inner / "cgroup.procs").write_text(str(web.pid))
    assert path_of(rows(ask)["podman/web"]) == str(web.cgroup)
    ask("attach", "--eligibility", "all", "web", "other")
    assert below(web.cgroup) in attached(lab)
    is_fast(lab, other, web, web.ip)


def test_containers_without_a_cgroup_of_their_own(lab, podman, ask):
    good = podman.container("good")
    shared = podman.container("shared", options=NO_CGROUP)
    root = podman.container("root", options=NO_CGROUP, cgroup=cgroup2_mount())
    assert shared.cgroup == podman.cgroup / "system" and root.cgroup == cgroup2_mount()
    listed = rows(ask)
    assert listed["podman/good"]["state"] == "not_attached"
    for name, expected in (("shared", f"it has no cgroup of its own: its process {shared.pid} is in {shared.cgroup}"),
                           ("root", "in the root of the cgroup v2 hierarchy")):
        why = listed[f"podman/{name}"]["state"]["not_possible"]
        assert expected in why and "--cgroups=disabled" in why
        error = ask("attach", "good", name, ok=False)
        assert f"podman/{name} cannot be attached" in error and expected in error
        assert attached(lab) == set()
    ask("attach", "*")  # and the others are left out
    assert attached(lab) == {below(good.cgroup)}


def test_podman_is_asked_while_it_stops_a_container(lab, podman, ask):
    web = podman.container("web", command=["/bin/sh", "-c", "trap '' TERM; while :; do sleep 1; done"])
    podman.container("other")
    stopping = threading.Thread(target=lambda: web.stop(4))
    stopping.start()
    time.sleep(0.5)
    began = time.monotonic()
    listed = rows(ask)
    took = time.monotonic() - began
    stopping.join()
    assert "podman/other" in listed and took < 10, (took, listed)


def test_a_service_that_is_not_there(lab, podman, cli, tmp_path):
    nowhere = tmp_path / "none.sock"
    for engine, option in (("podman", "--podman-endpoint"), ("docker", "--docker-endpoint")):
        nowhere.unlink(missing_ok=True)
        error = cli("attach", option, f"unix://{nowhere}", f"{engine}/web", ok=False)
        assert f"{engine}/web was not found" in error and f"nothing is at {nowhere}" in error and option in error
        with socket.socket(socket.AF_UNIX) as refusing:
            refusing.bind(str(nowhere))
        assert f"nobody listens at {nowhere}" in cli("attach", option, str(nowhere), "web", ok=False)
        assert "is not understood" in cli("attach", option, "tcp://127.0.0.1:1", "web", ok=False)
        with socket.socket(socket.AF_UNIX) as odd:
            nowhere.unlink()
            odd.bind(str(nowhere))
            odd.listen()

            def answer():
                connection, _ = odd.accept()
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                connection.close()
            thread = threading.Thread(target=answer)
            thread.start()
            assert f"{nowhere}" in cli("attach", option, str(nowhere), "web", ok=False)
            thread.join()
    assert cli("workloads", "--podman-endpoint", str(tmp_path / "gone")).startswith("no pods or containers")


# ---- Docker's API

@pytest.fixture
def docker(podman, cli):
    return lambda verb, *args, **kw: cli(verb, "--docker-endpoint", podman.endpoint, *args, **kw)


def test_docker_api(lab, podman, docker, cli):
    web = podman.container("web", labels={"app": "web"})
    host = podman.container("host", options=HOST_NETWORK)
    podman.podman("pause", "host")
    podman.container("ended").stop()
    listed = {name: row for name, row in rows(docker).items() if name.startswith("docker/")}
    assert set(listed) == {"docker/web", "docker/host"}
    row = listed["docker/web"]
    assert (row["runtime"], row["id"], row["pid"], row["labels"]) == ("docker", web.id, web.pid, {"app": "web"})
    assert path_of(row) == str(web.cgroup) and not row["host_network"]
    assert listed["docker/host"]["host_network"] and listed["docker/host"]["pid"] == host.pid
    for name in ("docker/web", "web", "docker/w*"):
        docker("attach", name)
        assert attached(lab) == {below(web.cgroup)}
        docker("detach", name)
    # both APIs tell of it: it is one container all the same
    cli("attach", "--docker-endpoint", podman.endpoint, "--podman-endpoint", podman.endpoint, "web")
    assert attached(lab) == {below(web.cgroup)}


def test_docker_traffic_and_restart(lab, podman, docker):
    a, b = podman.peer("a"), podman.peer("b")
    docker("attach", "--eligibility", "all", "docker/a", "docker/b")
    is_fast(lab, a, b, b.ip)
    b.restart()
    assert rows(docker)["docker/b"]["pid"] == b.pid and rows(docker)["docker/b"]["state"] == "not_attached"
    docker("attach", "--eligibility", "all", "b")
    is_fast(lab, a, b, b.ip)


def test_docker_without_cgroups(lab, podman, docker):
    podman.container("root", options=NO_CGROUP, cgroup=cgroup2_mount())
    assert "in the root of the cgroup v2" in rows(docker)["docker/root"]["state"]["not_possible"]
    assert "docker/root cannot be attached" in docker("attach", "root", ok=False)
    assert attached(lab) == set()


# ---- units

@pytest.fixture
def slice_(lab):
    """A slice of the test's own. No systemd made it, and none is needed: units are names of cgroups."""
    path = cgroup2_mount() / f"sstu{os.getpid()}.slice"
    path.mkdir()
    yield path
    while lab.peers:
        lab.peers.pop().close()
    kill_cgroup(path)
    assert not remove_cgroup(path)


def unit(slice_, name):
    path = slice_ / name
    path.mkdir(parents=True)
    return path


def test_units(lab, pods, cli, slice_):
    web, db = unit(slice_, "web.service"), unit(slice_, "a\\x2db@1.service")
    unit(slice_, "web.service/worker")
    a, b = pods[0].peer(cgroup=web / "worker"), pods[1].peer(cgroup=db)
    out = cli("attach", "--eligibility", "all", "unit/web.service", r"unit/a\x2db@1.service")
    assert "unit/web.service: attached" in out
    assert attached(lab) == {below(web), below(db)}
    is_fast(lab, a, b, b.pod.ip)
    listed = rows(cli, "--units")
    assert listed["unit/web.service"]["state"] == {"attached": "all"}
    assert listed[f"unit/{slice_.name}"]["state"] == "not_attached"
    assert f"unit/{slice_.name}" not in rows(cli) and "unit/web.service" in rows(cli)
    assert "unit/worker" not in listed
    cli("detach", r"unit/a\x2db*")
    assert attached(lab) == {below(web)}
    assert "did you mean unit/web.service?" in cli("attach", "unit/wbe.service", ok=False)


def test_units_of_one_name(lab, pods, cli, slice_):
    """systemd's and those of users' managers. A container's systemd has units too: they are not the machine's."""
    own = unit(slice_, "web.service")
    users = unit(slice_, "user-1000.slice/user@1000.service/app.slice/web.service")
    unit(slice_, f"docker/{'0123' * 16}/system.slice/web.service")
    unit(slice_, f"docker-{'0123' * 16}.scope/system.slice/web.service")
    error = cli("attach", "unit/web.service", ok=False)
    assert "unit/web.service is ambiguous: 2 are called that" in error
    assert f"--cgroup {own}\n" in error and f"--cgroup {users}\n" in error
    assert attached(lab) == set()
    cli("attach", "--cgroup", users)
    cli("attach", "unit/[w]eb.service")
    assert attached(lab) == {below(own), below(users)}


# ---- the agent

@pytest.fixture
def agent(lab, podman):
    made = []

    def make(text, ready=True, **sockets):
        made.append(Agent(lab, podman, text, start=False, sockets=sockets))
        return made[-1].start(ready)
    yield make
    for one in made:
        if one.process and one.process.poll() is None:
            one.stop()


@pytest.mark.parametrize("api, beside_cri", [("podman", False), ("docker", True)])
def test_agent_follows_a_container_that_is_started_again(lab, podman, agent, api, beside_cri):
    """Its id is what it was, its cgroup is another. Beside a CRI runtime (one that does not answer is enough) the agent
    keeps what it knows from one look to the next."""
    text = "selectors:\n- {containers: ['web*'], eligibility: all}\n- {labels: {app: client}, eligibility: all}\n"
    cri = {"endpoint": podman.dir / "none.sock"} if beside_cri else {}
    one = agent(text, ready=not beside_cri, **cri, **{api: podman.socket})
    podman.container("apart")
    wait_until("the agent answers", lambda: one.get("/healthz")[0])
    web, client = podman.peer("web-1"), podman.peer("client", labels={"app": "client"})
    one.wait(f"{api}/web-1"), one.wait(f"{api}/client")
    is_fast(lab, client, web, web.ip)
    assert not one.rows()[f"{api}/apart"]["attached"]
    for between_two_looks in (False, True):
        inode = web.cgroup.stat().st_ino
        one.process.send_signal(signal.SIGSTOP if between_two_looks else signal.SIGCONT)
        web.restart()
        one.process.send_signal(signal.SIGCONT)
        assert web.cgroup.stat().st_ino != inode
        wait_until("the new cgroup is attached", lambda: web.cgroup.stat().st_ino in
                   {w["cgroup_id"] for w in lab.status()["workloads"]}, 10)
        one.wait(f"{api}/web-1")
        is_fast(lab, client, web, web.ip)
    web.process.connection.shutdown(socket.SHUT_RDWR)
    web.container.stop()
    wait_until("it is forgotten", lambda: f"{api}/web-1" not in one.rows(), 10)
    assert one.rows()[f"{api}/client"]["attached"], one.log()


def test_agent_lives_through_the_end_of_the_service(lab, podman, agent):
    one = agent("selectors: [{containers: [web]}]", podman=podman.socket)
    web = podman.container("web")
    one.wait("podman/web")
    podman.kill()
    wait_until("it says so", lambda: one.get("/readyz")[0] == 503 or podman.container("poke").remove(), 15)
    assert "nobody listens" in one.get("/readyz")[1], one.get("/readyz")
    assert attached(lab) == {below(web.cgroup)}
    podman.start()
    one.wait_ready()
    assert one.rows()["podman/web"]["attached"]


def test_agent_and_units(lab, pods, podman, agent, slice_):
    one = agent("selectors: [{units: ['web.service', 'a\\x2db.service'], eligibility: all}]", podman=podman.socket)
    unit(slice_, "other.service")
    web, db = unit(slice_, "web.service"), unit(slice_, "a\\x2db.service")
    a, b = pods[0].peer(cgroup=web), pods[1].peer(cgroup=db)
    one.wait("unit/web.service"), one.wait(r"unit/a\x2db.service")
    is_fast(lab, a, b, b.pod.ip)
    assert attached(lab) == {below(web), below(db)}
    assert "unit/other.service" not in one.rows()

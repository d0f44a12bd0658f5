"""The node of these tests is what it claims to be, and leaves nothing: containerd, CNI, pods, their cgroups."""
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cri import CriError
from lab import KERNEL, ROOT, few, sh, wait_until
from runtime import BUSYBOX, IPV6, Runtime, kill_cgroup, remove_cgroup

ID = "[0-9a-f]{64}"
LAYOUTS = pytest.mark.parametrize("layout", ["cgroupfs", "systemd"])


def cgroup_line(pid):
    return next(line for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if line.startswith("0::"))[3:]


def netns(pid):
    return os.stat(f"/proc/{pid}/ns/net").st_ino


@LAYOUTS
def test_two_pods_on_the_bridge(runtime, pod, layout):
    a, b = pod("a", layout=layout), pod("b", layout=layout)
    one, two = a.container(), b.container()
    assert len({a.ip, b.ip}) == 2 and all(ip.startswith("10.78.") for ip in (a.ip, b.ip))
    assert netns(one.pid) == a.netns and netns(two.pid) == b.netns
    assert len({a.netns, b.netns, runtime.netns, netns("self")}) == 4

    one.exec("ping", "-c", "1", "-W", "5", b.ip)
    two.exec("sh", "-c", "echo hello | nc -l -p 7000 >/dev/null 2>&1 &")
    wait_until("busybox listens", lambda: ":7000 " in two.exec("netstat", "-ltn"))
    assert one.exec("nc", b.ip, "7000") == "hello\n"


@LAYOUTS
@pytest.mark.parametrize("qos", ["besteffort", "burstable", "guaranteed"])
def test_cgroups_as_the_kubelet_lays_them_out(runtime, pod, layout, qos):
    made = pod("a", layout=layout, qos=qos)
    main = made.container()
    if layout == "cgroupfs":
        middle = "" if qos == "guaranteed" else f"{qos}/"
        where, scope = f"/{runtime.tag}/kubepods/{middle}pod{made.uid}", ID
    else:
        uid = made.uid.replace("-", "_")
        middle = "" if qos == "guaranteed" else f"kubepods-{qos}.slice/"
        last = f"kubepods-pod{uid}" if qos == "guaranteed" else f"kubepods-{qos}-pod{uid}"
        where, scope = f"/{runtime.tag}/kubepods.slice/{middle}{last}.slice", f"cri-containerd-{ID}.scope"
    assert made.cgroup == runtime.mount / where[1:]
    for pid in made.pid, main.pid:
        assert re.fullmatch(f"{re.escape(where)}/{scope}", cgroup_line(pid))
    assert main.id in cgroup_line(main.pid) and made.sandbox in cgroup_line(made.pid)
    # What the runtime itself says, which is all that a real node with systemd says too.
    said = main.info()["runtimeSpec"]["linux"]["cgroupsPath"]
    assert said == (f"{where}/{main.id}" if layout == "cgroupfs" else f"{last}.slice:cri-containerd:{main.id}")


def test_cri_tells_pods_by_name(runtime, pod):
    made = pod("web-0", namespace="shop", labels={"app": "web"}, annotations={"example.org/a": "b"})
    main = made.container("server")
    (item,) = [p for p in runtime.cri.list_pods() if p.id == made.sandbox]
    assert (item.metadata.name, item.metadata.namespace, item.metadata.uid) == ("web-0", "shop", made.uid)
    assert item.labels["app"] == "web" and item.labels["io.kubernetes.pod.uid"] == made.uid
    assert item.annotations["example.org/a"] == "b"
    (item,) = [c for c in runtime.cri.list_containers() if c.id == main.id]
    assert item.pod_sandbox_id == made.sandbox and item.labels["io.kubernetes.container.name"] == "server"
    assert item.image.image and main.status().image.image == BUSYBOX
    assert main.exec("sh", "-c", "exit 3", check=False)[0] == 3

    main.remove()
    made.remove()
    with pytest.raises(CriError) as caught:
        runtime.cri.pod_status(made.sandbox)
    assert caught.value.code == "NOT_FOUND"
    assert not made.cgroup.exists()


@pytest.mark.parametrize("six", [False, pytest.param(True, marks=pytest.mark.skipif(not IPV6, reason="no IPv6"))],
                         ids=["ipv4", "ipv6"])
def test_peers_in_two_pods(pod, six):
    a, b = pod("a"), pod("b")
    mine, theirs = (a.ip6, b.ip6) if six else (a.ip, b.ip)
    client, server = a.peer(), b.peer()
    assert client.call("ping") == 1  # the main process of its container
    assert netns(client.pid) == a.netns and cgroup_line(client.pid).endswith(f"/{client.container.id}")
    ear = server.listen(theirs)
    c = client.connect(theirs, ear.port)
    s = ear.accept()
    assert c.local[0] == mine and s.remote == c.local  # no NAT between pods
    c.send(b"ping")
    assert s.read(4) == b"ping"
    s.send(b"pong")
    assert c.read(4) == b"pong"
    server.call("epoll_echo_start", ear.name)
    client.call("epoll_client", theirs, ear.port, few(40), 20)
    server.close()
    assert c.read_all() == b""
    wait_until("CRI has seen the end", lambda: not server.container.running())


@pytest.mark.product
@LAYOUTS
def test_attached_pods_are_fast(lab, pod, layout):
    """The cgroup of a pod is what has to be attached, whatever the runtime makes below it."""
    a, b = pod("a", layout=layout), pod("b", layout=layout)
    lab.attach(a, b)
    client, server = a.peer(), b.peer()
    ear = server.listen(b.ip)
    server.call("epoll_echo_start", ear.name)
    with lab.expect_fast(50):
        client.call("epoll_client", b.ip, ear.port, 4, 20)


@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGKILL], ids=["term", "kill"])
def test_pods_outlive_containerd(runtime, pod, signo):
    a, b = pod("a"), pod("b")
    main = a.container()
    client, server = a.peer(), b.peer()
    ear = server.listen(b.ip)
    server.call("epoll_echo_start", ear.name)
    client.call("traffic_start", b.ip, ear.port, 2, 2, nonblocking=True)
    before = runtime.process.pid
    runtime.stop(signo)
    with pytest.raises(CriError):
        runtime.cri.version(timeout=2)
    client.call("ping")
    runtime.start()
    assert runtime.process.pid != before

    assert a.running() and b.running() and main.running()
    assert (main.info()["pid"], client.container.info()["pid"]) == (main.pid, client.pid)
    assert main.exec("echo", "alive") == "alive\n"
    c = pod("c")
    assert c.ip not in (a.ip, b.ip)
    c.container().exec("ping", "-c", "1", "-W", "5", a.ip)
    stats = client.call("traffic_stop")
    assert not stats["errors"] and stats["rounds"] > 100, stats


def test_host_network_is_the_nodes(runtime, pod):
    made, other = pod("a", host_network=True), pod("b")
    main = made.container()
    assert made.ip is None and netns(main.pid) == runtime.netns != netns("self")
    main.exec("ping", "-c", "1", "-W", "5", other.ip)


def test_services_by_iptables_of_the_node(runtime, pod):
    """A service address and a host port, both DNAT on the node; neither is seen by the host."""
    a, b = pod("a"), pod("b", port_mappings=[(7000, 30700)])
    client, server = a.peer(), b.peer()
    server.call("epoll_echo_start", server.listen(b.ip, 7000).name)
    rule = ("PREROUTING", "-t", "nat", "-d", "10.96.0.10", "-p", "tcp", "--dport", "80",
            "-j", "DNAT", "--to", f"{b.ip}:7000")
    runtime.iptables("-A", *rule)
    try:
        client.call("epoll_client", "10.96.0.10", 80)
        client.call("epoll_client", "10.78.0.1", 30700)
        assert "10.96.0.10" not in sh("iptables-save").stdout
    finally:
        runtime.iptables("-D", *rule)


def test_many_pods(runtime, pod):
    made = runtime.many(few(20))
    try:
        assert len({p.ip for p in made}) == len({p.netns for p in made}) == len(made)
    finally:
        runtime.remove(made)


# ---- nothing is left

PLACES = "/run/containerd", "/var/lib/cni", "/var/lib/containerd", "/etc/cni", "/opt/containerd"


def processes():
    return [int(d) for d in os.listdir("/proc") if d.isdigit()]


def left_of(tag, place, namespaces, mount):
    """What of a node is still there, wherever it could be: a list of texts."""
    found = [f"mount: {line}" for line in Path("/proc/mounts").read_text().splitlines() if tag in line or place in line]
    found += [f"cgroup: {path}" for path in mount.glob(f"**/{tag}*")]
    found += [f"directory: {place}"] * os.path.exists(place)
    for pid in processes():
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                continue  # as good as gone, waits for its parent
            if tag in Path(f"/proc/{pid}/cgroup").read_text() or place in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(f"process: {pid} {Path(f'/proc/{pid}/cmdline').read_text()}")
            if netns(pid) in namespaces:
                found.append(f"namespace of {pid}")
            if place in Path(f"/proc/{pid}/mountinfo").read_text():
                found.append(f"mount in the namespace of {pid}")
        except OSError:  # ended meanwhile
            continue
    return found


def host_state():
    """What of the host a node must not change. Other tests may run here: their names carry other pids."""
    return {
        "links": sorted(re.findall(r"\b(?:veth|cni)\w+", sh("ip", "-o", "link").stdout)),
        "iptables": [line for line in sh("iptables-save").stdout.splitlines() if line[0] != "#"],
        "controllers": [p.read_text() for p in [Path(m) / "cgroup.subtree_control" for m in cgroup2_mounts()]],
        "places": [p for p in PLACES if os.path.exists(p)],
    }


def cgroup2_mounts():
    return [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if line.split()[2] == "cgroup2"]


@pytest.mark.parametrize("way", ["removed", "running", "containerd dead", "half stopped"])
def test_nothing_is_left(way):
    before = host_state()
    runtime = Runtime()
    try:
        a, b = runtime.pod("a"), runtime.pod("b", layout="systemd")
        main, peer = a.container(), b.peer()
        b.start("sleep", "600")
        runtime.iptables("-A", "FORWARD", "-j", "ACCEPT")
        where = runtime.tag, str(runtime.dir), {runtime.netns, a.netns, b.netns}, runtime.mount
        assert len(left_of(*where)) > 5  # it would be seen
        assert host_state() == before  # not even while it runs
        if way == "removed":
            runtime.extra.pop().kill()
            runtime.remove([a, b])
        elif way == "containerd dead":
            runtime.kill()
        elif way == "half stopped":
            main.stop()
            os.kill(peer.pid, signal.SIGKILL)
            os.kill(a.pid, signal.SIGKILL)
    finally:
        problems = runtime.close()
    assert not problems
    assert not left_of(*where)
    assert host_state() == before


def test_a_failed_start_leaves_nothing(monkeypatch):
    before, made = host_state(), []

    def fail(self):
        made.append((self.tag, str(self.dir), {self.netns}, self.mount))
        raise RuntimeError("as if")
    monkeypatch.setattr(Runtime, "_import_images", fail)
    with pytest.raises(RuntimeError, match="as if"):
        Runtime()
    assert not left_of(*made[0])
    assert host_state() == before


def test_the_node_ends_with_the_tests():
    """pytest killed: no process, mount or namespace stays; empty cgroups and a directory do, and are removed here."""
    if KERNEL < (5, 14):
        pytest.skip("no cgroup.kill")
    script = """
from runtime import Runtime
with Runtime() as runtime:
    pod = runtime.pod("a")
    pod.peer()
    print(runtime.tag, runtime.dir, runtime.netns, pod.netns, runtime.mount, flush=True)
    input()
"""
    tests = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                             env={**os.environ, "PYTHONPATH": f"{ROOT}/tests/kubernetes:{ROOT}/tests/namespaced"})
    tag, place, node, pod, mount = tests.stdout.readline().split()
    where = tag, place, {int(node), int(pod)}, Path(mount)
    assert len(left_of(*where)) > 5
    tests.kill()
    tests.communicate()

    def ended():
        return all(text.startswith(("cgroup: ", "directory: ")) for text in left_of(*where))
    try:
        wait_until("every process has ended", ended, 10)
    finally:
        kill_cgroup(Path(mount) / tag)
        assert not remove_cgroup(Path(mount) / tag)
        shutil.rmtree(place, ignore_errors=True)
    assert not left_of(*where)

"""The image in a real container (runc) with exactly what the DaemonSet gives it: its capabilities, containerd's own default
seccomp profile, a read-only root, the node's process ids, mounts as the kubelet and containerd make them, a network and a
cgroup namespace of its own. And what each capability is for: what fails without it.
"""
import json
import os
import subprocess
import tarfile
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import DEPLOY, ROOT, container_of, only, render, run
from lab import KERNEL, PYTHON, cgroup2_mount, wait_until, warm

pytestmark = pytest.mark.product
GRACE = 1.1  # a second after it was adopted a half may be fast
# what containerd gives to a container by itself
DEFAULT = """CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL
AUDIT_WRITE""".split()


@pytest.fixture(scope="module")
def rootfs(static, tmp_path_factory):
    """The image's only layer."""
    run(DEPLOY / "build-image.sh", cwd=ROOT)
    there = tmp_path_factory.mktemp("rootfs")
    with tarfile.open(ROOT / "target" / "image" / "shared-socket.tar") as archive:
        blobs = {m.name: archive.extractfile(m).read() for m in archive if m.isfile()}
    read = lambda digest: blobs["blobs/sha256/" + digest.partition(":")[2]]  # noqa: E731
    manifest = json.loads(read(json.loads(blobs["index.json"])["manifests"][0]["digest"]))
    (there.parent / "layer").write_bytes(read(manifest["layers"][0]["digest"]))
    with tarfile.open(there.parent / "layer") as layer:
        layer.extractall(there)
    return there, json.loads(read(manifest["config"]["digest"]))["config"]


@pytest.fixture(scope="module")
def containerd():
    """A containerd of our own that runs nothing: it is asked for the spec that it would hand to runc."""
    with tempfile.TemporaryDirectory(prefix="ssd") as folder:
        off = ["cri"] + [f"snapshotter.v1.{name}" for name in ("aufs", "btrfs", "devmapper", "zfs", "overlayfs")]
        names = ["io.containerd.grpc.v1.cri", *(f"io.containerd.{name}" for name in off[1:])]
        config = f"version = 2\nroot = '{folder}/root'\nstate = '{folder}/state'\ndisabled_plugins = {json.dumps(names)}\n" \
                 f"[grpc]\naddress = '{folder}/s'\n[ttrpc]\naddress = '{folder}/t'\n"
        Path(folder, "config.toml").write_text(config)
        with open(f"{folder}/log", "w") as log:
            process = subprocess.Popen(["containerd", "--config", f"{folder}/config.toml"], stdout=log, stderr=log)
        try:
            wait_until("containerd answers", lambda: run("ctr", "-a", f"{folder}/s", "version", check=False).returncode == 0, 20)
            yield lambda *args: run("ctr", "-a", f"{folder}/s", "-n", "test", *args).stdout
        finally:
            process.terminate()
            process.wait()


class Node:
    """A node's agent: one container after the other, with one set of pins."""

    def __init__(self, lab, rootfs, containerd, tmp_path, capabilities):
        self.lab, self.folder, self.count = lab, tmp_path, 0
        self.rootfs, self.image = rootfs
        spec = only(render(), "DaemonSet")["spec"]["template"]["spec"]
        self.container = container_of({"spec": {"template": {"spec": spec}}})
        security = self.container["securityContext"]
        assert security["seccompProfile"] == {"type": "RuntimeDefault"} and security["capabilities"]["drop"] == ["ALL"]
        self.capabilities = security["capabilities"]["add"] if capabilities is None else capabilities
        flags = [f"--cap-drop=CAP_{c}" for c in DEFAULT] + [f"--cap-add=CAP_{c}" for c in self.capabilities]
        if security["readOnlyRootFilesystem"]:
            flags.append("--read-only")
        if security["allowPrivilegeEscalation"]:
            flags.append("--allow-new-privs")
        containerd("containers", "create", "--rootfs", "--seccomp", *flags, self.rootfs, "agent", "agent")
        self.spec = json.loads(containerd("containers", "info", "agent"))["Spec"]
        containerd("containers", "rm", "agent")
        # directories of the node, as the kubelet makes them (DirectoryOrCreate)
        host = {"bpf": Path(lab.pin_dir), "state": tmp_path / "state", "run": tmp_path / "run"}
        for path in host.values():
            path.mkdir(mode=0o755)
        volumes = {v["name"]: v.get("hostPath", {}).get("path") for v in spec["volumes"]} | {n: str(p) for n, p in host.items()}
        volumes["config"] = str(tmp_path / "config")
        self.mounts = [(volumes[m["name"]], m) for m in self.container["volumeMounts"] if m["name"] != "runtime"]
        self.configure("apiVersion: shared-socket.io/v1\n")
        lab.attached = True  # its end detaches what is left

    def configure(self, text):
        """Writes the ConfigMap as the kubelet does: a directory that is all new, and a link that is exchanged."""
        config = self.folder / "config"
        new = config / f"..{time.monotonic_ns()}"
        new.mkdir(parents=True)
        (new / "agent.yaml").write_text(text)
        (config / "..data_tmp").symlink_to(new.name)
        (config / "..data_tmp").rename(config / "..data")
        if not (config / "agent.yaml").is_symlink():
            (config / "agent.yaml").symlink_to("..data/agent.yaml")

    def command(self, *args):
        """The command line of a container, and its name."""
        self.count += 1
        spec = json.loads(json.dumps(self.spec))
        spec["root"] = {"path": str(self.rootfs), "readonly": spec["root"].get("readonly", False)}
        process = spec["process"]
        process["args"] = [*self.image["Entrypoint"], *args]
        process["env"] = self.image["Env"] + [f"{e['name']}={e['value']}" for e in self.container["env"] if "value" in e]
        # hostPID; a cgroup namespace is what containerd gives every container where cgroup v2 is all there is
        spec["linux"]["namespaces"] = [n for n in spec["linux"]["namespaces"] if n["type"] not in ("pid", "cgroup")]
        spec["linux"]["namespaces"].append({"type": "cgroup"})
        spec["linux"].pop("cgroupsPath", None)
        spec["linux"]["resources"] = {}
        for source, mount in self.mounts:
            kind = {"HostToContainer": "rslave"}.get(mount.get("mountPropagation"), "rprivate")
            options = ["rbind", kind, "ro" if mount.get("readOnly") else "rw"]
            spec["mounts"].append({"type": "bind", "source": source, "destination": mount["mountPath"], "options": options})
        bundle = self.folder / "bundle"
        bundle.mkdir(exist_ok=True)
        (bundle / "config.json").write_text(json.dumps(spec))
        name = f"{self.lab.tag}-{self.count}"
        return ["runc", f"--root={self.folder}/runc", "run", f"--bundle={bundle}", name], name

    def run(self, *args):
        return run(*self.command(*args)[0], check=False, timeout=60, stdin=subprocess.DEVNULL)

    def runc(self, *args, check=True):
        return run("runc", f"--root={self.folder}/runc", *args, check=check).stdout

    def attach(self, *pods):
        """Attaches them by their cgroups, as the agent would; what it said."""
        names = [f"/{p.cgroup.relative_to(cgroup2_mount())}" for p in pods]
        return self.run("attach", "--eligibility", "all", "--min-messages", "0", *(w for n in names for w in ("--cgroup", n)))


@pytest.fixture
def node(lab, rootfs, containerd, tmp_path):
    return lambda capabilities=None: Node(lab, rootfs, containerd, tmp_path, capabilities)


def live(pods):
    """A connection between two pods that is there before anything is attached. Nothing of either end is looked at by the
    agent in its own network namespace, and names of namespaces (/run/netns) are not in the container."""
    a, b = pods
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip)
    c = client.connect(b.ip, ear.port)
    s = ear.accept()
    warm(c, s, 3)
    return c, s, lambda: (client.connect(b.ip, ear.port), ear.accept())


def becomes_fast(lab, c, s):
    time.sleep(GRACE)
    warm(c, s, 2)
    before = lab.totals()["fast_messages"]
    warm(c, s, 4)
    return lab.totals()["fast_messages"] - before == 8


def test_with_what_the_daemonset_gives(lab, pods, node):
    c, s, connect = live(pods)
    agent = node()
    done = agent.attach(*pods)
    assert done.returncode == 0, done.stderr
    assert becomes_fast(lab, *connect())
    if KERNEL >= (6, 12):
        assert lab.totals()["adopted"] == 1 and becomes_fast(lab, c, s)
    for command in ("status", "connections", "kinds", "upgrade"):
        done = agent.run(command)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    # what was found of the kernel, and what was learned up to another attach, is on the node
    assert agent.attach(*pods).returncode == 0
    assert list((agent.folder / "run").glob("check-*.json")) and (agent.folder / "state" / "hazards.json").exists()
    assert becomes_fast(lab, *connect())


@contextmanager
def agent_of(node):
    """The agent itself, with the arguments of the DaemonSet: (its process, get(path) of its HTTP port, stop() with SIGTERM)."""
    argv, name = node.command(*node.container["args"])
    port = node.container["ports"][0]["containerPort"]
    ask = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:{port}' + '%s', timeout=5).read().decode())"
    with open(node.folder / "agent.log", "w+") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

        def get(path):
            """None for anything but 200; as the kubelet asks, from outside of the container but in its network."""
            state = node.runc("state", name, check=False)
            pid = json.loads(state)["pid"] if state else 0
            done = run("nsenter", f"--net=/proc/{pid}/ns/net", PYTHON, "-c", ask % path, check=False) if pid else None
            return done.stdout.strip() if done and done.returncode == 0 else None

        def stop():
            node.runc("kill", name, "TERM")
            return process.wait(30)
        try:
            yield process, get, stop
        except BaseException:
            print((node.folder / "agent.log").read_text())  # with the failure
            raise
        finally:
            if process.poll() is None:
                node.runc("kill", name, "KILL", check=False)
                process.wait(30)
            node.runc("delete", "--force", name, check=False)


def test_the_agent(lab, pods, node):
    """Ready, what it is told to attach attached, a changed ConfigMap taken up, and all of it left as it is by SIGTERM."""
    base = cgroup2_mount() / f"{lab.tag}.slice"  # units are looked for from slice to slice
    cgroups = {name: base / f"{lab.tag}-{name}.service" for name in "ab"}
    for path in (base, *cgroups.values()):
        path.mkdir()
        lab.cgroups.append(path)
    server, client = pods[1].peer(cgroups["b"]), pods[0].peer(cgroups["a"])
    ear = server.listen(pods[1].ip)
    c = client.connect(pods[1].ip, ear.port)
    s = ear.accept()
    warm(c, s, 3)
    there = node()
    file = """apiVersion: shared-socket.io/v1
selectors: [{units: ["%s"], eligibility: all}]
budgets: {minMessages: 0}
endpoints: {http: "0.0.0.0:%d"}
"""
    port = there.container["ports"][0]["containerPort"]
    there.configure(file % (f"{lab.tag}-*.service", port))
    attached = lambda: len([w for w in lab.status()["workloads"] if not w["draining"]])  # noqa: E731
    with agent_of(there) as (process, get, stop):
        wait_until("/healthz", lambda: get("/healthz"), 30)
        wait_until("/readyz", lambda: get("/readyz"), 30)
        wait_until("both are attached", lambda: attached() == 2, 20)
        if KERNEL >= (6, 12):
            wait_until("the live connection is adopted", lambda: lab.totals()["adopted"] == 1, 20)
            assert becomes_fast(lab, c, s)
        there.configure(file % (f"{lab.tag}-a.service", port))
        wait_until("only one is", lambda: attached() == 1, 20)
        there.configure(file % (f"{lab.tag}-*.service", port))
        wait_until("both are again", lambda: attached() == 2, 20)
        assert process.poll() is None and stop() == 0
    assert attached() == 2  # nothing depends on the agent
    warm(c, s, 3)


def test_detach_in_the_container(lab, pods, node):
    agent = node()
    assert agent.attach(*pods).returncode == 0
    done = agent.run("detach", "--all", "--timeout", "10")
    # the directory of pins is a mount of the container, and stays
    assert done.returncode == 0, done.stderr
    assert os.listdir(lab.pin_dir) == []


def without(name):
    return [c for c in ("SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "SYSLOG") if c != name]


@pytest.mark.parametrize("name", ["SYS_ADMIN", "NET_ADMIN"])
def test_without_these_nothing_is_loaded(pods, node, name):
    done = node(without(name)).attach(*pods)
    assert done.returncode == 3 and f"CAP_{name}" in done.stderr, done.stderr


@pytest.mark.skipif(KERNEL < (6, 12), reason="no adoption before Linux 6.12")
def test_without_sys_ptrace_live_connections_are_not_found(lab, pods, node):
    live(pods)
    done = node(without("SYS_PTRACE")).attach(*pods)
    assert done.returncode == 0, done.stderr
    assert lab.totals()["adopted"] == 0


@pytest.mark.skipif(KERNEL < (6, 12), reason="no adoption before Linux 6.12")
def test_without_syslog_live_connections_are_not_adopted(lab, pods, node):
    """Nobody could tell who sleeps in a call on them. Unless this kernel shows addresses to everybody."""
    setting = lambda name: int(Path(f"/proc/sys/kernel/{name}").read_text())  # noqa: E731
    shown = setting("perf_event_paranoid") <= 1 and setting("kptr_restrict") == 0
    c, s, _ = live(pods)
    done = node(without("SYSLOG")).attach(*pods)
    assert done.returncode == 0, done.stderr
    assert lab.totals()["adopted"] == shown and becomes_fast(lab, c, s) == shown
    assert shown or "CAP_SYSLOG" in done.stderr, done.stderr

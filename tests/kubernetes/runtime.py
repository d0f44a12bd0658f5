"""A node without a kubelet: a real containerd with CRI and the CNI bridge, and the pods that it runs.

containerd, its shims and its host-network pods live in a mount and a network namespace of their own, whose
/sys/fs/cgroup is the cgroup2 hierarchy wherever the host has it. So the bridge, the veths, iptables, /run/containerd,
/run/netns and /var/lib/cni are the node's, not the host's, and end with its last process. Processes are in cgroups
below one of the node's own, which is how all of them, and only they, are found at the end. PIDs are the host's.

No systemd is asked for anything: its layout of cgroups is made by runc's cgroupfs driver.
"""
import hashlib
import io
import json
import os
import queue
import re
import select
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import threading
import time
import uuid as uuids
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cri import Cri
from lab import PATIENCE, PEER, PYTHON, ROOT, Peer, cgroup2_mount, sh, wait_until

BUSYBOX = "sst.test/busybox:1"
PAUSE = "sst.test/pause:1"
SUBNET, GATEWAY, SUBNET6 = "10.78.0.0/16", "10.78.0.1", "fd78::/64"
CNI_DIRS = ("/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni")

# The node's namespaces. The root's subtree_control is covered: runc and the shim switch on, in every cgroup from the
# root down, all controllers that they find, and the root is not ours to change. /run and /var/lib are empty, so that
# nobody here finds the host's containers, its CNI state or its systemd. When the tests are killed, so is the node: the
# pipe that is read here ends.
SETUP = """
set -e
[ "$1" = /sys/fs/cgroup ] || mount --bind "$1" /sys/fs/cgroup
mount --bind /dev/null /sys/fs/cgroup/cgroup.subtree_control
mount -t tmpfs -o mode=755 tmpfs /var/lib
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/lock /run/netns
ip link set lo up
cd /proc/sys/net/ipv4
echo 1 > ip_forward
for all in all default; do
	echo 0 > conf/$all/send_redirects
	echo 0 > conf/$all/rp_filter
done
cd /
echo ready
read -r _ || true
echo 1 > "/sys/fs/cgroup/$2/cgroup.kill"
"""

# What each missing controller makes impossible in linux.resources.
NEEDS = {"cpu": "cpu", "memory": "memory", "pids": "pids", "blockIO": "io", "hugepageLimits": "hugetlb", "rdma": "rdma"}

RUNC = """#!/bin/sh
# runc, with a config.json changed before `create`: limits go that need a controller which is not here, or
# CAP_SYS_RESOURCE, and systemd's "slice:prefix:id" becomes the directories that systemd would make of it.
for arg; do
	case $previous in --bundle | -b) bundle=$arg ;; esac
	[ "$arg" = create ] && create=yes
	previous=$arg
done
if [ -n "$create" ]; then
	jq -c --arg base "@base@" '
		del(.linux.resources[@unwanted@], .process.rlimits)
		| .linux.cgroupsPath |= if (. // "") | contains(":") then
			split(":") as [$slice, $prefix, $id]
			| ($slice | rtrimstr(".slice") | split("-")) as $parts
			| [range($parts | length) | ($parts[:. + 1] | join("-")) + ".slice"] | join("/")
			| "\\($base)/\\(.)/\\($prefix)-\\($id).scope"
		else . end' "$bundle/config.json" >"$bundle/config.json.new" &&
		mv "$bundle/config.json.new" "$bundle/config.json" || exit 1
fi
exec @runc@ "$@"
"""

CONFIG = """
version = 2
root = "{dir}/root"
state = "{dir}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
    "io.containerd.internal.v1.restart", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[grpc]
  address = "{dir}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{dir}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  tolerate_missing_hugetlb_controller = true
  max_container_log_line_size = 16384
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni}"
    conf_dir = "{dir}/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "{dir}/runc"
        Root = "{dir}/runc-state"
"""

IPV6 = os.path.exists("/proc/sys/net/ipv6")
NETWORK = {
    "cniVersion": "0.4.0", "name": "sst",
    "plugins": [
        {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": False, "hairpinMode": True,
         "ipam": {"type": "host-local",
                  "ranges": [[{"subnet": SUBNET, "gateway": GATEWAY}]] + ([[{"subnet": SUBNET6}]] if IPV6 else []),
                  "routes": [{"dst": "0.0.0.0/0"}] + ([{"dst": "::/0"}] if IPV6 else [])}},
        {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
    ],
}

# The container's main process: agent.py, talking over a socket in a directory that both sides see.
LAUNCH = """
import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
for fd in 0, 1:
    os.dup2(s.fileno(), fd)
os.dup2(os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
s.close()
os.execv(sys.argv[3], sys.argv[3:])
"""


def cni_dir():
    return next((d for d in CNI_DIRS if os.path.exists(f"{d}/bridge")), None)


def kill_cgroup(path):
    """Kills whatever is in a cgroup or below it, and waits until nothing is."""
    def members():
        found = []
        for procs in sorted(path.glob("**/cgroup.procs")):
            try:
                found += [int(pid) for pid in procs.read_text().split()]
            except OSError:  # gone meanwhile
                pass
        return found

    def empty():
        pids = members()
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        return not pids
    try:
        wait_until(f"{path} is empty", empty, 30, 0.02)
    except AssertionError:
        pass  # what is left is told by remove_cgroup()


def remove_cgroup(path):
    """Removes a cgroup and those below it; the names of those that stay."""
    left = []
    if not path.exists():
        return left
    end = time.monotonic() + 30 * PATIENCE  # hundreds of shims take a while to be gone, after cgroup.procs is empty
    for directory, _, _ in sorted(os.walk(path), reverse=True):
        while True:
            try:
                os.rmdir(directory)
                break
            except FileNotFoundError:
                break
            except OSError:
                if time.monotonic() > end:
                    left.append(directory)
                    break
                time.sleep(0.02)
    return left


# ---- images

def tar_add(tar, name, data=None, mode=0o755, link=None):
    entry = tarfile.TarInfo(name)
    entry.mode = mode
    if link:
        entry.type, entry.linkname = tarfile.SYMTYPE, link
    elif data is None:
        entry.type = tarfile.DIRTYPE
    else:
        entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data) if data is not None else None)


def make_layer():
    """A root file system, as a tar: busybox, and empty directories to mount the host's on."""
    layer = io.BytesIO()
    busybox = os.path.realpath(shutil.which("busybox"))
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for name in ("bin", "dev", "etc", "lib", "lib64", "proc", "root", "run", "sys", "usr", "var"):
            tar_add(tar, name)
        tar_add(tar, "tmp", mode=0o1777)
        tar_add(tar, "bin/busybox", Path(busybox).read_bytes())
        for applet in sh(busybox, "--list").stdout.split():
            if applet != "busybox":
                tar_add(tar, f"bin/{applet}", link="busybox")
        tar_add(tar, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", 0o644)
        tar_add(tar, "etc/group", b"root:x:0:\n", 0o644)
    return layer.getvalue()


def make_images(path):
    """An OCI layout with two images of one layer."""
    arch = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)

    with tarfile.open(path, "w") as tar:
        def blob(data, kind, **more):
            data = data if isinstance(data, bytes) else json.dumps(data).encode()
            digest = hashlib.sha256(data).hexdigest()
            if digest not in seen:
                seen.add(digest)
                tar_add(tar, f"blobs/sha256/{digest}", data, 0o644)
            return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data),
                    **more}
        seen = set()
        content = blob(make_layer(), "layer.v1.tar")
        manifests = []
        for name, command in ((BUSYBOX, ["/bin/sh"]), (PAUSE, ["/bin/sleep", "2147483647"])):
            config = blob({"architecture": arch, "os": "linux",
                           "config": {"Cmd": command, "Env": ["PATH=/bin:/usr/bin:/usr/sbin"]},
                           "rootfs": {"type": "layers", "diff_ids": [content["digest"]]}}, "config.v1+json")
            manifests.append(blob({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                                   "config": config, "layers": [content]}, "manifest.v1+json",
                                  annotations={"io.containerd.image.name": name}))
        tar_add(tar, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}', 0o644)
        tar_add(tar, "index.json", json.dumps({"schemaVersion": 2, "manifests": manifests}).encode(), 0o644)


# ---- what runs in a pod

class ContainerProcess:
    """A container's main process, with what lab.Peer wants of a subprocess.Popen."""

    def __init__(self, pid, connection):
        self.pid, self.connection = pid, connection
        self.pidfd = os.pidfd_open(pid)
        self.stdin, self.stdout = connection.makefile("w"), connection.makefile("r")

    def poll(self):
        return 0 if select.select([self.pidfd], [], [], 0)[0] else None

    def kill(self):
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def wait(self, timeout=10):
        assert select.select([self.pidfd], [], [], timeout * PATIENCE)[0], f"process {self.pid} does not end"
        return 0

    def close(self):
        os.close(self.pidfd)
        self.connection.close()


class ContainerPeer(Peer):
    """lab.Peer as the main process of a container: the same calls, the container's namespaces and cgroup."""

    def __init__(self, pod, name, program="", **kw):
        self.pod = pod
        self.place = Path(tempfile.mkdtemp(prefix="p", dir=pod.runtime.dir))
        self.errors = open(self.place / "errors", "w+")
        argv = [PYTHON, "-c", LAUNCH, self.place / "s", self.place / "errors", PYTHON, "-u", PEER, *program.split()]
        self._meet(lambda: pod.container(
            name, argv, mounts=[*host_system(), (self.place, self.place, False)],
            env={k: v for k, v in os.environ.items() if k.startswith("SHARED_SOCKET")}, **kw))

    def _meet(self, start):
        """Starts the container, and waits until its process calls."""
        self.count, self.sockets = 0, 0
        self.lines, self.answers = queue.Queue(), {}
        (self.place / "s").unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.place / "s"))
            listener.listen(1)
            listener.settimeout(20 * PATIENCE)
            self.container = start()
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                raise AssertionError(f"a peer in {self.pod.name} does not start: {self.container.log()}") from None
        connection.settimeout(None)
        self.process = ContainerProcess(self.container.pid, connection)
        self.pid, self.cgroup = self.process.pid, self.container.cgroup
        threading.Thread(target=self._read, args=(self.process, self.lines), daemon=True).start()
        self.call("ping")

    @staticmethod
    def _read(process, lines):
        try:
            for line in process.stdout:
                lines.put(json.loads(line))
        except (OSError, ValueError):  # killed, or closed by close()
            pass
        lines.put(None)

    def close(self):
        """Ends the process. The container stays, exited, until it is removed."""
        if self.errors.closed:
            return
        self.process.kill()
        self.process.wait()
        self.process.connection.shutdown(socket.SHUT_RDWR)  # the reader is in the middle of a line
        self.process.close()
        self.errors.close()


def host_system():
    """What a container needs mounted to run the host's Python and this project's peers."""
    return [(d, d, True) for d in ("/usr", "/lib", "/lib64", ROOT / "tests") if os.path.exists(d)]


class Container:
    def __init__(self, pod, name, image, command, **kw):
        self.pod, self.name, self.cri = pod, name, pod.runtime.cri
        self.attempt = sum(c.name == name for c in pod.containers)
        self.id = self.cri.create_container(pod.sandbox, pod.config, name, image, command, attempt=self.attempt, **kw)
        pod.containers.append(self)
        self.cri.start_container(self.id)
        self.pid = self.info()["pid"]
        self.cgroup = pod.runtime.cgroup_of(self.pid)

    def status(self):
        return self.cri.container_status(self.id)[0]

    def info(self):
        return self.cri.container_status(self.id)[1]

    def running(self):
        return self.status().state == self.cri.api.CONTAINER_RUNNING

    def exec(self, *command, check=True, timeout=20):
        """Runs a command in the container: what it wrote to stdout (or all of it, without check)."""
        code, out, err = self.cri.exec_sync(self.id, *command, timeout=timeout)
        if not check:
            return code, out, err
        assert code == 0, f"{command} in {self.name} of {self.pod.name}: exit {code}: {err}{out}"
        return out

    def log(self):
        path = self.pod.log_directory / f"{self.name}_{self.attempt}.log"
        return path.read_text()[-2000:] if path.exists() else ""

    def stop(self, grace=0):
        self.cri.stop_container(self.id, grace)

    def remove(self):
        self.stop()
        self.cri.remove_container(self.id)
        self.pod.containers.remove(self)


class Pod:
    """A sandbox. .ip, .ip6, .pid (of its pause process), .cgroup (the pod's), .sandbox_cgroup (the pause process's)."""

    def __init__(self, runtime, name, namespace="default", uid=None, labels=None, annotations=None, host_network=False,
                 qos="besteffort", layout="cgroupfs", port_mappings=()):
        self.runtime, self.name, self.namespace = runtime, name, namespace
        self.uid = uid or str(uuids.uuid4())
        self.containers, self.peers, self.removed = [], [], False
        self.cgroup = runtime.cgroup / runtime.pod_cgroup(self.uid, qos, layout)
        self.cgroup.mkdir(parents=True, exist_ok=True)  # as the kubelet does, before the runtime is asked
        self.log_directory = runtime.dir / "logs" / self.uid
        self.sandbox, self.config = runtime.cri.run_pod(
            name, namespace, self.uid, labels, annotations, "/" + str(self.cgroup.relative_to(runtime.mount)),
            host_network, str(self.log_directory), port_mappings=port_mappings)
        status, info = runtime.cri.pod_status(self.sandbox)
        self.ip = status.network.ip or None  # None: host network
        self.ip6 = next((more.ip for more in status.network.additional_ips), None)  # None: no IPv6 here
        self.pid = info["pid"]
        self.sandbox_cgroup = runtime.cgroup_of(self.pid)
        self.netns = os.stat(f"/proc/{self.pid}/ns/net").st_ino

    def container(self, name="main", command=("/bin/sleep", "2147483647"), image=BUSYBOX, **kw):
        """Starts a container; the rest as in Cri.create_container()."""
        return Container(self, name, image, command, **kw)

    def peer(self, name=None, program="", **kw):
        """A new container whose main process does one call at a time; `program` as in lab.Pod.peer(), the rest as in
        Cri.create_container() (capabilities=["NET_ADMIN"])."""
        made = ContainerPeer(self, name or f"peer{len(self.peers)}", program, **kw)
        self.peers.append(made)
        return made

    def argv(self, *argv, cgroups=None):
        """The command line that runs one of the host's programs in the sandbox's network namespace and cgroup."""
        script = "".join(f'echo $$ > "{c}/cgroup.procs" || exit 99; ' for c in cgroups or [self.sandbox_cgroup])
        return ["sh", "-c", script + f'exec nsenter --net=/proc/{self.pid}/ns/net "$@"', "sh", *map(str, argv)]

    def start(self, *argv, **kw):
        """Starts a host's program so; it is killed with the runtime."""
        process = subprocess.Popen(self.argv(*argv), **kw)
        self.runtime.extra.append(process)
        return process

    def sh(self, *argv, **kw):
        return sh(*self.argv(*argv), **kw)

    def running(self):
        status, _ = self.runtime.cri.pod_status(self.sandbox)
        return status.state == self.runtime.cri.api.SANDBOX_READY

    def stop(self):
        self.runtime.cri.stop_pod(self.sandbox)

    def remove(self):
        """Stops and removes it and its containers, then its cgroup, as a kubelet would."""
        if self.removed:
            return
        for peer in self.peers:
            peer.close()
        self.runtime.cri.remove_pod(self.sandbox)
        self.removed = True
        self.runtime.pods.remove(self)
        left = remove_cgroup(self.cgroup)
        assert not left, f"cgroups of {self.name} stay: {left}"


# ---- the node

class Node:
    """Namespaces, a cgroup and a directory of its own, and in them the program that runs containers."""
    serial = 0
    tools = ("runc", "busybox", "jq", "nsenter", "unshare", "ip")

    def __init__(self):
        missing = [tool for tool in self.tools if not shutil.which(tool)] + ([] if cni_dir() else ["CNI plugins"])
        if missing:
            raise RuntimeError(f"missing here: {', '.join(missing)}; scripts/install-deps.sh test installs it")
        Node.serial += 1
        self.tag = f"sstk-{os.getpid()}-{Node.serial}"
        self.mount = cgroup2_mount()
        self.cgroup = self.mount / self.tag
        self.dir = Path(tempfile.mkdtemp(prefix=self.tag))
        self.pods, self.extra, self.process, self.holder, self.closed = [], [], None, None, False
        try:
            (self.cgroup / "system").mkdir(parents=True)
            self._write_config()
            self.holder = subprocess.Popen(
                self._enter("unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", SETUP, "sh",
                            self.mount, self.tag),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                start_new_session=True)
            if self.holder.stdout.readline() != "ready\n":
                raise RuntimeError(f"no namespaces for the node: {self.holder.stderr.read()}")
            self.netns = os.stat(f"/proc/{self.holder.pid}/ns/net").st_ino
            self.start()
            self._import_images()
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        problems = self.close()
        assert not problems, "\n".join(problems)

    def _write_runc(self, program="runc", controllers=None):
        here = (self.cgroup / "cgroup.controllers").read_text().split() if controllers is None else controllers
        unwanted = ["unified"] + [key for key, controller in NEEDS.items() if controller not in here]
        text = RUNC.replace("@runc@", shutil.which(program)).replace("@base@", f"/{self.tag}")
        (self.dir / program).write_text(text.replace("[@unwanted@]", json.dumps(unwanted)))
        (self.dir / program).chmod(0o755)

    # -- places

    def _enter(self, *argv):
        """The command line of a program in the node's own cgroup."""
        script = 'echo $$ > "$0/cgroup.procs" || exit 99; exec "$@"'
        return ["sh", "-c", script, str(self.cgroup / "system"), *map(str, argv)]

    def node_argv(self, *argv):
        """The command line that runs one of the host's programs on the node: where what runs containers is."""
        here = f"/proc/{self.holder.pid}/ns"
        return self._enter("nsenter", f"--mount={here}/mnt", f"--net={here}/net", *argv)

    def node(self, *argv, **kw):
        return sh(*self.node_argv(*argv), **kw)

    def iptables(self, *argv):
        """A rule on the node; it ends with the node."""
        return self.node("iptables", "-w", *argv)

    def cgroup_of(self, pid):
        """The cgroup2 directory of a process, on the host."""
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                return self.mount / line[3:].lstrip("/")
        raise RuntimeError(f"process {pid} is in no cgroup2")

    # -- the program

    def stop(self, signo=signal.SIGTERM):
        """Ends the program that runs containers (SIGKILL: at once); its containers live on."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signo)
            try:
                self.process.wait(20 * PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None

    def kill(self):
        self.stop(signal.SIGKILL)

    def restart(self, signo=signal.SIGTERM):
        self.stop(signo)
        self.start()

    def log(self):
        path = self.dir / "log"
        return path.read_text()[-4000:] if path.exists() else ""

    # -- the end

    def close(self):
        """Kills and removes all of it, with no help from what runs there; what could not be removed."""
        if self.closed:
            return []
        self.closed = True
        problems = []
        self.kill()
        for process in self.extra:
            if process.poll() is None:
                process.kill()
            process.wait()
        kill_cgroup(self.cgroup)
        for pod in self.pods:
            for peer in pod.peers:
                peer.close()
        if self.holder:
            self.holder.communicate()
        problems += [f"cgroup stays: {left}" for left in remove_cgroup(self.cgroup)]
        shutil.rmtree(self.dir, ignore_errors=True)
        if self.dir.exists():
            problems.append(f"directory stays: {self.dir}")
        return problems


# ---- containerd

class Runtime(Node):
    tools = (*Node.tools, "containerd", "containerd-shim-runc-v2", "ctr", "protoc")

    def __init__(self):
        self.cri = None
        super().__init__()

    @property
    def socket(self):
        return self.dir / "containerd.sock"

    def _write_config(self):
        (self.dir / "config.toml").write_text(CONFIG.format(
            dir=self.dir, pause=PAUSE, cni=cni_dir(), snapshotter="overlayfs" if self._overlay_works() else "native"))
        (self.dir / "net.d").mkdir()
        (self.dir / "net.d" / "10-sst.conflist").write_text(json.dumps(NETWORK))
        self._write_runc()

    def _overlay_works(self):
        """Overlay on the file system that the temporary directory is on: not where that is an overlay itself."""
        place = self.dir / "try"
        for name in ("lower", "upper", "work", "merged"):
            (place / name).mkdir(parents=True)
        script = 'mount -t overlay -o "lowerdir=$1/lower,upperdir=$1/upper,workdir=$1/work" overlay "$1/merged"'
        done = sh("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", str(place), check=False)
        shutil.rmtree(place)
        return done.returncode == 0

    def ctr(self, *argv, **kw):
        return self.node("ctr", "--address", self.socket, "--namespace", "k8s.io", *map(str, argv), **kw)

    def pod_cgroup(self, uid, qos="besteffort", layout="cgroupfs"):
        """Where the kubelet puts a pod, below the node's own cgroup."""
        assert qos in ("besteffort", "burstable", "guaranteed") and layout in ("cgroupfs", "systemd"), (qos, layout)
        parts = ["kubepods"] + ([qos] if qos != "guaranteed" else [])
        if layout == "cgroupfs":
            return "/".join(parts + [f"pod{uid}"])
        parts.append("pod" + uid.replace("-", "_"))
        return "/".join("-".join(parts[:n + 1]) + ".slice" for n in range(len(parts)))

    def start(self):
        with open(self.dir / "log", "a") as log:
            self.process = subprocess.Popen(
                self.node_argv("containerd", "--config", self.dir / "config.toml", "--log-level", "warn"),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self.cri = self.cri or Cri(self.socket)

        def answers():
            if self.process.poll() is not None:
                raise RuntimeError(f"containerd ended: {self.log()}")
            return self.socket.exists() and self.cri.ready()
        try:
            wait_until("containerd answers", answers, 30, 0.05)
        except AssertionError as err:
            raise RuntimeError(f"{err}: {self.log()}") from None

    def _import_images(self):
        make_images(self.dir / "images.tar")
        snapshotter = re.search('snapshotter = "(.*)"', (self.dir / "config.toml").read_text()).group(1)
        self.ctr("images", "import", "--snapshotter", snapshotter, self.dir / "images.tar")
        (self.dir / "images.tar").unlink()
        wait_until("CRI knows the images", lambda: {BUSYBOX, PAUSE} <= self.cri.images(), 10, 0.02)

    # -- pods

    def pod(self, name, **kw):
        made = Pod(self, name, **kw)
        self.pods.append(made)
        return made

    def many(self, count, prefix="many", workers=4, **kw):
        """So many pods with nothing but their sandbox."""
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(lambda n: self.pod(f"{prefix}{n}", **kw), range(count)))

    def remove(self, pods, workers=4):
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(Pod.remove, list(pods)))

    def close(self):
        if self.cri and not self.closed:
            self.cri.close()
        return super().close()

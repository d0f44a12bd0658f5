"""A real Podman, with its service and without, on a node of its own (runtime.Node).

Its networks are CNI bridges in the node's network namespace, its containers are in cgroups below the node's own, and
its files are in the node's directory. Nothing is pulled: the one image is made here.
"""
import json
import os
import shutil
import signal
import socket
import subprocess

from lab import wait_until
from runtime import BUSYBOX, ContainerPeer, Node, cni_dir, make_layer

PODMAN = shutil.which("podman")  # now: in tests there is another on PATH
FOREVER = ("/bin/sleep", "2147483647")

# No limits and sysctls of Podman's own: they take capabilities that root may lack here, and a sysctl would be set in a
# namespace that a container was given. File locks: those in shared memory are common to all of the host's Podmans.
CONFIG = """
[containers]
default_sysctls = []
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
image_copy_tmp_dir = "{dir}/tmp"
infra_image = "{image}"
lock_type = "file"
runtime = "runc"
static_dir = "{dir}/libpod"
tmp_dir = "{dir}/tmp"
volume_path = "{dir}/volumes"
[engine.runtimes]
runc = ["{dir}/runc"]
crun = ["{dir}/crun"]
[network]
cni_plugin_dirs = ["{cni}"]
network_backend = "cni"
network_config_dir = "{dir}/net.d"
"""

COMMAND = """#!/bin/sh
# podman, as this node's administrator has it
echo $$ > "${{SST_CGROUP:-{cgroup}}}/cgroup.procs" || exit 99
exec nsenter --mount=/proc/{holder}/ns/mnt --net=/proc/{holder}/ns/net \\
	env HOME={dir} TMPDIR={dir}/tmp CONTAINERS_CONF={dir}/containers.conf \\
	{podman} --root {dir}/root --runroot {dir}/run --tmpdir {dir}/tmp --storage-driver vfs "$@"
"""


class Container:
    """One of Podman's. .pid and .cgroup are those of its present life."""

    def __init__(self, node, name, made):
        self.runtime, self.name, self.id = node, name, made
        self.look()

    def look(self):
        told = self.inspect()
        self.pid, self.conmon = told["State"]["Pid"], told["State"]["ConmonPid"]
        self.cgroup = self.runtime.cgroup_of(self.pid) if self.pid else None
        networks = (told["NetworkSettings"].get("Networks") or {}).values()
        self.ip = next((n["IPAddress"] for n in networks if n["IPAddress"]), None)
        return self

    def inspect(self):
        return json.loads(self.runtime.podman("inspect", "--type", "container", self.id).stdout)[0]

    def log(self):
        return self.runtime.podman("logs", self.id, check=False).stdout[-2000:]

    def stop(self, grace=0):
        self.runtime.podman("stop", "--time", grace, self.id)

    def start(self):
        self.runtime.podman("start", self.id)
        return self.look()

    def remove(self):
        self.runtime.podman("rm", "--force", "--time", "0", self.id)


class PodmanPeer(ContainerPeer):
    """A container that does one call at a time, and can be started again."""

    @property
    def ip(self):
        return self.container.ip

    def restart(self):
        self.process.connection.shutdown(socket.SHUT_RDWR)
        self.container.stop()
        self.process.wait()
        self.process.close()
        self._meet(self.container.start)


class Podman(Node):
    tools = (*Node.tools, PODMAN or "/usr/bin/podman", "conmon", "crun")
    name = "podman"

    def __init__(self):
        self.peers, self.outside = [], []
        super().__init__()

    @property
    def runtime(self):
        """ContainerPeer's word for where its directory is."""
        return self

    @property
    def socket(self):
        return self.dir / "podman.sock"

    @property
    def endpoint(self):
        return f"unix://{self.socket}"

    @property
    def command(self):
        """What an administrator has as `podman`; its directory can be put on PATH."""
        return self.dir / "bin" / "podman"

    def _write_config(self):
        for name in ("bin", "net.d", "tmp"):
            (self.dir / name).mkdir()
        (self.dir / "containers.conf").write_text(
            CONFIG.format(dir=self.dir, cni=cni_dir(), image=BUSYBOX))
        self._write_runc("runc", [])
        self._write_runc("crun", [])  # which alone can do without cgroups

    def _import_images(self):
        self.podman("import", "--change", f"CMD {json.dumps(FOREVER)}", "-", BUSYBOX, input=make_layer(), text=False)

    # -- Podman

    def podman(self, *argv, check=True, text=True, cgroup=None, **kw):
        """Runs the command; what it starts without a cgroup of its own is in that one."""
        env = {**os.environ, "SST_CGROUP": str(cgroup)} if cgroup else None
        done = subprocess.run([self.command, *map(str, argv)], capture_output=True, text=text, env=env, **kw)
        if check and done.returncode:
            raise RuntimeError(f"podman {argv}: exit {done.returncode}: {done.stderr}")
        return done

    def start(self):
        """Starts its service."""
        if not self.command.exists():
            self.command.write_text(COMMAND.format(cgroup=self.cgroup / "system", holder=self.holder.pid, dir=self.dir,
                                                   podman=PODMAN))
            self.command.chmod(0o755)
        with open(self.dir / "log", "a") as log:
            self.process = subprocess.Popen([self.command, "system", "service", "--time=0", self.endpoint],
                                            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

        def answers():
            if self.process.poll() is not None:
                raise RuntimeError(f"Podman's service ended: {self.log()}")
            with socket.socket(socket.AF_UNIX) as probe:
                return probe.connect_ex(str(self.socket)) == 0
        wait_until("Podman's service answers", answers, 30, 0.02)

    # -- containers

    def container(self, name, command=FOREVER, mounts=(), env=None, labels=None, of_pod=None, options=(), cgroup=None):
        argv = ["run", "--detach", "--pull=never", "--name", name]
        if of_pod:
            argv += ["--pod", of_pod]
        if "--cgroups" not in options:
            argv += ["--cgroup-parent", f"/{self.tag}/podman"]
        for source, target, read_only in mounts:
            argv += ["--volume", f"{source}:{target}" + (":ro" if read_only else "")]
        for key, value in (env or {}).items():
            argv += ["--env", f"{key}={value}"]
        for key, value in (labels or {}).items():
            argv += ["--label", f"{key}={value}"]
        made = self.podman(*argv, *options, BUSYBOX, *command, cgroup=cgroup).stdout.split()[-1]
        made = Container(self, name, made)
        if cgroup:
            self.outside += [os.pidfd_open(pid) for pid in (made.pid, made.conmon)]
        return made

    def peer(self, name, program="", **kw):
        """A container that does one call at a time; the rest as in container()."""
        self.peers.append(PodmanPeer(self, name, program, **kw))
        return self.peers[-1]

    def new_pod(self, name):
        """A pod without a cgroup of its own: in the one that Podman 4.3 makes with this cgroup manager no device can be
        opened, and it makes none where it cannot switch on all controllers of the root, all the way down."""
        self.podman("pod", "create", "--name", name, "--share-parent=false", "--cgroup-parent", f"/{self.tag}/podman")

    def clear(self):
        """Removes all containers and pods."""
        while self.peers:
            self.peers.pop().close()
        self.podman("pod", "rm", "--all", "--force", "--time", "0")
        rm = ("rm", "--all", "--force", "--time", "0")
        self.podman(*rm, check=False)  # it does not begin with those that others depend on
        self.podman(*rm)

    def close(self):
        while self.peers:
            self.peers.pop().close()
        for pidfd in self.outside:
            try:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass
            os.close(pidfd)
        self.outside = []
        return super().close()

"""Pods of network namespaces and cgroups, the peers that run in them, and the product under test.

Everything made here carries the pid in its name and is removed again by Lab.close(), on failure too.
Nothing is put in the host's network namespace and the root cgroup is never attached.
"""
import base64
import json
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEER = ROOT / "tests" / "peer" / "agent.py"
BINARY = os.environ.get("SHARED_SOCKET", str(ROOT / "target" / "release" / "shared-socket"))
PLAIN = os.environ.get("SHARED_SOCKET_PLAIN", "") not in ("", "0")
PYTHON = "/usr/bin/python3"
VM = "SHARED_SOCKET_VM" in os.environ  # in a guest of tests/vm, on an emulated processor
KERNEL = tuple(int(n) for n in os.uname().release.split("-")[0].split(".")[:2])  # (6, 12)
PATIENCE = 6 if VM else 1
GATEWAY = "10.77.0.254"


def few(count):
    """So many; in a guest of tests/vm a twentieth."""
    return max(2, count // 20) if VM else count


def warm(client, server, rounds):
    """Some messages each way on a connection."""
    for _ in range(rounds):
        client.send(b"warm")
        server.read(4)
        server.send(b"up")
        client.read(2)


def sh(*argv, check=True, **kw):
    done = subprocess.run(argv, capture_output=True, text=True, **kw)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip()} {done.stdout.strip()}")
    return done


def cgroup2_mount():
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    raise RuntimeError("no cgroup2 mount in /proc/mounts")


def ensure_bpffs():
    if not any(line.split()[1:3] == ["/sys/fs/bpf", "bpf"] for line in Path("/proc/mounts").read_text().splitlines()):
        sh("mount", "-t", "bpf", "bpf", "/sys/fs/bpf")


def wait_until(what, probe, timeout=10.0, pause=0.05):
    """Poll probe() until it is true; its last value goes into the message."""
    end = time.monotonic() + timeout * PATIENCE
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout} s: {what} (last: {value!r})")
        time.sleep(pause)


def pack(value):
    if isinstance(value, (bytes, bytearray)):
        return {"__b64__": base64.b64encode(value).decode()}
    if isinstance(value, (list, tuple)):
        return [pack(v) for v in value]
    if isinstance(value, dict):
        return {k: pack(v) for k, v in value.items()}
    return value


def unpack(value):
    if isinstance(value, dict):
        if "__b64__" in value:
            return base64.b64decode(value["__b64__"])
        return {k: unpack(v) for k, v in value.items()}
    if isinstance(value, list):
        return [unpack(v) for v in value]
    return value


class RemoteError(Exception):
    """What a peer's call raised: .kind is the exception's class, .errno its number."""

    def __init__(self, kind, errno, text):
        super().__init__(f"{kind}: {text}")
        self.kind, self.errno = kind, errno


class Future:
    def __init__(self, peer, number):
        self.peer, self.number = peer, number

    def result(self, timeout=30.0):
        return self.peer.answer(self.number, timeout)


class RemoteSocket:
    """A socket that lives in a peer. Blocking, with SO_RCVTIMEO/SO_SNDTIMEO of 10 s as the only safety net."""

    def __init__(self, peer, name, info):
        self.peer, self.name = peer, name
        self.local, self.remote = info.get("local"), info.get("remote")

    @property
    def port(self):
        return self.local[1]

    def __getattr__(self, op):
        return lambda *args, **kw: self.peer.call("sock_" + op, self.name, *args, **kw)

    def accept(self, **kw):
        return self.peer.make("accept", self.name, **kw)


class Peer:
    """A Python process inside a pod's namespace and cgroup that does one call at a time."""

    def __init__(self, pod, cgroup, memcg=None, program=""):
        joins = [cgroup] + ([memcg] if memcg else [])
        self.pod, self.count, self.sockets = pod, 0, 0
        self.errors = tempfile.TemporaryFile(mode="w+")
        self.process = subprocess.Popen(pod.argv(PYTHON, "-u", PEER, *program.split(), cgroups=joins), stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=self.errors, text=True)
        self.pid = self.process.pid
        self.lines, self.answers = queue.Queue(), {}
        threading.Thread(target=self._read, daemon=True).start()
        self.call("ping")

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(json.loads(line))
        self.lines.put(None)

    def post(self, op, *args, **kw):
        self.count += 1
        text = json.dumps({"id": self.count, "op": op, "args": pack(args), "kw": pack(kw)})
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return Future(self, self.count)

    def answer(self, number, timeout):
        end = time.monotonic() + timeout * PATIENCE
        while number not in self.answers:
            try:
                got = self.lines.get(timeout=max(0.01, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"peer {self.pid} in {self.pod.name}: no answer within {timeout} s: a hang") from None
            if got is None:
                self.errors.seek(0)
                raise AssertionError(f"peer {self.pid} in {self.pod.name} ended: {self.errors.read()[-2000:]}")
            self.answers[got["id"]] = got
        got = self.answers.pop(number)
        if "error" in got:
            raise RemoteError(*got["error"])
        return unpack(got["value"])

    def call(self, op, *args, timeout_=30.0, **kw):
        return self.post(op, *args, **kw).result(timeout_)

    def make(self, op, *args, **kw):
        self.sockets += 1
        name = f"s{self.sockets}"
        return RemoteSocket(self, name, self.call(op, name, *args, **kw))

    def listen(self, host, port=0, **kw):
        return self.make("listen", host, port, **kw)

    def connect(self, host, port, **kw):
        return self.make("connect", host, port, **kw)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.errors.close()


class Pod:
    def __init__(self, lab, name, index):
        self.lab, self.name = lab, name
        self.ns = f"{lab.tag}-{name}"
        self.ip, self.ip6 = f"10.77.0.{index}", f"fd77::{index}"
        self.cgroup = lab.new_cgroup(name)
        sh("ip", "netns", "add", self.ns)
        lab.namespaces.append(self.ns)
        port = f"v{index}"
        sh("ip", "link", "add", "eth0", "netns", self.ns, "type", "veth", "peer", "name", port, "netns", lab.bridge)
        self.ip_cmd("link", "set", "lo", "up")
        self.ip_cmd("addr", "add", f"{self.ip}/24", "dev", "eth0")
        self.ip_cmd("addr", "add", f"{self.ip6}/64", "dev", "eth0", "nodad")
        self.ip_cmd("link", "set", "eth0", "up")
        self.ip_cmd("route", "add", "default", "via", GATEWAY)
        sh("ip", "-n", lab.bridge, "link", "set", port, "master", "br0", "up")

    def argv(self, *argv, cgroups=None):
        """The command line that runs a program in this pod's cgroup (or the given ones) and namespace."""
        script = "".join(f'echo $$ > "{c}/cgroup.procs" || exit 99; ' for c in cgroups or [self.cgroup])
        return ["sh", "-c", script + f'exec nsenter --net=/run/netns/{self.ns} "$@"', "sh", *map(str, argv)]

    def start(self, *argv, **kw):
        """Starts a program in this pod; it is killed with the lab."""
        process = subprocess.Popen(self.argv(*argv), **kw)
        self.lab.extra.append(process)
        return process

    def ip_cmd(self, *argv):
        return sh("ip", "-n", self.ns, *argv)

    def sysctl(self, **settings):
        for key, value in settings.items():
            sh("nsenter", f"--net=/run/netns/{self.ns}", "sysctl", "-qw", f"net.ipv4.{key}={value}")

    def iptables(self, *argv):
        sh("nsenter", f"--net=/run/netns/{self.ns}", "iptables", "-w", *argv)

    def netstat(self, name):
        """A counter of this namespace's TcpExt."""
        text = sh("nsenter", f"--net=/run/netns/{self.ns}", "cat", "/proc/net/netstat").stdout
        rows = [line.split() for line in text.splitlines() if line.startswith("TcpExt:")]
        return int(dict(zip(rows[0], rows[1]))[name])

    def peer(self, cgroup=None, memcg=None, program=""):
        """A process in this pod; `program` is a file of functions that it can be asked for, instead of ops.py."""
        made = Peer(self, cgroup or self.cgroup, memcg, program)
        self.lab.peers.append(made)
        return made


def hold_syns(pod, other):
    """What pod sends to other waits in the neighbour queue (nobody answers ARP) until let_go()."""
    pod.sysctl(**{"conf.all.arp_ignore": 8})
    pod.ip_cmd("neigh", "flush", "all")
    sh("ip", "-n", pod.ns, "neigh", "del", other.ip, "dev", "eth0", check=False)


def let_go(pod, other):
    mac = json.loads(sh("ip", "-j", "-n", other.ns, "link", "show", "eth0").stdout)[0]["address"]
    pod.ip_cmd("neigh", "replace", other.ip, "lladdr", mac, "dev", "eth0", "nud", "permanent")


class Lab:
    serial = 0

    def __init__(self):
        Lab.serial += 1
        self.tag = f"sst{os.getpid()}x{Lab.serial}"
        self.pin_dir = f"/sys/fs/bpf/shared-socket-test-{os.getpid()}"
        self.namespaces, self.cgroups, self.peers, self.pods, self.extra = [], [], [], {}, []
        self.attached = False
        self.state_dir = tempfile.mkdtemp(prefix=self.tag)
        self.bridge = f"{self.tag}-br"
        if not PLAIN:
            ensure_bpffs()
        try:
            self._base = self.new_cgroup("")
            sh("ip", "netns", "add", self.bridge)
            self.namespaces.append(self.bridge)
            sh("ip", "-n", self.bridge, "link", "set", "lo", "up")
            sh("ip", "-n", self.bridge, "link", "add", "br0", "type", "bridge")
            sh("ip", "-n", self.bridge, "addr", "add", f"{GATEWAY}/24", "dev", "br0")
            sh("ip", "-n", self.bridge, "link", "set", "br0", "up")
            sh("nsenter", f"--net=/run/netns/{self.bridge}", "sysctl", "-qw", "net.ipv4.ip_forward=1",
               "net.ipv4.conf.all.send_redirects=0", "net.ipv4.conf.br0.send_redirects=0",
               "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.br0.rp_filter=0")
        except BaseException:
            self.close()
            raise

    # -- places

    def new_cgroup(self, name):
        path = cgroup2_mount() / self.tag / name if name else cgroup2_mount() / self.tag
        path.mkdir()
        self.cgroups.append(path)
        return path

    def new_memcg(self, limit, tcp_limit):
        """A memory cgroup: of the v1 controller where there is one, else of v2; None where there is neither.
        Peers join it after their pod's cgroup, and with v2 that moves them: attach it too."""
        base = Path("/sys/fs/cgroup/memory")
        if (base / "memory.limit_in_bytes").exists():
            path = base / self.tag
            path.mkdir()
            self.cgroups.append(path)
            (path / "memory.limit_in_bytes").write_text(str(limit))
            if (path / "memory.kmem.tcp.limit_in_bytes").exists():
                (path / "memory.kmem.tcp.limit_in_bytes").write_text(str(tcp_limit))
            return path
        if "memory" not in (cgroup2_mount() / "cgroup.subtree_control").read_text().split():
            return None
        (cgroup2_mount() / self.tag / "cgroup.subtree_control").write_text("+memory")
        path = self.new_cgroup("memory")
        (path / "memory.max").write_text(str(limit // 4))
        return path

    def pod(self, name):
        if name not in self.pods:
            self.pods[name] = Pod(self, name, len(self.pods) + 1)
        return self.pods[name]

    def router_iptables(self, *argv):
        sh("nsenter", f"--net=/run/netns/{self.bridge}", "iptables", "-w", *argv)

    # -- the product

    def argv(self, *args):
        return [BINARY, "--pin-dir", self.pin_dir, "--state-dir", self.state_dir, *map(str, args)]

    def cli(self, *args, timeout=60):
        return subprocess.run(self.argv(*args), capture_output=True, text=True, timeout=timeout * PATIENCE)

    def attach_args(self, pods, eligibility="all", *options):
        args = ["attach", "--eligibility", eligibility, *options]
        if "--min-messages" not in args:  # most connections here are short, and the fast path is what is to be tested
            args += ["--min-messages", "0"]
        for pod in pods:
            args += ["--cgroup", str(getattr(pod, "cgroup", pod))]
        return args

    def attach(self, *pods, eligibility="all", options=()):
        if PLAIN:
            return None
        self.attached = True
        done = self.cli(*self.attach_args(pods, eligibility, *options))
        assert done.returncode == 0, f"attach: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def detach(self, *args, ok=(0,)):
        if PLAIN:
            return None
        done = self.cli("detach", *(args or ("--all", "--timeout", "10")))
        assert done.returncode in ok, f"detach: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def status(self):
        done = self.cli("status", "-o", "json")
        assert done.returncode == 0, f"status: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return json.loads(done.stdout)

    def totals(self):
        return self.status()["totals"]

    def connections(self):
        done = self.cli("connections", "-o", "json")
        assert done.returncode == 0, f"connections: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return json.loads(done.stdout)

    def kinds(self):
        done = self.cli("kinds", "-o", "json")
        assert done.returncode == 0, f"kinds: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return json.loads(done.stdout)

    @contextmanager
    def expect_fast(self, messages=1):
        """The body must put at least this many messages on the fast path."""
        if PLAIN:
            yield
            return
        before = self.totals()["fast_messages"]
        yield
        grew = self.totals()["fast_messages"] - before
        assert grew >= messages, f"fast_messages grew by {grew}, wanted {messages}; {self.status()}"

    @contextmanager
    def expect_tcp(self, no_halves=False):
        """The body must put nothing on the fast path (and, if asked, nothing in the sockhash at its end)."""
        if PLAIN:
            yield
            return
        before = self.totals()["fast_messages"]
        yield
        after = self.totals()
        assert after["fast_messages"] == before, f"fast_messages grew by {after['fast_messages'] - before}"
        if no_halves:
            assert after["halves"] == 0, f"{after['halves']} halves in the sockhash"

    def wait_empty(self, timeout=10):
        """Every map back to nothing."""
        if PLAIN:
            return
        names = ("halves", "published", "announced", "pairs_live")
        last = {}

        def probe():
            totals = self.totals()
            last.update({n: totals[n] for n in names})
            return not any(last.values())
        try:
            wait_until("maps empty", probe, timeout, 0.2)
        except AssertionError:
            raise AssertionError(f"maps not empty after {timeout} s: {last}") from None

    # -- the end

    def close(self):
        problems = []
        for peer in self.peers:
            peer.close()
        for process in self.extra:
            if process.poll() is None:
                process.kill()
            process.wait()
        if self.attached and os.path.isdir(self.pin_dir):
            try:
                done = self.cli("detach", "--all", "--timeout", "10")
                if done.returncode:
                    problems.append(f"final detach, all peers gone: exit {done.returncode}: {done.stdout}{done.stderr}")
            except Exception as err:
                problems.append(f"final detach: {err}")
            if os.path.isdir(self.pin_dir):
                left = [os.path.join(d, f) for d, _, files in os.walk(self.pin_dir) for f in files]
                if left:
                    problems.append(f"final detach left pins: {left[:5]} ...")
                shutil.rmtree(self.pin_dir, ignore_errors=True)
        shutil.rmtree(self.state_dir, ignore_errors=True)
        for ns in reversed(self.namespaces):
            sh("ip", "netns", "del", ns, check=False)
        for path in reversed(self.cgroups):
            for _ in range(100):
                try:
                    path.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    for pid in (path / "cgroup.procs").read_text().split():
                        os.kill(int(pid), signal.SIGKILL)  # only our own: nobody else enters this cgroup
                    time.sleep(0.05)
        return problems

"""Runs a case in real pods and writes down everything the application saw.

Three pairs of pods: one that is attached to nothing, one attached with `--eligibility safe`, one with `all`. A case runs
in the first for its reference, and in one of the others; its listener serves several connections one after the other,
so that in `safe` the kind has been learned when the last of them come. In `turned`, which is `safe` too, well-behaved
connections come first: the kind is taken for safe, and then the case shows its hazard on a pair that is fast.
"""
import itertools
import json
import os
import signal
import socket
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "namespaced"))
import lab as lab_module  # noqa: E402
from lab import PLAIN, Lab, RemoteError, hold_syns, let_go  # noqa: E402

HERE = Path(__file__).resolve().parent
PATIENCE = 6.0 * lab_module.PATIENCE  # seconds: a call that takes longer hangs
ENOUGH = 2      # connections that differ: the rest would say the same
CONNECTIONS = {"plain": 3, "safe": 6, "all": 3, "turned": 2}
TAUGHT = 4      # well-behaved connections that come first in `turned`
LEARNED = 4     # from this connection on (counted from 0, one to spare) a kind that is well-behaved is fast in `safe`
STYLES = ("blocking", "nonblocking", "edge", "uring")
CASES = {}


class Case:
    def __init__(self, run, styles, core, raw, warm, listen, connect, needs, fast, connections, never):
        self.run, self.name, self.styles, self.core, self.raw, self.warm = run, run.__name__, styles, core, raw, warm
        self.listen, self.connect, self.needs, self.fast = listen, connect, needs, fast
        self.connections, self.never = connections, never


def case(styles=STYLES, core=False, raw=False, warm=6, listen=(), connect=(), needs=None, fast=True, connections=None,
         never=False):
    """Registers a case: a function of (t, c, s), or with raw of (t) alone, which makes its own connection.

    styles   how the application waits (program.py)
    core     part of the quick subset for other kernels
    warm     ping-pong rounds before the case begins: the handoff to the fast path is over then
    listen, connect   socket options, [(level, option, value)], of the listener and of the connecting socket
    needs    a feature that may be missing here: "mptcp", "tls"
    fast     False: stays on TCP in every mode, by design. None: shows a hazard, so that in `safe` it may become TCP
    connections       how many to one listener, where the usual number takes too long
    never    it waits for something that never comes, on plain TCP too
    """
    def register(run):
        assert run.__name__ not in CASES, run.__name__
        CASES[run.__name__] = Case(run, styles, core, raw, warm, list(listen), list(connect), needs, fast,
                                   connections, never)
        return run
    return register


class Hang(Exception):
    """A call that did not come back: what is known of where it hangs."""


def brief(value):
    if isinstance(value, (bytes, bytearray)):
        return value.decode("latin-1") if len(value) <= 24 else f"{len(value)} bytes"
    return value


class Side:
    """A socket of a case. Each call is a call in its pod (program.py), and a line of the transcript.

    `quiet` before a name keeps it out of the transcript: c.quiet.settle().
    """

    def __init__(self, t, peer, label, name=None, quiet=False):
        self.t, self.peer, self.label, self.name, self._quiet = t, peer, label, name or f"{label}{t.serial()}", quiet

    @property
    def quiet(self):
        return Side(self.t, self.peer, self.label, self.name, True)

    def __getattr__(self, op):
        if op.startswith("_"):
            raise AttributeError(op)

        def call(*args, **kw):
            got = self.t.call(self.peer, op, self.name, *args, **kw)
            if not self._quiet:
                self.t.write(self.label, op, [brief(a) for a in args], got)
            return got
        return call

    def start(self, tag, op, *args, **kw):
        """A thread of its own makes this call; finish(tag) says what came of it."""
        self.t.call(self.peer, "start", tag, op, self.name, *args, **kw)

    def finish(self, tag, timeout=4.0):
        got = self.t.call(self.peer, "finish", tag, timeout, patience=timeout + PATIENCE)
        self.t.write(self.label, "finish", [tag], got)
        if got == "-hang":
            raise Hang(f"{self.label}: thread {tag}\n{self.t.pair.stacks(self.peer)}")
        return got

    def still(self, tag, timeout=0.0):
        """True while that call has not come back."""
        got = self.t.call(self.peer, "waiting", tag, timeout)
        self.t.write(self.label, "waiting", [tag], got)
        return got

    def dup(self, label=None):
        copy = Side(self.t, self.peer, label or self.label + "'")
        self.t.call(self.peer, "dup", self.name, copy.name)
        return copy


class Tools:
    """What a case has besides its two sockets: `t`. One for each connection."""

    def __init__(self, run, number):
        self.run, self.number, self.pair, self.style, self.case = run, number, run.pair, run.style, run.case
        self.transcript, self._serial = [], itertools.count()

    def serial(self):
        return next(self._serial)

    def write(self, who, op, args, got):
        self.transcript.append([who, op, args, self.normal(got)])

    def note(self, what, value):
        """A line of the case's own."""
        self.write("-", what, [], value)

    def normal(self, value):
        """Addresses of pods differ from pair to pair, ports from connection to connection."""
        if isinstance(value, (list, tuple)):
            if len(value) in (2, 4) and isinstance(value[0], str) and value[0] in self.pair.addresses:
                return [self.pair.addresses[value[0]], "listener" if value[1] in self.run.ports else "port"]
            return [self.normal(v) for v in value]
        if isinstance(value, dict):
            return {k: self.normal(v) for k, v in value.items()}
        return value

    def call(self, peer, op, *args, patience=PATIENCE, **kw):
        try:
            return peer.post("do", op, *args, **kw).result(patience)
        except AssertionError as err:
            self.pair.spoiled = True
            raise Hang(f"{op}{args[1:]}: {err}\n{self.pair.stacks(peer)}") from None
        except RemoteError as err:
            raise RuntimeError(f"{op}{args}: {err}") from None

    def pause(self, seconds=0.01):
        time.sleep(seconds)

    # -- connections

    def listener(self, key=0, opts=None, protocol=0, backlog=64, peer=None, same_port_as=None, host=None):
        """The run's listener, made once; other keys make others."""
        if key not in self.run.listeners:
            port = self.run.listeners[same_port_as][1] if same_port_as is not None else self.run.new_port()
            name = f"ear{key}"
            peer = peer or self.pair.server
            got = self.call(peer, "listen", name, host or self.pair.server_ip, port,
                            opts=self.case.listen if opts is None else opts, protocol=protocol, backlog=backlog)
            if got is not None:
                raise RuntimeError(f"listen: {got}")
            self.run.listeners[key] = (Side(self, peer, "ear", name), port)
        side, port = self.run.listeners[key]
        side.t = self
        return side, port

    def dial(self, port, opts=None, peer=None, host=None, label="c", **kw):
        c = Side(self, peer or self.pair.client, label)
        got = self.call(c.peer, "connect", c.name, host or self.pair.server_ip, port, style=self.style,
                        opts=self.case.connect if opts is None else opts, **kw)
        self.write(label, "connect", [], got)
        return c

    def accept(self, ear, label="s", opts=()):
        s = Side(self, ear.peer, label)
        self.write(label, "accept", [], self.call(s.peer, "accept", s.name, ear.name, style=self.style, opts=opts))
        return s

    def connect(self, warm=None, peer=None):
        ear, port = self.listener()
        c = self.dial(port, peer=peer)
        s = self.accept(ear)
        self.warm(c, s, self.case.warm if warm is None else warm)
        return c, s

    def warm(self, c, s, rounds=6):
        """Ping-pong, so that the pair is fast (where it may be) when the case begins."""
        if not rounds:
            return
        answer = s.peer.post("do", "warm", s.name, rounds, False)
        first = self.call(c.peer, "warm", c.name, rounds, True)
        try:
            self.write("-", "warm", [], [first, answer.result(PATIENCE)])
        except AssertionError as err:
            self.pair.spoiled = True
            raise Hang(f"warming up: {err}\n{self.pair.stacks(s.peer)}") from None

    def other_process(self):
        """A further process in the client's pod, in a cgroup that is not attached; gone at the end of the connection."""
        return self.pair.extra(cgroup=self.pair.outside)

    def victim(self):
        """A further process in the client's pod and cgroup, which may be killed."""
        return self.pair.extra()

    def path(self):
        """Of a Unix socket that does not exist yet."""
        return str(Path(self.pair.arena.scratch.name) / f"{self.run.serial}-{self.number}-{self.serial()}")


class Pair:
    """A client's and a server's pod, and a process in each."""

    def __init__(self, arena, mode, index):
        self.arena, self.mode = arena, mode
        self.a, self.b = arena.lab.pod(f"{mode}-c"), arena.lab.pod(f"{mode}-s")
        self.outside = arena.lab.new_cgroup(f"{mode}-out")
        self.client_ip, self.server_ip = self.a.ip, self.b.ip
        self.addresses = {self.a.ip: "client", self.b.ip: "server", self.a.ip6: "client6", self.b.ip6: "server6"}
        self.client = self.server = None
        self.extras, self.spoiled = [], True
        for pod in (self.a, self.b):
            # no_metrics_save: TCP remembers what a destination was like, and the next socket's SO_SNDBUF depends on it
            pod.sysctl(tcp_fastopen=3, tcp_no_metrics_save=1)

    def fresh(self):
        """New processes, where the old ones hang."""
        if self.spoiled:
            for peer in (self.client, self.server):
                if peer:
                    self.drop(peer)
            self.client, self.server = self.new(self.a), self.new(self.b)
            self.spoiled = False

    def new(self, pod, cgroup=None):
        return pod.peer(cgroup=cgroup, program=str(HERE / "program.py"))

    def extra(self, pod=None, cgroup=None):
        peer = self.new(pod or self.a, cgroup)
        self.extras.append(peer)
        return peer

    def drop(self, peer):
        peer.close()
        self.arena.lab.peers.remove(peer)

    def clean(self, keep):
        for peer in self.extras:
            self.drop(peer)
        self.extras.clear()
        for peer in (self.client, self.server):
            try:
                if not self.spoiled and peer.call("reset", keep, timeout_=PATIENCE):
                    self.spoiled = True
            except AssertionError:
                self.spoiled = True

    @contextmanager
    def crossing(self):
        """SYNs that are sent in here cross."""
        hold_syns(self.a, self.b)
        hold_syns(self.b, self.a)
        try:
            yield
        finally:
            let_go(self.a, self.b)
            time.sleep(0.02)
            let_go(self.b, self.a)
            for pod in (self.a, self.b):
                pod.sysctl(**{"conf.all.arp_ignore": 0})

    @staticmethod
    def stacks(peer):
        """Where each thread of a process is, in the kernel and in Python."""
        text = []
        for task in sorted(Path(f"/proc/{peer.pid}/task").glob("*")):
            try:
                text.append(f"thread {task.name}:\n{(task / 'stack').read_text()}")
            except OSError:
                continue
        try:
            os.kill(peer.pid, signal.SIGUSR2)
            time.sleep(0.1)
            peer.errors.seek(0)
            text.append(peer.errors.read()[-3000:])
        except OSError:
            pass
        return "\n".join(text)


class Run:
    """One case, one style, one pair of pods: several connections."""
    serials = itertools.count(1)

    def __init__(self, arena, the_case, style, mode):
        self.arena, self.case, self.style, self.mode = arena, the_case, style, mode
        self.pair = arena.pairs["safe" if mode == "turned" else mode]
        self.serial = next(Run.serials)
        self.listeners, self.ports = {}, set()
        self.transcripts, self.fast, self.tcp, self.reasons = [], [], [], {}

    def new_port(self):
        port = next(self.arena.ports)
        self.ports.add(port)
        return port

    def teach(self):
        """Connections that only send and receive, so that the kind is taken for safe."""
        self.pair.fresh()
        for number in range(TAUGHT):
            Tools(self, number).connect()
            self.pair.clean([side.name for side, _ in self.listeners.values()])

    def go(self, connections, want=None):
        """So many connections; fewer when enough of them have not given what is wanted."""
        if self.mode == "turned":
            self.teach()
        before = self.arena.status(self.pair.mode, fresh=False)
        for number in range(connections):
            self.pair.fresh()
            t = Tools(self, number)
            try:
                if self.case.raw:
                    self.case.run(t)
                else:
                    self.case.run(t, *t.connect())
            except Hang as err:
                self.pair.spoiled = True
                t.write("-", "HANG", [], str(err))
            except RuntimeError as err:  # a call that the program could not make sense of: part of what it saw
                t.write("-", "failed", [], str(err)[-600:])
            self.pair.clean([side.name for side, _ in self.listeners.values()])
            if self.pair.spoiled:
                self.listeners.clear()  # they died with their process
            self.transcripts.append(t.transcript)
            after = self.arena.status(self.pair.mode)
            if after:
                self.fast.append(after["totals"]["fast_messages"] - before["totals"]["fast_messages"])
                self.tcp.append(after["totals"]["tcp_messages"] - before["totals"]["tcp_messages"])
                for name, count in after["reasons"].items():
                    grew = count - before["reasons"].get(name, 0)
                    if grew:
                        self.reasons[name] = self.reasons.get(name, 0) + grew
                before = after
            if want and sum(got != want for got in self.transcripts) >= ENOUGH:
                break
        self.pair.clean([])
        return self


# stamping of packets goes on some time after the first socket asks for it: one that asks all the time makes it certain
STAMPING = socket.socket()
STAMPING.setsockopt(socket.SOL_SOCKET, 35, 1)  # SO_TIMESTAMPNS


class Arena:
    def __init__(self):
        self.lab = Lab()
        self.scratch = tempfile.TemporaryDirectory(prefix="differential-")
        self.plain, self.ports, self.refusals, self.last = {}, itertools.count(20000), {}, None
        try:
            modes = ["plain"] if PLAIN else ["plain", "safe", "all"]
            self.pairs = {mode: Pair(self, mode, i) for i, mode in enumerate(modes)}
            # streams of `safe` go back to TCP; where FIONREAD misses redirected bytes (H7), only small messages are fast
            self.fionread = 0 if PLAIN else json.loads(self.lab.cli("check", "-o", "json").stdout)["datapath"]["fionread"]
            self.streams_leave, self.misses_fast = not PLAIN, self.fionread & 2 != 0
            for mode in modes[1:]:
                self.lab.attach(self.pairs[mode].a, self.pairs[mode].b, eligibility=mode)
        except BaseException:
            self.lab.close()
            raise

    def close(self):
        self.scratch.cleanup()
        return self.lab.close()

    def status(self, mode, fresh=True):
        """The product's counters; those of the last look will do where nothing has happened since."""
        if mode != "plain" and (fresh or not self.last):
            self.last = self.lab.status()
        return None if mode == "plain" else self.last

    def refusal(self, what):
        if what not in self.refusals:
            pair = self.pairs["plain"]
            pair.fresh()
            self.refusals[what] = pair.server.call("refusal", what)
        return self.refusals[what]

    def reference(self, the_case, style):
        """What plain TCP gives, and that it always gives the same."""
        key = (the_case.name, style)
        if key not in self.plain:
            self.plain[key] = Run(self, the_case, style, "plain").go(CONNECTIONS["plain"])
        return self.plain[key]

    def attached(self, the_case, style, mode):
        connections = CONNECTIONS[mode]
        if the_case.connections:
            connections = min(connections, the_case.connections)
        return Run(self, the_case, style, mode).go(connections, self.reference(the_case, style).transcripts[0])

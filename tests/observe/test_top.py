"""The screen in a real terminal: tmux sends the keys and says what is on it."""
import contextlib
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import uuid
from pathlib import Path

import pytest
from lab import KERNEL, PATIENCE, wait_until, warm

sys.path.insert(0, str(Path(__file__).parent))
from test_capture import capturing, taps  # noqa: E402
from test_requests import redis  # noqa: E402
from traffic import conversation  # noqa: E402

pytestmark = pytest.mark.product


class Screen:
    """80x24, of a tmux server of its own."""

    def __init__(self, command):
        self.server = f"ss-{uuid.uuid4().hex[:8]}"
        self("-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", "-s", "top", "sh")
        self.keys(command, "Enter")

    def __call__(self, *args):
        return subprocess.run(["tmux", "-L", self.server, *args], check=True, capture_output=True, text=True).stdout

    def keys(self, *keys):
        self("send-keys", "-t", "top", *keys)

    def text(self):
        return self("capture-pane", "-p", "-t", "top")

    def shows(self, *words):
        last = []

        def probe():
            last[:] = [self.text()]
            return all(w in last[0] for w in words)
        try:
            wait_until(f"{words} on the screen", probe, 15)
        except AssertionError as err:
            raise AssertionError(f"{err}\n{last[0]}") from None
        return last[0]


@pytest.fixture
def top(lab):
    if not shutil.which("tmux"):
        pytest.skip("no tmux")
    screens = []

    def start(*args):
        command = " ".join(lab.argv("top", "--interval", "0.3", *args))
        screens.append(Screen(f"export PS1=; clear; {command}; stty -a | grep -o -- '-*echo ' ; echo ended=$?"))
        return screens[-1]
    yield start
    for screen in screens:
        screen("kill-server")


def test_a_session(lab, pods, top):
    lab.attach(*pods)
    with conversation(pods) as (client, server):
        screen = top()
        screen.shows("1 connections", f"{lab.tag}/p1", f"{lab.tag}/p2", "CLIENT", "MSGS/S")
        for _ in range(3):
            warm(client, server, 200)
        screen.keys("Tab")
        screen.shows("6379", "PORT", "fast")
        screen.keys("Enter")
        text = screen.shows("established", "reasons: fast", "events", "handoff: the client sends by the fast path",
                            "wait p50 -  none of 1 in 64 lately" if KERNEL >= (6, 3) else "wait p50 -  not measured")
        assert max(map(len, text.splitlines())) <= 80
        screen.keys("?")
        screen.shows("Keys", "look closer")
        screen.keys("?")
        screen.keys("Escape")
        screen.shows("PORT")
        screen.keys("/", "port 80", "Enter")
        screen.shows("0 connections", "filter: port 80")
        screen.keys("p")
        screen.shows("PAUSED")
        screen.keys("q")
        text = screen.shows("ended=0")
        assert "CLIENT" not in text and "echo" in text.splitlines(), text  # the terminal is as it was


@pytest.mark.skipif(KERNEL < (6, 3), reason="waits are measured by a tracepoint of Linux 6.3")
def test_how_long_messages_wait(lab, pods, top):
    """A reader that is 5 ms late, and its answers, which are read at once: the median is between them, and has a history."""
    lab.attach(*pods, options=("--latency-samples", "1"))
    program = str(Path(__file__).parent / "pump.py")
    client, server = pods[0].peer(program=program), pods[1].peer(program=program)
    port = server.call("listen_pump", pods[1].ip)
    echo = server.post("late_echo", 1000, 0.005)
    asking = client.post("late_ask", pods[1].ip, port, 1000)
    screen = top()
    screen.shows("1 connections")
    screen.keys("Tab")
    screen.shows(str(port), "fast")
    screen.keys("Enter")

    def figure():
        line = next((line for line in screen.text().splitlines() if line.startswith("wait p50")), "")
        found = re.match(r"wait p50 +(\d+) (ns|us|ms) +([\u2581-\u2588 ]{4,})$", line)
        return found and (int(found[1]) * {"ns": 1, "us": 1_000, "ms": 1_000_000}[found[2]], line)
    ns, line = wait_until("a median and bars", figure, 15)
    assert ns < 20_000_000 and len(line) <= 80, line
    asking.result(60)
    echo.result(60)


def terminate(lab):
    pids = subprocess.run(["pgrep", "-f", f"{lab.pin_dir} .*top --interval"], capture_output=True, text=True).stdout.split()
    for pid in pids:
        if Path(f"/proc/{pid}/comm").read_text().strip() == "shared-socket":
            subprocess.run(["kill", "-TERM", pid], check=True)


def test_sigterm_gives_the_terminal_back(lab, pods, top):
    lab.attach(*pods)
    screen = top()
    screen.shows("0 connections")
    terminate(lab)
    text = screen.shows("ended=0")
    assert "echo" in text.splitlines(), text


@pytest.mark.parametrize("how", ["hang up", "hang up, no signal"])
def test_the_terminal_is_gone(lab, pods, how):
    """The window is closed, or the connection to it is lost: it ends, instead of reading the end of the file for ever."""
    lab.attach(*pods)
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    ignore = (lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) if how != "hang up" else None
    argv = lab.argv("top", "--interval", "0.3", "--requests")
    process = subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, preexec_fn=ignore, start_new_session=True)
    os.close(slave)
    lab.extra.append(process)
    is_in(lab)
    seen = b""
    while b"0 connections" not in seen:
        assert select.select([master], [], [], 10 * PATIENCE)[0], seen
        seen += os.read(master, 4096)
    os.close(master)
    assert process.wait(10 * PATIENCE) == 0
    assert taps(lab) == []


def test_once(lab, pods):
    lab.attach(*pods)
    with conversation(pods):
        done = lab.cli("top", "--once", "--interval", "0.1")
        assert done.returncode == 0 and f"{lab.tag}/p1" in done.stdout and "1 connections" in done.stdout, done
    done = lab.cli("top")
    assert done.returncode == 1 and "--once" in done.stderr


def is_in(lab):
    wait_until("the tap is in", lambda: list(Path(lab.pin_dir).glob("g*/tap0/program")))


def test_requests(lab, pods, top, tmp_path):
    """A row of what redis-cli asks, with its errors; who ends top, by a key or by SIGTERM, leaves no tap behind."""
    lab.attach(*pods)
    commands = "set text word\n" + "get text\n" * 20 + "incr text\nincr text\n"
    with redis(pods, tmp_path) as ask:
        screen = top("--requests", "port", "6379")
        is_in(lab)
        screen.keys("Tab", "Tab")
        screen.shows("0 requests/s, 0 in all, 0 errors", "filter of the start: port 6379")
        asking = subprocess.Popen(ask, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        asking.stdin.write(commands)
        asking.stdin.flush()
        text = screen.shows("2 errors", "CLIENT", "REQ/S", f"/{lab.tag}/p1 > /{lab.tag}/p2", "GET 20", "INCR 2", "SET 1", "error 2")
        row, = (line.split() for line in text.splitlines() if line.startswith("> "))
        assert row[1:4] == [f"/{lab.tag}/p1"[:len(row[1])], f"/{lab.tag}/p2"[:len(row[2])], "redis"], text
        assert int(row[5]) >= 23 and row[6] == "2" and row[10:12] == ["GET", "INCR"], text
        assert "answers lost" not in text and max(map(len, text.splitlines())) <= 80, text
        screen.keys("s")
        screen.shows("sort: requests")
        screen.keys("?")
        screen.shows("requests (also l)", "Messages are copied")
        screen.keys("?", "q")
        screen.shows("ended=0")
        assert taps(lab) == []

        screen = top("--requests", "path", "fast")
        screen.keys("l")
        screen.shows("`path`, a word of the filter, changes", "filter of the start: all")
        is_in(lab)
        asking.stdin.write(commands)
        asking.stdin.flush()
        screen.shows("2 errors", "GET 20")
        terminate(lab)
        screen.shows("ended=0")
        assert taps(lab) == []
        asking.communicate()


def test_requests_of_one_interval(lab, pods, tmp_path):
    lab.attach(*pods)
    with redis(pods, tmp_path) as ask:
        argv = lab.argv("top", "--once", "--requests", "--interval", "1000")
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        is_in(lab)
        subprocess.run(ask, input="get text\n" * 20, text=True, check=True, capture_output=True)
        process.terminate()
        out, _ = process.communicate(timeout=20)
    assert process.returncode == 0 and "GET 20" in out and f"/{lab.tag}/p1 > /{lab.tag}/p2" in out, out
    assert taps(lab) == []


def test_why_there_are_no_requests(lab, pods, top):
    """Three captures run already; when one has ended, its place is taken. Without --requests there is no such screen."""
    lab.attach(*pods)
    with contextlib.ExitStack() as stack:
        captures = []
        for n in (1, 2, 3):
            captures.append(stack.enter_context(capturing(lab, "-w", "/dev/null")))
            wait_until("another", lambda: len(taps(lab)) == n)
        done = lab.cli("top", "--once", "--requests", "--interval", "0.1")
        assert done.returncode == 0 and "3 captures run already" in done.stdout, done
        screen = top("--requests")
        screen.keys("l")
        screen.shows("requests are not seen", "3 captures run", "is tried again")
        screen.keys("Tab")
        screen.shows("CLIENT", "MSGS/S")
        screen.keys("l")
        captures[0].send_signal(signal.SIGINT)
        screen.shows("REQ/S")
        screen.keys("q")
        screen.shows("ended=0")
    print([(p.returncode, p.stderr_) for p in captures])
    assert taps(lab) == []
    screen = top()
    screen.keys("l", "?")
    screen.shows("top --requests", "messages are copied while it runs")

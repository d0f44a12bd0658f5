"""The screen in a real terminal: tmux sends the keys and says what is on it."""
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from lab import wait_until, warm

sys.path.insert(0, str(Path(__file__).parent))
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
        text = screen.shows("established", "reasons: fast", "events", "handoff: the client sends by the fast path")
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


def test_sigterm_gives_the_terminal_back(lab, pods, top):
    lab.attach(*pods)
    screen = top()
    screen.shows("0 connections")
    pids = subprocess.run(["pgrep", "-f", f"{lab.pin_dir} .*top --interval"], capture_output=True, text=True).stdout.split()
    for pid in pids:
        if Path(f"/proc/{pid}/comm").read_text().strip() == "shared-socket":
            subprocess.run(["kill", "-TERM", pid], check=True)
    text = screen.shows("ended=0")
    assert "echo" in text.splitlines(), text


def test_once(lab, pods):
    lab.attach(*pods)
    with conversation(pods):
        done = lab.cli("top", "--once", "--interval", "0.1")
        assert done.returncode == 0 and f"{lab.tag}/p1" in done.stdout and "1 connections" in done.stdout, done
    done = lab.cli("top")
    assert done.returncode == 1 and "--once" in done.stderr

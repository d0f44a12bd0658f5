"""The agent's page: its data, its headers, and what a real browser makes of it."""
import json
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import xml.dom.minidom
from pathlib import Path

import pytest
from lab import PATIENCE, wait_until

sys.path.insert(0, str(Path(__file__).parent))
from traffic import conversation  # noqa: E402

pytestmark = pytest.mark.product
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Agent:
    def __init__(self, lab, place):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.at = f"127.0.0.1:{s.getsockname()[1]}"
        file = place / "agent.yaml"
        file.write_text(f"apiVersion: shared-socket.io/v1\nendpoints: {{http: '{self.at}', page: '{self.at}'}}\n")
        self.log = place / "agent.log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(lab.argv("--log-format", "json", "agent", "--config", file), stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log)
        lab.extra.append(self.process)
        wait_until(f"the agent serves: {self.log}", self.serves, 20)

    def serves(self):
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.get("/healthz").status == 200
        except OSError:
            return False

    def get(self, path):
        return urllib.request.urlopen(f"http://{self.at}{path}", timeout=10 * PATIENCE)

    def ask(self, path):
        return json.load(self.get(path))


@pytest.fixture
def agent(lab, pods, tmp_path):
    lab.attach(*pods)
    return Agent(lab, tmp_path)


def test_api_and_policy(lab, pods, agent):
    with conversation(pods):
        page = agent.ask("/api/connections?filter=dst%20port%206379&sort=bytes,age&limit=5")
        assert (page["total"], page["matched"]) == (1, 1)
        row, = page["connections"]
        assert row["client"]["workload"]["name"].endswith("/p1") and row["server"]["port"] == 6379
        assert agent.ask("/api/connections?filter=port%201")["connections"] == []
        flow, = agent.ask("/api/flows")
        assert flow["messages"] == 40 and flow["pairs"] == 1
        assert [n["name"] for n in agent.ask("/api/map")["nodes"]] == [f"/{lab.tag}/p1", f"/{lab.tag}/p2"]
        xml.dom.minidom.parse(agent.get("/api/map.svg"))
        assert {r["name"]: r["count"] for r in agent.ask("/api/reasons")}["fast"] > 0
        with pytest.raises(urllib.error.HTTPError) as bad:
            agent.get("/api/connections?filter=prot")
        assert bad.value.code == 400 and b"at column 1: expected" in bad.value.read()
    for path in ("/", "/page.js", "/page.css", "/api/flows"):
        answer = agent.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert b"http" not in answer.read().replace(b"http://www.w3.org", b"")


def test_who_comes_by_a_strange_name_is_told_nothing(agent):
    """DNS rebinding: a page of somebody else's, whose name leads to this address."""
    request = urllib.request.Request(f"http://{agent.at}/api/connections", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError) as err:
        urllib.request.urlopen(request, timeout=10)
    assert err.value.code == 403
    request.add_header("Host", "localhost:9465")
    assert urllib.request.urlopen(request, timeout=10).status == 200


def test_the_level_of_the_log_by_signals(agent):
    def said():
        return [json.loads(line).get("level_") or line for line in agent.log.read_text().splitlines() if "by a signal" in line]
    agent.process.send_signal(signal.SIGUSR1)
    wait_until("more", lambda: len(said()) == 1)
    agent.process.send_signal(signal.SIGUSR2)
    wait_until("less", lambda: len(said()) == 2)
    assert "Debug" in said()[0] and "Info" in said()[1]


@pytest.mark.skipif(not CHROMIUM, reason="no chromium")
@pytest.mark.parametrize("dark", [False, True])
def test_in_a_browser(lab, agent, tmp_path, dark):
    hostile = "pod<img src=x onerror=document.title=1>"  # a cgroup's name is shown where no runtime knows it
    other = lab.new_cgroup(hostile.replace("/", ""))
    pods = [lab.pods["p1"], lab.pods["p2"]]
    lab.attach(other)
    a, b = pods[0].peer(cgroup=other), pods[1].peer()
    ear = b.listen("0.0.0.0", 6379)
    client = a.connect(pods[1].ip, 6379)
    ear.accept()
    client.send(b"hello")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}",
             "--virtual-time-budget=5000", "--window-size=1100,1000"] + (["--force-dark-mode"] if dark else [])
    picture = tmp_path / "page.png"
    done = subprocess.run([CHROMIUM, *flags, f"--screenshot={picture}", "--dump-dom", f"http://{agent.at}/"],
                          capture_output=True, text=True, timeout=120)
    dom = done.stdout
    assert "1 of 1 connections" in dom, done.stderr[-2000:] + dom
    assert f"/{lab.tag}/p2" in dom and "10.77.0.2:6379" in dom
    assert "pod&lt;img" in dom and "<img src=x" not in dom and "<title>Shared Socket</title>" in dom

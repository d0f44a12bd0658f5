"""Sums of workloads that are gone are put together when the map of flows fills up: none is lost, none counts twice, whoever dies
and whoever looks meanwhile."""
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from lab import wait_until, warm

sys.path.insert(0, str(Path(__file__).parent))
from test_metrics import agent, flows_add_up, scrape, total  # noqa: E402,F401

pytestmark = pytest.mark.product
LIMIT = "SHARED_SOCKET_DEBUG_FLOWS"


def removed(path):
    try:
        path.rmdir()
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True


class Churn:
    """Workloads that talk for a moment, and are gone."""

    def __init__(self, lab, pods):
        self.lab, self.pods, self.made, self.messages = lab, pods, 0, 0

    def workloads(self, flows, server_stays=False):
        """So many flows more, each of a client (and a server, or the second pod) whose cgroup is gone."""
        (a, b), gone, live = self.pods, [], self.lab.totals()["halves"]
        for _ in range(flows):
            self.made += 1
            client = self.lab.new_cgroup(f"c{self.made}")
            server = b.cgroup if server_stays else self.lab.new_cgroup(f"s{self.made}")
            gone.append((client, server))
        self.lab.attach(*{c: None for pair in gone for c in pair})
        for number, (client, server) in enumerate(gone, 1):
            inside, serving = a.peer(cgroup=client), b.peer(cgroup=server)
            ear = serving.listen(b.ip)
            c, s = inside.connect(b.ip, ear.port), ear.accept()
            warm(c, s, number)
            self.messages += 2 * number
            c.close()
            s.close()
            for peer in (inside, serving):
                peer.process.kill()
                peer.process.wait()
        wait_until("their halves are gone", lambda: self.lab.totals()["halves"] == live, 10, 0.2)
        for path in (p for pair in gone for p in pair if p != b.cgroup):
            wait_until("the cgroup can go", lambda path=path: removed(path))

    def forgotten(self):
        """Until the kernel has let go of the removed ones; no flow is put together meanwhile."""
        def probe():
            self.lab.attach(*self.pods)
            return len(self.lab.status()["workloads"]) == len(self.pods)
        before, os.environ[LIMIT] = os.environ.get(LIMIT), "16000"
        wait_until("removed workloads are forgotten", probe, 20, 0.2)
        if before is None:
            del os.environ[LIMIT]
        else:
            os.environ[LIMIT] = before


def entries(metrics):
    return total(metrics, "map_entries", map="flows")


def other(metrics):
    return total(metrics, "flow_messages_total", client_container="other")


def whole(metrics, churn):
    flows_add_up(metrics)
    assert total(metrics, "flow_messages_total") == churn.messages


@pytest.fixture
def churn(lab, pods, monkeypatch):
    monkeypatch.setenv(LIMIT, "16000")
    lab.attach(*pods)
    return Churn(lab, pods)


def test_what_is_gone_makes_room(lab, pods, churn, agent, monkeypatch):  # noqa: F811
    url = agent()
    looks, stop = [], threading.Event()

    def look():
        while not stop.is_set():
            looks.append(scrape(url))
    looking = threading.Thread(target=look)
    looking.start()
    try:
        # more than one batch
        churn.workloads(60)
        churn.forgotten()
        before = scrape(url)
        whole(before, churn)
        assert entries(before) >= 60 and other(before) == 0
        monkeypatch.setenv(LIMIT, "59")
        lab.attach(*pods)
        after = scrape(url)
        whole(after, churn)
        assert entries(after) < 10 and other(after) == churn.messages
        # a workload that is there keeps its flows, while there is room with those whose both ends are gone put away
        churn.workloads(3)
        churn.workloads(3, server_stays=True)
        churn.forgotten()
        monkeypatch.setenv(LIMIT, "3")
        lab.attach(*pods)
        kept = scrape(url)
        whole(kept, churn)
        assert total(kept, "flow_messages_total", server_container=f"/{lab.tag}/p2") == 2 * (1 + 2 + 3)
        monkeypatch.setenv(LIMIT, "2")
        lab.attach(*pods)
        last = scrape(url)
        whole(last, churn)
        assert other(last) == churn.messages
    finally:
        stop.set()
        looking.join()
    # who looked meanwhile has never seen less than before
    for name in ("flow_messages_total", "flow_sent_bytes_total", "flow_pairs_total", "flow_connection_duration_seconds_count",
                 "flow_message_size_bytes_count"):
        seen = [total(m, name) for m in looks]
        assert seen == sorted(seen), (name, seen)
    assert [other(m) for m in looks] == sorted(other(m) for m in looks)
    assert len(looks) > 5


def test_a_flow_with_a_live_half_stays(lab, pods, churn, agent, monkeypatch):  # noqa: F811
    """Its cgroups are removed, as its processes have gone elsewhere, and its connection goes on."""
    a, b = pods
    url = agent()
    client, server = lab.new_cgroup("client"), lab.new_cgroup("server")
    lab.attach(client, server)
    inside, serving = a.peer(cgroup=client), b.peer(cgroup=server)
    ear = serving.listen(b.ip)
    c, s = inside.connect(b.ip, ear.port), ear.accept()
    warm(c, s, 10)
    (a.cgroup / "cgroup.procs").write_text(str(inside.pid))
    (b.cgroup / "cgroup.procs").write_text(str(serving.pid))
    for path in (client, server):
        wait_until("the cgroup can go", lambda path=path: removed(path))
    churn.workloads(2)
    monkeypatch.setenv(LIMIT, "0")
    wait_until("the others are put together", lambda: lab.attach(*pods) and other(scrape(url)) == churn.messages, 20, 0.2)
    warm(c, s, 5)
    lab.attach(*pods)
    m = scrape(url)
    assert other(m) == churn.messages and total(m, "flow_messages_total") == churn.messages + 30
    flows_add_up(m)
    c.close()
    s.close()
    ear.close()
    lab.wait_empty()
    churn.messages += 30
    wait_until("it is put together, too", lambda: lab.attach(*pods) and other(scrape(url)) == churn.messages, 20, 0.2)
    flows_add_up(scrape(url))


def test_death_at_every_step(lab, pods, churn, agent):  # noqa: F811
    url = agent()
    step = 0
    died = set()
    while True:
        step += 1
        churn.workloads(2)
        churn.forgotten()
        env = {**os.environ, LIMIT: "0", "SHARED_SOCKET_DEBUG_DIE_AT": str(step)}
        done = subprocess.run(lab.argv(*lab.attach_args(pods)), capture_output=True, text=True, env=env, timeout=60)
        whole(scrape(url), churn)
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr
        died.add(done.stderr.rpartition("(")[2].strip(")\n"))
    assert {"fold: summed up", "fold: in force", "fold: deleted"} <= died, died
    assert other(scrape(url)) == churn.messages

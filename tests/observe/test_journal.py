"""`shared-socket events`: the journal tells what happened to connections and workloads, and counts what it does not tell."""
import json
import subprocess
import threading
import time

import pytest
from lab import warm, wait_until

pytestmark = pytest.mark.product


def events(lab, *args):
    done = lab.cli("-o", "json", "events", *args)
    assert done.returncode == 0, f"events: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return [json.loads(line) for line in done.stdout.splitlines()]


def told(lab, *args):
    """Without the line of what was missed."""
    return [e for e in events(lab, *args) if "kind" in e]


def pair(pods, server=None):
    client, server = pods[0].peer(), server or pods[1].peer()
    listener = server.listen(pods[1].ip)
    c = client.connect(pods[1].ip, listener.port)
    return c, listener.accept(), listener


def close(*sockets):
    for s in sockets:
        s.close()


def test_the_life_of_a_connection(lab, pods):
    """Each step once, in order, with both ends; totals are what was sent."""
    lab.attach(*pods)
    c, s, listener = pair(pods)
    with lab.expect_fast(8):
        warm(c, s, 8)
    close(c, s)
    wait_until("closed is told", lambda: told(lab, "--kind", "closed"))
    port = str(listener.port)
    seen = told(lab, "--port", port)
    kinds = [e["kind"] for e in seen]
    assert [k for k in kinds if k != "handoff"] == ["connect", "accept", "paired", "closed"], kinds
    assert 1 <= kinds.count("handoff") <= 2 and kinds.index("handoff") > kinds.index("paired"), kinds
    times = [e["monotonic_ns"] for e in seen]
    assert times == sorted(times)
    paired = next(e for e in seen if e["kind"] == "paired")
    assert paired["role"] == "server" and paired["local"] == f"{pods[1].ip}:{port}"
    assert paired["workload"]["name"].endswith(pods[1].cgroup.name)
    assert paired["peer"]["name"].endswith(pods[0].cgroup.name)
    closed = next(e for e in seen if e["kind"] == "closed")
    ends = (closed["sent"], closed["received"])
    client, server = ends if closed["role"] == "client" else ends[::-1]
    assert client["fast_bytes"] + client["tcp_bytes"] == 32 and client["fast_messages"] + client["tcp_messages"] == 8
    assert server["fast_bytes"] + server["tcp_bytes"] == 16 and server["fast_messages"] + server["tcp_messages"] == 8
    assert 0 < closed["duration_seconds"] < 600
    assert [e["workload"]["name"] for e in told(lab, "--kind", "attach")] == [f"/{lab.tag}/{p.name}" for p in pods]
    text = lab.cli("events", "--kind", "closed").stdout
    assert "client sent 8 messages" in text and "server sent 8 messages" in text, text


def test_what_stays_on_tcp_says_why(lab, pods):
    """Connections to elsewhere, kinds that are learned, a message that falls back, a pair that is detached."""
    lab.attach(pods[1])
    c, s, listener = pair(pods)  # the client's pod is not attached
    seen = told(lab, "--port", str(listener.port))
    assert [(e["kind"], e.get("reason")) for e in seen] == [("accept", "elsewhere")], seen
    lab.attach(pods[0], eligibility="safe")
    c2, s2, listener2 = pair(pods)
    warm(c2, s2, 2)
    seen = told(lab, "--port", str(listener2.port))
    assert [(e["kind"], e.get("reason")) for e in seen][0] == ("connect", "learning"), seen
    assert [(e["kind"], e.get("reason")) for e in seen][1][0] == "accept", seen
    lab.attach(pods[0], eligibility="all")
    c3, s3, listener3 = pair(pods)
    with lab.expect_fast(8):
        warm(c3, s3, 8)
    lab.detach("--cgroup", str(pods[0].cgroup), "--timeout", "10")
    warm(c3, s3, 2)
    seen = told(lab, "--port", str(listener3.port))
    left = [e for e in seen if e["kind"] == "left"]
    assert len(left) == 2 and all(e["reason"] == "detach" for e in left), seen
    assert [e["kind"] for e in told(lab, "--kind", "detach")] == ["detach"]
    assert not told(lab, "--reason", "bulk")
    assert lab.cli("events", "--reason", "nonsense").returncode == 1
    assert lab.cli("events", "--kind", "nonsense").returncode == 2


def test_what_was_there_before_is_adopted(lab, pods):
    """A connection from before attach, and one that outlives its workload's attachment."""
    lab.attach(pods[1], options=("--no-adopt",))
    c, s, listener = pair(pods)
    warm(c, s, 2)
    lab.attach(pods[0])
    if not lab.totals()["adopted"]:
        pytest.skip("this kernel cannot adopt")
    adopted = told(lab, "--kind", "adopted")
    assert len(adopted) == 1 and adopted[0]["remote" if adopted[0]["role"] == "client" else "local"] == \
        f"{pods[1].ip}:{listener.port}", adopted
    assert adopted[0]["peer"]["name"] != adopted[0]["workload"]["name"]
    for pod in pods:
        assert len(told(lab, "--kind", "adopted", "--workload", f"/{lab.tag}/{pod.name}")) == 1
    third = lab.pod("p3")
    lab.attach(third)
    for pod in pods:
        lab.detach("--cgroup", str(pod.cgroup), "--timeout", "10")
    lab.attach(third)  # any command sweeps the records
    warm(c, s, 2)
    unseen = told(lab, "--kind", "unwatched")
    assert len(unseen) == 1 and unseen[0]["reason"] == "detach" and unseen[0]["cookie"] in \
        (adopted[0]["cookie"], adopted[0]["peer_cookie"]), unseen


def test_backed_up_and_fast_again(lab, pods):
    """Only the change is told, not every message behind it."""
    lab.attach(*pods, options=("--budget-messages", "16"))
    c, s, listener = pair(pods)
    with lab.expect_fast(8):
        warm(c, s, 8)
    for _ in range(100):
        c.send(b"unread")
    port = str(listener.port)
    back = told(lab, "--port", port, "--kind", "fell_back")
    assert len(back) == 1 and back[0]["reason"] == "backed_up" and back[0]["role"] == "client", back
    s.read(600)
    before = len(told(lab, "--port", port, "--kind", "handoff"))
    warm(c, s, 4)
    again = told(lab, "--port", port, "--kind", "handoff")
    assert len(again) == before + 1 and again[-1]["monotonic_ns"] > back[0]["monotonic_ns"], again


def test_followers_see_each_event_once(lab, pods):
    """Two at a time, with no daemon; what came before they began is not theirs, and `--since` finds it."""
    lab.attach(*pods)
    c, s, _ = pair(pods)
    close(c, s)
    wait_until("closed is told", lambda: told(lab, "--kind", "closed"))
    lines = ([], [])
    for into in lines:
        process = subprocess.Popen(lab.argv("-o", "json", "events", "--follow"), stdout=subprocess.PIPE, text=True)
        lab.extra.append(process)
        threading.Thread(target=lambda p=process, i=into: i.extend(map(json.loads, p.stdout)), daemon=True).start()
    time.sleep(1.5)
    c, s, listener = pair(pods)
    warm(c, s, 4)
    close(c, s)
    wait_until("both are told of the end", lambda: all(any(e.get("kind") == "closed" for e in into) for into in lines))
    for into in lines:
        kinds = [e["kind"] for e in into]
        assert sorted(set(kinds)) == ["accept", "closed", "connect", "handoff", "paired"], kinds
        assert kinds.count("closed") == 1 and kinds[0] == "connect", kinds
    assert len(told(lab, "--since", "1h", "--kind", "closed")) == 2
    assert not told(lab, "--since", "2999-01-01T00:00:00Z")


def test_a_storm_is_counted_and_does_not_push_out_the_rest(lab, pods):
    """More connections than a CPU may tell of at once: told and suppressed add up to all of them."""
    lab.attach(*pods)
    client, server = pods[0].peer(), pods[1].peer()
    listener = server.listen(pods[1].ip)
    count = 6000
    served = server.post("storm_serve", listener.name, count)
    client.call("storm_connect", pods[1].ip, listener.port, count, timeout_=60)
    served.result(60)
    lab.wait_empty()
    seen = events(lab)
    missed = [e["missed"] for e in seen if "missed" in e]
    assert missed and missed[0]["lost"] == 0, missed
    for kind in ("connect", "accept", "paired", "closed"):
        written = sum(e.get("kind") == kind for e in seen)
        suppressed = missed[0]["suppressed"].get(kind, 0)
        assert suppressed > 0 and written + suppressed == count, (kind, written, suppressed)
    assert sum(e.get("kind") == "attach" for e in seen) == 2
    assert "not told, as they came too fast" in lab.cli("events").stderr

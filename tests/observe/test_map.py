"""`shared-socket map`: the graph of what goes between workloads, in each of its forms, from real traffic."""
import json
import shutil
import subprocess
from xml.etree import ElementTree

import pytest

pytestmark = pytest.mark.product


@pytest.fixture
def talking(lab, pods):
    """One busy fast flow, and one that is idle."""
    a, b = pods
    lab.attach(a, b)
    server, client, other = b.peer(), a.peer(), b.peer()
    ear, back = server.listen(b.ip), client.listen(a.ip)
    idle = other.connect(a.ip, back.port)
    answered = back.accept()
    idle.send(b"once")
    assert answered.read(4) == b"once"
    server.call("epoll_echo_start", ear.name)
    client.call("busy_start", b.ip, ear.port, 2)
    yield f"/{lab.tag}/p1", f"/{lab.tag}/p2"


def test_graph_of_real_traffic(lab, talking):
    first, second = talking
    done = lab.cli("map", "-n", "-o", "json", "--interval", "0.5")
    assert done.returncode == 0, done.stderr
    graph = json.loads(done.stdout)
    names = [w["name"] for w in graph["workloads"]]
    assert names == sorted([first, second])
    edges = {(names[e["from"]], names[e["to"]]): e for e in graph["edges"]}
    assert set(edges) == {(first, second), (second, first)}
    busy, idle = edges[first, second], edges[second, first]
    assert busy["connections"] == 2 and busy["rate"]["fast_messages"] > 10 and busy["fast_share"] > 0.9
    assert idle["rate"] == {"fast_messages": 0, "tcp_messages": 0, "fast_bytes": 0, "tcp_bytes": 0}
    assert idle["connections"] == 1 and idle["up"]["fast_bytes"] + idle["up"]["tcp_bytes"] == 4


def test_pictures(lab, talking):
    svg = lab.cli("map", "-n", "-o", "svg", "--interval", "0.2").stdout
    root = ElementTree.fromstring(svg)
    texts = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    assert all(any(name.endswith(t.lstrip("…")) for t in texts) for name in talking), texts
    titles = [e.text for e in root.iter("{http://www.w3.org/2000/svg}title")]
    assert sum("connections" in t for t in titles) == 2
    dot = lab.cli("map", "-n", "-o", "dot", "--interval", "0.2").stdout
    assert all(f'label="{name}"' in dot for name in talking)
    if shutil.which("dot"):
        drawn = subprocess.run(["dot", "-Tsvg"], input=dot, capture_output=True, text=True)
        assert drawn.returncode == 0 and drawn.stdout.count("<ellipse") + drawn.stdout.count("<path") >= 4, drawn.stderr
    table = lab.cli("map", "-n").stdout
    assert all(name in table for name in talking) and "FAST" in table


def test_other_verbs_draw_nothing(lab, pods):
    done = lab.cli("status", "-o", "svg")
    assert done.returncode == 1 and "map" in done.stderr
    assert "svg" in lab.cli("map", "-o", "svg").stdout  # nothing attached: an empty picture

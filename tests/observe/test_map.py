"""The picture: right as data, well-formed as SVG, and understood by graphviz."""
import json
import shutil
import subprocess
import sys
import xml.dom.minidom
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from traffic import conversation  # noqa: E402

pytestmark = pytest.mark.product


def test_map(lab, pods):
    lab.attach(*pods)
    with conversation(pods):
        def ask(form):
            done = lab.cli("map", "-o", form, "--interval", "0.1")
            assert done.returncode == 0, done.stderr
            return done.stdout
        graph = json.loads(ask("json"))
        names = [f"/{lab.tag}/p1", f"/{lab.tag}/p2"]
        assert [n["name"] for n in graph["nodes"]] == names
        edge, = graph["edges"]
        assert [edge["client"], edge["server"]] == names and edge["pairs"] == 1
        assert edge["messages"] == 40 and 0 < edge["fast_share"] <= 1
        picture = xml.dom.minidom.parseString(ask("svg"))
        texts = [t.firstChild.data for t in picture.getElementsByTagName("title") if t.firstChild]
        assert any(names[0] in t and names[1] in t for t in texts), texts
        dot = ask("dot")
        if shutil.which("dot"):
            done = subprocess.run(["dot", "-Tplain"], input=dot, capture_output=True, text=True)
            assert done.returncode == 0 and done.stdout.count("\nnode ") == 2 and done.stdout.count("\nedge ") == 1, done


def test_nothing_to_draw(lab):
    done = lab.cli("map", "--interval", "0")
    assert done.returncode == 0 and "no connections" in done.stdout
    xml.dom.minidom.parseString(done.stdout)

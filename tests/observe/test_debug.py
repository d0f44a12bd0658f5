"""The archive for a bug report: all that its manifest says, and nothing that a connection carried."""
import io
import json
import stat
import tarfile
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from traffic import conversation  # noqa: E402

pytestmark = pytest.mark.product
SECRET = b"payload-that-nobody-may-see"


def files(path):
    with tarfile.open(path) as archive:
        return {m.name.split("/")[1]: archive.extractfile(m).read() for m in archive.getmembers()}


def test_dump(lab, pods, tmp_path):
    lab.attach(*pods)
    log = tmp_path / "agent.log"
    log.write_text("".join(f"line {n}\n" for n in range(100)))
    with conversation(pods) as (client, server):
        client.send(SECRET)
        path = tmp_path / "d.tar.gz"
        done = lab.cli("debug", "dump", "-w", path, "--log", log, "--log-lines", 3)
        assert done.returncode == 0, done.stderr
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        parts = files(path)
        manifest = parts["MANIFEST.txt"].decode()
        assert all(name in manifest for name in parts if name != "MANIFEST.txt") and "MISSING" not in manifest
        assert json.loads(parts["connections.json"])[0]["server"]["port"] == 6379
        assert len(json.loads(parts["status.json"])["workloads"]) == 2
        assert any(p["id"] for p in json.loads(parts["programs.json"]))
        assert "map_about" in parts["pins.txt"].decode()
        assert parts["agent.log"] == b"line 97\nline 98\nline 99\n"
        assert not any(SECRET in part for part in parts.values())
        assert lab.cli("debug", "dump", "--no-addresses", "-w", path).returncode == 0
        bare = files(path)
        assert not any(pod.ip.encode() in part for part in bare.values() for pod in pods)
        assert json.loads(bare["connections.json"])[0]["server"]["port"] == "(left out)"
        server.read(len(SECRET))


def test_to_nowhere(lab):
    done = lab.cli("debug", "dump", "-w", "/nowhere/x.tar.gz")
    assert done.returncode == 1 and "/nowhere/x.tar.gz" in done.stderr

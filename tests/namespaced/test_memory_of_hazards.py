"""What a kind has shown outlives the datapath: a detach of everything, a new load, and (by path) a reboot."""
import json
import os
import subprocess

import pytest
from test_hazards import Pair, splice, urgent

pytestmark = pytest.mark.product


def taught(lab, pods):
    """A pair of pods whose listener has been seen to splice."""
    lab.attach(*pods, eligibility="safe")
    pair = Pair(lab, pods)
    pair.run(splice)
    assert "splice" in pair.shown()
    return pair


def remembered(lab):
    path = os.path.join(lab.state_dir, "hazards.json")
    with open(path) as file:
        return path, json.load(file)


def test_a_hazard_outlives_detach(lab, pods):
    pair = taught(lab, pods)
    lab.detach()
    assert not os.path.isdir(lab.pin_dir)
    _, document = remembered(lab)
    (entry,) = [e for e in document["kinds"] if "splice" in e["hazards"]]
    assert entry["cgroup"].endswith("/p2") and entry["role"] == "server" and entry["port"] == pair.ear.port
    lab.attach(*pods, eligibility="safe")
    assert "splice" in pair.shown()
    with lab.expect_tcp():
        pair.run(times=5)
    assert pair.reasons().get("splice", 0) >= 5, pair.reasons()
    lab.wait_empty()


def test_forgotten_kinds_are_learned_anew(lab, pods):
    pair = taught(lab, pods)
    lab.detach()
    lab.attach(*pods, eligibility="safe")
    done = lab.cli("kinds", "forget", "--cgroup", str(pods[1].cgroup), "-o", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["remembered"] == 1
    assert not pair.shown()
    pair.run(times=4)
    with lab.expect_fast(4):
        pair.run()
    done = lab.cli("kinds", "forget")
    assert done.returncode == 0 and not lab.kinds()
    assert not os.path.exists(os.path.join(lab.state_dir, "hazards.json"))


def test_names_survive_a_reboot(lab, pods):
    """After a reboot the cgroup of that path has another id: here it is removed and made again."""
    pair = taught(lab, pods)
    before = {k["cgroup_id"] for k in lab.kinds() if k["hazards"]}
    lab.detach()
    pair.server.close()
    pods[1].cgroup.rmdir()
    pods[1].cgroup.mkdir()
    lab.attach(*pods, eligibility="safe")
    after = {k["cgroup_id"]: k["hazards"] for k in lab.kinds() if k["hazards"]}
    assert len(after) == 1 and not before & set(after)
    assert list(after.values()) == [["splice"]]


@pytest.mark.parametrize("text", [b"", b"{", b'{"version":9,"kinds":[]}',
                                  b'{"version":1,"kinds":[{"cgroup":7}]}', b"\0" * 5000000],
                         ids=["empty", "cut", "version", "types", "large"])
def test_a_damaged_file_is_a_warning(lab, pods, text):
    path = os.path.join(lab.state_dir, "hazards.json")
    with open(path, "wb") as file:
        file.write(text)
    done = lab.attach(*pods, eligibility="safe")
    assert "remembered hazards are not used" in done.stderr, done.stderr
    pair = Pair(lab, pods)
    pair.run(times=4)
    with lab.expect_fast(4):
        pair.run(urgent)
    lab.detach()
    assert remembered(lab)[1]["kinds"]  # replaced


def test_a_full_disk_is_a_warning(lab, pods):
    """Detach detaches; what cannot be remembered is said. The old file stays as it was."""
    taught(lab, pods)
    lab.detach()
    path, document = remembered(lab)
    full = os.path.join(lab.state_dir, "full")
    os.mkdir(full)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=2", "none", full], check=True)
    try:
        with open(os.path.join(full, "filler"), "wb") as file:
            file.write(b"\0" * 4096)
        lab.attach(*pods, eligibility="safe")
        state, lab.state_dir = lab.state_dir, full
        done = lab.cli("detach", "--all")
        lab.state_dir = state
        assert done.returncode == 0, done.stderr
        assert "hazards are not remembered" in done.stderr, done.stderr
        assert not os.path.isdir(lab.pin_dir)
    finally:
        subprocess.run(["umount", full], check=True)
    assert remembered(lab)[1] == document

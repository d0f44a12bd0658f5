"""Errors: exit code not 0, and the message names the thing."""
import json
import os
import shutil
import subprocess
import tempfile

import pytest
from lab import BINARY

pytestmark = pytest.mark.product


def failed(done, *words):
    said = done.stdout + done.stderr
    assert done.returncode != 0, said
    assert "panicked" not in said
    for word in words:
        assert word.lower() in said.lower(), f"no {word!r} in: {said}"
    return said


def test_no_such_cgroup(lab):
    path = f"{lab.pod('p1').cgroup}/not-there"
    failed(lab.cli("attach", "--cgroup", path), path)


def test_not_a_cgroup(lab):
    failed(lab.cli("attach", "--cgroup", "/etc"), "/etc", "cgroup")


def test_one_bad_target_attaches_nothing(lab):
    a = lab.pod("p1")
    failed(lab.cli("attach", "--cgroup", str(a.cgroup), "--cgroup", f"{a.cgroup}/nope"), "nope")
    done = lab.cli("status", "-o", "json")
    assert done.returncode != 0 or json.loads(done.stdout)["workloads"] == []


def test_pid_gone(lab):
    process = subprocess.Popen(["true"])
    process.wait()
    failed(lab.cli("attach", "--pid", process.pid), str(process.pid))


def test_attach_by_pid(lab):
    a = lab.pod("p1")
    peer = a.peer()
    lab.attached = True
    done = lab.cli("attach", "--pid", peer.pid)
    assert done.returncode == 0, done.stderr
    assert [w["cgroup_id"] for w in lab.status()["workloads"]] == [a.cgroup.stat().st_ino]


def test_attach_by_relative_path(lab):
    a = lab.pod("p1")
    lab.attached = True
    done = lab.cli("attach", "--cgroup", f"{lab.tag}/p1")
    assert done.returncode == 0, done.stderr
    assert [w["cgroup_id"] for w in lab.status()["workloads"]] == [a.cgroup.stat().st_ino]


def test_no_target(lab):
    failed(lab.cli("attach"))


def test_not_root(lab):
    """As nobody, with the binary somewhere nobody can reach it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        subprocess.run(["chmod", "755", place], check=True)
        binary = shutil.copy(BINARY, place)
        argv = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps=-all", binary,
                "--pin-dir", lab.pin_dir, "attach", "--cgroup", str(lab.pod("p1").cgroup)]
        said = failed(subprocess.run(argv, capture_output=True, text=True))
        assert any(word in said.lower() for word in ("root", "cap_", "privilege")), said


@pytest.mark.parametrize("place", ["/proc/shared-socket-test", "/etc/hostname/x"])
def test_bogus_pin_dir(lab, place):
    done = subprocess.run([BINARY, "--pin-dir", place, "attach", "--cgroup", str(lab.pod("p1").cgroup)],
                          capture_output=True, text=True)
    failed(done, place)


def test_pin_dir_that_is_no_bpffs(lab):
    """Refused by name, or made a bpffs (the product may mount one): never pins that are not there."""
    with tempfile.TemporaryDirectory(prefix="shared-socket-test-") as place:
        try:
            done = subprocess.run([BINARY, "--pin-dir", place, "attach", "--cgroup", str(lab.pod("p1").cgroup)],
                                  capture_output=True, text=True)
            if done.returncode:
                failed(done, place)
            else:
                with open("/proc/mounts") as mounts:
                    assert any(line.split()[1:3] == [place, "bpf"] for line in mounts)
                subprocess.run([BINARY, "--pin-dir", place, "detach", "--all"], check=True, capture_output=True)
        finally:
            subprocess.run(["umount", place], capture_output=True)


def test_detach_and_status_with_nothing_attached(lab):
    """Not an error to ask; nothing is made by asking."""
    assert "panicked" not in lab.cli("status", "-o", "json").stderr
    assert "panicked" not in lab.cli("detach", "--all").stderr
    assert "panicked" not in lab.cli("connections", "-o", "json").stderr
    assert not os.path.exists(lab.pin_dir)


def test_detach_of_what_is_not_attached(lab):
    a, b = lab.pod("p1"), lab.pod("p2")
    lab.attach(a)
    done = lab.cli("detach", "--cgroup", str(b.cgroup))
    assert str(b.cgroup) in done.stdout + done.stderr, done
    assert len(lab.status()["workloads"]) == 1


@pytest.mark.parametrize("args", [["attach", "--eligibility", "maybe", "--cgroup", "/x"], ["attach", "--max-pairs", "0",
                                  "--cgroup", "/x"], ["detach"], ["frobnicate"], ["status", "-o", "xml"]])
def test_bad_arguments(lab, args):
    failed(lab.cli(*args))


@pytest.mark.parametrize("args", [["--help"], ["attach", "--help"], ["detach", "--help"], ["status", "--help"],
                                  ["connections", "--help"], ["--version"]])
def test_help(args):
    done = subprocess.run([BINARY, *args], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip()


def test_status_shape(lab, pods):
    lab.attach(*pods)
    status = lab.status()
    for workload in status["workloads"]:
        assert {"cgroup", "cgroup_id", "attached_at"} <= set(workload)
    assert {"pairs_live", "pairs_total", "fast_messages", "fast_bytes", "tcp_messages", "tcp_bytes"} <= set(status["totals"])
    assert all(isinstance(n, int) for n in status["reasons"].values())
    for form in ("table", "yaml"):
        done = lab.cli("status", "-o", form)
        assert done.returncode == 0 and done.stdout.strip()
    assert lab.cli("connections").returncode == 0


def test_pin_dir_of_another_user(lab):
    """The root of a bpffs is open to all users: a pin directory that somebody else made is refused, and left alone."""
    pod = lab.pod("p1")
    os.mkdir(lab.pin_dir)
    os.chown(lab.pin_dir, 65534, 65534)
    try:
        done = lab.cli("attach", "--cgroup", str(pod.cgroup))
        assert done.returncode == 3 and "65534" in done.stderr, done
        assert os.listdir(lab.pin_dir) == []
    finally:
        os.rmdir(lab.pin_dir)

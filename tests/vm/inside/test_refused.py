"""A kernel that is refused: attach says what is missing and what to do, with exit code 3, and changes nothing."""
import os

import pytest


@pytest.mark.parametrize("eligibility", ["safe", "all"])
def test_attach_says_what_is_missing(lab, eligibility):
    pod = lab.pod("p1")
    done = lab.cli(*lab.attach_args([pod], eligibility))
    assert done.returncode == 3, done
    said = done.stderr
    assert os.uname().release in said, "names the kernel"
    assert "atomics" in said and "6.1 or newer" in said, "names what is missing and what to do"
    assert len(said.strip().splitlines()) == 1, said
    assert not os.path.isdir(lab.pin_dir) or not os.listdir(lab.pin_dir), "left pins"


def test_connections_stay_what_they_are(lab):
    """Live connections and new ones, before, during and after a refused attach: plain TCP, every byte."""
    a, b = lab.pod("p1"), lab.pod("p2")
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip)
    server.call("echo_start", ear.name)
    client.call("traffic_start", b.ip, ear.port, 2, 1)
    for _ in range(3):
        assert lab.cli(*lab.attach_args([a, b])).returncode == 3
    stats = client.call("traffic_stop")
    assert stats["errors"] == [] and stats["rounds"] > 20, stats
    assert server.call("echo_errors") == []


def test_status_and_detach_still_answer(lab):
    pod = lab.pod("p1")
    assert lab.cli(*lab.attach_args([pod])).returncode == 3
    for command in (("status", "-o", "json"), ("connections", "-o", "json"), ("detach", "--all")):
        done = lab.cli(*command)
        assert done.returncode == 0, done

"""kill -9 of the CLI at any moment changes nothing for a connection, and the next command finds its way."""
import random
import subprocess
import time

import pytest
from lab import few

pytestmark = pytest.mark.product


def test_kill_dash_nine_at_random_moments(lab, pods):
    a, b = pods
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip)
    server.call("echo_start", ear.name)
    lab.attach(a, b)
    client.call("traffic_start", b.ip, ear.port, 4, 4)
    rng, killed = random.Random(9), 0
    attach, detach = lab.attach_args((a, b)), ["detach", "--all", "--timeout", "2"]
    for number in range(20):
        argv = lab.argv(*(detach if number % 2 == 0 else attach))
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        lab.extra.append(process)
        time.sleep(rng.random() ** 2 * 0.4)
        killed += process.poll() is None
        process.kill()
        process.wait()
    assert killed >= 5, f"only {killed} were still running: the moments are not random enough"
    lab.attach(a, b)
    with lab.expect_fast(20):
        time.sleep(1)
    stats = client.call("traffic_stop")
    assert stats["errors"] == [] and stats["rounds"] > 500, stats
    assert server.call("echo_errors") == []
    lab.wait_empty()
    with lab.expect_fast(20):
        client.call("echo_client", b.ip, ear.port, rounds=20)


def test_first_attach_killed(lab, pods):
    """Killed at rising moments of the very first attach; each time a whole attach and detach follow."""
    a, b = pods
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip)
    server.call("echo_start", ear.name)
    lab.attached = True
    for number in range(few(10)):
        process = subprocess.Popen(lab.argv(*lab.attach_args((a, b))), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        lab.extra.append(process)
        time.sleep(0.03 * number)
        process.kill()
        process.wait()
        client.call("echo_client", b.ip, ear.port, rounds=5)
        lab.attach(a, b)
        with lab.expect_fast(10):
            client.call("echo_client", b.ip, ear.port, rounds=20)
        lab.detach()

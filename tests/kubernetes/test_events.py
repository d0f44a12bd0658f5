"""A runtime that tells of its containers: the agent hears it, and does not depend on cgroups that it may not see."""
import os
import time

import pytest
from agent import Agent
from lab import wait_until
from newer import Unobtainable, directory
from runtime import Runtime

pytestmark = pytest.mark.product


@pytest.fixture(scope="module")
def runtime():
    try:
        before = directory()
    except Unobtainable as err:
        pytest.skip(f"no containerd with events: {err}")
    path = os.environ["PATH"]
    if before:
        os.environ["PATH"] = f"{before}:{path}"
    try:
        with Runtime() as made:
            yield made
    finally:
        os.environ["PATH"] = path


def test_pods_are_followed_by_the_events_of_the_runtime(lab, runtime, pod, monkeypatch):
    """Without the watch of cgroups, so that nothing else can have told."""
    monkeypatch.setenv("SHARED_SOCKET_DEBUG_NO_CGROUP_WATCH", "1")
    one = Agent(lab, runtime, "selectors: [{namespaces: [core]}]\n")
    time.sleep(2)  # looks that are due after the start
    a = pod("a", namespace="core")
    assert one.wait("core/a") < 1
    assert "follows the runtime's events" in one.log()
    a.remove()
    wait_until("its row is gone", lambda: "core/a" not in one.rows(), 3)

    # the stream breaks with the runtime, and is there again
    runtime.restart()
    one.wait_ready()
    time.sleep(3)
    b = pod("b", namespace="core")
    assert one.wait("core/b") < 1
    client, server = b.peer("client"), b.peer("server")
    ear = server.listen(b.ip)
    server.call("epoll_echo_start", ear.name)
    for _ in range(5):  # learned
        client.call("epoll_client", b.ip, ear.port, 2, 30)
    with lab.expect_fast(60):
        client.call("epoll_client", b.ip, ear.port, 2, 30)
    assert one.log().count("follows the runtime's events") == 2 and one.stop() == 0

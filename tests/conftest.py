import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "namespaced"))
from lab import PLAIN, Lab  # noqa: E402


def pytest_collection_modifyitems(items):
    for item in items:
        if PLAIN and item.get_closest_marker("product"):
            item.add_marker(pytest.mark.skip(reason="SHARED_SOCKET_PLAIN=1: no product"))


@pytest.fixture(scope="session", autouse=True)
def _root():
    if os.geteuid():
        pytest.exit("these tests make network namespaces and cgroups: run them as root", 3)


@pytest.fixture(scope="session", autouse=True)
def _no_podman_of_the_host(tmp_path_factory):
    """Where it has no service, the product asks the command `podman`, and that of the host would make its store by being
    asked: this one has no containers."""
    place = tmp_path_factory.mktemp("bin")
    (place / "podman").write_text("#!/bin/sh\n")
    (place / "podman").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(place), prepend=os.pathsep)
        yield


@pytest.fixture
def lab():
    made = Lab()
    try:
        yield made
    finally:
        problems = made.close()
    assert not problems, "\n".join(problems)


@pytest.fixture
def pods(lab):
    """Two pods, both to be attached."""
    return lab.pod("p1"), lab.pod("p2")

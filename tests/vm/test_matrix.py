"""The kernel matrix: the core of the suite inside QEMU (without KVM), on Debian's kernels from 5.10 to the newest.

Each kernel boots once; each test that ran in it is a test here. SHARED_SOCKET_VM_KERNELS narrows the matrix
("6.1,newest"; "none" skips it), SHARED_SOCKET_VM_JOBS says how many run at a time (2), SHARED_SOCKET_VM_BESIDE names a file
while which exists it is one, SHARED_SOCKET_VM_CACHE says where kernels are kept.
"""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import core  # noqa: E402
import kernels  # noqa: E402
import machine  # noqa: E402
import matrix  # noqa: E402

CHOSEN = os.environ.get("SHARED_SOCKET_VM_KERNELS", "").split(",")
WANTED = [k for k in kernels.MATRIX if CHOSEN == [""] or k.name in CHOSEN]
JOBS = int(os.environ.get("SHARED_SOCKET_VM_JOBS", "2"))
BESIDE = Path(os.environ["SHARED_SOCKET_VM_BESIDE"]) if os.environ.get("SHARED_SOCKET_VM_BESIDE") else None
PLAIN = os.environ.get("SHARED_SOCKET_PLAIN", "") not in ("", "0")


def ids(selection):
    """What pytest collects of a selection, here as in the guest."""
    argv = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *selection]
    env = {**os.environ, "SHARED_SOCKET_VM": "1"}
    done = subprocess.run(argv, cwd=HERE.parent, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"collecting the core tests: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return [line for line in done.stdout.splitlines() if "::" in line]


def cases():
    core_ids = ids(core.CORE)
    return [pytest.param(k, test, id=f"{k.name}-{test.split('/')[-1]}") for k in WANTED for test in core_ids]


class Runs:
    """All kernels, started at the first question."""

    def __init__(self):
        self.futures = None

    def of(self, kernel, session):
        """What became of a kernel; the first question boots all that are asked for, with the tests that are asked for."""
        if shutil.which("qemu-system-x86_64") is None:
            pytest.skip("qemu-system-x86_64 is missing (Debian: apt-get install qemu-system-x86)")
        if PLAIN:
            pytest.skip("SHARED_SOCKET_PLAIN=1: no product")
        if self.futures is None:
            asked = {}
            for item in session.items:
                if item.module.__name__ == __name__:
                    param = item.callspec.params
                    asked.setdefault(param["kernel"], []).append(param["test"])
            try:
                self.futures = matrix.run(
                    list(asked), asked.get, timeout=2400, jobs=JOBS, beside=BESIDE, done=lambda k, got: print(machine.summary(k.name, got), flush=True))
            except Exception as err:  # no image could be made: every test fails of it, and it is tried once
                self.futures = err
        if isinstance(self.futures, Exception):
            raise self.futures
        try:
            return self.futures[kernel.name].result()
        except kernels.Unobtainable as err:
            pytest.skip(f"no kernel {kernel.name} here: {err}")


RUNS = Runs()


@pytest.mark.parametrize("kernel,test", cases() if WANTED else [])
def test_on(request, kernel, test):
    got = RUNS.of(kernel, request.session)
    assert test in got["tests"], f"Linux {got['release']} did not run it: {sorted(got['tests'])}"
    result = got["tests"][test]
    if result["outcome"] == "skipped":
        pytest.skip(f"on Linux {got['release']}: {result['text']}")
    if result["outcome"] == "xfailed":
        pytest.xfail(f"on Linux {got['release']}: {result['text'][-200:]}")
    assert result["outcome"] == "passed", f"on Linux {got['release']}:\n{result['text']}"

"""CPython's own network tests have the same result inside an attached cgroup as outside."""
import os
import subprocess

import pytest
from lab import PYTHON, ROOT

pytestmark = pytest.mark.suite
OUTSIDE = {}
# In `all` a blocking recv may say EAGAIN when room in a full send buffer wakes it (H4, docs/transparency.md): this one
# sends 64 MiB from a blocking socket and then waits in recv.
MAY_DIFFER_IN_ALL = {"test.test_httplib.BasicTest.test_large_content_length"}


def run(pod, suite, limit=120):
    """Test id -> outcome; a test that never ended is 'hang'."""
    process = pod.start(PYTHON, ROOT / "tests/peer/cpython_suite.py", suite, limit, stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE, text=True, cwd="/tmp", env={**os.environ, "PYTHONWARNINGS": "ignore"})
    out, err = process.communicate(timeout=limit + 30)
    got = {}
    for line in out.splitlines():
        word, name = line.split(" ", 1)
        got[name] = "hang" if word == "start" else word
    return got, err


@pytest.mark.parametrize("eligibility", ["safe", "all"])
@pytest.mark.parametrize("suite,least", [("socket", 150), ("asyncio", 150), ("ssl", 100), ("http", 150)])
def test_suite(lab, suite, least, eligibility):
    pytest.importorskip("test.test_socket", reason="apt-get install libpython3.11-testsuite")
    pod = lab.pod("p1")
    if suite not in OUTSIDE:
        OUTSIDE[suite] = run(pod, suite)
    want, said = OUTSIDE[suite]
    assert len(want) >= least and list(want.values()).count("ok") > 0.7 * len(want), said[-3000:]
    lab.attach(pod, eligibility=eligibility)
    before = lab.totals()["fast_messages"] if lab.attached else 0
    got, said = run(pod, suite)
    differ = {name: f"outside {want.get(name)}, attached {got.get(name)}"
              for name in sorted(set(want) | set(got)) if want.get(name) != got.get(name)
              and not (eligibility == "all" and name in MAY_DIFFER_IN_ALL)}
    assert not differ, f"{differ}\n{said[-6000:]}"
    if lab.attached and eligibility == "all":
        assert lab.totals()["fast_messages"] > before
    lab.wait_empty(20)

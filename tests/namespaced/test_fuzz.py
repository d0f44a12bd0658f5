"""The fuzzer (crates/fuzz): random operations on both ends of real connections while the product comes and goes; every byte
against a model. FUZZ_SECONDS is the sum over all runs here: 60 by default, 600 for ten minutes, hours if you like.
FUZZ_SEED repeats a run: what the sockets do follows from it, how they interleave does not."""
import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from lab import BINARY, PLAIN, sh

FUZZER = os.environ.get("SHARED_SOCKET_FUZZ", str(Path(BINARY).with_name("shared-socket-fuzz")))
SECONDS = max(5, int(os.environ.get("FUZZ_SECONDS", "60")) // 5)
SEED = int(os.environ.get("FUZZ_SEED", time.time_ns() // 1_000_000 % 1_000_000_000))


def fuzz(*options, seconds=SECONDS, seed=SEED):
    argv = [FUZZER, "--json", "--seconds", str(seconds), "--seed", str(seed), "--binary", BINARY, *map(str, options)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + 400)
    assert done.stdout.startswith("{"), f"{' '.join(argv)}: exit {done.returncode}: {done.stderr[-3000:]}"
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["failed"] == 0, f"{' '.join(argv)}\n" + "\n".join(report["failures"][:20])
    return report


def has_verb(verb):
    return any(line.split()[:1] == [verb] for line in sh(BINARY, "--help").stdout.splitlines())


def test_the_model_holds_for_tcp():
    """Nothing attached: a model that plain TCP does not fulfil would prove nothing."""
    report = fuzz("--plain", seconds=min(SECONDS, 10))
    assert report["connections"] > 100 and report["bytes_checked"] > 1_000_000 and report["fast_messages"] == 0


RUNS = {
    "safe": ("--eligibility", "safe"),
    "all": ("--eligibility", "all"),
    "blocking": ("--eligibility", "all", "--mix", "blocking", "--steady"),
    "small-budget-held-open": ("--eligibility", "all", "--attach-options",
                               "--min-messages 0 --budget-bytes 65536 --budget-messages 64 --debug-spin 500"),
}


@pytest.mark.product
@pytest.mark.parametrize("run", RUNS)
def test_whole_life(run):
    if PLAIN:
        pytest.skip("nothing attached")
    # records of sockets that die with their listener go with the next command, where there is one that sweeps
    kills = ["--kill"] if run == "safe" and has_verb("upgrade") else []
    report = fuzz(*RUNS[run], *kills)
    assert report["connections"] > 100 and report["bytes_checked"] > 1_000_000
    assert report["fast_messages"] > 500, f"hardly anything was fast: {report}"
    if "--steady" not in RUNS[run]:
        assert report["attaches"] >= 1 and report["detaches"] >= 1


@pytest.mark.product
def test_blocking_churn_has_documented_cases_of_eagain():
    """`all` with blocking sockets: a recv that says EAGAIN is one of the documented cases (the judge fails on any other), and
    an application that gives up then is the only source of errors at its peer that TCP would not have."""
    report = fuzz("--eligibility", "all", "--mix", "burst", "--steady", "--count", "8000", seconds=60)
    assert report["connections"] >= 7900
    assert sum(report["again"].values()) > 0, "not one EAGAIN: the hazard was not met and the test says nothing"
    assert not [name for name in report["resets"] if "gave up" in name]

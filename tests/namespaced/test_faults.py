"""Fault injection: the moments between verdict and delivery, map update and tie, mark and delete are held open (--debug-spin
in one window of bpf/abi.h) while both ends close, half-close, reset, disconnect and connect again, commands attach and detach,
and processes are killed. The report says how often something really came in between: without that a run proves nothing."""
import pytest
from test_fuzz import fuzz, has_verb

pytestmark = pytest.mark.product

# enum window in bpf/abi.h, and whether something can come in between at all: entering and tying run in the softirq of one
# packet, and only a process on another processor that closes just then can
WINDOWS = {"delivery": True, "leave": True, "enter": False, "tie": False, "delete": True, "release": True}


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("commands", [False, True], ids=["steady", "commands"])
def test_held_open(window, commands):
    mask = 1 << list(WINDOWS).index(window)
    options = ["--eligibility", "all", "--mix", "rush", "--attach-options",
               f"--min-messages 0 --debug-spin 4096 --debug-windows {mask}"]
    options += (["--kill"] if has_verb("upgrade") else []) if commands else ["--steady"]
    report = fuzz(*options, seconds=8)
    passed, hit = report["held"][window]
    assert passed > 20, f"the window was passed {passed} times"
    if WINDOWS[window] and not commands:
        assert hit > 0, f"the window was held open {passed} times, and nothing ever came in between"
    assert all(count == [0, 0] for name, count in report["held"].items() if name != window), report["held"]


def test_disconnect_under_a_sender_in_flight():
    """The sender has its verdict; the receiver disconnects, connects again and enters the sockhash: the old message must not
    come out of the new connection (it did). Such sockets are refused, with a reason of their own."""
    report = fuzz("--eligibility", "all", "--mix", "rush", "--steady", "--attach-options",
                  "--min-messages 0 --debug-spin 4096 --debug-windows 1", seconds=20, seed=43)
    assert report["held"]["delivery"][1] > 0, "no gate was shut while a message was on its way"
    assert report["reasons"].get("reused", 0) > 0, "no socket was disconnected under a sender in flight"

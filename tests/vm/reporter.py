"""pytest plugin of the guest: each test's outcome at once, as JSON on the report port."""
import os
import re

import guest

# the kernel's own complaints: whatever the test saw, it has failed. (Stalls are not among them: the guest is emulated.)
COMPLAINT = re.compile(r"WARNING: |BUG: |Oops|general protection fault|refcount_t: |underflow|use-after-free")
# not ours: a struct that the fortified memcpy takes for too small (kTLS), and the verifier warning about itself (6.16 to 6.18)
KNOWN = re.compile(r"sockptr\.h|kernel/bpf/verifier\.c|verifier bug: REG INVARIANTS")
KMSG = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)


def complaints():
    """What the kernel has logged since the last call, from the first complaint on; "" without one."""
    lines = []
    while True:
        try:
            lines.append(os.read(KMSG, 8192).decode(errors="replace").split(";", 1)[-1].splitlines()[0])
        except BlockingIOError:
            break
        except BrokenPipeError:
            continue  # the log has overtaken the reader
    first = next((n for n, line in enumerate(lines) if COMPLAINT.search(line) and not KNOWN.search(line)), None)
    return "" if first is None else "\n".join(lines[first:first + 60])


def pytest_collection_finish(session):
    guest.say(event="collected", tests=[i.nodeid for i in session.items])


def pytest_runtest_logstart(nodeid):
    guest.say(event="start", test=nodeid)


def pytest_runtest_logfinish(nodeid):
    text = complaints()
    if text:
        guest.say(event="result", test=nodeid, when="kernel", outcome="failed", seconds=0, text=f"the kernel complained:\n{text}")


def pytest_runtest_logreport(report):
    if report.when != "call" and report.outcome == "passed":
        return
    outcome = report.outcome
    if hasattr(report, "wasxfail"):
        outcome = "xfailed" if report.outcome == "skipped" else "failed"
    text = report.longreprtext
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        text = report.longrepr[2]
    guest.say(event="result", test=report.nodeid, when=report.when, outcome=outcome,
              seconds=round(report.duration, 2), text=text[-4000:])

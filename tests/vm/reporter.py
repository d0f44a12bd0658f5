"""pytest plugin of the guest: each test's outcome at once, as JSON on the report port."""
import guest


def pytest_collection_finish(session):
    guest.say(event="collected", tests=[i.nodeid for i in session.items])


def pytest_runtest_logstart(nodeid):
    guest.say(event="start", test=nodeid)


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

"""Runs CPython's own network tests and writes a line for each: start ID, then outcome ID. Argument: socket or asyncio."""
import faulthandler
import importlib
import sys
import unittest

ASYNCIO = ["test_streams", "test_server", "test_sock_lowlevel", "test_selector_events", "test_buffered_proto",
           "test_sendfile"]


class Recorder(unittest.TestResult):
    def __init__(self):
        super().__init__()
        self.outcome = None

    def startTest(self, test):
        super().startTest(test)
        self.outcome = "ok"
        print("start", test.id(), flush=True)

    def stopTest(self, test):
        super().stopTest(test)
        print(self.outcome, test.id(), flush=True)

    def bad(self, kind, test, err):
        self.outcome = kind
        sys.stderr.write(f"{kind} {test.id()}: {self._exc_info_to_string(err, test)}\n")

    def addError(self, test, err):
        self.bad("error", test, err)

    def addFailure(self, test, err):
        self.bad("fail", test, err)

    def addSubTest(self, test, subtest, err):
        if err:
            self.bad("fail", test, err)

    def addSkip(self, test, reason):
        self.outcome = "skip"

    def addExpectedFailure(self, test, err):
        self.outcome = "xfail"

    def addUnexpectedSuccess(self, test):
        self.outcome = "xpass"


def cases(suite):
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from cases(item)
        else:
            yield item


def main():
    faulthandler.dump_traceback_later(int(sys.argv[2]), exit=True)
    loader, chosen = unittest.TestLoader(), unittest.TestSuite()
    if sys.argv[1] == "socket":
        module = importlib.import_module("test.test_socket")
        for case in cases(loader.loadTestsFromModule(module)):
            if isinstance(case, module.SocketTCPTest) or "TCP" in type(case).__name__:
                chosen.addTest(case)
    else:
        for name in ASYNCIO:
            chosen.addTest(loader.loadTestsFromName("test.test_asyncio." + name))
    chosen.run(Recorder())


if __name__ == "__main__":
    main()

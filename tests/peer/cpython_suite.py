"""Runs CPython's own network tests and writes a line for each: start ID, then outcome ID. Arguments: a name of MODULES or
"socket"; seconds until it gives up with a trace of all threads."""
import faulthandler
import importlib
import os
import sys
import unittest

MODULES = {
    "asyncio": ["test_asyncio." + name for name in ("test_streams", "test_server", "test_sock_lowlevel",
                                                    "test_selector_events", "test_buffered_proto", "test_sendfile")],
    "ssl": ["test_ssl", "test_asyncio.test_ssl", "test_asyncio.test_sslproto"],
    "http": ["test_socketserver", "test_httplib", "test_httpservers", "test_urllib2_localnet", "test_poplib", "test_ftplib",
             "test_smtplib"],
}


class Recorder(unittest.TestResult):
    def __init__(self, out):
        super().__init__()
        self.outcome, self.out = None, out

    def record(self, *words):
        print(*words, file=self.out, flush=True)

    def startTest(self, test):
        super().startTest(test)
        self.outcome = "ok"
        self.record("start", test.id())

    def stopTest(self, test):
        super().stopTest(test)
        self.record(self.outcome, test.id())

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
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the tests print, too
    faulthandler.dump_traceback_later(int(sys.argv[2]), exit=True)
    loader, chosen = unittest.TestLoader(), unittest.TestSuite()
    if sys.argv[1] == "socket":
        module = importlib.import_module("test.test_socket")
        for case in cases(loader.loadTestsFromModule(module)):
            if isinstance(case, module.SocketTCPTest) or "TCP" in type(case).__name__:
                chosen.addTest(case)
    else:
        for name in MODULES[sys.argv[1]]:
            chosen.addTest(loader.loadTestsFromName("test." + name))
    chosen.run(Recorder(out))


if __name__ == "__main__":
    main()

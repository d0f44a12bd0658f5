"""`shared-socket agent` as a process of the test's own, with a configuration file that the test writes."""
import json
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

from lab import PATIENCE, wait_until

HEAD = "apiVersion: shared-socket.io/v1\n"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Agent:
    def __init__(self, lab, runtime, text="", *options, start=True, sockets=None):
        self.lab, self.runtime, self.options = lab, runtime, options
        self.sockets = sockets or {"endpoint": runtime.socket}
        self.port, self.process = free_port(), None
        self.file = runtime.dir / f"agent-{self.port}.yaml"
        self.log_file = runtime.dir / f"agent-{self.port}.log"
        self.configure(text)
        lab.attached = True  # what it pins is removed with the lab
        if start:
            self.start()

    def configure(self, text):
        """Replaces the file, whole: every connection of a test is worth it, and the runtime is the test's."""
        made = self.file.with_suffix(".new")
        made.write_text(HEAD + f"endpoints: {{http: '127.0.0.1:{self.port}'}}\n"
                        f"runtime: {json.dumps({key: f'unix://{path}' for key, path in self.sockets.items()})}\n"
                        + ("" if "budgets:" in text else "budgets: {minMessages: 0}\n") + text)
        made.rename(self.file)

    def start(self, ready=True):
        with open(self.log_file, "a") as log:
            self.process = subprocess.Popen(
                self.lab.argv("agent", "--config", self.file, *self.options), stdin=subprocess.DEVNULL, stdout=log,
                stderr=log)
        self.lab.extra.append(self.process)
        if ready:
            self.wait_ready()
        return self

    def wait_ready(self, timeout=20):
        def probe():
            assert self.process.poll() is None, f"the agent ended: {self.log()}"
            return self.get("/readyz")[0] == 200
        try:
            wait_until("the agent is ready", probe, timeout, 0.02)
        except AssertionError as err:
            raise AssertionError(f"{err}: {self.get('/readyz')}\n{self.log()}") from None

    def log(self):
        return self.log_file.read_text()

    def get(self, path):
        """Status and text; 0 when nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5 * PATIENCE) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as err:
            return err.code, err.read().decode()
        except OSError as err:
            return 0, str(err)

    def rows(self):
        status, text = self.get("/workloads")
        assert status == 200, text
        return {row["name"]: row for row in json.loads(text)["workloads"]}

    def wait(self, name, attached=True, timeout=5):
        """Until the workload is attached, or not; how many seconds it took."""
        began = time.monotonic()
        try:
            wait_until(name, lambda: self.rows().get(name, {}).get("attached", False) == attached, timeout, 0.02)
        except AssertionError:
            raise AssertionError(f"{name} is not {'attached' if attached else 'detached'} after {timeout} s: "
                                 f"{self.rows().get(name)}\n{self.log()}") from None
        return time.monotonic() - began

    def stop(self, signo=signal.SIGTERM):
        self.process.send_signal(signo)
        return self.process.wait(30 * PATIENCE)

    def cpu_seconds(self):
        fields = open(f"/proc/{self.process.pid}/stat").read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def rss_kib(self):
        lines = open(f"/proc/{self.process.pid}/status").read().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

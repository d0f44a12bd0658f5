"""`shared-socket requests`: the sums are what real servers and real clients counted."""
import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lab import few, wait_until

sys.path.insert(0, str(Path(__file__).parent))

pytestmark = pytest.mark.product


@contextlib.contextmanager
def looking(lab, *args):
    process = subprocess.Popen(lab.argv("requests", *args), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        wait_until("the tap is in", lambda: list(Path(lab.pin_dir).glob("g*/tap0/program")) or process.poll() is not None)
        assert process.poll() is None, process.stderr.read()
        yield process
        time.sleep(0.3)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.out, process.err = process.communicate(timeout=60)
    assert process.returncode == 0, process.err


@contextlib.contextmanager
def redis(pods, tmp_path):
    server = pods[1].start("redis-server", "--port", "6379", "--save", "", "--protected-mode", "no", "--dir", str(tmp_path),
                           stdout=subprocess.DEVNULL)
    ask = pods[0].argv("redis-cli", "-h", pods[1].ip)
    try:
        wait_until("redis", lambda: subprocess.run([*ask, "ping"], capture_output=True).stdout == b"PONG\n")
        yield ask
    finally:
        server.terminate()
        server.wait()


def test_redis(lab, pods, tmp_path):
    """As many of each command as the server itself counts, pipelined and large ones too; errors are errors."""
    lab.attach(*pods)
    with redis(pods, tmp_path) as ask:
        with looking(lab, "-o", "json", "--seconds", "600", "--snaplen", "70000", "--buffer", "512MiB", "dst port 6379") as process:
            subprocess.run([*ask, "config", "resetstat"], check=True, capture_output=True)
            bench = pods[0].argv("redis-benchmark", "-h", pods[1].ip, "-q", "-c", "5", "-t", "set,get", "-n", few(20_000))
            with lab.expect_fast(few(10_000)):
                subprocess.run(bench, check=True, capture_output=True)
            subprocess.run([*bench, "-P", "16", "-d", "3000"], check=True, capture_output=True)
            subprocess.run(ask, input="set text word\nincr text\nincr text\n", text=True, check=True, capture_output=True)
            stats = subprocess.run([*ask, "info", "commandstats"], check=True, capture_output=True, text=True).stdout
        assert b"pieces of messages lost" not in process.err, process.err
        counted = {line.split(":")[0].removeprefix("cmdstat_").upper(): int(line.split("calls=")[1].split(",")[0])
                   for line in stats.splitlines() if line.startswith("cmdstat_")}
    found = json.loads(process.out)
    row, = found["rows"]
    assert row["client"] == f"/{lab.tag}/p1" and row["server"] == f"/{lab.tag}/p2" and row["protocol"] == "redis"
    assert found["lost_requests"] == 0
    for command in ("SET", "GET", "INCR"):
        assert row["by_what"][command] == counted[command], (row["by_what"], counted)
    assert row["by_status"]["error"] == row["errors"] == 2
    assert 0 < row["p50_ns"] <= row["p99_ns"] <= row["max_ns"] < 60e9
    assert sum(row["durations_log2"]) == row["requests"]


def test_http(lab, pods, tmp_path):
    """Methods, status, keep-alive and chunked answers; a line for each request."""
    lab.attach(*pods)
    app = tmp_path / "app.py"
    app.write_text("""
import http.server, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *args): pass
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()
    def do_GET(self):
        if self.path == "/slow":
            time.sleep(0.2)
        status = int(self.path[1:]) if self.path[1:].isdigit() else 200
        self.send_response(status)
        if self.path == "/chunks":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for n in range(30):
                self.wfile.write(b"800\\r\\n" + b"c" * 0x800 + b"\\r\\n")
            self.wfile.write(b"0\\r\\n\\r\\n")
        else:
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"b" * 100000)
http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
""")
    server = pods[1].start(sys.executable, str(app), stderr=subprocess.DEVNULL)
    base = f"http://{pods[1].ip}:8000"
    curl = pods[0].argv("curl", "-s", "--noproxy", "*", "-o", "/dev/null")
    paths = ["/", "/404", "/chunks", "/503", "/slow", "/chunks", "/"]
    try:
        wait_until("the server", lambda: subprocess.run([*curl, base]).returncode == 0)
        with looking(lab, "--follow", "-o", "json") as process, lab.expect_fast(10):
            urls = [a for p in paths for a in (base + p, "-o", "/dev/null")]
            subprocess.run([*curl, *urls], check=True)  # one connection
            subprocess.run([*curl, "-d", "x" * 50_000, base + "/"], check=True)
    finally:
        server.terminate()
        server.wait()
    lines = [json.loads(line) for line in process.out.splitlines()]
    seen = [(r["protocol"], r["what"], r["status"]) for r in lines]
    assert seen == [("http1", "GET", status) for status in ("200", "404", "200", "503", "200", "200", "200")] + \
        [("http1", "POST", "200")]
    assert lines[4]["duration_ns"] > 150e6 and max(r["duration_ns"] for r in lines[:4]) < 150e6
    assert lines[7]["request_bytes"] > 50_000 and lines[0]["answer_bytes"] > 100_000
    assert all(r["client"] == f"/{lab.tag}/p1" for r in lines)


def test_a_table_for_people(lab, pods, tmp_path):
    """Names, and no byte of what was said: a glimpse is no capture."""
    lab.attach(*pods)
    with redis(pods, tmp_path) as ask:
        with looking(lab, "--seconds", "600") as process:
            subprocess.run(ask, input="set secret hidden\nget secret\n", text=True, check=True, capture_output=True)
    text = process.out.decode()
    header, row = (line.split() for line in text.splitlines())
    assert header[:4] == ["CLIENT", "SERVER", "PROTOCOL", "REQUESTS"]
    assert row[:3] == [f"/{lab.tag}/p1", f"/{lab.tag}/p2", "redis"] and int(row[3]) >= 2
    assert "secret" not in text and "hidden" not in text


def test_one_in_many(lab, pods, tmp_path):
    """Of many connections some, chosen by chance."""
    lab.attach(*pods)
    with redis(pods, tmp_path) as ask:
        with looking(lab, "-o", "json", "--seconds", "600", "--one-in", "4") as process:
            many = 200
            load = pods[0].argv("redis-benchmark", "-h", pods[1].ip, "-q", "-c", many, "-t", "ping_mbulk", "-n", many * 10)
            subprocess.run(load, check=True, capture_output=True)
    rows = json.loads(process.out)["rows"]
    assert 0 < sum(r["requests"] for r in rows) < many * 10 * 0.6, rows


def test_bad_input_is_explained(lab, pods):
    assert "nothing is attached" in lab.cli("requests").stderr
    lab.attach(*pods)
    assert "asks for `bytes`" in lab.cli("requests", "bytes > 3").stderr
    assert lab.cli("requests", "--protocol", "smtp").returncode == 2

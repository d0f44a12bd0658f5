"""`shared-socket capture`: what tshark reads is what was sent, byte for byte, and nothing is left behind."""
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lab import few, wait_until, warm

sys.path.insert(0, str(Path(__file__).parent))
from traffic import conversation  # noqa: E402

pytestmark = pytest.mark.product


@contextlib.contextmanager
def capturing(lab, *args, out=subprocess.PIPE):
    """A capture that has begun; ended as people end it, by SIGINT."""
    process = subprocess.Popen(lab.argv("capture", *args), stdout=out, stderr=subprocess.PIPE)
    try:
        wait_until("the tap is in", lambda: taps(lab) or process.poll() is not None)
        assert process.poll() is None, process.stderr.read()
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.stdout_, process.stderr_ = process.communicate(timeout=60)


def taps(lab):
    return sorted(p.name for p in Path(lab.pin_dir).glob("g*/tap*"))


def tshark(file, *args):
    done = subprocess.run(["tshark", "-r", str(file), *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def packets(file, *fields, only=""):
    argv = ["-T", "fields", "-E", "separator=|", *(a for f in fields for a in ("-e", f))]
    return [line.split("|") for line in tshark(file, *(["-Y", only] if only else []), *argv).splitlines()]


def stream(file, number=0):
    """What each end sent, as `follow` puts it together."""
    text = tshark(file, "-q", "-z", f"follow,tcp,raw,{number}")
    ends = {"client": b"", "server": b""}
    for line in text.splitlines():
        body = line.strip()
        if body and all(c in "0123456789abcdef" for c in body):
            ends["server" if line.startswith("\t") else "client"] += bytes.fromhex(body)
    return ends


def exchange(a, b, blob):
    sending = a.peer.post("sock_send", a.name, blob)
    assert b.read(len(blob)) == blob
    sending.result()


def digests(ends):
    return {end: (len(data), hashlib.sha256(data).hexdigest()) for end, data in ends.items()}


# packets of which Wireshark thinks that something was lost, sent again, out of order or more than let in
ODD = "tcp.analysis.flags"


def test_a_stream_can_be_followed(lab, pods, tmp_path):
    """Both paths are in it, the TCP path until the pair is drained; sizes to 300 KB, which lie in many pages and pieces."""
    lab.attach(*pods)
    file = tmp_path / "x.pcapng"
    rng = random.Random(7)
    with capturing(lab, "-w", file, "dst", "port", "6379") as process:
        with conversation(pods, rounds=0) as (client, server), conversation(pods, 7000, rounds=5):
            warm(client, server, 5)
            sent = {"client": b"warm" * 5, "server": b"up" * 5}
            with lab.expect_fast(6):
                for size in [1, 255, 256, 257, 4096, 4097, 32768, 32769, 70_000, 300_000]:
                    blob = rng.randbytes(size)
                    exchange(client, server, blob)
                    sent["client"] += blob
            exchange(server, client, b"answer")
            sent["server"] += b"answer"
    assert process.returncode == 0, process.stderr_
    assert os.stat(file).st_mode & 0o777 == 0o600
    assert digests(stream(file)) == digests(sent)
    assert tshark(file, "-Y", ODD) == ""
    assert {p[0] for p in packets(file, "tcp.dstport", only="tcp.srcport != 6379")} == {"6379"}
    comments = [p[0] for p in packets(file, "frame.comment") if p[0]]
    assert any(", TCP path: " in c for c in comments), comments[:5]
    assert sum("fast path" in c for c in comments) > 5
    assert all(f"/{lab.tag}/p1" in c and f"/{lab.tag}/p2" in c for c in comments if " path" in c)
    assert {p[0] for p in packets(file, "frame.interface_name")} == {f"/{lab.tag}/p1", f"/{lab.tag}/p2"}
    ends = packets(file, "tcp.srcport", "tcp.flags.syn", "tcp.flags.fin")
    assert [e for e in ends if e[1] in ("1", "True")] == ends[:2] and [e for e in ends if e[2] in ("1", "True")] == ends[-2:]
    assert taps(lab) == []


def test_each_message_has_its_path(lab, pods):
    """As lines of JSON: as many by each path as the counters say, and each byte once."""
    lab.attach(*pods)
    with capturing(lab, "-o", "json") as process:
        with conversation(pods, rounds=50):
            pass
        total = lab.totals()
        time.sleep(0.3)
    lines = [json.loads(line) for line in process.stdout_.splitlines()]
    messages = [m for m in lines if m["what"] == "message"]
    assert len(messages) == 100 and total["fast_messages"] + total["tcp_messages"] == 100
    assert sum(m["path"] == "fast" for m in messages) == total["fast_messages"] > 80
    assert sum(m["path"] == "tcp" for m in messages) == total["tcp_messages"]
    for end, size in (("client", 4), ("server", 2)):
        assert [m["offset"] for m in messages if m["from"] == end] == list(range(0, 50 * size, size))
        assert {m["client"]["workload"]["name"] for m in messages} == {f"/{lab.tag}/p1"}
    assert [m["what"] for m in lines if m["what"] != "message"] == ["closed"]
    assert b"100 messages captured" in process.stderr_


def test_redis_is_read_by_tshark(lab, pods, tmp_path):
    """A real server and a real client: each command and each answer, in order."""
    lab.attach(*pods)
    file = tmp_path / "redis.pcapng"
    server = pods[1].start("redis-server", "--port", "6379", "--save", "", "--protected-mode", "no", "--dir", str(tmp_path),
                           stdout=subprocess.DEVNULL)
    try:
        ask = pods[0].argv("redis-cli", "-h", pods[1].ip)
        wait_until("redis", lambda: subprocess.run([*ask, "ping"], capture_output=True).stdout == b"PONG\n")
        value = "v" * 10_000
        with capturing(lab, "-w", file, "port", "6379") as process:
            script = "".join(f"SET key{n} {value}{n}\nGET key{n}\n" for n in range(20))
            with lab.expect_fast(20):
                done = subprocess.run(ask, input=script, capture_output=True, text=True)
            assert done.stdout.splitlines()[1::2] == [f"{value}{n}" for n in range(20)]
    finally:
        server.terminate()
        server.wait()
    assert process.returncode == 0, process.stderr_
    seen = packets(file, "resp.bulk_string.value", only="resp && tcp.dstport == 6379")
    commands = [bytes.fromhex(part) if set(part) <= set("0123456789abcdef") and len(part) % 2 == 0 and part != "" else part
                for row in seen for part in row[0].split(",")]
    text = stream(file)
    want = "".join(f"*3\r\n$3\r\nSET\r\n${len(f'key{n}')}\r\nkey{n}\r\n${len(value) + len(str(n))}\r\n{value}{n}\r\n"
                   f"*2\r\n$3\r\nGET\r\n${len(f'key{n}')}\r\nkey{n}\r\n" for n in range(20))
    assert want.encode() in text["client"], (len(text["client"]), len(want))
    answers = "".join(f"+OK\r\n${len(value) + len(str(n))}\r\n{value}{n}\r\n" for n in range(20))
    assert answers.encode() in text["server"]
    assert len(commands) >= 20 * 5, "tshark has not understood it as RESP"


def test_http_is_read_by_tshark(lab, pods, tmp_path):
    """A file of a real server: the body as tshark puts it together is the file."""
    lab.attach(*pods)
    root = tmp_path / "root"
    root.mkdir()
    (root / "blob").write_bytes(random.Random(3).randbytes(400_000))
    file = tmp_path / "http.pcapng"
    server = pods[1].start(sys.executable, "-m", "http.server", "8000", "--directory", str(root),
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://{pods[1].ip}:8000/blob"
    try:
        get = pods[0].argv("curl", "-s", "--noproxy", "*", "-o", str(tmp_path / "got"), url)
        wait_until("the server", lambda: subprocess.run(get).returncode == 0)
        with capturing(lab, "-w", file, "dst port 8000") as process:
            with lab.expect_fast():
                subprocess.run(get, check=True)
            time.sleep(0.3)
    finally:
        server.terminate()
        server.wait()
    assert process.returncode == 0, process.stderr_
    assert (tmp_path / "got").read_bytes() == (root / "blob").read_bytes()
    assert packets(file, "http.request.method", "http.request.full_uri", only="http.request") == [["GET", url]]
    assert packets(file, "http.response.code", only="http.response") == [["200"]]
    tshark(file, "--export-objects", f"http,{tmp_path / 'objects'}")
    assert (tmp_path / "objects" / "blob").read_bytes() == (root / "blob").read_bytes()


def test_snaplen_and_first_bytes(lab, pods, tmp_path):
    """Cut short, but the lengths and so the sequence numbers are whole."""
    lab.attach(*pods)
    for option, most in (("--snaplen", 1000), ("--first", 1000)):
        file = tmp_path / f"{option}.pcapng"
        with capturing(lab, "-w", file, option, most, "--from", "client"):
            with conversation(pods, rounds=0) as (client, server), lab.expect_fast(2):
                for size in (700, 900, 5000):
                    exchange(client, server, bytes(size))
                exchange(server, client, b"not seen")
            time.sleep(0.2)
        seen = [(int(n), int(kept) - 40) for n, kept in packets(file, "tcp.len", "frame.cap_len", only="tcp.len > 0")]
        assert seen == [(700, 700), (900, 900 if option == "--snaplen" else 300),
                        (5000, 1000 if option == "--snaplen" else 0)], (option, seen)


def test_live_through_a_pipe(lab, pods):
    """tshark prints a message while the connection lives; when it goes, the capture ends, and well."""
    lab.attach(*pods)
    with capturing(lab, "-w", "-", "--count", "1000000") as process:
        reader = subprocess.Popen(["tshark", "-l", "-n", "-r", "-", "-T", "fields", "-e", "tcp.len"], stdin=process.stdout,
                                  stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        process.stdout.close()
        try:
            with conversation(pods, rounds=0) as (client, server):
                exchange(client, server, b"x" * 777)
                for line in reader.stdout:
                    if line.strip() == "777":
                        break
                else:
                    pytest.fail("tshark has not seen it")
                reader.kill()
                reader.wait()
                deadline = time.monotonic() + 20
                while process.poll() is None and time.monotonic() < deadline:
                    exchange(client, server, b"y" * 100)
        finally:
            reader.kill()
            reader.wait()
        process.wait(timeout=20)
        process.stdout = None
    assert process.returncode == 0
    assert taps(lab) == []


def test_who_is_killed_leaves_nothing_that_acts(lab, pods):
    """kill -9: the tap copies no more when its lease is over, the next command takes it out, and messages go on."""
    lab.attach(*pods)
    with conversation(pods) as (client, server):
        with capturing(lab, "-w", "/dev/null") as process:
            process.kill()
            process.wait()
        assert taps(lab) == ["tap0"]
        with lab.expect_fast(10):
            warm(client, server, 10)
        assert lab.cli("attach", "--eligibility", "all", "--cgroup", str(pods[0].cgroup)).returncode == 0
        assert taps(lab) == []
        with lab.expect_fast(10):
            warm(client, server, 10)


def test_several_at_one_time(lab, pods, tmp_path):
    """Each sees all; there is room for three, and a fourth is told so. Ends in another order than they began."""
    lab.attach(*pods)
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(capturing(lab, "-o", "json"))]
        for n in (2, 3):
            running.append(stack.enter_context(capturing(lab, "-o", "json")))
            wait_until("another", lambda: len(taps(lab)) == n)
        fourth = lab.cli("capture")
        assert fourth.returncode == 3 and "3 captures run already" in fourth.stderr, fourth
        with conversation(pods) as (client, server):
            running[0].send_signal(signal.SIGINT)
            wait_until("the first has gone", lambda: taps(lab) == ["tap1", "tap2"])
            with lab.expect_fast(20):
                warm(client, server, 10)
        time.sleep(0.3)
    assert taps(lab) == []
    counts = [sum(json.loads(line)["what"] == "message" for line in p.stdout_.splitlines()) for p in running]
    assert counts[1:] == [60, 60] and counts[0] >= 40, counts


def test_it_goes_on_through_an_upgrade(lab, pods):
    """New programs under live connections: the verdict is exchanged, the tap stays."""
    lab.attach(*pods)
    with capturing(lab, "-o", "json") as process:
        with conversation(pods, rounds=5) as (client, server):
            assert lab.cli("upgrade").returncode == 0
            with lab.expect_fast(10):
                warm(client, server, 10)
        time.sleep(0.3)
    messages = [m for m in map(json.loads, process.stdout_.splitlines()) if m["what"] == "message"]
    assert len(messages) == 30


def test_a_new_generation_is_followed(lab, pods):
    """An upgrade that needs new maps: connections of the old generation and of the new one are seen."""
    lab.attach(*pods)
    with capturing(lab, "-o", "json") as process:
        with conversation(pods, 7001, rounds=5) as (old_client, old_server):
            assert lab.cli("upgrade", "--max-pairs", "1000").returncode == 0
            wait_until("the new generation has a tap", lambda: (Path(lab.pin_dir) / "g2/tap0/program").exists())
            warm(old_client, old_server, 5)
            with conversation(pods, 7002, rounds=5):
                pass
        time.sleep(0.3)
    messages = [m for m in map(json.loads, process.stdout_.splitlines()) if m["what"] == "message"]
    ports = [m["server"]["address"].rsplit(":")[-1] for m in messages]
    assert (ports.count("7001"), ports.count("7002")) == (20, 10)
    assert taps(lab) == []


def test_detach_ends_it(lab, pods):
    """When nothing is attached any more there is nothing to capture; and detach has not waited."""
    lab.attach(*pods)
    with capturing(lab, "-o", "json") as process:
        with conversation(pods, rounds=5) as (client, server):
            lab.detach()
            assert not Path(lab.pin_dir).exists()
            process.wait(20)
            warm(client, server, 3)
    assert process.returncode == 0 and b"nothing is attached any more" in process.stderr_, process.stderr_
    assert process.stdout_.count(b'"message"') == 10


def test_a_workload_may_forbid_it(lab, pods):
    """--no-capture: nothing of it is copied, neither what it sends nor what it gets; the count says so."""
    lab.attach(pods[0])
    lab.attach(pods[1], options=["--no-capture"])
    with capturing(lab, "-o", "json") as process:
        with conversation(pods), lab.expect_fast(0):
            pass
    assert process.stdout_ == b"" and b"of workloads that may not be captured" in process.stderr_, process.stderr_
    listed = {w["name"]: w.get("capture", True) for w in json.loads(lab.cli("status", "-o", "json").stdout)["workloads"]}
    assert listed == {f"/{lab.tag}/p1": True, f"/{lab.tag}/p2": False}
    lab.attach(pods[1])
    with capturing(lab, "-o", "json") as process:
        with conversation(pods):
            pass
        time.sleep(0.3)
    assert b"message" in process.stdout_


def test_a_full_buffer_is_counted(lab, pods, tmp_path):
    """More than the buffer holds at one time: what is lost is counted in the file, and the sequence numbers stay right."""
    lab.attach(*pods)
    file = tmp_path / "lost.pcapng"
    with capturing(lab, "-w", file, "--buffer", "64KiB") as process:
        with conversation(pods, rounds=0) as (client, server):
            warm(client, server, 2)
            process.send_signal(signal.SIGSTOP)
            with lab.expect_fast(few(200)):
                for _ in range(few(400)):
                    exchange(client, server, b"z" * 1000)
            process.send_signal(signal.SIGCONT)
            time.sleep(0.5)
            exchange(client, server, b"last")
            time.sleep(0.3)
    assert b"pieces of messages lost" in process.stderr_, process.stderr_
    last = packets(file, "tcp.seq", "tcp.len", only="tcp.len == 4 && tcp.dstport == 6379")[-1]
    assert last == [str(1 + 8 + few(400) * 1000), "4"]
    assert "lost" in tshark(file, "-q", "-z", "io,stat,0") or b"lost" in process.stderr_


def test_bad_input_is_explained(lab, pods):
    done = lab.cli("capture")
    assert done.returncode == 1 and "nothing is attached" in done.stderr, done
    lab.attach(*pods)
    for argv, text in [
        (["path", "fast"], "asks for `path`, which changes"),
        (["pod"], "expected"),
        (["--buffer", "1k"], "--buffer"),
        (["-w", "/nonexistent/x.pcapng"], "creating /nonexistent/x.pcapng"),
        (["-o", "yaml"], "capture prints a line a message"),
    ]:
        done = lab.cli("capture", *argv)
        assert done.returncode == 1 and text in done.stderr, (argv, done)
    full = lab.cli("capture", "-w", "/dev/full", "--seconds", "1")
    assert full.returncode == 1 and "No space left" in full.stderr, full
    assert taps(lab) == []

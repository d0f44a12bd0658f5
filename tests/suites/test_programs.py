"""Programs that people run, with data that is checked: the same result outside and attached, and proof of the fast path."""
import hashlib
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import sources
from lab import PYTHON, sh, wait_until

pytestmark = pytest.mark.suite
BLOB = 24 << 20


def need(*names):
    for name in names:
        if not shutil.which(name):
            pytest.skip(f"{name} is not installed")


def blob(path, size, seed):
    """A file that no compression or offset error leaves alike; its checksum."""
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for i in range(size // 4096):
            block = hashlib.shake_128(f"{seed}:{i}".encode()).digest(4096)
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def sha(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def out(pod, *argv, timeout=120, **kw):
    done = subprocess.run(pod.argv(*argv), capture_output=True, text=True, timeout=timeout, **kw)
    assert done.returncode == 0, f"{argv[:3]}: exit {done.returncode}: {done.stderr[-1500:]} {done.stdout[-500:]}"
    return done.stdout


def wait_port(pod, port):
    probe = (f"import socket; socket.create_connection(('{pod.ip}', {port}), 1).close()")
    wait_until(f"{pod.ip}:{port} answers", lambda: subprocess.run(
        ["nsenter", f"--net=/run/netns/{pod.ns}", PYTHON, "-c", probe], capture_output=True).returncode == 0, 20)


def compare(lab, pods, eligibility, run, fast):
    """Runs twice, outside and attached. Programs are started anew for the second: nothing of the first is attached."""
    want = run()
    lab.attach(*pods, eligibility=eligibility)
    got = run()
    assert got == want
    if lab.attached and fast:
        assert lab.totals()["fast_messages"] > 0, lab.status()


def stop(process):
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


NGINX = """daemon off; master_process off; pid {dir}/nginx.pid; error_log {dir}/error.log;
events {{ worker_connections 512; }}
http {{ access_log off; client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/f;
  uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s; client_max_body_size 0; sendfile {sendfile}; keepalive_requests 100000;
  server {{ listen {port}; root {dir}/www; location /up {{ proxy_pass http://{backend}; proxy_request_buffering {buffering}; }} }} }}
"""

UPLOADS = """
import hashlib, http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        digest, left = hashlib.sha256(), int(self.headers["Content-Length"])
        while left:
            part = self.rfile.read(min(left, 65536))
            digest.update(part)
            left -= len(part)
        text = digest.hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    do_PUT = do_POST
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), Handler).serve_forever()
"""


def start_nginx(pod, where, port, backend, sendfile="on", buffering="on"):
    where.mkdir(exist_ok=True)
    (where / "www").mkdir(exist_ok=True)
    conf = where / "nginx.conf"
    conf.write_text(NGINX.format(dir=where, port=port, backend=backend, sendfile=sendfile, buffering=buffering))
    process = pod.start("nginx", "-c", conf, "-e", where / "error.log", stderr=subprocess.DEVNULL)
    wait_port(pod, port)
    return process


@pytest.mark.parametrize("eligibility", ["safe", "all"])
def test_nginx_curl_wrk(lab, tmp_path, eligibility):
    """Downloads (whole, range, chunked by proxy), uploads of megabytes through a proxy, keep-alive load; checksums."""
    if eligibility == "all":
        pytest.skip("nginx trusts FIONREAD, which a workload that is attached with `all` must not: docs/transparency.md")
    need("nginx", "curl", "wrk")
    client, front, back = lab.pod("p1"), lab.pod("p2"), lab.pod("p3")
    os.chmod(tmp_path, 0o755)
    (tmp_path / "www").mkdir()
    wanted = blob(tmp_path / "www" / "blob", BLOB, "nginx")
    (tmp_path / "www" / "small").write_text("x" * 612)

    def run():
        uploads = back.start(PYTHON, "-c", UPLOADS, 8081)
        wait_port(back, 8081)
        nginx = start_nginx(front, tmp_path, 8080, f"{back.ip}:8081")
        url, got = f"http://{front.ip}:8080", {}
        try:
            for i in range(6):
                got[f"get {i}"] = out(client, "curl", "-sS", f"{url}/small")
            out(client, "curl", "-sS", "-o", tmp_path / "got", f"{url}/blob")
            got["blob"] = sha(tmp_path / "got") == wanted
            out(client, "curl", "-sS", "-r", "1000-5000000", "-o", tmp_path / "got", f"{url}/blob")
            got["range"] = sha(tmp_path / "got")
            for i in range(5):
                got[f"upload {i}"] = out(client, "curl", "-sS", "-T", tmp_path / "www" / "blob", f"{url}/up")
            got["continue"] = out(client, "curl", "-sS", "-H", "Expect: 100-continue", "--data-binary",
                                  f"@{tmp_path}/www/blob", f"{url}/up")
            got["many"] = out(client, "curl", "-sS", *[f"{url}/small"] * 50).count("x")
            got["slow"] = len(out(client, "curl", "-sS", "--limit-rate", "20M", f"{url}/blob", "-o", tmp_path / "got"))
            got["slow sum"] = sha(tmp_path / "got") == wanted
            load = out(client, "wrk", "-t", "2", "-c", "32", "-d", "3s", f"{url}/small")
            got["wrk"] = ("Socket errors" in load, "Non-2xx" in load, "requests in" in load)
        finally:
            stop(nginx)
            stop(uploads)
        assert got["upload 0"] == wanted and got["wrk"] == (False, False, True), got
        return got
    compare(lab, (client, front, back), eligibility, run, True)


HAPROXY = """global
  maxconn 512
defaults
  mode {mode}
  timeout connect 5s
  timeout client 20s
  timeout server 20s
  {splice}
frontend f
  bind :8090
  default_backend b
backend b
  server s {backend}
"""


@pytest.mark.parametrize("mode", ["tcp", "http"])
@pytest.mark.parametrize("splice", ["option splice-auto", "no option splice-auto"], ids=["splice", "copy"])
@pytest.mark.parametrize("eligibility", ["safe", "all"])
def test_haproxy(lab, tmp_path, eligibility, splice, mode):
    """splice(2) never sees redirected bytes (H6): `safe` finds out that HAProxy splices, `all` is not for it."""
    if splice.startswith("option") and eligibility == "all":
        pytest.skip("a workload that splices must not be attached with `all`: docs/transparency.md")
    need("haproxy", "nginx", "curl")
    client, proxy, server = lab.pod("p1"), lab.pod("p2"), lab.pod("p3")
    os.chmod(tmp_path, 0o755)
    (tmp_path / "www").mkdir()
    wanted = blob(tmp_path / "www" / "blob", BLOB, "haproxy")
    (tmp_path / "www" / "small").write_text("y" * 1000)
    (tmp_path / "haproxy.cfg").write_text(HAPROXY.format(mode=mode, splice=splice, backend=f"{server.ip}:8080"))

    def run():
        nginx = start_nginx(server, tmp_path, 8080, "127.0.0.1:1")
        haproxy = proxy.start("haproxy", "-db", "-f", tmp_path / "haproxy.cfg", stderr=subprocess.DEVNULL)
        wait_port(proxy, 8090)
        url, got = f"http://{proxy.ip}:8090", []
        try:
            for i in range(8):
                got.append(out(client, "curl", "-sS", "-m", "30", f"{url}/small"))
                out(client, "curl", "-sS", "-m", "30", "-o", tmp_path / "got", f"{url}/blob")
                got.append(sha(tmp_path / "got") == wanted)
        finally:
            stop(haproxy)
            stop(nginx)
        assert got.count(True) == 8, got
        return got
    compare(lab, (client, proxy, server), eligibility, run, not splice.startswith("option"))


@pytest.fixture
def open_path():
    """A directory that a server which gives up root can reach; pytest's own are root's alone."""
    path = Path(tempfile.mkdtemp(prefix="shared-socket-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("eligibility", ["safe", "all"])
def test_postgresql(lab, open_path, eligibility):
    """pgbench's money is all there: what the branches, tellers, accounts and the history say is one sum; COPY both ways."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not binaries or not shutil.which("pgbench"):
        pytest.skip("postgresql is not installed")
    bin_dir, user = binaries[-1], pwd.getpwnam("postgres")
    client, server = lab.pod("p1"), lab.pod("p2")
    data = open_path / "data"
    data.mkdir()
    os.chown(data, user.pw_uid, user.pw_gid)
    drop = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    sh(*drop, f"{bin_dir}/initdb", "-D", str(data), "-A", "trust", "-U", "postgres", "--no-sync", cwd="/")
    with open(data / "pg_hba.conf", "a") as file:
        file.write("host all all 10.77.0.0/24 trust\n")
    env = {**os.environ, "PGHOST": server.ip, "PGUSER": "postgres", "PGDATABASE": "postgres", "LC_ALL": "C"}

    def run():
        postgres = server.start(*drop, f"{bin_dir}/postgres", "-D", data, "-h", "*", "-k", data, "-c", "fsync=off", cwd="/",
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_port(server, 5432)

        def psql(sql):
            return out(client, "psql", "-XAtc", sql, env=env).strip()
        try:
            got = {}
            out(client, "pgbench", "-i", "-q", "-s", "2", env=env)
            done = out(client, "pgbench", "-c", "8", "-j", "2", "-t", "100", "--random-seed=1", env=env)
            got["done"] = [line for line in done.splitlines() if "actually processed" in line or "failed" in line]
            out(client, "pgbench", "-n", "-c", "4", "-t", "100", "-S", "-M", "prepared", env=env)
            sums = psql("select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers), "
                        "(select sum(bbalance) from pgbench_branches), (select sum(delta) from pgbench_history)").split("|")
            assert len(set(sums)) == 1, sums
            psql("create table if not exists t(a int, b text); truncate t; "
                 "insert into t select i, repeat(md5(i::text), 8) from generate_series(1, 30000) i")
            file = open_path / "copy"
            file.write_text(out(client, "psql", "-Xc", "copy t to stdout", env=env))
            got["copy out"] = sha(file)
            psql("create table if not exists u(a int, b text); truncate u")
            with open(file) as rows:
                out(client, "psql", "-Xc", "copy u from stdin", env=env, stdin=rows)
            got["copy in"] = psql("select count(*), md5(string_agg(b, '' order by a)) from u")
            got["error"] = subprocess.run(client.argv("psql", "-Xc", "select 1/0"), env=env, capture_output=True,
                                          text=True).stderr
        finally:
            stop(postgres)
        return got
    compare(lab, (client, server), eligibility, run, eligibility == "all")


@pytest.mark.parametrize("eligibility", ["safe", "all"])
def test_rsync(lab, tmp_path, eligibility):
    """A tree pushed to a daemon, changed, pushed again, and pulled back: equal."""
    need("rsync")
    client, server = lab.pod("p1"), lab.pod("p2")
    tree = tmp_path / "tree"
    tree.mkdir()
    for i in range(200):
        blob(tree / f"f{i}", 4096 * (1 + i % 40), f"rsync {i}")
    blob(tree / "large", 16 << 20, "rsync large")
    conf = tmp_path / "rsyncd.conf"

    def listing(root):
        return {p.name: sha(p) for p in sorted(root.iterdir())}

    def run():
        store, back = tmp_path / "store", tmp_path / "back"
        for path in (store, back):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir()
        conf.write_text(f"use chroot = no\nuid = root\ngid = root\n[m]\npath = {store}\nread only = no\n")
        daemon = server.start("rsync", "--daemon", "--no-detach", f"--config={conf}", "--port=8730")
        wait_port(server, 8730)
        url = f"rsync://{server.ip}:8730/m/"
        try:
            for i in range(5):  # connections enough to learn from
                out(client, "rsync", url)
            out(client, "rsync", "-a", f"{tree}/", url)
            blob(tree / "large", 16 << 20, "rsync large, changed")
            out(client, "rsync", "-a", "--delete", "--no-whole-file", "--ignore-times", f"{tree}/", url)
            out(client, "rsync", "-a", url, f"{back}/")
        finally:
            stop(daemon)
        assert listing(store) == listing(tree) == listing(back)
        return listing(back)
    compare(lab, (client, server), eligibility, run, eligibility == "all")


def test_go_io_copy(lab):
    """A Go proxy splices between its two connections (H6). `safe` keeps off those, and every byte comes through."""
    binary = sources.iocopy()
    client, proxy, server = lab.pod("p1"), lab.pod("p2"), lab.pod("p3")

    def run():
        started = [server.start(binary, "server", f"{server.ip}:7000", stdout=subprocess.DEVNULL),
                   proxy.start(binary, "proxy", f"{proxy.ip}:7001", f"{server.ip}:7000", stdout=subprocess.DEVNULL)]
        wait_port(server, 7000)
        wait_port(proxy, 7001)
        try:
            direct = out(client, binary, "client", f"{server.ip}:7000", 6, 3 << 20, timeout=60)
            return direct, out(client, binary, "client", f"{proxy.ip}:7001", 12, 3 << 20, timeout=60)
        finally:
            for process in started:
                stop(process)
    compare(lab, (client, proxy, server), "safe", run, True)

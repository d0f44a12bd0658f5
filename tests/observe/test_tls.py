"""endpoints.tls: a scrape with curl, as Prometheus does it; certificates that are renewed, and such that are none."""
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
from lab import wait_until

pytestmark = [
    pytest.mark.product,
    pytest.mark.skipif(not (shutil.which("openssl") and shutil.which("curl")), reason="no openssl, or no curl"),
]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def openssl(*args):
    done = subprocess.run(["openssl", *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Authority:
    """A CA, and what it signs; files in a directory of its own."""

    def __init__(self, directory, name):
        self.dir, self.name = Path(directory), name
        self.certificate, self.key = self.dir / f"{name}.crt", self.dir / f"{name}.key"
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", 2, "-subj",
                f"/CN={name}", "-keyout", self.key, "-out", self.certificate)

    def sign(self, name):
        """(certificate, key) for 127.0.0.1, each made and then put into its place as a mounted Secret's are."""
        made = [self.dir / f"{name}.{end}" for end in ("crt", "key", "csr", "ext")]
        certificate, key, request, extensions = [path.with_suffix(path.suffix + ".new") for path in made]
        extensions.write_text("basicConstraints=CA:FALSE\nsubjectAltName=IP:127.0.0.1\n")
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}",
                "-keyout", key, "-out", request)
        openssl("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.key, "-CAcreateserial", "-days", 1,
                "-extfile", extensions, "-out", certificate)
        certificate.rename(made[0])
        key.rename(made[1])
        return made[0], made[1]


class Served:
    """The agent's endpoint, and a curl that trusts one CA."""

    def __init__(self, lab, ca, extra=""):
        self.ca, self.port, self.plain = ca, free_port(), free_port()
        self.config = Path(lab.state_dir) / "agent.yaml"
        self.log_file = Path(lab.state_dir) / "agent.log"
        self.config.write_text(f"""apiVersion: shared-socket.io/v1
endpoints:
  http: 127.0.0.1:{self.port}
  page: 127.0.0.1:{self.plain}
  tls:
    certificate: {ca.dir}/server.crt
    key: {ca.dir}/server.key
{extra}
runtime: {{endpoint: 'unix:///nonexistent/none.sock'}}
""")
        with open(self.log_file, "w") as log:
            self.process = subprocess.Popen(lab.argv("agent", "--config", self.config), stderr=log)
        lab.extra.append(self.process)
        wait_until("the agent answers", lambda: self.curl("/healthz", "--cacert", ca.certificate)[1] == "200", 15)

    def curl(self, path, *options, scheme="https", port=None):
        """What curl says: exit status, status of the answer, its text."""
        done = subprocess.run(["curl", "-sS", "--max-time", "10", "-w", "\n%{http_code}", *map(str, options),
                               f"{scheme}://127.0.0.1:{port or self.port}{path}"], capture_output=True, text=True)
        text, _, status = done.stdout.rpartition("\n")
        return done.returncode, status, text + done.stderr

    def serial(self):
        """Of the certificate that is shown."""
        with socket.create_connection(("127.0.0.1", self.port)):
            pass
        shown = subprocess.run(["openssl", "s_client", "-connect", f"127.0.0.1:{self.port}"], stdin=subprocess.DEVNULL,
                               capture_output=True, text=True).stdout
        return subprocess.run(["openssl", "x509", "-noout", "-serial"], input=shown, capture_output=True, text=True).stdout


def serial_of(path):
    return subprocess.run(["openssl", "x509", "-noout", "-serial", "-in", path], capture_output=True, text=True).stdout


@pytest.fixture
def ca(tmp_path):
    ca = Authority(tmp_path, "ca")
    ca.sign("server")
    return ca


def test_a_scrape(lab, ca):
    served = Served(lab, ca)
    trust = ("--cacert", ca.certificate)
    code, status, text = served.curl("/metrics", *trust)
    assert (code, status) == (0, "200") and text.endswith("# EOF\n"), text
    assert served.curl("/metrics", *trust, "--tls-max", "1.2")[1] == "200"
    assert served.curl("/metrics")[0] == 60, "a CA that curl does not know"
    assert served.curl("/metrics", *trust, "--tls-max", "1.1")[0] != 0
    # plain HTTP gets nothing, and the page has none of it
    assert served.curl("/metrics", scheme="http")[0] != 0
    assert served.curl("/api/reasons", scheme="http", port=served.plain)[1] == "200"


def test_who_says_nothing_holds_up_nobody(lab, ca):
    served = Served(lab, ca)
    silent = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(40)]
    began = time.monotonic()
    assert served.curl("/healthz", "--cacert", ca.certificate)[1] == "200"
    assert time.monotonic() - began < 3
    for one in silent:  # they are let go
        one.settimeout(15)
        assert one.recv(1) == b""


def test_a_renewed_certificate_needs_no_restart_and_a_bad_one_keeps_the_old(lab, ca, tmp_path):
    served = Served(lab, ca)
    first, trust = served.serial(), ("--cacert", ca.certificate)
    assert first and first == serial_of(tmp_path / "server.crt")
    ca.sign("server")
    second = serial_of(tmp_path / "server.crt")
    assert second != first
    wait_until("the new certificate is shown", lambda: served.serial() == second, 10, 0.3)
    # one that is none; one whose key is another's; none at all
    certificate = tmp_path / "server.crt"
    good = certificate.read_bytes()
    other, _ = ca.sign("other")
    spoils = {
        "reading certificates of": lambda: certificate.write_text("-----BEGIN CERTIFICATE-----\nnonsense\n"),
        "using the key": lambda: certificate.write_bytes(other.read_bytes()),
        "No such file": certificate.unlink,
    }

    def config_good():
        text = served.curl("/metrics", *trust)[2]
        return float(next(line for line in text.splitlines() if line.startswith("shared_socket_agent_config_good")).split()[1])
    for count, (why, spoil) in enumerate(spoils.items(), 1):
        spoil()
        wait_until("it is told", lambda: config_good() == 0 and why in served.log_file.read_text(), 10, 0.3)
        assert served.serial() == second
        time.sleep(1.1)
        config_good()
        [*_, last] = told = [line for line in served.log_file.read_text().splitlines() if "those before stay in use" in line]
        assert len(told) == count and why in last and str(certificate) in last, told
    certificate.write_bytes(good)
    wait_until("all is well", lambda: config_good() == 1, 10, 0.3)
    assert served.serial() == second and served.process.poll() is None


def test_a_client_certificate_is_demanded_for_all_but_health(lab, ca, tmp_path):
    (tmp_path / "clients").mkdir()
    clients = Authority(tmp_path / "clients", "clients")
    certificate, key = clients.sign("prometheus")
    served = Served(lab, ca, f"    clientCa: {clients.certificate}")
    trust = ("--cacert", ca.certificate)
    for path in ("/metrics", "/workloads"):
        code, status, text = served.curl(path, *trust)
        assert (status, "clientCa" in text) == ("403", True), (path, text)
        assert served.curl(path, *trust, "--cert", certificate, "--key", key)[1] == "200"
    assert served.curl("/healthz", *trust)[1] == "200"  # the kubelet has none to show
    assert served.curl("/readyz", *trust)[1] in ("200", "503")
    # of another CA: the handshake fails
    stranger, strange_key = ca.sign("stranger")
    assert served.curl("/healthz", *trust, "--cert", stranger, "--key", strange_key)[0] != 0
    assert served.curl("/metrics", *trust, "--cert", stranger, "--key", strange_key)[1] == "000"
    # another CA from now on
    clients.certificate.write_bytes(ca.certificate.read_bytes())
    wait_until("the new CA counts", lambda: served.curl("/metrics", *trust, "--cert", stranger, "--key", strange_key)[1]
               == "200", 10, 0.3)
    assert served.curl("/metrics", *trust, "--cert", certificate, "--key", key)[1] == "000"


def test_mistakes_have_their_line(lab, ca, tmp_path):
    def said(text):
        config = tmp_path / "agent.yaml"
        config.write_text("apiVersion: shared-socket.io/v1\n" + text)
        done = subprocess.run(lab.argv("agent", "--check", "--config", config), capture_output=True, text=True)
        return done.returncode, done.stderr
    good = f"certificate: {tmp_path}/server.crt, key: {tmp_path}/server.key"
    code, text = said(f"endpoints: {{tls: {{{good}}}}}\n")
    assert code == 0, text
    (tmp_path / "empty.pem").write_text("")
    ca.sign("other")
    for tls, line, why in (
        (f"  tls:\n    certificate: {tmp_path}/none.crt\n    key: {tmp_path}/server.key\n", 4, "No such file"),
        (f"  tls:\n    certificate: {tmp_path}/empty.pem\n    key: {tmp_path}/server.key\n", 4, "there is none"),
        (f"  tls:\n    certificate: {tmp_path}/server.key\n    key: {tmp_path}/server.key\n", 4, "there is none"),
        (f"  tls:\n    certificate: {tmp_path}/server.crt\n    key: {tmp_path}/empty.pem\n", 5, "reading a private key"),
        (f"  tls:\n    certificate: {tmp_path}/server.crt\n    key: {tmp_path}/other.key\n", 5, "using the key"),
        (f"  tls: {{{good},\n    clientCa: {tmp_path}/empty.pem}}\n", 4, "there is none"),
        (f"  tls: {{{good},\n    clientCa: {tmp_path}}}\n", 4, "it is no file"),
        (f"  tls: {{{good}}}\n  http: null\n", 3, "is for endpoints.http"),
    ):
        code, text = said("endpoints:\n" + tls)
        assert code != 0 and f"line {line}: " in text and why in text, (tls, text)

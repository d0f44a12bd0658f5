"""A pair on the fast path sends no packets: its conntrack entry must live all the same, or its FIN is lost (H12)."""
import time

import pytest
from lab import sh
from test_reconnect import warm

pytestmark = pytest.mark.product
SERVICE = "10.96.0.10"
SECONDS = 5  # tcp_timeout_established; five days by default, 900 s in IPVS


@pytest.mark.parametrize("keepalive", [1000, 60_000], ids=["in time", "too late"])
def test_busy_pair_behind_dnat_and_masquerade(lab, pods, keepalive):
    """Talks for twice the timeout. With a message by TCP now and then the entry lives and the FIN arrives; the second
    case is the proof that without one it would not."""
    a, b = pods
    lab.router_iptables("-t", "nat", "-A", "PREROUTING", "-p", "tcp", "-d", SERVICE, "--dport", "80", "-j", "DNAT",
                        "--to-destination", f"{b.ip}:8080")
    lab.router_iptables("-t", "nat", "-A", "POSTROUTING", "-p", "tcp", "-j", "MASQUERADE", "--random")
    sh("nsenter", f"--net=/run/netns/{lab.bridge}", "sysctl", "-qw",
       f"net.netfilter.nf_conntrack_tcp_timeout_established={SECONDS}")
    lab.attach(a, b, options=("--debug-keepalive-ms", keepalive))
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip, 8080)
    c, s = client.connect(SERVICE, 80), ear.accept()
    warm(c, s)
    before = lab.totals()
    end = time.monotonic() + 2 * SECONDS + 1
    rounds = 0
    while time.monotonic() < end:
        warm(c, s)
        rounds += 1
        time.sleep(0.2)
    after = lab.totals()
    by_tcp = after["tcp_messages"] - before["tcp_messages"]
    assert after["fast_messages"] - before["fast_messages"] > rounds * 6
    c.shutdown()
    if keepalive == 1000:
        # one a second and direction, and what follows each until it has been read
        assert 2 * SECONDS <= by_tcp <= 4 * SECONDS + 4, by_tcp
        assert lab.status()["reasons"]["keepalive"] >= 2 * SECONDS
        assert s.read_all() == b""
        s.send(b"after your end")
        assert c.read(14) == b"after your end"
    else:
        assert by_tcp == 0
        assert s.pending(3.0) == b"", "the FIN arrived although its conntrack entry had expired: no proof"

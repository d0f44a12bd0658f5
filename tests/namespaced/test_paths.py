"""Where the two ends are: NAT in the way, IPv6, v4-mapped, loopback, and ends that are not ours."""
import pytest
from lab import sh

SERVICE = "10.96.0.9"


def echo(server, host, mapped=False, port=0):
    ear = server.listen(host, port, mapped=mapped)
    server.call("echo_start", ear.name)
    return ear.port


def check(client, host, port, connections=5):
    for stream in range(connections):
        client.call("echo_client", host, port, rounds=20, stream=stream)


def test_cluster_ip_dnat_in_the_client_pod(lab, pods):
    """DNAT where the client is (kube-proxy for a host-network client)."""
    a, b = pods
    lab.attach(a, b)
    server, client = b.peer(), a.peer()
    port = echo(server, b.ip)
    a.iptables("-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-d", SERVICE, "--dport", "80", "-j", "DNAT",
               "--to-destination", f"{b.ip}:{port}")
    with lab.expect_fast(50):
        check(client, SERVICE, 80)
    assert server.call("echo_errors") == []
    lab.wait_empty()


def test_cluster_ip_dnat_on_the_node(lab, pods):
    """DNAT on the router between the pods, answers routed back through it."""
    a, b = pods
    lab.attach(a, b)
    server, client = b.peer(), a.peer()
    port = echo(server, b.ip)
    b.ip_cmd("route", "add", f"{a.ip}/32", "via", "10.77.0.254")
    lab.router_iptables("-t", "nat", "-A", "PREROUTING", "-p", "tcp", "-d", SERVICE, "--dport", "80", "-j", "DNAT",
                        "--to-destination", f"{b.ip}:{port}")
    with lab.expect_fast(50):
        check(client, SERVICE, 80)
    lab.wait_empty()


def test_dnat_and_masquerade(lab, pods):
    """Neither end knows the other's address or port; `connections` still ties them."""
    a, b = pods
    lab.attach(a, b)
    server, client = b.peer(), a.peer()
    port = echo(server, b.ip)
    lab.router_iptables("-t", "nat", "-A", "PREROUTING", "-p", "tcp", "-d", SERVICE, "--dport", "80", "-j", "DNAT",
                        "--to-destination", f"{b.ip}:{port}")
    lab.router_iptables("-t", "nat", "-A", "POSTROUTING", "-p", "tcp", "-j", "MASQUERADE", "--random")
    with lab.expect_fast(50):
        check(client, SERVICE, 80)
    ear = server.listen(b.ip)
    lab.router_iptables("-t", "nat", "-A", "PREROUTING", "-p", "tcp", "-d", SERVICE, "--dport", "81", "-j", "DNAT",
                        "--to-destination", f"{b.ip}:{ear.port}")
    c = client.connect(SERVICE, 81)
    s = ear.accept()
    assert s.remote[0] == "10.77.0.254"
    with lab.expect_fast(1):
        for _ in range(5):
            c.send(b"hello")
            assert s.read(5) == b"hello"
            s.send(b"back")
            assert c.read(4) == b"back"
    c.close()
    s.close()
    lab.wait_empty()


def test_pod_reaches_itself_through_its_service(lab, pods):
    """Hairpin: a pod's connection to a service comes back to itself."""
    a, _ = pods
    lab.attach(a)
    peer, other = a.peer(), a.peer()
    port = echo(peer, a.ip)
    lab.router_iptables("-t", "nat", "-A", "PREROUTING", "-p", "tcp", "-d", SERVICE, "--dport", "80", "-j", "DNAT",
                        "--to-destination", f"{a.ip}:{port}")
    lab.router_iptables("-t", "nat", "-A", "POSTROUTING", "-p", "tcp", "-j", "MASQUERADE")
    sh_hairpin(lab, a)
    with lab.expect_fast(20):
        check(other, SERVICE, 80, 2)


def sh_hairpin(lab, pod):
    sh("bridge", "-n", lab.bridge, "link", "set", "dev", "v" + pod.ip.split(".")[-1], "hairpin", "on")


def test_redirect_to_a_local_proxy(lab, pods):
    """REDIRECT to a sidecar in the client's pod, which connects to the server: two pairs, both fast."""
    a, b = pods
    lab.attach(a, b)
    server, client, sidecar = b.peer(), a.peer(), a.peer()
    port = echo(server, b.ip)
    door = sidecar.listen("0.0.0.0", 15001)
    sidecar.call("proxy_start", door.name, b.ip, port)
    a.iptables("-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-d", SERVICE, "-j", "REDIRECT", "--to-ports", "15001")
    before = lab.totals() if lab.attached else None
    with lab.expect_fast(5 * 60):  # 100 rounds are 400 messages over two pairs; one pair alone would give 200
        check(client, SERVICE, 80)
    if before:
        assert lab.totals()["pairs_total"] - before["pairs_total"] == 10
    lab.wait_empty()


def test_redirect_at_the_servers_pod(lab, pods):
    """REDIRECT in PREROUTING of the server's pod (inbound sidecar)."""
    a, b = pods
    lab.attach(a, b)
    server, client, sidecar = b.peer(), a.peer(), b.peer()
    port = echo(server, "127.0.0.1", port=8080)
    door = sidecar.listen("0.0.0.0", 15006)
    sidecar.call("proxy_start", door.name, "127.0.0.1", port)
    b.iptables("-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "8080", "-j", "REDIRECT", "--to-ports", "15006")
    with lab.expect_fast(5 * 60):
        check(client, b.ip, 8080)
    lab.wait_empty()


@pytest.mark.parametrize("kind", ["ipv6", "ipv6-loopback", "loopback", "mapped-server", "mapped-client", "own-address"])
def test_addresses(lab, pods, kind):
    a, b = pods
    lab.attach(a, b)
    near = kind in ("ipv6-loopback", "loopback", "own-address")
    server, client = (a if near else b).peer(), a.peer()
    bind, host = {
        "ipv6": (b.ip6, b.ip6),
        "ipv6-loopback": ("::1", "::1"),
        "loopback": ("127.0.0.1", "127.0.0.1"),
        "own-address": (a.ip, a.ip),
        "mapped-server": ("::", b.ip),
        "mapped-client": ("0.0.0.0", f"::ffff:{b.ip}"),
    }[kind]
    port = echo(server, bind, mapped=kind == "mapped-server")
    with lab.expect_fast(50):
        check(client, host, port)
    assert server.call("echo_errors") == []
    lab.wait_empty()


@pytest.mark.parametrize("host", ["ip", "ip6"])
@pytest.mark.parametrize("way", ["to-outside", "from-outside"])
def test_remote_peer_stays_out(lab, pods, way, host):
    """The other end is outside the attached workloads: never in the sockhash, no pair, data right."""
    a, _ = pods
    outside = lab.pod("out")
    lab.attach(a)
    place, caller = (outside, a) if way == "to-outside" else (a, outside)
    server, client = place.peer(), caller.peer()
    port = echo(server, getattr(place, host))
    ear = server.listen(getattr(place, host))
    with lab.expect_tcp(no_halves=True):
        c = client.connect(getattr(place, host), ear.port)
        s = ear.accept()
        for _ in range(10):
            c.send(b"x" * 1000)
            assert s.read(1000) == b"x" * 1000
            s.send(b"y" * 1000)
            assert c.read(1000) == b"y" * 1000
        if lab.attached:
            totals = lab.totals()
            assert totals["halves"] == totals["pairs_live"] == totals["announced"] == 0, totals
            assert lab.connections() == []
        check(client, getattr(place, host), port, 10)
    c.close()
    s.close()
    lab.wait_empty()

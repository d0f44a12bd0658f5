"""Many connections: nothing leaks, and a full map is TCP, not an error."""
import time


def test_connection_storm_100000(lab):
    """100,000 connects over loopback in one pod by four pairs of processes, a quarter with an echo; afterwards every map
    is empty."""
    pod = lab.pod("p1")
    pod.sysctl(ip_local_port_range="1024 65535", tcp_max_tw_buckets=200000)
    lab.attach(pod)
    began, work = time.monotonic(), []
    for number in range(4):
        server, client = pod.peer(), pod.peer()
        host = f"127.0.0.{number + 2}"
        ear = server.listen(host, 900 + number, backlog=4096)
        work.append((client, server, host, ear))
    futures = []
    for client, server, host, ear in work:
        futures.append(server.post("storm_serve", ear.name, 25_000))
        futures.append(client.post("storm_connect", host, ear.port, 25_000))
    assert [f.result(120) for f in futures] == [25_000] * 8
    took = time.monotonic() - began
    assert took < 60, f"{took:.0f} s"
    lab.wait_empty(15)
    client, server, host, _ = work[0]
    ear = server.listen(host)
    server.call("echo_start", ear.name)
    with lab.expect_fast(10):  # and it works as on the first day
        client.call("echo_client", host, ear.port, rounds=20)


def test_map_full(lab, pods):
    """--max-pairs 16 and 100 connections at once: all of them right, the rest on TCP with reason map_full counted; when
    they are gone there is room again."""
    a, b = pods
    lab.attach(a, b, options=("--max-pairs", "16"))
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip)
    server.call("echo_start", ear.name)
    with lab.expect_fast(16):
        client.call("echo_many", b.ip, ear.port, 100, 5)
    assert server.call("echo_errors") == []
    if lab.attached:
        assert lab.status()["reasons"].get("map_full", 0) > 0
    lab.wait_empty()
    with lab.expect_fast(10):
        client.call("echo_client", b.ip, ear.port, rounds=20)

"""Death at every step, lost pins, removed cgroups, several instances: connections stay intact, and the next command
finishes or cleans up."""
import collections
import json
import os
import shutil
import socket
import subprocess
import threading
import time

import pytest
from lab import BINARY, sh, wait_until
from test_detach import pair
from test_reconnect import warm
from test_upgrade import assert_fast, numbers, segments, upgrade

pytestmark = pytest.mark.product


def dies_at(lab, step, *argv, **env):
    """Runs a command that is to die at a step; False when it came to its end before."""
    done = subprocess.run(lab.argv(*argv), capture_output=True, text=True, timeout=60,
                          env={**os.environ, **env, "SHARED_SOCKET_DEBUG_DIE_AT": str(step)})
    if done.returncode == -9:
        return True
    assert done.returncode == 0, f"{argv} with a death at step {step}: {done.returncode}\n{done.stdout}{done.stderr}"
    return False


def traffic(lab, pods, steady=3, fresh=2):
    a, b = pods
    server, client = b.peer(), a.peer()
    ear = server.listen(b.ip)
    server.call("echo_start", ear.name)
    client.call("traffic_start", b.ip, ear.port, steady, fresh)

    def stop():
        stats = client.call("traffic_stop")
        assert stats["errors"] == [] and stats["rounds"] > 100, stats
        assert server.call("echo_errors") == []
    return stop


def assert_whole(lab, pods):
    """Everything is linked, nothing is half done, and new connections are fast."""
    status = lab.status()
    assert {w["cgroup_id"] for w in status["workloads"]} == {p.cgroup.stat().st_ino for p in pods}
    assert all(w["complete"] and not w["draining"] for w in status["workloads"]), status["workloads"]
    assert not any(g["upgrading"] for g in status["generations"])
    before = lab.totals()["fast_messages"]
    wait_until("new connections are fast", lambda: lab.totals()["fast_messages"] >= before + 10)


def test_death_at_every_step_of_attach(lab, pods):
    lab.attached = True
    attach = lab.attach_args(pods)
    stop = traffic(lab, pods)
    step = 1
    while dies_at(lab, step, *attach):
        lab.status()
        lab.attach(*pods)
        assert_whole(lab, pods)
        lab.detach("--all", "--timeout", "5")
        assert not os.path.exists(lab.pin_dir)
        step += 1
    assert step > 15
    assert_whole(lab, pods)
    stop()


def test_death_at_every_step_of_detach(lab, pods):
    """What is done next is another detach in one half of the cases, and an attach in the other."""
    stop = traffic(lab, pods)
    lab.attach(*pods)
    step = 1
    while dies_at(lab, step, "detach", "--all", "--timeout", "5"):
        lab.status()
        if step % 2:
            lab.detach("--all", "--timeout", "5")
            assert not os.path.exists(lab.pin_dir)
        lab.attach(*pods)
        assert_whole(lab, pods)
        step += 1
    assert step > 10
    assert not os.path.exists(lab.pin_dir)
    stop()


@pytest.mark.parametrize("kind", ["in place", "other sizes", "other ABI"])
def test_death_at_every_step_of_upgrade(lab, pods, monkeypatch, kind):
    """The next command is an upgrade, an attach or a detach in turn."""
    stop = traffic(lab, pods)
    lab.attach(*pods)
    step, abi = 1, 100
    while True:
        if kind == "other ABI":
            monkeypatch.setenv("SHARED_SOCKET_DEBUG_ABI", str(abi + step))
        if not dies_at(lab, step, "upgrade", *(("--max-pairs", str(1000 + step)) if kind == "other sizes" else ())):
            break
        if step % 3 == 0:
            upgrade(lab)
        elif step % 3 == 1:
            # an attach of this version, if it can: before the new generation was complete it is told to upgrade
            if lab.cli(*lab.attach_args(pods)).returncode == 3:
                assert kind == "other ABI"
                upgrade(lab)
        else:
            lab.detach("--all", "--timeout", "5")
            lab.attach(*pods)
        assert_whole(lab, pods)
        step += 1
    assert step > 10
    assert_whole(lab, pods)
    stop()
    lab.attach(*pods)
    assert len(numbers(lab)) == 1


def test_many_instances_at_once(lab, pods):
    """Eight commands at a time, of all kinds: one after the other, none fails for the others' sake."""
    stop = traffic(lab, pods)
    lab.attach(*pods)
    attach = lab.attach_args(pods)
    for number in range(4):
        kinds = [attach, ["upgrade"], ["detach", "--all"], attach, ["upgrade", "--max-pairs", str(1000 + number)],
                 ["status"], ["connections"], attach]
        running = [subprocess.Popen(lab.argv(*k), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for k in kinds]
        lab.extra += running
        for process, kind in zip(running, kinds):
            out, err = process.communicate(timeout=60)
            if process.returncode and kind[0] == "upgrade":
                assert "nothing is attached" in err, err
            else:
                assert process.returncode == 0, (kind, out, err)
            assert "panicked" not in err
    lab.attach(*pods)
    assert_whole(lab, pods)
    stop()


def test_what_goes_while_it_is_read(lab, pods):
    """Generations come and go under commands that read them, which take no lock: none fails, none is told half."""
    stop = traffic(lab, pods)
    lab.attached = True
    over, failures, counts = threading.Event(), [], collections.Counter()

    def reads(*argv):
        while not over.is_set():
            done = subprocess.run(lab.argv(*argv), capture_output=True, text=True, timeout=60)
            counts[argv] += 1
            if done.returncode:
                failures.append((argv, done.returncode, done.stderr))
    verbs = [("connections", "-n"), ("status",), ("kinds",), ("top", "--once", "--interval", "0.1")]
    readers = [threading.Thread(target=reads, args=verb) for verb in verbs]
    for reader in readers:
        reader.start()
    try:
        for number in range(4):
            lab.attach(*pods)
            upgrade(lab, "--max-pairs", str(1000 + number))
            lab.detach("--all", "--timeout", "5")
    finally:
        over.set()
        for reader in readers:
            reader.join()
    assert not failures, failures[:5]
    assert min(counts[verb] for verb in verbs) > 4, counts
    lab.attach(*pods)
    assert_whole(lab, pods)
    stop()


@pytest.mark.parametrize("how", ["rm", "links", "umount"])
def test_lost_pins(lab, pods, tmp_path, how):
    """Every pin, or every link, is taken away under live pairs with unread bytes."""
    a, b = pods
    if how == "umount":
        lab.pin_dir = str(tmp_path / "bpf")
        os.mkdir(lab.pin_dir)
        sh("mount", "-t", "bpf", "-o", "mode=700", "bpf", lab.pin_dir)
    try:
        lab.attach(a, b)
        server, client, ear, c, s = pair(lab, pods)
        c2, s2 = client.connect(b.ip, ear.port), ear.accept()
        warm(c, s)
        warm(c2, s2)
        c.send(b"unread " * 100)
        s2.send(b"unread too")
        if how == "rm":
            shutil.rmtree(lab.pin_dir)
        elif how == "links":
            for name in os.listdir(f"{lab.pin_dir}/g1"):
                if name.startswith("link_"):
                    os.unlink(f"{lab.pin_dir}/g1/{name}")
            assert not any(w["complete"] for w in lab.status()["workloads"])
        else:
            sh("umount", lab.pin_dir)
        time.sleep(0.3)
        c.send(b"later")
        assert s.read(705) == b"unread " * 100 + b"later"
        assert c2.read(10) == b"unread too"
        warm(c, s)
        warm(c2, s2)
        if how != "links":
            before = segments(a)
            warm(c, s)
            assert segments(a) > before, "without pins the verdict is gone: TCP"
        c2.close()
        assert s2.read_all() == b""
        s2.close()
        c3, s3 = client.connect(b.ip, ear.port), ear.accept()
        warm(c3, s3)
        if how == "umount":
            sh("mount", "-t", "bpf", "-o", "mode=700", "bpf", lab.pin_dir)
        lab.attach(a, b, options=("--no-adopt",))
        c4, s4 = client.connect(b.ip, ear.port), ear.accept()
        with lab.expect_fast(7):
            warm(c4, s4)
        warm(c, s)
        c.close()
        assert s.read_all() == b""

        def records():  # what ended while no hook was there is swept, once RCU has let go of its socket
            lab.attach(a, b, options=("--no-adopt",))
            return lab.totals()["halves"]
        wait_until("only live halves have records", lambda: records() == (3 if how == "links" else 2))
        for end in (s, c3, s3, c4, s4):
            end.close()
        lab.attach(a, b, options=("--no-adopt",))
        lab.wait_empty()
        lab.detach("--all", "--timeout", "5")
    finally:
        if how == "umount":
            for peer in lab.peers:
                peer.close()
            sh("umount", lab.pin_dir, check=False)


def test_two_products_on_one_cgroup(lab, pods):
    """Two pin directories attached to the same cgroups: the first to insert a socket has it, the other leaves it on
    its own, and either goes without disturbing the other."""
    a, b = pods
    lab.attach(a, b)
    other = lab.pin_dir + "-second"

    def second(*args, ok=(0,)):
        done = subprocess.run([BINARY, "--pin-dir", other, *map(str, args)], capture_output=True, text=True, timeout=60)
        assert done.returncode in ok, done.stdout + done.stderr
        return done.stdout
    try:
        second(*lab.attach_args((a, b)))
        server, client, ear, c, s = pair(lab, pods)
        with lab.expect_fast(7):
            warm(c, s)
        totals = json.loads(second("status", "-o", "json"))
        assert totals["totals"]["pairs_live"] == 0 and totals["reasons"].get("insert_failed", 0) > 0, totals
        stop = traffic(lab, pods)
        time.sleep(0.5)
        c.send(b"unread")
        second("detach", "--all", "--timeout", "5")
        assert s.read(6) == b"unread"
        warm(c, s)
        second(*lab.attach_args((a, b)))
        lab.detach("--all", "--timeout", "5")
        warm(c, s)
        c2, s2 = client.connect(b.ip, ear.port), ear.accept()
        warm(c2, s2)
        before = json.loads(second("status", "-o", "json"))["totals"]["fast_messages"]
        warm(c2, s2)
        assert json.loads(second("status", "-o", "json"))["totals"]["fast_messages"] >= before + 8
        lab.attach(a, b)
        c2.close()
        assert s2.read_all() == b""
        s2.close()
        stop()
        c.close()
        s.close()
        wait_until("no record is left by the second", lambda: json.loads(second("status", "-o", "json"))["totals"]["halves"] == 0)
    finally:
        second("detach", "--all", "--timeout", "5", ok=(0, 1, 4))
        shutil.rmtree(other, ignore_errors=True)


def test_cgroup_that_is_removed(lab, pods):
    """The process moves out, its cgroup is removed, its socket lives on: the pair stays fast and its end is seen. With
    the last socket the kernel lets go of the links, and the next command forgets the workload and what was learned."""
    a, b = pods
    gone = lab.new_cgroup("gone")
    gone_id = gone.stat().st_ino
    lab.attach(a, b, gone)
    inside, server = a.peer(cgroup=gone), b.peer()
    ear = server.listen(b.ip)
    c, s = inside.connect(b.ip, ear.port), ear.accept()
    warm(c, s)
    (a.cgroup / "cgroup.procs").write_text(str(inside.pid))
    wait_until("the cgroup can go", lambda: removed(gone))
    number = len(lab.status()["workloads"])
    assert [w["cgroup"] for w in lab.status()["workloads"]].count(None) == 1 and number == 3
    assert "gone" in lab.cli("status").stdout
    lab.attach(a, b)
    assert len(lab.status()["workloads"]) == 3, "a live socket is still served"
    assert_fast(pods, c, s)
    assert [row["path"] for row in lab.connections()] == ["fast"]
    c.send(b"the end")
    c.close()
    assert s.read_all() == b"the end"
    s.close()
    lab.wait_empty()

    def forgotten():
        lab.attach(a, b)
        return len(lab.status()["workloads"]) == 2
    wait_until("the workload is forgotten", forgotten)
    assert not any(n.endswith(f"_{gone_id}") for n in os.listdir(f"{lab.pin_dir}/g1"))


def removed(path):
    try:
        path.rmdir()
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True


def test_detach_of_a_removed_cgroup(lab, pods):
    a, b = pods
    gone = lab.new_cgroup("gone")
    lab.attach(a, b, gone)
    number = gone.stat().st_ino
    inside, server = a.peer(cgroup=gone), b.peer()
    ear = server.listen(b.ip)
    c, s = inside.connect(b.ip, ear.port), ear.accept()
    warm(c, s)
    (a.cgroup / "cgroup.procs").write_text(str(inside.pid))
    wait_until("the cgroup can go", lambda: removed(gone))
    lab.detach("--id", str(number), "--timeout", "5")
    assert len(lab.status()["workloads"]) == 2
    before = segments(a)
    warm(c, s)
    assert segments(a) > before
    c.close()
    assert s.read_all() == b""


def test_full_disk(lab, pods, tmp_path):
    """Nowhere to write: bpffs needs no disk and the lock is an empty file."""
    a, b = pods
    small = tmp_path / "run"
    small.mkdir()
    script = (f'mount -t tmpfs -o size=4k,nr_inodes=64 none "{small}" && head -c 4096 /dev/zero > "{small}/fill"; '
              f'mount --bind "{small}" /run; exec "$@"')

    def run(*args):
        return subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", *lab.argv(*args)], capture_output=True,
                              text=True, timeout=60)
    lab.attached = True
    for args in (lab.attach_args((a, b)), ["upgrade"], ["status"]):
        done = run(*args)
        assert done.returncode == 0, done.stderr
    _, _, _, c, s = pair(lab, pods)
    with lab.expect_fast(7):
        warm(c, s)
    done = run("detach", "--all")
    assert done.returncode == 0, done.stderr
    warm(c, s)

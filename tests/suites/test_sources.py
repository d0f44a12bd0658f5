"""Test suites of redis, libuv and Node: the same outcome of every test inside an attached cgroup as outside."""
import collections
import concurrent.futures
import re
import shutil
import subprocess

import pytest
import sources

pytestmark = pytest.mark.suite
OUTSIDE = {}

REDIS_UNITS = """unit/protocol unit/pubsub unit/querybuf unit/multi unit/limits unit/type/string
unit/type/hash unit/networking unit/wait integration/replication-3 integration/redis-cli integration/redis-benchmark""".split()


def run_redis(pod):
    """Test name -> outcomes; redis' suite starts its servers on the pod's own loopback."""
    tree = sources.redis()
    units = [word for unit in REDIS_UNITS for word in ("--single", unit)]
    process = pod.start("tclsh", "tests/test_helper.tcl", "--clients", "2", "--timeout", "120", *units, cwd=tree,
                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    out, _ = process.communicate(timeout=400)
    text = re.sub(r"\x1b\[[0-9;]*m", "", out)
    got = collections.defaultdict(list)
    for word, name in re.findall(r"^\[(ok|err|exception|timeout)\]: (.*)$", text, re.M):
        got[re.sub(r" \(\d+ ms\)$", "", name)].append(word)
    return {name: sorted(words) for name, words in got.items()}, text[-4000:]


LIBUV_TESTS = re.compile(r"^(tcp|poll|shutdown|connection|delayed_accept|callback_stack|multiple_listen|ipc_tcp|ipc_listen|"
                         r"ipc_send_recv_tcp|getsockname_tcp|ping_pong|pipe_server|close_|socket_buffer|eintr|not_)")
# they look for what another machine answers or does not, or need a terminal or an outside network
LIBUV_NOT = re.compile(r"udp|pipe_|timeout|connect_to_unreachable|close_while_connecting")


def run_each(pod, commands, limit, where):
    """Name -> outcome of many small programs, two at a time."""
    def one(name, argv):
        process = pod.start(*argv, cwd=where, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                            text=True, errors="replace")
        try:
            out, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
            return name, "hang", out
        return name, f"exit {process.returncode}", out
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda item: one(*item), commands.items()))
    return {name: outcome for name, outcome, _ in done}, {name: out[-1500:] for name, _, out in done}


def run_libuv(pod):
    runner = sources.libuv()
    listed = subprocess.run([runner, "--list"], capture_output=True, text=True, env={"UV_RUN_AS_ROOT": "1"}).stdout.split()
    names = [name for name in listed if LIBUV_TESTS.search(name) and not LIBUV_NOT.search(name)]
    assert len(names) > 40, listed
    # one at a time: they all use the same port
    results, texts = {}, {}
    for name in names:
        got, text = run_each(pod, {name: ["env", "UV_RUN_AS_ROOT=1", runner, name]}, 30, runner.parent)
        results.update(got)
        texts.update(text)
    return results, texts


def run_node(pod):
    tree = sources.source("nodejs")
    if not shutil.which("node"):
        pytest.skip("node is not installed")
    commands = {}
    for path in sorted((tree / "test" / "parallel").glob("test-net-*.js")):
        flags = re.search(r"^// Flags: (.*)$", path.read_text(), re.M)
        # a number of its own each: their temporary directories must not meet
        commands[path.name] = ["env", "NODE_TEST_KNOWN_GLOBALS=0", f"TEST_THREAD_ID={len(commands)}", "node",
                               *(flags.group(1).split() if flags else []), path]
    assert len(commands) > 100
    return run_each(pod, commands, 60, tree)


@pytest.mark.parametrize("eligibility", ["safe", "all"])
@pytest.mark.parametrize("suite,run,least", [("redis", run_redis, 100), ("libuv", run_libuv, 40), ("node", run_node, 100)],
                         ids=["redis", "libuv", "node"])
def test_suite(lab, suite, run, least, eligibility):
    pod = lab.pod("p1")
    if suite not in OUTSIDE:
        OUTSIDE[suite] = run(pod)
    want, said = OUTSIDE[suite]
    good = sum(outcome in ("exit 0", ["ok"]) for outcome in want.values())
    assert len(want) >= least and good > 0.7 * len(want), f"{good} of {len(want)} passed outside: {said}"
    lab.attach(pod, eligibility=eligibility)
    got, now = run(pod)
    differ = {name: (want.get(name), got.get(name)) for name in sorted(set(want) | set(got)) if want.get(name) != got.get(name)}
    details = {name: now.get(name) for name in differ} if isinstance(now, dict) else now
    assert not differ, f"(outside, attached): {differ}\n{details}"
    if lab.attached and eligibility == "all":
        assert lab.totals()["fast_messages"] > 0
    lab.wait_empty(20)

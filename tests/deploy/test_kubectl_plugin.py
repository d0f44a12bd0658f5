"""`kubectl shared-socket`. There is no API server here: a stand-in for kubectl writes down what it is asked, and answers as
kubectl would. That the real one finds the plugin is tried where it is installed."""
import json
import os
import shutil

import pytest
from helpers import DEPLOY, run

PLUGIN = DEPLOY / "kubectl-shared_socket"
FAKE = r"""#!/usr/bin/python3
import json, os, sys
argv = sys.argv[1:]
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps(argv) + "\n")
world = json.loads(os.environ["WORLD"])
words = [a for a in argv if not a.startswith("-")]
if words[:2] == ["get", "pod"]:
    namespace = next((a.partition("=")[2] for a in argv if a.startswith("--namespace=")), "default")
    pod = f"{namespace}/{words[2]}"
    if pod not in world["pods"]:
        sys.exit(f'Error from server (NotFound): pods "{words[2]}" not found')
    sys.stdout.write(world["pods"][pod])
elif words[:2] == ["get", "pods"]:
    assert "--all-namespaces" in argv and "--selector=app.kubernetes.io/name=shared-socket" in argv
    node = next(a.partition("=")[2].partition("=")[2] for a in argv if a.startswith("--field-selector="))
    if node == "unreachable":
        sys.exit("Unable to connect to the server")
    for line in world["agents"].get(node, []):
        print(line)
elif words[:2] == ["get", "node"]:
    if words[2] not in world["nodes"]:
        sys.exit("Error from server (NotFound): nodes not found")
    print("node/" + words[2])
elif "exec" in words:
    sys.stdout.write(sys.stdin.read())
    sys.exit(world.get("code", 0))
"""
WORLD = {
    "pods": {"core/smf-0": "n1", "default/web": "n2", "core/new": ""},
    "agents": {"n1": ["kube-fast agent-a Running"], "n2": ["x agent-old Failed", "x agent-b Running"], "n4": ["x agent-c Pending"]},
    "nodes": ["n1", "n2", "n3", "n4"],
}


@pytest.fixture
def plugin(tmp_path):
    (tmp_path / "kubectl").write_text(FAKE)
    (tmp_path / "kubectl").chmod(0o755)
    calls = tmp_path / "calls"

    def go(*argv, world=None, text=""):
        calls.write_text("")
        env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "CALLS": str(calls), "WORLD": json.dumps({**WORLD, **(world or {})})}
        done = run("/bin/sh", PLUGIN, *argv, check=False, env=env, input=text)
        return done, [json.loads(line) for line in calls.read_text().splitlines()]
    return go


def exec_in(namespace, pod, *command):
    return [f"--namespace={namespace}", "exec", "--stdin", pod, "--container=agent", "--", "shared-socket", *command]


def test_by_node(plugin):
    done, calls = plugin("--node", "n1", "status")
    assert done.returncode == 0, done.stderr
    assert calls[-1] == exec_in("kube-fast", "agent-a", "status") and len(calls) == 2


def test_by_pod(plugin):
    done, calls = plugin("--pod", "core/smf-0", "connections", "-o", "json")
    assert done.returncode == 0, done.stderr
    assert calls[0][:3] == ["get", "pod", "smf-0"] and "--namespace=core" in calls[0]
    assert calls[-1] == exec_in("kube-fast", "agent-a", "connections", "-o", "json")
    done, calls = plugin("-n", "core", "--pod=smf-0", "status")
    assert done.returncode == 0 and calls[-1] == exec_in("kube-fast", "agent-a", "status")
    done, calls = plugin("--pod", "web", "status")  # the namespace of the context, and the agent that runs
    assert done.returncode == 0 and calls[-1] == exec_in("x", "agent-b", "status")


def test_arguments_arrive_as_they_are(plugin):
    odd = ["detach", "--cgroup", "a b", "$(reboot)", "it's", "*", "--node", "-n", ""]
    done, calls = plugin("--node", "n1", "--", *odd)
    assert done.returncode == 0, done.stderr
    assert calls[-1] == exec_in("kube-fast", "agent-a", *odd)


def test_options_of_kubectl_are_handed_on(plugin):
    done, calls = plugin("--context", "prod o'1", "--kubeconfig=/x y", "--node", "n1", "status")
    assert done.returncode == 0, done.stderr
    assert len(calls) == 2 and all(c[:2] == ["--context=prod o'1", "--kubeconfig=/x y"] for c in calls)


def test_input_output_and_exit_code_are_the_programs(plugin):
    done, _ = plugin("--node", "n1", "kinds", world={"code": 4}, text="some\nlines")
    assert (done.returncode, done.stdout) == (4, "some\nlines")


@pytest.mark.parametrize("argv, code, said", [
    ([], 2, "no command"),
    (["status"], 2, "which node?"),
    (["--node", "n1"], 2, "no command"),
    (["--node"], 2, "--node needs a value"),
    (["--node=", "status"], 2, "--node needs a value"),
    (["--node", "n1", "--pod", "core/smf-0", "status"], 2, "cannot be used together"),
    (["--nod", "n1", "status"], 2, "unknown option '--nod'"),
    (["--pod", "a/b/c", "status"], 2, "expected [NAMESPACE/]NAME"),
    (["--namespace", "other", "--pod", "core/smf-0", "status"], 2, "not in --namespace other"),
    (["--pod", "core/none", "status"], 1, "pod none in namespace core was not found"),
    (["--pod", "core/new", "status"], 1, "is on no node yet"),
    (["--node", "n3", "status"], 1, "there is no agent on node n3"),
    (["--node", "n4", "status"], 1, "does not run: x agent-c Pending"),
    (["--node", "nowhere", "status"], 1, "there is no node nowhere"),
    (["--node", "unreachable", "status"], 1, "could not ask for the agent"),
])
def test_errors_say_what_is_wrong(plugin, argv, code, said):
    done, calls = plugin(*argv)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert said in done.stderr and not any("exec" in c for c in calls)


def test_help_and_no_kubectl(plugin, tmp_path):
    done, calls = plugin("--help")
    assert done.returncode == 0 and "--pod" in done.stdout and not calls
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    done = run("/bin/sh", PLUGIN, "--node", "n1", "status", check=False, env={"PATH": str(nothing)})
    assert done.returncode == 1 and "kubectl is not in your PATH" in done.stderr


def test_kubectl_finds_it(tmp_path):
    """kubectl takes an executable kubectl-NAME of PATH as a plugin, an underscore of its name as a dash."""
    assert os.access(PLUGIN, os.X_OK) and PLUGIN.name == "kubectl-shared_socket"
    if not shutil.which("kubectl"):
        return
    env = {"PATH": f"{DEPLOY}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    assert str(PLUGIN) in run("kubectl", "plugin", "list", env=env).stdout
    assert "Run shared-socket on a node" in run("kubectl", "shared-socket", "--help", env=env).stdout

"""What the tests of deploy/ share. The module's name is its own: `lab` is that of tests/namespaced."""
import json
import os
import subprocess
from functools import lru_cache
from pathlib import Path

import jsonschema
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "shared-socket"
SCHEMAS = Path(__file__).resolve().parent / "schemas"
STATIC = ROOT / "target" / "static" / "shared-socket"
UNIT = DEPLOY / "systemd" / "shared-socket.service"


def run(*argv, check=True, **kw):
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, **kw)
    if check and done.returncode:
        raise AssertionError(f"{argv}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def version():
    for line in (ROOT / "Cargo.toml").read_text().splitlines():
        if line.startswith("version = "):
            return line.split('"')[1]
    raise AssertionError("Cargo.toml has no version")


def render(*options, check=True):
    """deploy/render.sh; its documents. With check=False what it said."""
    done = run(DEPLOY / "render.sh", *options, check=check, cwd=ROOT)
    return list(yaml.safe_load_all(done.stdout)) if check else done


def only(documents, kind):
    found = [d for d in documents if d["kind"] == kind]
    assert len(found) == 1, f"{len(found)} documents of kind {kind}"
    return found[0]


def container_of(daemonset):
    [container] = daemonset["spec"]["template"]["spec"]["containers"]
    return container


@lru_cache(None)
def kubernetes(release):
    return json.loads((SCHEMAS / f"kubernetes-{release}.json").read_text())


def problems(document, release):
    """What the API server of that release would not take, as far as its schema says."""
    schema = kubernetes(release)
    name = schema["kinds"].get(f"{document['apiVersion']}/{document['kind']}")
    assert name, f"no schema for {document['apiVersion']} {document['kind']}; see schemas/refresh.py"
    # the root names one definition, and the others are beside it
    validator = jsonschema.Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": schema["$defs"]})
    return [f"{'.'.join(map(str, e.path))}: {e.message}" for e in validator.iter_errors(document)]


def unit_setting(name):
    """The words of all lines `name=` of the systemd unit."""
    lines = [line.partition("=") for line in UNIT.read_text().splitlines()]
    return [word for key, _, value in lines if key == name for word in value.split()]


def static_binary():
    """Builds it, unless SHARED_SOCKET_NO_BUILD=1 says that what is there is to be taken. Cargo builds only what has changed."""
    if os.environ.get("SHARED_SOCKET_NO_BUILD", "") in ("", "0"):
        run(DEPLOY / "build-static.sh", cwd=ROOT)
    assert STATIC.exists(), f"{STATIC} is missing: run `make static`"
    return STATIC

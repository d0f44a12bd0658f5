#!/usr/bin/env python3
"""Takes the schemas of the kinds that the chart renders out of the PyPI package kubernetes-validate (Apache-2.0), which has
them from the OpenAPI document of each Kubernetes release (Apache-2.0, The Kubernetes Authors).

Here in full they would be 1.8 MB a release; what no kind of ours refers to, and all descriptions, are left out. Needs pip and
a network; the tests need neither. To add a release: add it to RELEASES and run this.
"""
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "kubernetes-validate==1.37.0"
# the oldest of Chart.yaml's kubeVersion, the first with the field appArmorProfile, and the newest of the package
RELEASES = ["1.25", "1.30", "1.37"]
KINDS = {
    "v1/Namespace": "io.k8s.api.core.v1.Namespace",
    "v1/ServiceAccount": "io.k8s.api.core.v1.ServiceAccount",
    "v1/ConfigMap": "io.k8s.api.core.v1.ConfigMap",
    "apps/v1/DaemonSet": "io.k8s.api.apps.v1.DaemonSet",
    "rbac.authorization.k8s.io/v1/ClusterRole": "io.k8s.api.rbac.v1.ClusterRole",
    "rbac.authorization.k8s.io/v1/ClusterRoleBinding": "io.k8s.api.rbac.v1.ClusterRoleBinding",
    "scheduling.k8s.io/v1/PriorityClass": "io.k8s.api.scheduling.v1.PriorityClass",
}


def without_descriptions(node, is_schema=True):
    """In `properties` a key named description is a field and no description."""
    if isinstance(node, list):
        return [without_descriptions(n) for n in node]
    if not isinstance(node, dict):
        return node
    kept = {k: without_descriptions(v, k != "properties" or not is_schema) for k, v in node.items()
            if not (is_schema and (k == "description" or k.startswith("x-kubernetes-")))}
    if "$ref" in kept:
        kept["$ref"] = "#/$defs/" + kept["$ref"].rpartition("/")[2]
    return kept


def references(node):
    if isinstance(node, list):
        for n in node:
            yield from references(n)
    elif isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"].rpartition("/")[2]
        for n in node.values():
            yield from references(n)


def main():
    here = Path(__file__).resolve().parent
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, PACKAGE], check=True)
        wheel = zipfile.ZipFile(next(Path(folder).glob("*.whl")))
        for release in RELEASES:
            path = f"kubernetes_validate/kubernetes-json-schema/v{release}.0-local-strict/_definitions.json"
            everything = json.loads(wheel.read(path))["$defs"]
            wanted, todo = {}, list(KINDS.values())
            while todo:
                name = todo.pop()
                if name not in wanted:
                    wanted[name] = without_descriptions(everything[name])
                    todo += references(wanted[name])
            document = {
                "source": f"{PACKAGE} from PyPI, {path}: a subset, without descriptions (refresh.py)",
                "license": "Apache-2.0",
                "kinds": KINDS,
                "$defs": dict(sorted(wanted.items())),
            }
            text = json.dumps(document, separators=(",", ":"))
            # a line for each definition, so that a change can be read
            (here / f"kubernetes-{release}.json").write_text(text.replace('"io.k8s.', '\n"io.k8s.') + "\n")
            print(release, len(wanted), "definitions")


if __name__ == "__main__":
    main()

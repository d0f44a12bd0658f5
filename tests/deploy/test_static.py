"""The static binary, and the image around it."""
import hashlib
import json
import os
import shutil
import tarfile

from helpers import DEPLOY, ROOT, STATIC, run, version

ARCHIVE = ROOT / "target" / "image" / "shared-socket.tar"


def test_it_needs_no_library(static, tmp_path):
    """No loader, no library: it runs where there is nothing but itself."""
    headers = run("readelf", "--wide", "--program-headers", "--dynamic", static).stdout
    assert "INTERP" not in headers and "(NEEDED)" not in headers
    shutil.copy(static, tmp_path / "shared-socket")
    done = run("/shared-socket", "--version", preexec_fn=lambda: os.chroot(tmp_path), cwd="/", env={})
    assert done.stdout.strip() == f"shared-socket {version()}"


def test_it_has_what_the_other_binary_has(static):
    """The programs for the kernel are in it, and the commands are all there."""
    text = run(static, "--help").stdout
    for command in ("attach", "detach", "status", "check"):
        assert f"\n  {command}" in text
    assert b"shared_socket_recv" in static.read_bytes()


def digest_of(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def read_archive():
    with tarfile.open(ARCHIVE) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive if m.isfile()}


def test_image(static, tmp_path):
    run(DEPLOY / "build-image.sh", cwd=ROOT)
    files = read_archive()
    blob = lambda digest: files["blobs/sha256/" + digest.partition(":")[2]]  # noqa: E731
    assert all(digest_of(blob(f"sha256:{name[13:]}")) == f"sha256:{name[13:]}" for name in files if name.startswith("blobs/"))
    [entry] = json.loads(files["index.json"])["manifests"]
    # containerd and podman name the image by this
    assert entry["annotations"]["org.opencontainers.image.ref.name"] == f"ghcr.io/shared-socket/shared-socket:{version()}"
    manifest = json.loads(blob(entry["digest"]))
    config = json.loads(blob(manifest["config"]["digest"]))
    assert config["config"]["Entrypoint"] == ["/usr/bin/shared-socket"] and config["config"]["Cmd"] == ["agent"]
    assert "PATH=/usr/bin" in config["config"]["Env"]  # kubectl exec POD -- shared-socket
    assert config["config"]["Labels"]["org.opencontainers.image.version"] == version()
    assert config["os"] == "linux"
    layers = [blob(layer["digest"]) for layer in manifest["layers"]]
    held = {}
    for at, layer in enumerate(layers):
        (tmp_path / f"layer{at}").write_bytes(layer)
        with tarfile.open(tmp_path / f"layer{at}") as tar:
            held.update({m.name.strip("/"): m for m in tar if m.isfile()})
            if "usr/bin/shared-socket" in held:
                assert tar.extractfile("usr/bin/shared-socket").read() == STATIC.read_bytes()
    assert set(held) == {"usr/bin/shared-socket"} and held["usr/bin/shared-socket"].mode & 0o111
    assert held["usr/bin/shared-socket"].uid == 0


def test_image_is_the_same_each_time(static):
    seen = set()
    for _ in range(2):
        run(DEPLOY / "build-image.sh", cwd=ROOT)
        seen.add(hashlib.sha256(ARCHIVE.read_bytes()).hexdigest())
    assert len(seen) == 1
    assert not list(ARCHIVE.parent.glob("build.*"))  # nothing is left of the store

"""A containerd that has CRI events (1.7 and newer), from a newer Debian where this machine's own is older."""
import re
import shutil
import subprocess
import sys
from pathlib import Path

from lab import ROOT, sh

sys.path.insert(0, str(ROOT / "tests/vm"))
from kernels import Apt, Unobtainable, cache_dir  # noqa: E402

SUITE = "trixie"


def version(program="containerd"):
    """(1, 7, 24)"""
    found = re.search(r" v?(\d+)\.(\d+)\.(\d+)", sh(program, "--version").stdout)
    return tuple(int(n) for n in found.groups())


def fetched():
    """A directory with containerd, its shim and ctr. Go's programs bring their libraries, so they run here as well."""
    place = cache_dir().resolve() / f"containerd-{SUITE}"
    if not (place / "containerd").exists():
        if not shutil.which("apt-get"):
            raise Unobtainable("containerd comes as a Debian package, and there is no apt here")
        base = cache_dir().resolve() / "apt"
        apt = Apt(base)
        if not list((base / "lists").glob("*_Packages*")):
            apt.update()
        folder = base / "debs"
        for old in folder.glob("containerd_*.deb"):
            old.unlink()
        done = apt.run("apt-get", "download", "-q", f"containerd/{SUITE}", cwd=folder)
        if done.returncode:
            raise Unobtainable(f"apt-get download containerd/{SUITE}: {done.stderr.strip()[-400:]}")
        (deb,) = folder.glob("containerd_*.deb")
        raw = place.with_suffix(".raw")
        shutil.rmtree(raw, ignore_errors=True)
        subprocess.run(["dpkg-deb", "-x", str(deb), str(raw)], check=True)
        shutil.rmtree(place, ignore_errors=True)
        (raw / "usr/bin").rename(place)
        shutil.rmtree(raw)
        deb.unlink()
    return place


def directory():
    """What stands before PATH for such a containerd; None: this machine's own is one."""
    if version() >= (1, 7, 0):
        return None
    place = fetched()
    assert version(str(Path(place) / "containerd")) >= (1, 7, 0)
    return place

"""Debian's kernels for the matrix: which, from where, and how they come to this machine.

They are fetched by apt with a configuration of our own, made from the machine's own sources (its mirror, its keyring), so
that nothing of the machine's apt changes. What was unpacked is cached: DIR/<package>/{vmlinuz,release,modules/}.
"""
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# suite, and the archive that it is in
SUITES = {
    "5.10": [("bullseye-security", "debian-security"), ("bullseye", "debian")],
    "6.1": [("bookworm-security", "debian-security"), ("bookworm", "debian")],
    "6.12": [("trixie-security", "debian-security"), ("trixie", "debian")],
    "6.18": [("trixie-backports", "debian")],
    "newest": [("trixie-backports", "debian"), ("sid", "debian")],
}


@dataclass(frozen=True)
class Kernel:
    """One line of the matrix."""
    name: str


MATRIX = [Kernel("5.10"), Kernel("6.1"), Kernel("6.12"), Kernel("6.18"), Kernel("newest")]


class Unobtainable(Exception):
    """This machine cannot get kernels: no apt, or no mirror can be reached. (A mirror without the kernel is a failure.)"""


def cache_dir():
    chosen = os.environ.get("SHARED_SOCKET_VM_CACHE")
    return Path(chosen) if chosen else ROOT / "target" / "vm"


def mirrors():
    """The machine's own Debian mirrors: {"debian": uri, "debian-security": uri}."""
    text = ""
    for file in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]:
        if file.suffix in (".list", ".sources") and file.is_file():
            text += file.read_text()
    found = {"debian": "http://deb.debian.org/debian", "debian-security": "http://deb.debian.org/debian-security"}
    for uri in re.findall(r"[a-z+]+://\S+", re.sub(r"(?m)^\s*#.*", "", text)):
        tail = uri.rstrip("/").rsplit("/", 1)[-1]
        if tail in found:
            found[tail] = uri.rstrip("/")
    return found


class Apt:
    """apt-get and apt-cache that know the suites above and nothing else, and write only below `base`."""

    def __init__(self, base):
        self.base, uris = base, mirrors()
        for sub in ("lists/partial", "archives/partial", "debs"):
            (base / sub).mkdir(parents=True, exist_ok=True)
        suites = {entry for list_ in SUITES.values() for entry in list_}
        signed = f"[signed-by={KEYRING}] " if Path(KEYRING).exists() else ""
        (base / "sources.list").write_text(
            "".join(f"deb {signed}{uris[archive]} {suite} main\n" for suite, archive in sorted(suites)))
        (base / "apt.conf").write_text(
            f'Dir::Etc::SourceList "{base}/sources.list"; Dir::Etc::SourceParts "/dev/null";\n'
            f'Dir::State "{base}"; Dir::State::Lists "{base}/lists"; Dir::State::status "/dev/null";\n'
            f'Dir::Cache "{base}"; Dir::Cache::Archives "{base}/archives";\n'
            'Acquire::Languages "none"; Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";\n'
            'Acquire::Retries "2"; Acquire::http::Timeout "30"; APT::Sandbox::User "root";\n'
            'APT::Architecture "amd64"; APT::Architectures { "amd64"; };\n')

    def run(self, *argv, cwd=None):
        env = {**os.environ, "APT_CONFIG": str(self.base / "apt.conf"), "LC_ALL": "C"}
        try:
            return subprocess.run(argv, env=env, cwd=cwd, capture_output=True, text=True, timeout=600)
        except (OSError, subprocess.TimeoutExpired) as err:
            raise Unobtainable(f"{argv[0]}: {err}") from None

    def update(self):
        done = self.run("apt-get", "update", "-q")
        if done.returncode or re.search(r"(?m)^(Err|E):", done.stdout + done.stderr):
            # a suite that is gone says so; the others have been read all the same
            print(f"vm: apt-get update: {done.stderr.strip()[-500:]}")

    def packages(self):
        """Every cloud kernel image there is: [(version, package, suite's file)]."""
        done = self.run("apt-cache", "dumpavail")
        found = []
        for block in done.stdout.split("\n\n"):
            name = re.search(r"(?m)^Package: (linux-(?:image|binary)-[0-9]\S*-cloud-amd64)$", block)
            version = re.search(r"(?m)^Version: (\S+)$", block)
            size = re.search(r"(?m)^Size: (\d+)$", block)
            if name and version and size and int(size[1]) > 1 << 20:  # smaller: it only depends on linux-binary
                found.append((version[1], name[1]))
        return found

    def download(self, *packages):
        folder = self.base / "debs"
        done = self.run("apt-get", "download", "-q", *packages, cwd=folder)
        if done.returncode:
            raise Unobtainable(f"apt-get download {' '.join(packages)}: {done.stderr.strip()[-400:]}")
        return [max(folder.glob(f"{p}_*.deb"), key=lambda f: f.stat().st_mtime) for p in packages]


def numbers(version):
    """Order of versions."""
    return [int(n) for n in re.findall(r"\d+", version.split("~")[0])]


def choose(packages, name):
    """The newest package of a line ("6.1"), or of all that are released ("newest")."""
    wanted = [p for p in packages if not re.search(r"~rc", p[0])
              and (name == "newest" or p[0].startswith(name + "."))]
    if not wanted:
        raise LookupError(f"no cloud kernel of {name} among the {len(packages)} in Debian's suites: see SUITES in {__file__}")
    return max(wanted, key=lambda p: (numbers(p[0]), p[1]))[1]


def unpack(debs, target):
    """The kernel image and the modules out of the packages, whatever the layout of their time."""
    raw = target.with_suffix(".raw")
    shutil.rmtree(raw, ignore_errors=True)
    for deb in debs:
        subprocess.run(["dpkg-deb", "-x", str(deb), str(raw)], check=True)
    images = [*raw.glob("boot/vmlinuz-*"), *raw.glob("usr/lib/modules/*/vmlinuz")]
    trees = [*raw.glob("lib/modules/*/kernel"), *raw.glob("usr/lib/modules/*/kernel")]
    if len(images) != 1 or len(trees) != 1:
        raise LookupError(f"{[d.name for d in debs]}: no kernel image and modules inside")
    made = target.with_suffix(".new")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    images[0].rename(made / "vmlinuz")
    (made / "release").write_text(trees[0].parent.name)
    for config in [*raw.glob("boot/config-*"), *raw.glob("usr/lib/modules/*/config")]:
        config.rename(made / "config")
    trees[0].rename(made / "modules")
    shutil.rmtree(raw)
    shutil.rmtree(target, ignore_errors=True)
    made.rename(target)
    for deb in debs:
        deb.unlink()


def fetch(names, fresh=False):
    """{name: folder or Unobtainable}. Looks for newer packages at most once a day, unless `fresh`."""
    base = cache_dir().resolve()
    kernels = base / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    found, missing = {}, []
    for name in names:
        mark = kernels / f"{name}.choice"
        old = not mark.exists() or time.time() - mark.stat().st_mtime > 86400
        folder = kernels / mark.read_text() if mark.exists() else None
        if folder and folder.is_dir():
            found[name] = folder  # an old one is better than none
        if fresh or old or name not in found:
            missing.append(name)
    if not missing:
        return found
    if not all(shutil.which(tool) for tool in ("apt-get", "apt-cache", "dpkg-deb")):
        why = Unobtainable("kernels come as Debian packages, and there is no apt here")
        return {name: found.get(name, why) for name in names}
    apt = Apt(base / "apt")
    apt.update()
    packages = apt.packages()
    if not packages:
        why = Unobtainable("no package lists could be read from this machine's Debian mirrors (offline?)")
        return {name: found.get(name, why) for name in names}
    for name in missing:
        try:
            image = choose(packages, name)
            folder = kernels / image
            if not folder.is_dir():
                wanted = [image]
                if image.startswith("linux-binary-"):  # 6.19 and later: image and modules in packages of their own
                    wanted.append(image.replace("linux-binary-", "linux-modules-"))
                unpack(apt.download(*wanted), folder)
            (kernels / f"{name}.choice").write_text(image)
            found[name] = folder
        except (Unobtainable, LookupError) as err:
            found.setdefault(name, err)
    return found

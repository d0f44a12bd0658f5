"""What the guest runs from: one root file system for all kernels, and an initramfs with the modules of each.

The root file system is made of this machine's own files: Python with pytest, ip, iptables, nsenter, the release binary,
the tests. It is an ext4 image that the guest mounts read-only from a virtio disk.
"""
import gzip
import lzma
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHON = "/usr/bin/python3"
INSIDE = "shared-socket"  # where this repository is in the guest

TOOLS = ["sh", "ip", "iptables", "nsenter", "sysctl", "cat", "sleep", "bpftool", "mount"]
OPTIONAL = {"bpftool"}
# Modules, in the order in which they are loaded; what a kernel has built in or lacks is passed over.
MODULES = """virtio_pci virtio_blk ext4
    veth bridge tls gcm ctr ghash_generic aes_generic
    nf_conntrack nf_nat nf_tables nft_compat nft_counter nft_chain_nat xt_tcpudp xt_nat xt_REDIRECT xt_MASQUERADE xt_addrtype
    ip_tables iptable_nat iptable_filter""".split()


def modules_of(tree):
    """{name: file}"""
    return {re.sub(r"\.ko(\.\w+)?$", "", f.name).replace("-", "_"): f for f in tree.rglob("*.ko*")}


def read_module(file):
    data = file.read_bytes()
    if file.suffix == ".xz":
        return lzma.decompress(data)
    if file.suffix == ".gz":
        return gzip.decompress(data)
    if file.suffix == ".zst":
        return subprocess.run(["zstd", "-dc", str(file)], check=True, capture_output=True).stdout
    return data


def cpio(entries):
    """A newc archive of [(name, mode, data)]."""
    out = bytearray()
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        path = name.encode() + b"\0"
        fields = [number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0]
        out += b"070701" + b"".join(b"%08X" % f for f in fields) + path
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return bytes(out)


INIT = """#!/busybox sh
/busybox mount -t devtmpfs none /dev
while read -r module; do
    /busybox insmod "/modules/$module" || echo "vm: cannot load $module"
done < /modules.order
tries=0
until /busybox mount -t ext4 -o ro /dev/vda /root 2>/dev/null; do
    tries=$((tries + 1))
    [ "$tries" -lt 100 ] || { echo "vm: no root file system"; /busybox poweroff -f; }
    /busybox usleep 50000
done
/busybox cp /selection /dev/selection
/busybox mount -o move /dev /root/dev
exec /busybox switch_root /root %s /%s/tests/vm/guest.py
"""


def find_busybox():
    found = next((p for p in map(Path, ("/bin/busybox", "/usr/bin/busybox")) if p.exists()), None)
    if found is None:
        raise FileNotFoundError("busybox is missing (Debian: apt-get install busybox-static)")
    return found


def initramfs(kernel, target, selection):
    """busybox, the modules of this kernel that the tests need, an init that mounts the root file system, and which tests
    are to run."""
    busybox = find_busybox()
    have, order, blobs = modules_of(kernel / "modules"), [], {}

    def add(name):
        if name in blobs or name not in have:
            return
        blobs[name] = read_module(have[name])
        depends = re.search(rb"(?:^|\0)depends=([^\0]*)\0", blobs[name])
        for needed in filter(None, depends[1].decode().split(",") if depends else []):
            add(needed.replace("-", "_"))
        order.append(name)
    for name in MODULES:
        add(name)
    folders = ["dev", "root", "modules"]
    entries = [(f, stat.S_IFDIR | 0o755, b"") for f in folders]
    entries.append(("busybox", stat.S_IFREG | 0o755, busybox.read_bytes()))
    entries.append(("init", stat.S_IFREG | 0o755, (INIT % (PYTHON, INSIDE)).encode()))
    entries.append(("selection", stat.S_IFREG | 0o644, "".join(f"{s}\n" for s in selection).encode()))
    entries.append(("modules.order", stat.S_IFREG | 0o644, "".join(f"{n}.ko\n" for n in order).encode()))
    entries += [(f"modules/{n}.ko", stat.S_IFREG | 0o644, blobs[n]) for n in order]
    target.write_bytes(cpio(entries))


# ---- the root file system

ASK = r"""
import json, sys, sysconfig
import pytest, _pytest, pluggy, iniconfig, packaging, xml.etree.ElementTree, socket, ssl, select, multiprocessing, json
import _pytest.assertion.rewrite, _pytest.junitxml, _pytest.terminal
std = sysconfig.get_path("stdlib")
tops = set()
for m in list(sys.modules.values()):
    f = getattr(m, "__file__", None)
    if f and not f.startswith(std + "/"):
        tops.add((m.__name__.split(".")[0]))
files = [sys.modules[t].__file__ for t in tops if getattr(sys.modules.get(t), "__file__", None)]
print(json.dumps({"std": std, "version": "%d.%d" % sys.version_info[:2], "files": files, "exe": sys.executable}))
"""


def libraries(file):
    done = subprocess.run(["ldd", str(file)], capture_output=True, text=True)
    return re.findall(r"(?:=> )?(/\S+) \(0x", done.stdout)


class Tree:
    """A copy of parts of this machine's file system."""

    def __init__(self, base):
        self.base, self.seen = base, set()
        base.mkdir(parents=True)
        for name in ("bin", "sbin", "lib", "lib64"):  # merged /usr, or folders of their own
            if Path("/", name).is_symlink():
                (base / "usr" / name).mkdir(parents=True, exist_ok=True)
                (base / name).symlink_to(os.readlink(Path("/", name)))

    def put(self, source, inside=None):
        """A file (with the libraries that it wants and what its symlinks name) or a folder."""
        source = Path(source)
        inside = inside or str(source)
        if inside in self.seen:
            return
        self.seen.add(inside)
        target = self.base / inside.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            self.put(source.resolve())
            if not target.exists() and not target.is_symlink():
                real = self.base / str(source.resolve()).lstrip("/")
                target.symlink_to(os.path.relpath(real, target.parent.resolve()))
            return
        if source.is_dir():
            for entry in sorted(source.iterdir()):
                if entry.name not in LEFT_OUT:
                    self.put(entry, f"{inside}/{entry.name}")
            target.mkdir(exist_ok=True)
            return
        shutil.copy2(source, target)
        with open(source, "rb") as f:
            if f.read(4) == b"\x7fELF":
                for library in libraries(source):
                    self.put(library)


LEFT_OUT = {"test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "pydoc_data", "venv"}


def rootfs(binary, target):
    """Builds the image; returns its size."""
    import json
    staging = target.with_suffix(".tree")
    shutil.rmtree(staging, ignore_errors=True)
    tree = Tree(staging)
    asked = json.loads(subprocess.run([PYTHON, "-c", ASK], check=True, capture_output=True, text=True).stdout)
    tree.put(PYTHON)
    tree.put(asked["std"])
    if Path("/usr/lib/python3").is_dir() and any(f.startswith("/usr/lib/python3/") for f in asked["files"]):
        (staging / "usr/lib/python3/dist-packages").mkdir(parents=True, exist_ok=True)
    for file in asked["files"]:
        tree.put(Path(file).parent if Path(file).name == "__init__.py" else file)
    for tool in TOOLS:
        found = shutil.which(tool, path="/usr/sbin:/usr/bin:/sbin:/bin")
        if found:
            tree.put(found)
        elif tool not in OPTIONAL:
            raise FileNotFoundError(f"{tool} is missing, which the tests use; see scripts/install-deps.sh")
    busybox = find_busybox()
    tree.put(busybox)
    for applet in subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split():
        name = staging / "usr/bin" / applet
        if not any((staging / d / applet).exists() for d in ("usr/bin", "usr/sbin", "bin", "sbin")):
            name.symlink_to(busybox)
    for plugins in Path("/usr/lib").glob("*/xtables"):
        tree.put(plugins)
    for extra in ("/etc/protocols", "/etc/services", "/etc/nsswitch.conf", "/etc/iproute2", "/usr/share/iproute2",
                  "/etc/ethertypes"):
        if Path(extra).exists():
            tree.put(extra)
    tree.put(binary, f"/{INSIDE}/target/release/shared-socket")
    tests = staging / INSIDE / "tests"
    shutil.copytree(ROOT / "tests", tests, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    for folder in ("proc", "sys", "dev", "run", "tmp", "root", "var/lib", "var/run"):
        (staging / folder).mkdir(parents=True, exist_ok=True)
    (staging / "etc").mkdir(exist_ok=True)
    (staging / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (staging / "etc/group").write_text("root:x:0:\n")
    (staging / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    # compiled here once, not in each guest by an emulated processor
    subprocess.run([PYTHON, "-m", "compileall", "-q", "-s", str(staging), str(tests)], check=False)
    size = sum(f.stat().st_size for f in staging.rglob("*") if f.is_file() and not f.is_symlink())
    mib = size // (1 << 20) * 5 // 4 + 64
    target.unlink(missing_ok=True)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-d", str(staging), str(target), f"{mib}M"],
                   check=True, capture_output=True, env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"})
    shutil.rmtree(staging)
    return mib


if __name__ == "__main__":
    print(rootfs(Path(sys.argv[1]), Path(sys.argv[2])), "MiB")

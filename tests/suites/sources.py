"""Test suites that only a project's source carries: unpacked (scripts/fetch-source.sh) and built below target/."""
import shutil
import subprocess
from pathlib import Path

import pytest
from lab import ROOT, sh

SOURCES = ROOT / "target" / "sources"


def source(package):
    if not (SOURCES / package / ".complete").exists():
        if not shutil.which("apt-get"):
            pytest.skip(f"the source of {package} comes by apt, and there is none here")
        done = subprocess.run([ROOT / "scripts" / "fetch-source.sh", SOURCES, package], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"the source of {package} is not to be had: {done.stderr.strip()[-300:]}")
    return SOURCES / package


def redis():
    """redis' own tests, with the installed redis-server in place of one that is built."""
    tree = source("redis")
    for name in ("redis-server", "redis-cli", "redis-benchmark", "redis-check-aof", "redis-check-rdb"):
        link = tree / "src" / name
        if not link.exists():
            link.symlink_to(shutil.which(name) or pytest.skip(f"{name} is not installed"))
    return tree


def libuv():
    """libuv's test runner."""
    tree = source("libuv1")
    runner = tree / "run-tests"
    if not runner.exists():
        unix = ("async core dl fs getaddrinfo getnameinfo loop-watcher loop pipe poll process random-devurandom signal "
                "stream tcp thread tty udp linux-core linux-inotify linux-syscalls procfs-exepath random-getrandom "
                "random-sysctl-linux epoll proctitle").split()
        library = sorted((tree / "src").glob("*.c")) + [tree / f"src/unix/{name}.c" for name in unix]
        tests = sorted((tree / "test").glob("test-*.c")) + [
            tree / f"test/{name}.c" for name in ("run-tests", "runner", "runner-unix", "echo-server", "blackhole-server")]
        flags = ["-O1", "-w", "-D_GNU_SOURCE", "-D_FILE_OFFSET_BITS=64", f"-I{tree}/include", f"-I{tree}/src"]
        objects = tree / "objects"
        shutil.rmtree(objects, ignore_errors=True)
        objects.mkdir()
        sh("gcc", *flags, "-c", *map(str, library), cwd=objects)
        sh("ar", "rcs", "libuv.a", *(path.name for path in sorted(objects.glob("*.o"))), cwd=objects)
        sh("gcc", *flags, "-o", f"{runner}.new", *map(str, tests), f"{objects}/libuv.a", "-lpthread", "-ldl", "-lrt")
        Path(f"{runner}.new").rename(runner)
    return runner


def iocopy():
    """A proxy of io.Copy, in Go."""
    if not shutil.which("go"):
        pytest.skip("go is not installed")
    binary = ROOT / "target" / "iocopy"
    main = Path(__file__).parent / "iocopy" / "main.go"
    if not binary.exists() or binary.stat().st_mtime < main.stat().st_mtime:
        sh("go", "build", "-o", str(binary), str(main), env={"PATH": "/usr/bin:/bin", "HOME": str(SOURCES),
                                                             "GOCACHE": str(ROOT / "target" / "go-cache"), "GO111MODULE": "off"})
    return binary

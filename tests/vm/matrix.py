#!/usr/bin/python3
"""The kernel matrix by hand: matrix.py [--kernel 6.1]... [--select namespaced/test_x.py::test_y]... ."""
import argparse
import concurrent.futures
import fcntl
import os
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import core  # noqa: E402
import image  # noqa: E402
import kernels  # noqa: E402
import machine  # noqa: E402

LOCKS = []
BINARY = Path(os.environ.get("SHARED_SOCKET", kernels.ROOT / "target" / "release" / "shared-socket"))


class Turns:
    """At most `jobs` machines at a time; one, while the file `beside` says that other tests run here."""

    def __init__(self, jobs, beside=None):
        self.jobs, self.beside, self.running, self.lock = jobs, beside, 0, threading.Lock()

    def __enter__(self):
        while True:
            with self.lock:
                if self.running < (1 if self.beside and self.beside.exists() else self.jobs):
                    self.running += 1
                    return
            time.sleep(1)

    def __exit__(self, *_):
        with self.lock:
            self.running -= 1


def run(wanted, select=None, timeout=1500, jobs=2, fresh=False, done=None, beside=None):
    """Boots each kernel, at most `jobs` at a time: {name: Future of what machine.boot returns}.

    `select(kernel)` names the tests; the core when it is not given. While the file `beside` exists, one at a time.
    """
    base = kernels.cache_dir().resolve()
    base.mkdir(parents=True, exist_ok=True)
    LOCKS.append(open(base / "lock", "w"))  # until this process ends: one matrix at a time
    fcntl.flock(LOCKS[-1], fcntl.LOCK_EX)
    folders = kernels.fetch([k.name for k in wanted], fresh)
    root = base / f"root-{os.getpid()}.ext4"
    image.rootfs(BINARY, root)
    pool = concurrent.futures.ThreadPoolExecutor(jobs)
    turns = Turns(jobs, beside)

    def one(kernel):
        folder = folders[kernel.name]
        if isinstance(folder, Exception):
            raise folder
        with turns:
            got = machine.boot(folder, root, base / "run" / kernel.name,
                               select(kernel) if select else core.CORE, timeout)
        if done:
            done(kernel, got)
        return got
    futures = {k.name: pool.submit(one, k) for k in wanted}

    def clean(_):
        if all(f.done() for f in futures.values()):
            root.unlink(missing_ok=True)
    for future in futures.values():
        future.add_done_callback(clean)
    pool.shutdown(wait=False)
    return futures


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", action="append", help="5.10, 6.1, 6.12, 6.18 or newest; all of them when not given")
    parser.add_argument("--select", action="append", default=[], help="a test file or id, relative to tests/")
    parser.add_argument("--timeout", type=int, default=1500, help="seconds for one kernel")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--fresh", action="store_true", help="look for newer kernels now, not once a day")
    args = parser.parse_args()
    wanted = [k for k in kernels.MATRIX if not args.kernel or k.name in args.kernel]
    if not wanted:
        parser.error(f"no such kernel; known: {', '.join(k.name for k in kernels.MATRIX)}")
    began, bad = time.monotonic(), 0
    for name, future in run(wanted, (lambda _: ",".join(args.select).split(",")) if args.select else None, args.timeout, args.jobs, args.fresh).items():
        try:
            got = future.result()
        except Exception as err:
            print(f"{name}: {type(err).__name__}: {err}")
            bad += 1
            continue
        for test, result in got["tests"].items():
            print(f"  {result['outcome']:8} {result['seconds']:6.1f} s  {test}")
            if result["outcome"] == "failed":
                bad += 1
                print("    " + result["text"].replace("\n", "\n    "))
        print(machine.summary(name, got))
    print(f"{time.monotonic() - began:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

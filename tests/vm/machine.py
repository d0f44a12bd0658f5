"""One boot of one kernel in QEMU, without KVM: an emulated machine of two processors, and what its tests said."""
import json
import subprocess
import time

import image


class Broken(Exception):
    """The guest ran nothing."""


class NotUp(Broken):
    """The kernel did not boot."""


def boot(kernel, root, work, selection, timeout):
    """Runs the guest's tests; a machine that does not come up gets a second chance, on a host that is busy."""
    try:
        return boot_once(kernel, root, work, selection, timeout)
    except NotUp as err:
        print(f"vm: {err}; once more", flush=True)
        return boot_once(kernel, root, work, selection, timeout)


def boot_once(kernel, root, work, selection, timeout):
    """Runs the guest's tests; {"release", "boot_seconds", "seconds", "tests": {id: {outcome, seconds, text}}}."""
    work.mkdir(parents=True, exist_ok=True)
    ramfs, console, report = work / "initramfs", work / "console.log", work / "report.jsonl"
    for file in (console, report):
        file.unlink(missing_ok=True)
    image.initramfs(kernel, ramfs, selection)
    # no_timer_check: an emulated processor that is kept waiting fails the kernel's test of its timer at boot
    words = ("console=ttyS0 quiet panic=-1 oops=panic loglevel=4 mitigations=off nokaslr no_timer_check nowatchdog "
             "rcupdate.rcu_cpu_stall_suppress=1")
    # thread=single: one thread emulates both processors in turn. With one each (multi) a processor may run an instruction that
    # the other has just patched out: the kernel exchanges code under breakpoints (tracepoints that are linked and unlinked
    # while others run them), and dies of an int3 that belongs to nobody, which no real processor does.
    # Without: instructions that are slow to emulate (rep movsb byte by byte), and what makes each use of memory dearer (five
    # levels of page tables, two views of user memory). Loading the programs takes 2.5 s in place of 4.
    cpu = "max,-erms,-fsrm,-la57,-smap,-smep"
    # the machine goes with the thread that waits for it, whatever ends this process
    argv = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-accel", "tcg,thread=single", "-cpu", cpu, "-smp", "2", "-m", "1536",
            "-kernel", str(kernel / "vmlinuz"), "-initrd", str(ramfs), "-append", words,
            "-drive", f"file={root},if=virtio,format=raw,readonly=on",
            "-serial", f"file:{console}", "-serial", f"file:{report}",
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-nic", "none"]
    began = time.monotonic()
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        said = process.communicate(timeout=timeout)[0].decode(errors="replace")
        ended = True
    except subprocess.TimeoutExpired:
        process.kill()
        said, ended = process.communicate()[0].decode(errors="replace"), False
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    return read(report, console, said, ended, time.monotonic() - began, timeout)


def read(report, console, said, ended, seconds, timeout):
    got = {"tests": {}, "collected": [], "seconds": round(seconds, 1), "release": None, "boot_seconds": None}
    running, finished, broken = None, False, None
    lines = report.read_text(errors="replace").splitlines() if report.exists() else []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue  # cut off by the end of the machine
        kind = event.get("event")
        if kind == "boot":
            got.update(release=event["release"], boot_seconds=event["uptime"])
        elif kind == "collected":
            got["collected"] = event["tests"]
        elif kind == "start":
            running = event["test"]
        elif kind == "result":
            # the worst of setup, call and teardown counts
            old = got["tests"].get(event["test"])
            if old is None or event["outcome"] == "failed":
                got["tests"][event["test"]] = event
        elif kind == "end":
            finished = event["code"] in (0, 1)
            broken = None if finished else f"pytest in the guest ended with {event['code']}"
        elif kind == "broken":
            broken = event["text"]
    tail = console.read_text(errors="replace")[-3000:] if console.exists() else ""
    if got["release"] is None:
        raise NotUp(f"the kernel did not come up within {seconds:.0f} s: {said.strip()}\n{tail}")
    if not got["tests"] and not running:
        raise Broken(f"{got['release']} came up and ran no test: {broken}\n{tail}")
    if not finished:
        why = broken or ("the machine stopped" if ended else f"not done within {timeout} s")
        for test in got["collected"]:
            got["tests"].setdefault(test, {"outcome": "failed", "seconds": 0, "text":
                                           f"{why}{' in this test' if test == running else f', in {running}'}\n{tail}"})
    got["console"] = tail
    return got


def summary(name, got):
    outcomes = [t["outcome"] for t in got["tests"].values()]
    return (f"{name}: Linux {got['release']}, up in {got['boot_seconds']:.1f} s, {outcomes.count('passed')} passed, "
            f"{outcomes.count('failed')} failed, {outcomes.count('skipped')} skipped, {outcomes.count('xfailed')} xfailed, "
            f"{got['seconds']:.0f} s in all")

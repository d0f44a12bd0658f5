"""The guest's init: mounts what a machine has, runs the tests that the initramfs names, powers off.

Results go to the second serial port, a JSON object a line; the console goes to the first.
"""
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPORT = "/dev/ttyS1"


def mount(kind, where, options=""):
    os.makedirs(where, exist_ok=True)
    subprocess.run(["mount", "-t", kind, *(["-o", options] if options else []), kind, where], check=True)


def say(**what):
    """One line of the report; opened each time, so that nothing is in a buffer when the machine stops."""
    with open(REPORT, "w") as port:
        port.write(json.dumps(what) + "\n")


def prepare():
    mount("proc", "/proc")
    mount("sysfs", "/sys")
    for folder in ("/run", "/tmp", "/root", "/var"):
        mount("tmpfs", folder)
    os.makedirs("/var/lib", exist_ok=True)
    os.makedirs("/run/netns")
    mount("tmpfs", "/dev/shm")
    mount("devpts", "/dev/pts")
    mount("cgroup2", "/sys/fs/cgroup")
    mount("bpf", "/sys/fs/bpf")
    for name, kind in (("/sys/kernel/tracing", "tracefs"), ("/sys/kernel/debug", "debugfs")):
        if os.path.isdir(name):
            mount(kind, name)
    controllers = Path("/sys/fs/cgroup/cgroup.controllers").read_text().split()
    if "memory" in controllers:
        Path("/sys/fs/cgroup/cgroup.subtree_control").write_text("+memory")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    os.chdir("/tmp")
    os.environ.update(PATH="/usr/sbin:/usr/bin:/sbin:/bin", HOME="/root", LC_ALL="C", PYTHONDONTWRITEBYTECODE="1",
                      PYTHONPATH=str(HERE), SHARED_SOCKET_VM="1")


def run():
    selection = Path("/dev/selection").read_text().splitlines()
    argv = [sys.executable, "-m", "pytest", "-p", "reporter", "-p", "no:cacheprovider", "-q", "--tb=short", "--color=no",
            "-c", str(HERE.parent / "pytest.ini"), "--rootdir", str(HERE.parent)]
    argv += [str(HERE.parent / s) for s in selection]
    child = subprocess.Popen(argv, cwd=str(HERE.parent))
    while True:  # init reaps orphans too
        pid, status = os.wait()
        if pid == child.pid:
            return os.waitstatus_to_exitcode(status)


def main():
    try:
        prepare()
        say(event="boot", release=os.uname().release, uptime=float(Path("/proc/uptime").read_text().split()[0]))
        code = run()
        say(event="end", code=code, uptime=float(Path("/proc/uptime").read_text().split()[0]))
    except BaseException:
        text = traceback.format_exc()
        print(text, flush=True)
        say(event="broken", text=text)
    os.sync()
    # reboot(RB_POWER_OFF) through the kernel's own trigger: there is no libc call for it in Python
    Path("/proc/sysrq-trigger").write_text("o")
    while True:
        signal.pause()


if __name__ == "__main__":
    main()

"""What the kernel makes of the programs at load."""
import ctypes
import os
import re
import struct
from pathlib import Path

import pytest

pytestmark = pytest.mark.product
SYS_BPF = {"x86_64": 321, "aarch64": 280}
BPF_OBJ_GET = 7


def open_pin(path):
    libc = ctypes.CDLL(None, use_errno=True)
    name = ctypes.create_string_buffer(os.fsencode(path))
    attr = ctypes.create_string_buffer(struct.pack("QII", ctypes.addressof(name), 0, 0) + bytes(112))
    fd = libc.syscall(SYS_BPF[os.uname().machine], BPF_OBJ_GET, attr, len(attr))
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    return fd


def test_the_verifier_is_far_from_its_limit(lab, pods):
    """A verifier gives up after 1,000,000 steps, and an old one takes many more than a new one for the same program
    (Linux 6.1 once took 797,955 for a verdict that costs 6.12 6,801): each program stays below a tenth of it."""
    lab.attach(*pods)
    steps = {}
    for pin in sorted(Path(lab.pin_dir).rglob("prog_*")):
        fd = open_pin(pin)
        try:
            found = re.search(r"verified_insns:\s*(\d+)", Path(f"/proc/self/fdinfo/{fd}").read_text())
        finally:
            os.close(fd)
        if found is None:
            pytest.skip("this kernel does not say (5.16+)")
        steps[pin.name] = int(found[1])
    assert steps, "nothing is pinned"
    assert max(steps.values()) < 100_000, steps

"""kTLS (H10): a socket with the TLS ULP on either end is TCP. Fixed keys stand for the handshake that a library does.

Needs a kernel with the tls module (the kernel matrix has it). Kernels since 2026 (6.1.190, 6.12.117, ...) do not let a
socket of a sockmap turn TLS on: setsockopt(SOL_TLS) is EINVAL, upon which libraries encrypt by themselves. That is a
difference of `all`; `safe` must not have it.
"""
import errno

import pytest
from lab import RemoteError, few
from test_reconnect import warm


@pytest.fixture
def ends(lab, pods):
    a, b = pods
    server, client = b.peer(), a.peer()
    if not client.call("has_ktls"):
        pytest.skip("this kernel has no TLS ULP (tests/vm runs this on kernels that have)")
    return server, client, server.listen(b.ip)


def exchange(c, s, rounds):
    for number in range(rounds):
        text = b"question %d" % number
        c.send(text)
        assert s.read(len(text)) == text
        text = b"the answer to question %d" % number
        s.send(text)
        assert c.read(len(text)) == text


@pytest.mark.parametrize("plaintext_first", [0, 5], ids=["at-once", "after-plaintext"])
def test_both_ends(lab, pods, ends, plaintext_first):
    """Both ends turn TLS on, at once or after messages in the clear (STARTTLS): the kernel's records, both ways,
    byte-exact, by TCP."""
    server, client, ear = ends
    lab.attach(*pods, eligibility="safe")
    for _ in range(few(10)):
        c, s = client.connect(pods[1].ip, ear.port), ear.accept()
        if plaintext_first:
            exchange(c, s, plaintext_first)
        s.ktls()
        c.ktls()
        with lab.expect_tcp():
            exchange(c, s, 20)
        c.close()
        assert s.read_all() == b""
        s.close()
    lab.wait_empty()


@pytest.mark.parametrize("end", ["client", "server"])
def test_turned_on_while_fast(lab, pods, ends, end):
    """`all`, and the pair is fast: an end that turns TLS on gets it, or EINVAL where the kernel keeps the two apart.
    Where it is on, nothing is redirected from then on; refused or not, the bytes are right."""
    server, client, ear = ends
    lab.attach(*pods)
    c, s = client.connect(pods[1].ip, ear.port), ear.accept()
    with lab.expect_fast(4):
        warm(c, s)
    near, far = (c, s) if end == "client" else (s, c)
    refused = False
    try:
        near.ktls()
    except RemoteError as err:
        assert err.errno == errno.EINVAL and lab.attached, err
        refused = True
    if refused:
        exchange(c, s, 20)
    else:
        far.ktls()
        with lab.expect_tcp():
            exchange(c, s, 20)
    c.close()
    assert s.read_all() == b""
    s.close()
    lab.wait_empty()


@pytest.mark.parametrize("end", ["client", "server"])
def test_one_end_in_the_kernel(lab, pods, ends, end):
    """One end has kTLS, the other encrypts in userspace: what reaches it must be records, never plaintext."""
    server, client, ear = ends
    lab.attach(*pods, eligibility="safe")
    c, s = client.connect(pods[1].ip, ear.port), ear.accept()
    warm(c, s)
    near, far = (c, s) if end == "client" else (s, c)
    near.ktls()
    with lab.expect_tcp():
        for number in range(10):
            near.send(b"secret %d" % number)
            head = far.read(5)
            assert head[:3] == b"\x17\x03\x03", f"not a TLS record: {head!r}"
            body = far.read(int.from_bytes(head[3:], "big"))
            assert b"secret" not in body
    # bytes from the far end that are no record: an error of TLS, not plaintext passed off as decrypted
    far.send(b"this is not a record of TLS at all")
    with pytest.raises(RemoteError):
        near.read(4)

"""Each case on plain TCP and attached: what the applications saw must be the same, call by call."""
import json
import os

import cases  # noqa: F401  (registers them)
import pytest
from arena import CASES, LEARNED, PLAIN
from known import OLD, OLD_HAZARDS, failure, known

MODES = ["plain"] if PLAIN else ["safe", "all"]
REPORT = os.environ.get("DIFFERENTIAL_REPORT")  # a file that gets one JSON object a test
SUSPICIOUS = ("HANG", "failed", "silence", "WRONG", "early end")  # in a reference


def parameters():
    for the_case in CASES.values():
        for style in the_case.styles:
            marks = [pytest.mark.core] if the_case.core else []
            hazard = the_case.fast is None and not the_case.raw and style != "blocking"
            for mode in MODES + (["turned"] if hazard and not PLAIN else []):
                yield pytest.param(the_case, style, mode, id=f"{the_case.name}-{style}-{mode}", marks=marks)


def line(entry):
    who, op, args, got = entry
    return f"{who}.{op}({', '.join(map(str, args))}) -> {got}"


def difference(want, got):
    """The first line that differs, with what led to it."""
    for i in range(max(len(want), len(got))):
        a = want[i] if i < len(want) else None
        b = got[i] if i < len(got) else None
        if a != b:
            before = "".join(f"      {line(e)}\n" for e in want[max(0, i - 6):i])
            return i, f"{before}plain {line(a) if a else '(nothing)'}\nfast? {line(b) if b else '(nothing)'}"
    return None


def differing_calls(want, got):
    if len(want) != len(got):
        return {"*"}
    return {b[1] for a, b in zip(want, got) if a != b}


def judge(the_case, style, mode, reference, run):
    """[(connection, text, calls)] of those that saw something else than plain TCP shows."""
    want, found = reference.transcripts[0], []
    for number, got in enumerate(run.transcripts):
        first = difference(want, got)
        if first:
            way = f"{run.fast[number]} fast, {run.tcp[number]} TCP messages" if run.fast else "plain"
            found.append((number, f"connection {number} ({way}):\n{first[1]}", differing_calls(want, got)))
    return found


def report(**row):
    if REPORT:
        with open(REPORT, "a") as f:
            f.write(json.dumps(row) + "\n")


@pytest.mark.parametrize("the_case, style, mode", parameters())
def test_case(arena, the_case, style, mode):
    for feature in [the_case.needs] + (["uring"] if style == "uring" else []):
        if feature and arena.refusal(feature):
            pytest.skip(arena.refusal(feature))
    reference = arena.reference(the_case, style)
    unlike = judge(the_case, style, "plain", reference, reference)
    assert not unlike, "plain TCP itself is not deterministic here: the case has to be mended\n" + unlike[0][1]
    odd = [e for e in reference.transcripts[0] if any(text in str(e) for text in SUSPICIOUS)]
    assert not odd or the_case.never, f"plain TCP: {line(odd[0])}: the case is wrong"
    if mode == "plain":
        return

    run = arena.attached(the_case, style, mode)
    found = judge(the_case, style, mode, reference, run)
    allowed, broken = known(the_case.name, style), failure(the_case.name, style, mode)
    accelerated = [n > 0 for n in run.fast]
    row = dict(case=the_case.name, style=style, mode=mode, connections=len(run.transcripts), fast=sum(accelerated),
               fast_messages=sum(run.fast), tcp_messages=sum(run.tcp), reasons=run.reasons, differ=len(found),
               calls=sorted(set().union(*(entry[2] for entry in found))))

    # Which way it came.
    old_hazard = mode == "safe" and arena.misses_fast and the_case.name in OLD_HAZARDS
    if mode == "safe" and style == "blocking" or the_case.fast is False or old_hazard:
        assert not any(accelerated), f"nothing of this may be fast: {run.fast}"
    elif mode == "turned":
        assert accelerated[0], f"taught, but not fast: {run.fast}, {run.reasons}"
    elif the_case.fast and mode == "all":
        assert all(accelerated), f"fast messages by connection: {run.fast}, {run.reasons}"
    elif the_case.fast and mode == "safe" and len(run.fast) > LEARNED:
        if arena.streams_leave and run.reasons.get("bulk"):
            # H7: the first stream of a kind leaves at a clean moment, and the kind's next connections stay on TCP
            assert any(accelerated[LEARNED - 1:]), f"no stream was fast before it left: {run.fast}, {run.reasons}"
        else:
            assert all(accelerated[LEARNED:]), f"learned, but not fast: {run.fast}, {run.reasons}"

    text = f"{len(found)} of {len(run.transcripts)} connections differ from plain TCP; the first, {found[0][1]}" if found else ""
    if broken:
        report(**row, outcome="xfail" if found else "xpass", cause=broken.cause)
        if found:
            pytest.xfail(broken.cause)
        assert broken.sometimes, f"expected to fail, but equal: take it out of FAILURES ({broken.cause})"
        return
    if mode == "turned" and allowed:
        worse = [entry for entry in found if not entry[2] <= set(allowed.calls)]
        report(**row, outcome="worse" if worse else "known" if found else "equal", cause=f"{allowed.hazard}: {allowed.cause}")
        assert not worse, f"more than {allowed.hazard} explains; {worse[0][1]}"
        return
    if mode == "all" and allowed:
        worse = [entry for entry in found if not entry[2] <= set(allowed.calls)]
        report(**row, outcome="worse" if worse else "known" if found else "equal", cause=f"{allowed.hazard}: {allowed.cause}")
        assert not worse, f"more than {allowed.hazard} allows; {worse[0][1]}"
        assert found or allowed.sometimes, f"{allowed.hazard} no longer shows: take it out of KNOWN"
        return
    if found and mode == "safe" and arena.misses_fast and the_case.name in OLD:
        report(**row, outcome="xfail", cause=OLD[the_case.name])
        pytest.xfail(OLD[the_case.name])
    report(**row, outcome="differs" if found else "equal", cause=text)
    assert not found, text

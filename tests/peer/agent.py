"""A peer: reads one JSON call a line on stdin, runs it, answers on stdout. One call at a time.

The functions that can be called are those of ops.py, or of the file that is the first argument.
"""
import base64
import importlib
import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
PROGRAM = os.path.abspath(sys.argv[1]) if len(sys.argv) > 1 else os.path.join(HERE, "ops.py")
sys.path[:0] = [os.path.dirname(PROGRAM), HERE]
import hostile  # noqa: E402

ops = importlib.import_module(os.path.basename(PROGRAM)[:-3])


def pack(value):
    if isinstance(value, (bytes, bytearray)):
        return {"__b64__": base64.b64encode(value).decode()}
    if isinstance(value, (list, tuple)):
        return [pack(v) for v in value]
    if isinstance(value, dict):
        return {k: pack(v) for k, v in value.items()}
    return value


def unpack(value):
    if isinstance(value, dict):
        if "__b64__" in value:
            return base64.b64decode(value["__b64__"])
        return {k: unpack(v) for k, v in value.items()}
    if isinstance(value, list):
        return [unpack(v) for v in value]
    return value


def main():
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # stray prints go to stderr
    for line in sys.stdin:
        ask = json.loads(line)
        try:
            op = getattr(ops, ask["op"], None) or getattr(hostile, ask["op"])
            value = op(*unpack(ask["args"]), **unpack(ask["kw"]))
            out.write(json.dumps({"id": ask["id"], "value": pack(value)}) + "\n")
        except Exception as err:
            out.write(json.dumps({"id": ask["id"], "error": [type(err).__name__, getattr(err, "errno", None), str(err)]}) + "\n")


if __name__ == "__main__":
    main()

"""Every case: a function of (t, c, s) in one of these files. See ../README.md."""
from . import data, ending, handshakes, options, processes, waiting  # noqa: F401

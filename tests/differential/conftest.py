import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from arena import Arena  # noqa: E402


@pytest.fixture(scope="module")
def arena():
    """One for all cases, and gone before other tests make pods of their own."""
    made = Arena()
    try:
        yield made
    finally:
        problems = made.close()
    assert not problems, "\n".join(problems)

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import helpers  # noqa: E402


@pytest.fixture(scope="session")
def static():
    """target/static/shared-socket. The first test that asks for it may wait for minutes for cargo; the others do not."""
    return helpers.static_binary()

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

# One thread a process: two on a busy two-core machine are several times slower, and results stay the same everywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def environment_is_left_as_it_was() -> Iterator[None]:
    """Commands enter a project by setting its environment; other tests of this process must not find themselves in it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)

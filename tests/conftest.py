"""What all tests share."""

from __future__ import annotations

import gc
import os

import pytest
from hypothesis import settings

# Two workers on two cores, and tiny models: a second thread would only wait. Also for subprocesses.
os.environ["OMP_NUM_THREADS"] = "1"

# The machines that run the tests are shared: a slow example is no failure.
settings.register_profile("pastille", deadline=None, derandomize=True)
settings.load_profile("pastille")


@pytest.fixture(scope="module", autouse=True)
def _what_was_imported_stays() -> None:
    """No collection walks it again: with torch that is half a million objects, and 0.3 s each time."""
    gc.collect()
    gc.freeze()

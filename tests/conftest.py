"""What all tests share."""

from __future__ import annotations

import os

from hypothesis import settings

# Two workers on two cores, and tiny models: a second thread would only wait. Also for subprocesses.
os.environ["OMP_NUM_THREADS"] = "1"

# The machines that run the tests are shared: a slow example is no failure.
settings.register_profile("pastille", deadline=None, derandomize=True)
settings.load_profile("pastille")

"""What all tests share."""

from __future__ import annotations

from hypothesis import settings

# The machines that run the tests are shared: a slow example is no failure.
settings.register_profile("pastille", deadline=None, derandomize=True)
settings.load_profile("pastille")

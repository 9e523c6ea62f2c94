"""One bundle, opened: which variant answers, what happens when it cannot, and what it is held against."""

from __future__ import annotations

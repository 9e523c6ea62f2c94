"""What the server knows of itself: counts, windows, drift, alarms, and labels that arrive later."""

from __future__ import annotations

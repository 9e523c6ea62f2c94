"""Serve bundles: the right variant for this machine, with a fallback, and alarms that mean something.

Needs no torch. Nothing here is imported before it is used.
"""

from __future__ import annotations

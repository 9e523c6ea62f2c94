"""A monitor that watches a tiny bundle with reference statistics, and a clock to turn by hand."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from serving_bundles import tiny_bundle

from pastille.bundle import Manifest, read_manifest
from pastille.serve.seams import Observe
from pastille.serve.settings import Settings
from pastille.serve.values import EngineStatus, VariantStatus
from pastille.serve.watch.monitor import Alarmed, ServerMonitor, open_monitor
from pastille.stats.confidence import quantile_bins, quantile_grid
from pastille.values.reference import GroupSensitivity, Reference, VariantReference

VALIDATED = np.random.default_rng(0).beta(8, 2, 1000)  # confidences on validation


def reference(variant: str = "int8") -> VariantReference:
    """What validation saw: 95 of 100 positives found, 30 of 30 of the women."""
    edges, shares = quantile_bins(VALIDATED)
    return VariantReference(
        variant=variant,
        cases=len(VALIDATED),
        edges=tuple(edges.tolist()),
        shares=tuple(shares.tolist()),
        grid=tuple(quantile_grid(VALIDATED).tolist()),
        sensitivity=(
            GroupSensitivity(group="everyone", positives=100, found=95),
            GroupSensitivity(group="sex=female", positives=30, found=30),
        ),
    )


@cache
def manifest(*, with_reference: bool = True, kind: Any = "multiclass") -> Manifest:
    """Of a bundle named ``tiny`` whose int8 is selected, and whose positives are the two tumours."""
    known = Reference(cases=1000, inputs=(), variants=(reference(),)) if with_reference else None
    with tempfile.TemporaryDirectory() as folder:
        tiny_bundle(Path(folder) / "bundle", kind, name="tiny", reference=known)
        return read_manifest(Path(folder) / "bundle" / "manifest.json")


@dataclass
class Clock:
    """Seconds, turned by the test."""

    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Watching:
    """A monitor that watches one version."""

    monitor: ServerMonitor
    observe: Observe
    clock: Clock
    acted: list[str] = field(default_factory=list)  # reasons that the engine was told
    alarms: list[Alarmed] = field(default_factory=list)


def watching(known: Manifest | None = None, version: str = "1", **settings: Any) -> Watching:
    """Watch the bundle named ``tiny``."""
    clock, acted, alarms = Clock(), list[str](), list[Alarmed]()
    monitor = open_monitor(Settings(**settings), on_alarm=alarms.append, clock=clock, monotonic=clock)
    observe = monitor.watch(known or manifest(), version, act=acted.append)
    return Watching(monitor=monitor, observe=observe, clock=clock, acted=acted, alarms=alarms)


def status(**changes: Any) -> EngineStatus:
    """How the engine of that bundle says it stands."""
    variants = tuple(
        VariantStatus(name=name, sha256="ab" * 32, usable=True, reason="as validated")
        for name in ("int8", "fp32")
    )
    known: dict[str, Any] = {
        "model": "tiny",
        "version": "1",
        "content": "cd" * 32,
        "mode": "auto",
        "ready": True,
    }
    known |= {
        "reason": "int8 is faster here",
        "preferred": "int8",
        "degraded": False,
        "threads": 1,
        "places": 2,
    }
    return EngineStatus(**(known | {"batching": "off", "variants": variants} | changes))

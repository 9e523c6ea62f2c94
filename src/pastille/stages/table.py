"""A latency table of this machine: measured on networks of several widths, and kept for the next time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from pastille.errors import IntegrityError
from pastille.files import read_bounded, write_atomic
from pastille.progress import Progress
from pastille.pruning.cost import Costs
from pastille.pruning.latency import LatencyTable, Sighting, designs, fits, latency_table, layer_tensors
from pastille.stages.trials import Means
from pastille.values import from_json, to_json

_TURNS: Final = 3
_MAX_TABLE_BYTES: Final = 16 << 20


def table_for(
    cost: Costs, precision: str, means: Means, multiple: np.ndarray, kept_at: Path | None, progress: Progress
) -> LatencyTable:
    """Measured, or as it was kept if it is of this network and this machine.

    Args:
        cost: Of the network before anything is removed.
        precision: Of the files.
        means: What makes and times them.
        multiple: That widths are tried in, by group, ``(G,)``.
        kept_at: Where it was kept, and is written to.
        progress: Shown network by network.
    """
    known = _read(kept_at)
    if known is not None and fits(known, cost, means.conditions, precision):
        return known
    seen = _sightings(cost, designs(cost.widths, multiple=multiple), means, progress)
    found = latency_table(cost, seen, conditions=means.conditions, precision=precision)
    if kept_at is not None:
        write_atomic(kept_at, to_json(found))
    return found


def _sightings(cost: Costs, widths: Sequence[np.ndarray], means: Means, progress: Progress) -> list[Sighting]:
    """Networks of several widths, timed in turns: what slows the machine for a while slows all of them."""
    made = progress.track(widths, what="making networks of several widths")
    files = [means.make(cost.named(kept)) for kept in made]
    turns = [
        [means.times(file) for file in files]
        for _ in progress.track(range(_TURNS), what="timing their kernels")
    ]
    return [
        Sighting(kept=kept, times_ms=_quickest(times), tensors=layer_tensors(file, cost))
        for kept, file, times in zip(widths, files, zip(*turns, strict=True), strict=True)
    ]


def _quickest(turns: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {tensor: min(times.get(tensor, 0.0) for times in turns) for tensor in turns[0]}


def _read(path: Path | None) -> LatencyTable | None:
    """A table that was kept; one that cannot be read is measured anew."""
    if path is None or not path.exists():
        return None
    try:
        return from_json(LatencyTable, read_bounded(path, _MAX_TABLE_BYTES, what="latency table"))
    except (ValueError, IntegrityError):
        return None

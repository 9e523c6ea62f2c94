"""What a file may cost."""

from __future__ import annotations

from collections.abc import Iterator

from pastille.recipe.quantities import Milliseconds
from pastille.recipe.section import Section


class MaxLatency(Section):
    """Largest permitted percentile of the latency at batch 1."""

    p50: Milliseconds | None = None
    p90: Milliseconds | None = None
    p95: Milliseconds | None = None
    p99: Milliseconds | None = None

    def limits(self) -> Iterator[tuple[float, float]]:
        """Percentile in (0, 1) and its limit in milliseconds, for those that are given."""
        for name in type(self).model_fields:
            limit = getattr(self, name)
            if limit is not None:
                yield int(name[1:]) / 100, limit

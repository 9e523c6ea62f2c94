"""Accounts of runs that pruned: layers with their costs, and steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import report_records as records

from pastille.record import BaselineProfiled, PrunedStep, Record, StageFinished, WidthChange
from pastille.values import LayerCost


def pruned(record: Record | None = None, *, profile: dict[str, Any] | None = None, **details: Any) -> Record:
    """The skin record, with fields of its prune stage replaced."""
    record = record or records.skin()

    def changed(event: Any) -> Any:
        if not (isinstance(event, StageFinished) and event.name == "prune"):
            return event
        return replace(
            event,
            profile=replace(event.profile, **(profile or {})),
            details=replace(event.details, **details),
        )

    return replace(record, events=tuple(changed(e) for e in record.events))


def before_with(record: Record, **fields: Any) -> Record:
    return replace(
        record,
        events=tuple(
            replace(e, profile=replace(e.profile, **fields)) if isinstance(e, BaselineProfiled) else e
            for e in record.events
        ),
    )


def network(count: int) -> Record:
    """A network of four stages: every fifth layer is left whole, all others are halved."""
    names = [f"layer{1 + 4 * i // count}.{i}.conv" for i in range(count)]
    old = tuple(LayerCost(name=n, macs=1000 * (i + 1), parameters=100) for i, n in enumerate(names))
    new = tuple(
        replace(layer, macs=layer.macs // (1 if i % 5 == 0 else 2), parameters=60)
        for i, layer in enumerate(old)
    )
    widths = tuple(WidthChange(module=n, before=64, after=32) for i, n in enumerate(names) if i % 5)
    whole = {n: "no narrower multiple of 8" for i, n in enumerate(names) if i % 5 == 0}
    record = before_with(records.skin(), layers=old)
    return pruned(record, profile={"layers": new}, widths=widths, left_whole=whole)


def step(number: int, sparsity: float, metric: float | None, *, rejected: bool = False) -> PrunedStep:
    left = 11_177_538 if number == 0 else round(11_177_538 * (1 - sparsity))
    note = "accuracy fell for certain" if rejected else ""
    return PrunedStep(
        number=number,
        removed=sparsity,
        sparsity=1 - (1 - sparsity) ** 0.5,
        parameters=left,
        macs=None,
        metric=metric,
        spent=0.4 * number,
        rejected=rejected,
        note=note,
    )


THREE = (step(1, 0.2, 0.79), step(2, 0.36, 0.785), step(3, 0.5, 0.71, rejected=True))


def with_steps(found: tuple[PrunedStep, ...], parameters: int) -> Record:
    return pruned(profile={"parameters": parameters}, steps=found)

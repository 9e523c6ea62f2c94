"""What ``GET /predict`` says: what the model takes, in words and with an example, for people and programs."""

from __future__ import annotations

import math
from typing import Any

from pastille.bundle import Manifest
from pastille.values import (
    CategoryColumn,
    ImageDecoding,
    NumberColumn,
    Preprocessing,
    SignalDecoding,
    TableEncoding,
    TextEncoding,
)

MAX_EXAMPLE = 64  # numbers of an example; larger inputs are described instead


def form(manifest: Manifest) -> dict[str, Any]:
    """Describe what may be sent, ready for JSON.

    Args:
        manifest: Of the bundle.

    Returns:
        ``model``, ``task``, ``labels``, ``positive``, ``threshold`` and ``accepts``: one entry for each
        kind of body, with ``kind``, ``media_types``, ``words`` and perhaps an ``example``.
    """
    preprocessing = manifest.preprocessing or Preprocessing()
    raw = _raw(preprocessing)
    return {
        "model": manifest.name,
        "task": manifest.kind,
        "labels": list(manifest.labels),
        "positive": list(manifest.positive),
        "threshold": manifest.threshold if manifest.kind in ("binary", "multilabel") else None,
        "accepts": [*([raw] if raw else []), _tensors(manifest, preprocessing)],
    }


def _raw(preprocessing: Preprocessing) -> dict[str, Any] | None:
    match preprocessing.raw:
        case ImageDecoding() as how:
            return {
                "kind": "image",
                "media_types": ["image/png", "image/jpeg", "application/dicom"],
                "words": f"A PNG, JPEG or DICOM image; it is scaled to {how.width} × {how.height}.",
            }
        case SignalDecoding() as how:
            return _signal(how)
        case TableEncoding() as how:
            return {
                "kind": "row",
                "media_types": ["application/json"],
                "words": "A row as a JSON object, or a list of rows; a number that is missing is null.",
                "columns": [_column(column) for column in how.columns],
                "example": {column.name: _typical(column) for column in how.columns},
            }
        case TextEncoding() as how:
            return {
                "kind": "text",
                "media_types": ["text/plain"],
                "words": f"A text in UTF-8; what is beyond {how.length} tokens is cut off.",
            }
        case _:
            return None


def _signal(how: SignalDecoding) -> dict[str, Any]:
    return {
        "kind": "signal",
        "media_types": ["text/csv", "application/zip"],
        "words": (
            f"A CSV file with one column per channel ({', '.join(how.channels)}), in {how.unit} at "
            f"{how.rate_hz:g} per second; or a WFDB record, its .hea and .dat file together or in a zip. "
            f"Each {how.samples} samples are answered on their own."
        ),
        "channels": list(how.channels),
        "rate_hz": how.rate_hz,
        "samples": how.samples,
        "unit": how.unit,
    }


def _column(column: NumberColumn | CategoryColumn) -> dict[str, Any]:
    if isinstance(column, NumberColumn):
        may_miss = column.missing is not None
        return {"name": column.name, "type": "number", "codes": list(column.codes), "optional": may_miss}
    known = [] if column.ranges else list(column.values)
    return {
        "name": column.name,
        "type": "category",
        "values": known,
        "optional": column.others == "zeros",
    }


def _typical(column: NumberColumn | CategoryColumn) -> str | float | int:
    """An entry that is surely taken: the first that is listed, or about the mean of the train split."""
    if isinstance(column, CategoryColumn):
        return _code(column) if column.values else ""
    if column.codes:
        return next(iter(column.codes))
    mean = math.expm1(column.mean) if column.scale == "log1p" else column.mean
    return round(mean) if abs(mean) >= 10 else float(f"{mean:.2g}")


def _code(column: CategoryColumn) -> str:
    """What is written where the first value is meant."""
    value = column.values[0]
    given = next((r for r in column.ranges if r.value == value), None)
    if given is None:
        return value
    return str(given.low) if given.prefix is None else given.prefix


def _tensors(manifest: Manifest, preprocessing: Preprocessing) -> dict[str, Any]:
    last = " before they are normalized" if preprocessing.normalization else ""
    shapes = "; ".join(f"{s.name}: (N, {', '.join(map(str, s.shape))}) {s.dtype}" for s in manifest.inputs)
    said = {
        "kind": "tensors",
        "media_types": ["application/json"],
        "words": f'Arrays of numbers as {{"inputs": …}}{last}: {shapes}.',
    }
    if sum(math.prod(spec.shape) for spec in manifest.inputs) > MAX_EXAMPLE:
        return said
    return said | {"example": {"inputs": {s.name: [_zeros(s.shape)] for s in manifest.inputs}}}


def _zeros(shape: tuple[int, ...]) -> Any:
    return [_zeros(shape[1:]) for _ in range(shape[0])] if shape else 0.0

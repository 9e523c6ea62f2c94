"""Whether a bundle's preprocessing can be: it gives what the models take, and its files are there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from pastille.values import (
    ImageDecoding,
    NumberColumn,
    Preprocessing,
    SignalDecoding,
    TableEncoding,
    TensorSpec,
    TextEncoding,
)


def preparation_problems(
    preprocessing: Preprocessing, inputs: tuple[TensorSpec, ...], files: Mapping[str, str]
) -> Iterator[str]:
    """Say what contradicts what.

    Args:
        preprocessing: Of the manifest.
        inputs: What the models take.
        files: SHA-256 of each file under ``preprocessing/``, by name.

    Yields:
        One sentence without a full stop each.
    """
    given = preprocessing
    if sum(how is not None for how in (given.image, given.signal, given.table, given.text)) > 1:
        yield "preprocessing must have one of image, signal, table and text"
    how = given.raw
    if isinstance(how, TextEncoding):
        yield from _text_problems(how, inputs, files)
    elif how is not None:
        yield from _shape_problems(_shape(how), inputs)
    if isinstance(how, TableEncoding):
        yield from _column_problems(how)
    if given.normalization is not None and not _scales(given.normalization.std):
        yield "preprocessing.normalization must have finite standard deviations other than 0"


def _shape(how: ImageDecoding | SignalDecoding | TableEncoding) -> tuple[int, ...]:
    match how:
        case ImageDecoding():
            return how.channels, how.height, how.width
        case SignalDecoding():
            return len(how.channels), how.samples
        case TableEncoding():
            return (sum(1 if isinstance(c, NumberColumn) else len(c.values) for c in how.columns),)


def _shape_problems(shape: tuple[int, ...], inputs: tuple[TensorSpec, ...]) -> Iterator[str]:
    if len(inputs) != 1 or inputs[0].shape != shape:
        yield f"preprocessing gives one input of shape {shape}, the models take {[s.shape for s in inputs]}"


def _text_problems(
    how: TextEncoding, inputs: tuple[TensorSpec, ...], files: Mapping[str, str]
) -> Iterator[str]:
    named = {name for name in (how.ids, how.mask, how.types) if name is not None}
    if {s.name for s in inputs} != named or any(s.shape != (how.length,) for s in inputs):
        yield f"preprocessing.text gives {sorted(named)} of length {how.length}, which the models do not take"
    if files.get(how.tokenizer) != how.sha256:
        yield f"preprocessing/{how.tokenizer[:80]} must be the tokenizer that preprocessing.text names"


def _column_problems(how: TableEncoding) -> Iterator[str]:
    names = [column.name for column in how.columns]
    if len(set(names)) < len(names):
        yield "preprocessing.table must name each column once"
    if not _scales(c.std for c in how.columns if isinstance(c, NumberColumn)):
        yield "preprocessing.table must have finite standard deviations other than 0"


def _scales(stds: Iterable[float]) -> bool:
    return all(math.isfinite(std) and std != 0 for std in stds)

"""Whether an input lies far outside what validation saw: one pass over it, before a model is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pastille.data.rows import features_of
from pastille.stats.moments import moments
from pastille.values import InputReference, Preprocessing, Reference, Spread

FAR = 1.0  # widths of the range that validation saw, beyond its ends
BLANK = 1e-3  # of the usual deviation within a case: below it nothing is to be seen
_SAID = 3  # warnings about one input


@dataclass(frozen=True, kw_only=True, eq=False)
class Bounds:
    """What is not unusual in one input; arrays of shape ``(C,)``."""

    name: str
    names: tuple[str, ...]  # of its channels, where they have any
    channels: int
    mean: tuple[np.ndarray, np.ndarray]  # low, high
    std: tuple[np.ndarray, np.ndarray]
    seen: Spread  # for the words
    blank: np.ndarray  # deviation below which a channel is blank; 0 where cases have none


@dataclass(frozen=True, kw_only=True, eq=False)
class Guard:
    """Reference statistics, ready to hold requests against; see `guard_for`."""

    bounds: tuple[Bounds, ...]

    def unusual(self, inputs: Mapping[str, np.ndarray]) -> tuple[str, ...]:
        """Say what is unusual.

        Args:
            inputs: ``{name: (N, ...)}``, finite, as the model is fed.

        Returns:
            One sentence each, at most three for an input, of its first unusual case; none where nothing is.
        """
        given = (bounds for bounds in self.bounds if bounds.name in inputs)
        return tuple(said for bounds in given for said in _said(inputs[bounds.name], bounds))


def guard_for(reference: Reference | None, preprocessing: Preprocessing | None = None) -> Guard:
    """Make reference statistics ready; once per bundle.

    Args:
        reference: Of the manifest. Without one, nothing is unusual.
        preprocessing: Of the manifest; it names the columns of a table and the channels of a signal.

    Example:
        >>> seen = Spread(low=(0.0,), median=(0.5,), high=(1.0,))
        >>> of = InputReference(name="x", channels=1, mean=seen, std=seen)
        >>> guard = guard_for(Reference(cases=100, inputs=(of,), variants=()))
        >>> guard.unusual({"x": np.array([[400.0, 424.0]])})[0]
        "input 'x' lies far outside what validation saw: mean 412, validation 0 to 1"
    """
    names = _names(preprocessing)
    return Guard(bounds=tuple(_bounds(of, names) for of in reference.inputs) if reference else ())


def _names(preprocessing: Preprocessing | None) -> tuple[str, ...]:
    if preprocessing is not None and preprocessing.table is not None:
        return tuple(features_of(preprocessing.table))
    if preprocessing is not None and preprocessing.signal is not None:
        return preprocessing.signal.channels
    return ()


def _bounds(of: InputReference, names: tuple[str, ...]) -> Bounds:
    return Bounds(
        name=of.name,
        names=names if len(names) == of.channels else (),
        channels=of.channels,
        mean=_range(of.mean),
        std=_range(of.std),
        seen=of.mean,
        blank=BLANK * np.array(of.std.median, np.float32),
    )


def _range(spread: Spread) -> tuple[np.ndarray, np.ndarray]:
    """The range seen, wider on both sides; a channel that hardly varied is as wide as others usually are."""
    low, high = np.array(spread.low, np.float64), np.array(spread.high, np.float64)
    width = np.maximum(high - low, np.median(high - low))
    width = np.where(width > 0, width, np.maximum(np.abs(high), 1.0)) * FAR
    return (low - width).astype(np.float32), (high + width).astype(np.float32)


def _said(x: np.ndarray, bounds: Bounds) -> list[str]:
    mean, std = moments(x, bounds.channels)
    blank = np.asarray(((std < bounds.blank) & (bounds.blank > 0)).all(axis=1))
    odd = (mean < bounds.mean[0]) | (mean > bounds.mean[1])
    wild = std > bounds.std[1]
    rows = np.flatnonzero(blank | odd.any(axis=1) | wild.any(axis=1))
    if len(rows) == 0:
        return []
    row = int(rows[0])
    said = [f"input {bounds.name!r} is blank: all its values are alike"] if blank[row] else []
    said += [_far(bounds, c, mean[row]) for c in np.flatnonzero(odd[row])[:_SAID].tolist()]
    said += [_wild(bounds, c, std[row]) for c in np.flatnonzero(wild[row])[:1].tolist()]
    return said[:_SAID]


def _far(bounds: Bounds, channel: int, mean: np.ndarray) -> str:
    low, high = bounds.seen.low[channel], bounds.seen.high[channel]
    return (
        f"{_where(bounds, channel)} lies far outside what validation saw: mean {mean[channel]:.4g}, "
        f"validation {low:.4g} to {high:.4g}"
    )


def _wild(bounds: Bounds, channel: int, std: np.ndarray) -> str:
    return f"{_where(bounds, channel)} varies far more than in validation: deviation {std[channel]:.4g}"


def _where(bounds: Bounds, channel: int) -> str:
    if bounds.names:
        return f"input {bounds.name!r}: {bounds.names[channel]!r}"
    return f"input {bounds.name!r}" + (f" channel {channel}" if bounds.channels > 1 else "")

"""Which student to begin with, which is the widest that fits a budget, and when the gap is too wide."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from pastille.errors import PreconditionError

FIRST_TRY: Final = (3.0, 4.0)  # times smaller than the teacher
LARGE_GAP: Final = 0.1  # of the teacher's parameters; below it a teaching assistant is wanted
_STEP: Final = 4.0  # times smaller, from one student to the next
_ROUNDS: Final = 8  # networks that are made and measured at most
_WITHIN: Final = 0.05  # of a limit, from below
_FINE: Final = 0.01  # widths that differ by less are one

Costs = Mapping[str, float]  # limit, e.g. "max_size" -> what a model takes of it


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The widest student that fits.

    Attributes:
        width: Share of each layer's channels, in ``(0, 1)``.
        costs: Limit -> what that student takes of it.
    """

    width: float
    costs: Costs


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """The students to begin with.

    Attributes:
        widths: Least and most, shares of each layer's channels.
        parameters: That they have, about.
        words: The same as a sentence.
    """

    widths: tuple[float, float]
    parameters: tuple[int, int]
    words: str


def suggested(parameters: int) -> Suggestion:
    """The students to begin with: three to four times smaller than the teacher.

    Args:
        parameters: Of the teacher. They are taken to go with the square of the width, as those of
            convolutions and linear layers do.

    Example:
        >>> suggested(11_200_000).widths
        (0.5, 0.58)
    """
    most, least = FIRST_TRY
    sizes = round(parameters / least), round(parameters / most)
    widths = round(1 / math.sqrt(least), 2), round(1 / math.sqrt(most), 2)
    said = [f"{size / 1e6:.3g}" for size in (*sizes, parameters)]
    words = (
        f"begin with a student {most:g} to {least:g} times smaller: {{width: {widths[0]:g}}} to "
        f"{{width: {widths[1]:g}}}, about {said[0]} to {said[1]} M of {said[2]} M parameters"
    )
    return Suggestion(widths=widths, parameters=sizes, words=words)


def gap_warning(share: float) -> str:
    """That a student is too far below its teacher to learn well from it alone; empty if it is not.

    Args:
        share: Of the teacher's parameters, that the student has.

    References:
        Mirzadeh et al., "Improved Knowledge Distillation via Teacher Assistant", AAAI 2020, arXiv:1902.03393.

    Example:
        >>> gap_warning(0.25)
        ''
        >>> gap_warning(0.06).rpartition(": student: ")[2]
        '[{width: 0.49}, {width: 0.49}]'
    """
    if share >= LARGE_GAP:
        return ""
    count = max(2, round(math.log(1 / share) / math.log(_STEP)))
    each = f"{{width: {share ** (1 / (2 * count)):.2g}}}"
    return (
        f"the student has {100 * share:.2g} % of the parameters of its teacher; below {100 * LARGE_GAP:g} % "
        "a teaching assistant between the two helps, which is written as a list, each a share of the one "
        f"before it: student: [{', '.join([each] * count)}]"
    )


def widest(costs: Callable[[float], Costs], limits: Costs) -> Fit:
    """The widest student that keeps to every limit, or one that spends at least 95 % of one of them.

    Args:
        costs: Of a width in ``(0, 1]``; taken to rise with it. 1 is the model as it is.
        limits: Name -> the most that is allowed.

    Raises:
        PreconditionError: The model as it is keeps to them, or no width does.

    Example:
        >>> fit = widest(lambda width: {"max_size": 16e6 * width**2}, {"max_size": 4e6})
        >>> fit.width <= 0.5, fit.costs["max_size"] >= 0.95 * 4e6
        (True, True)
    """
    high, low = _tried(1.0, costs, limits), None
    if high.share <= 1:
        raise PreconditionError(
            f"distill.student: the model already keeps to {said(limits)}; lower it, or give a width"
        )
    for _ in range(_ROUNDS):
        found = _tried(_next(low, high), costs, limits)
        if low is None and found.width <= high.width / 2 and found.costs == high.costs:
            break  # nothing is left to be cut
        low, high = (low, found) if found.share > 1 else (found, high)
        if low is not None and (low.share >= 1 - _WITHIN or high.width / low.width < 1 + _FINE):
            break
    if low is None:
        raise PreconditionError(
            f"distill.student: no width keeps to {said(limits)}: at {high.width:.2g} it takes "
            f"{said(high.costs)}; raise it, or take a model of its own "
            "(student: {model: torchvision:resnet18})"
        )
    return Fit(width=low.width, costs=low.costs)


@dataclass(frozen=True, kw_only=True)
class _Try:
    """A width, what it takes, and the largest share of any limit that this is."""

    width: float
    costs: Costs
    share: float


def _tried(width: float, costs: Callable[[float], Costs], limits: Costs) -> _Try:
    found = costs(width)
    return _Try(width=width, costs=found, share=max(found[name] / limits[name] for name in limits))


def _next(low: _Try | None, high: _Try) -> float:
    """Where the limit is expected: costs go with a power of the width, at first with its square."""
    aim = math.log(1 - _WITHIN / 2)
    if low is None:
        expected = high.width * math.exp((aim - math.log(high.share)) / 2)
        return expected if high.width == 1 else min(expected, high.width / 2)  # part of the cost stays
    ends = [math.log(low.share), math.log(high.share)]
    part = (aim - ends[0]) / (ends[1] - ends[0])
    return float(low.width * (high.width / low.width) ** min(0.9, max(0.1, part)))


def said(costs: Costs) -> str:
    """What is allowed or taken, with units.

    Example:
        >>> said({"max_size": 5e6, "max_latency.p95": 4.0})
        'max_size 5 MB, max_latency.p95 4 ms'
    """
    return ", ".join(
        f"{name} {value / 1e6:.3g} MB" if name == "max_size" else f"{name} {value:.3g} ms"
        for name, value in costs.items()
    )

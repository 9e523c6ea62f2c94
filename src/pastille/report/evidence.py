"""Where the two models answer differently: confusions, classes and demographic groups."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pastille.report.text as text
from pastille.report.account import Account
from pastille.report.comparison import shown_metrics
from pastille.values import Confusion, Estimate, Metrics

MAX_MATRIX_CLASSES = 20
_MAX_ROWS = 24
_MAX_GROUP_ROWS = 32  # of all tables of groups together
_MAX_ATTRIBUTES = 12
_MAX_GROUP_METRICS = 2
_MAX_CONFUSIONS = 15


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Counts of (true label, decision) of one model."""

    title: str
    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Mixup:
    """One frequent wrong decision, where there are too many classes for a matrix."""

    truth: str
    decided: str
    before: str
    after: str


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One estimate on an axis, in the metric's printed unit."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class PairRow:
    """One class or group, before and after."""

    label: str
    n: str
    before: str
    before_span: str
    after: str
    after_span: str
    drop: str
    marks: tuple[Reading, Reading] | None


@dataclass(frozen=True, kw_only=True)
class PairTable:
    """One metric, before and after, over classes or groups."""

    title: str
    metric: str
    share: bool
    low: float  # of the axis
    high: float
    rows: tuple[PairRow, ...]
    more_rows: int


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the metrics of two models on one split show in detail."""

    split: str
    matrices: tuple[Matrix, ...]
    mixups: tuple[Mixup, ...]
    classes: PairTable | None
    groups: tuple[PairTable, ...]
    more_groups: int


def evidence(run: Account) -> Evidence:
    """Both models on the split that they were last judged on; of an unfinished run, the baseline alone."""
    before, after = run.metrics
    groups = tuple(_groups(before, after, shown_metrics(run), _errors(run)))
    shares = allot([len(table.rows) for table in groups[:_MAX_ATTRIBUTES]], _MAX_GROUP_ROWS)
    return Evidence(
        split=before.split if before else "",
        matrices=tuple(_matrices(before, after)),
        mixups=tuple(_mixups(before, after)),
        classes=_classes(before, after),
        groups=tuple(_shortened(table, most) for table, most in zip(groups, shares, strict=False)),
        more_groups=max(0, len(groups) - _MAX_ATTRIBUTES),
    )


def _errors(run: Account) -> frozenset[str]:
    """Metrics that are worse when larger; of those of the user's own, the comparisons tell."""
    found = run.evidence.comparisons
    known = [(c.metric, c.drop, c.baseline, c.candidate) for c in found]
    rose = {name for name, drop, a, b in known if drop and a and b and (b.value - a.value) * drop > 0}
    return frozenset(rose)


def allot(sizes: Sequence[int], most: int) -> list[int]:
    """How many rows each table may have, so that all together have at most so many; the small are spared.

    Example:
        >>> allot([4, 100, 30], 60)
        [4, 28, 28]
    """
    given = [0] * len(sizes)
    left = most
    for place, index in enumerate(sorted(range(len(sizes)), key=lambda i: sizes[i])):
        given[index] = min(sizes[index], left // (len(sizes) - place))
        left -= given[index]
    return given


def _shortened(table: PairTable, most: int) -> PairTable:
    return replace(table, rows=table.rows[:most], more_rows=table.more_rows + max(0, len(table.rows) - most))


def _matrices(before: Metrics | None, after: Metrics | None) -> Iterator[Matrix]:
    for title, metrics in (("baseline", before), ("compressed", after)):
        found = metrics.confusion if metrics else None
        if found and found.labels and len(found.labels) <= MAX_MATRIX_CLASSES:
            labels = tuple(text.clean(label, 80) for label in found.labels)
            yield Matrix(title=title, labels=labels, counts=found.counts)


def _mixups(before: Metrics | None, after: Metrics | None) -> Iterator[Mixup]:
    first = before.confusion if before else None
    second = after.confusion if after else None
    shown = second or first
    if shown is None or len(shown.labels) <= MAX_MATRIX_CLASSES:
        return
    for true, decided in _most_frequent(shown):
        yield Mixup(
            truth=text.clean(shown.labels[true], 80),
            decided=text.clean(shown.labels[decided], 80),
            before=text.count(first.counts[true][decided]) if first else text.ABSENT,
            after=text.count(second.counts[true][decided]) if second else text.ABSENT,
        )


def _most_frequent(confusion: Confusion) -> list[tuple[int, int]]:
    wrong = [
        (cell, i, j)
        for i, row in enumerate(confusion.counts)
        for j, cell in enumerate(row)
        if i != j and cell > 0
    ]
    return [(i, j) for _, i, j in sorted(wrong, key=lambda x: (-x[0], x[1], x[2]))[:_MAX_CONFUSIONS]]


def _classes(before: Metrics | None, after: Metrics | None) -> PairTable | None:
    if before is None or not before.per_class:
        return None
    return _pair_table("class", "recall", before.per_class, after.per_class if after else {})


def _groups(
    before: Metrics | None, after: Metrics | None, leading: tuple[str, ...], errors: frozenset[str]
) -> Iterator[PairTable]:
    for attribute, groups in (before.groups if before else {}).items():
        later = after.groups.get(attribute, {}) if after else {}
        names = list(dict.fromkeys(name for found in groups.values() for name in found))
        shown = [name for name in leading if name in names] or names
        for name in shown[:_MAX_GROUP_METRICS]:
            yield _pair_table(
                text.clean(attribute, 60).replace("_", " "),
                name,
                {group: groups[group].get(name) for group in sorted(groups, key=text.group_order)},
                {group: found.get(name) for group, found in later.items()},
                worse_when_larger=name in errors or text.lower_is_better(name),
            )


def _pair_table(
    title: str,
    metric: str,
    before: Mapping[str, Estimate | None],
    after: Mapping[str, Estimate | None],
    *,
    worse_when_larger: bool = False,
) -> PairTable:
    labels = list(dict.fromkeys([*before, *after]))
    sign = -1.0 if worse_when_larger else 1.0
    rows = [_pair(label, metric, before.get(label), after.get(label), sign) for label in labels[:_MAX_ROWS]]
    low, high = axis_range([m for row in rows for m in row.marks or ()], share=text.is_share(metric))
    return PairTable(
        title=title,
        metric=text.metric_name(metric),
        share=text.is_share(metric),
        low=low,
        high=high,
        rows=tuple(rows),
        more_rows=max(0, len(labels) - _MAX_ROWS),
    )


def _pair(label: str, metric: str, before: Estimate | None, after: Estimate | None, sign: float) -> PairRow:
    """One row; ``sign`` is 1 where a larger value is better, else -1."""
    first, first_span = text.estimate(metric, before)
    second, second_span = text.estimate(metric, after)
    known = after or before
    marks = (_reading(metric, before), _reading(metric, after)) if before and after else None
    return PairRow(
        label=text.clean(label, 80) or "(empty)",
        n=text.count(known.n if known else None),
        before=first,
        before_span=first_span,
        after=second,
        after_span=second_span,
        drop=text.bare_drop(metric, sign * (before.value - after.value) if before and after else None),
        marks=marks if marks and all(math.isfinite(m.value) for m in marks) else None,
    )


def _reading(metric: str, found: Estimate) -> Reading:
    factor = text.scale(metric)
    return Reading(
        value=found.value * factor,
        low=found.interval.low * factor if found.interval else None,
        high=found.interval.high * factor if found.interval else None,
    )


def axis_range(readings: Iterable[Reading], *, share: bool) -> tuple[float, float]:
    """Where an axis that shows all readings begins and ends.

    Example:
        >>> axis_range([Reading(value=91.0, low=84.0, high=95.0)], share=True)
        (80.0, 100.0)
    """
    ends = [x for r in readings for x in (r.value, r.low, r.high) if x is not None and math.isfinite(x)]
    if not ends:
        return 0.0, 100.0 if share else 1.0
    if share:
        return max(0.0, min(90.0, math.floor(min(ends) / 10) * 10.0)), 100.0
    step = 10.0 ** math.floor(math.log10(max(max(ends) - min(ends), 1e-9)))
    return math.floor(min(ends) / step) * step, math.ceil(max(ends) / step) * step

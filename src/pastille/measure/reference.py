"""Reference statistics of a bundle: what validation saw, in aggregates that speak of no single case."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from pastille.data.split import Inputs, batches
from pastille.stats.confidence import confidence, quantile_bins, quantile_grid
from pastille.stats.decisions import decisions, probabilities
from pastille.stats.moments import channels_of, moments
from pastille.values import Cases, GroupSensitivity, InputReference, Spread, VariantReference

MAX_CASES = 2000  # that are read again; more say little about quantiles of 0.1 %
_BATCH = 32
_QUANTILES = (0.001, 0.5, 0.999)


def input_reference(inputs: Inputs, *, most: int = MAX_CASES) -> tuple[InputReference, ...]:
    """Look at inputs, evenly over all of them.

    Args:
        inputs: Of the validation split, prepared.
        most: Cases that are read.

    Returns:
        One for each floating-point input; token ids and other integers have no scale.

    Example:
        >>> (found,) = input_reference(np.array([[0.0, 10.0], [1.0, 30.0], [2.0, 20.0]]))
        >>> found.channels, found.mean.median
        (2, (1.0, 20.0))
    """
    rows = looked_at(len(inputs), most)
    means: dict[str, list[np.ndarray]] = {}
    stds: dict[str, list[np.ndarray]] = {}
    for batch in batches(inputs, rows.tolist(), _BATCH):
        for name, x in batch.items():
            if x.dtype.kind == "f":
                mean, std = moments(x, channels_of(x.shape[1:]))
                means.setdefault(name, []).append(mean)
                stds.setdefault(name, []).append(std)
    return tuple(_input(name, np.concatenate(means[name]), np.concatenate(stds[name])) for name in means)


def looked_at(n: int, most: int = MAX_CASES) -> np.ndarray:
    """Rows evenly over ``n``, at most so many.

    Example:
        >>> looked_at(10, most=4).tolist()
        [0, 3, 6, 9]
    """
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))


def _input(name: str, mean: np.ndarray, std: np.ndarray) -> InputReference:
    return InputReference(name=name, channels=mean.shape[1], mean=_spread(mean), std=_spread(std))


def _spread(values: np.ndarray) -> Spread:
    """Quantiles over cases of ``(N, C)``, six digits of each."""
    low, median, high = np.quantile(values.astype(np.float64), _QUANTILES, axis=0)
    return Spread(low=_rounded(low), median=_rounded(median), high=_rounded(high))


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values.tolist())


def variant_reference(
    name: str, logits: np.ndarray, cases: Cases, *, threshold: float, min_group: int
) -> VariantReference | None:
    """How sure one variant was on validation, and what it found.

    Args:
        name: Of the variant.
        logits: What it answered, ``(N, ...)``, as it will state it.
        cases: Of validation.
        threshold: From which the variant calls a case positive.
        min_group: Positives that a group needs to be listed.

    Returns:
        None for tasks that decide no case as a whole.
    """
    if cases.kind not in ("binary", "multiclass", "multilabel"):
        return None
    positive = (cases.positive or (1,))[0] if cases.kind == "binary" else 1
    decided = decisions(cases.kind, logits, threshold=threshold, positive=positive)
    sure = confidence(cases.kind, probabilities(cases.kind, logits), decided)
    assert sure is not None
    edges, shares = quantile_bins(sure)
    return VariantReference(
        variant=name,
        cases=len(sure),
        edges=tuple(edges.tolist()),
        shares=tuple(shares.tolist()),
        grid=_rounded(quantile_grid(sure)),
        sensitivity=tuple(_sensitivities(decided, cases, min_group)),
    )


def _sensitivities(decided: np.ndarray, cases: Cases, min_group: int) -> Iterator[GroupSensitivity]:
    positives, found = positives_found(decided, cases)
    if positives.sum() == 0:
        return
    yield GroupSensitivity(group="everyone", positives=int(positives.sum()), found=int(found.sum()))
    for name, members in _groups(cases.groups):
        if positives[members].sum() >= min_group:
            counts = int(positives[members].sum()), int(found[members].sum())
            yield GroupSensitivity(group=name, positives=counts[0], found=counts[1])


def positives_found(decided: np.ndarray, cases: Cases) -> tuple[np.ndarray, np.ndarray]:
    """Which cases are positive, and which of these were called positive.

    Args:
        decided: As `decisions` gives it.
        cases: Of validation; without a named positive class, only those of a binary task are (its second).

    Returns:
        Two ``(N,)`` bool arrays. Multilabel: any of the positive labels, all where none is named.

    Example:
        >>> cases = Cases(kind="binary", split="validation", targets=np.array([0, 1, 1]), labels=("a", "b"))
        >>> positives_found(np.array([1, 1, 0]), cases)
        (array([False,  True,  True]), array([False,  True, False]))
    """
    named = list(cases.positive)
    if cases.kind == "multilabel":
        columns = named or list(range(len(cases.labels)))
        right, said = (np.asarray(x)[:, columns] == 1 for x in (cases.targets, decided))
        return right.any(axis=1), (right & said).any(axis=1)
    classes = named or ([1] if cases.kind == "binary" else [])
    right, said = np.isin(cases.targets, classes), np.isin(decided, classes)
    return right, right & said


def _groups(groups: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    for attribute, column in sorted(groups.items()):
        for value in np.unique(column).tolist():
            yield f"{attribute}={value}", column == value

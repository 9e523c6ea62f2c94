"""From the losses of the cases that were looked at to what a change costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from pastille.stages.scanning.journal import Findings, Key
from pastille.stages.scanning.sampling import Sample, draw, expected_agreement, mean_interval
from pastille.values import Cases
from pastille.values.scanned import Effect

_SEEN: Final = 12  # cases of a group that must have been looked at before it is spoken of


@dataclass(frozen=True, kw_only=True, eq=False)
class Yardstick:
    """What changes are held against.

    Attributes:
        baseline: Losses and scores of the model as it is, on all of validation, ``(2, N)``.
        sample: The order in which cases are looked at.
        groups: Patient group, ``"sex=female"`` -> its rows, ``(N,)`` bool.
        subjects: ``(N,)``; None where each case is one of its own.
        ceiling: A rise of the loss after which nothing is left of the model.
        confidence: Of intervals.
    """

    baseline: np.ndarray
    sample: Sample
    groups: Mapping[str, np.ndarray]
    subjects: np.ndarray | None
    ceiling: float
    confidence: float

    def rises(self, found: np.ndarray) -> np.ndarray:
        """How much the loss of each case that was looked at is higher than before, ``(n,)``."""
        return np.asarray(found[0] - self.baseline[0, self.sample.order[: found.shape[1]]])


def yardstick(
    baseline: np.ndarray, cases: Cases, groups: Mapping[str, np.ndarray], *, confidence: float, seed: int
) -> Yardstick:
    """Arrange validation for a scan.

    Args:
        baseline: Losses and scores of the model as it is, ``(2, N)``.
        cases: Of validation.
        groups: From `patient_groups`.
        confidence: Of intervals, in (0, 1).
        seed: Of the sample.
    """
    losses = baseline[0]
    doubt = np.sqrt(losses) if cases.kind == "regression" else 1 - np.exp(-losses)
    return Yardstick(
        baseline=baseline,
        sample=draw(doubt, groups=tuple(groups.values()), seed=seed),
        groups=groups,
        subjects=cases.subjects,
        ceiling=max(_chance(cases) - float(losses.mean()), 0.1 * _chance(cases)),
        confidence=confidence,
    )


def _chance(cases: Cases) -> float:
    """The loss of who knows nothing but how many classes there are, or the mean of the targets."""
    if cases.kind == "regression":
        return 1.0
    return float(np.log(2 if cases.kind in ("binary", "multilabel") else max(2, len(cases.labels))))


def patient_groups(cases: Cases, attributes: tuple[str, ...], least: int) -> dict[str, np.ndarray]:
    """Rows of every patient group that has enough cases, by its words.

    Example:
        >>> cases = Cases(kind="binary", split="validation", targets=np.array([0, 1, 1]), labels=("a", "b"),
        ...               groups={"sex": np.array(["f", "f", "m"])})
        >>> patient_groups(cases, ("sex",), 2)
        {'sex=f': array([ True,  True, False])}
    """
    columns = [(name, cases.groups[name]) for name in attributes if name in cases.groups]
    found = {
        f"{name}={value}": column == value for name, column in columns for value in np.unique(column).tolist()
    }
    return {words: rows for words, rows in found.items() if rows.sum() >= least}


def effect(key: Key, found: np.ndarray, held: Yardstick) -> Effect:
    """What one change costs, by the cases that were looked at.

    Args:
        key: Of the change.
        found: Its losses and scores, ``(2, n)``.
        held: Against what.
    """
    n = found.shape[1]
    rows, weights = held.sample.order[:n], held.sample.weights(n)
    subjects = None if held.subjects is None else held.subjects[rows]
    rises = held.rises(found)
    mean, low, high = mean_interval(rises, weights, confidence=held.confidence, subjects=subjects)
    drops = held.baseline[1, rows] - found[1]
    group, of_group, group_low = _worst(rises, weights, subjects, rows, held)
    return Effect(
        technique="pruning" if key[0] == "pruning" else "quantization",
        layer=key[1],
        level=key[2],
        loss=mean,
        loss_low=_known(low),
        loss_high=_known(high),
        metric=_mean(drops, weights),
        group=group,
        group_loss=of_group,
        group_low=group_low,
        cases=n,
    )


def _known(end: float) -> float | None:
    return end if np.isfinite(end) else None


def _worst(
    rises: np.ndarray, weights: np.ndarray, subjects: np.ndarray | None, rows: np.ndarray, held: Yardstick
) -> tuple[str | None, float | None, float | None]:
    """The patient group whose loss rises most, its rise and the lower end of its interval.

    The largest of many noisy means is large though no group loses anything: one whose interval lies above
    the mean of all cases comes first. The intervals hold together (Bonferroni).
    """
    seen = {words: members[rows] for words, members in held.groups.items()}
    seen = {words: here for words, here in seen.items() if here.sum() >= _SEEN}
    confidence = 1 - (1 - held.confidence) / max(1, len(seen))
    found = {
        words: mean_interval(
            rises[here],
            weights[here],
            confidence=confidence,
            subjects=None if subjects is None else subjects[here],
        )
        for words, here in seen.items()
    }
    if not found:
        return None, None, None
    overall = _mean(rises, weights)
    worst = max(found, key=lambda words: (found[words][1] > overall, found[words][0]))
    mean, low, _ = found[worst]
    return worst, mean, _known(low)


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    known = np.isfinite(values)
    return float(np.average(values[known], weights=weights[known])) if known.any() else 0.0


def is_ruinous(key: Key, found: np.ndarray, held: Yardstick) -> bool:
    """Whether a change leaves nothing of the model: its interval lies above the ceiling.

    Args:
        key: Of the change.
        found: Its losses and scores, ``(2, n)``.
        held: Against what.
    """
    low = effect(key, found, held).loss_low if found.shape[1] > 1 else None
    return low is not None and low > held.ceiling


def is_settled(keys: Sequence[Key], found: Findings, held: Yardstick, *, agreement: float) -> bool:
    """Whether the order of these changes is known well enough.

    Args:
        keys: Changes that are compared with each other: one technique and level, all layers.
        found: Those that were looked at.
        held: Against what.
        agreement: Expected Kendall's tau to the order that all of validation would give.
    """
    values = [found.of(key) for key in keys]
    values = [each for each in values if each.shape[1]]
    n = min((each.shape[1] for each in values), default=0)
    if not n:
        return True
    rises = np.stack([held.rises(each[:, :n]) for each in values])
    return expected_agreement(rises, held.sample.weights(n)) >= agreement

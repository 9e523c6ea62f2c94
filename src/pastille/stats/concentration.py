"""Whether changed decisions pile up in one part of the cases, in numbers and in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pastille.stats.alignment import shown
from pastille.stats.changes import present_classes
from pastille.stats.clusters import has_repeats
from pastille.stats.fisher import fisher_greater
from pastille.stats.holm import holm
from pastille.stats.permutation import permuted_p_values
from pastille.values import Cases, Concentration
from pastille.vocabulary import place

MOST_VALUES = 200  # an attribute with more names cases rather than grouping them
QUARTERS = ("lowest quarter", "second quarter", "third quarter", "highest quarter")


@dataclass(frozen=True, kw_only=True)
class Partition:
    """One way to part the cases."""

    attribute: str  # "class", a group attribute, "stratum", "target" or "confidence"
    values: tuple[str, ...]
    codes: np.ndarray  # (N,) index into values; -1 for cases in none of them

    @property
    def sizes(self) -> np.ndarray:
        """Cases of each value, ``(values,)``."""
        return _counts(self.codes, len(self.values))

    def hits(self, outcome: np.ndarray) -> np.ndarray:
        """Cases of each value that have the outcome ``(N,)`` bool, ``(values,)``."""
        return _counts(self.codes[outcome], len(self.values))


def partitions(cases: Cases, confidence: np.ndarray | None) -> list[Partition]:
    """Every way that the cases can be parted.

    Args:
        cases: Give their true class (every label that a multilabel case has, every class that a mask has;
            quarters of a regression's targets), group attributes and strata. Attributes of more than
            `MOST_VALUES` values are left out: Holm's correction for them would hide all the others.
        confidence: ``(N,)`` how sure the baseline is of each, parted in quarters; see
            `pastille.stats.margins.decision_margins`. None leaves it out.

    Raises:
        ValueError: If ``confidence`` is not one number per case.

    Example:
        >>> cases = Cases(kind="binary", split="test", targets=np.array([1, 0]), labels=("well", "ill"),
        ...               groups={"sex": np.array(["F", "M"])})
        >>> [(part.attribute, part.values) for part in partitions(cases, None)]
        [('class', ('well', 'ill')), ('sex', ('F', 'M'))]
    """
    columns = dict(cases.groups) | ({} if cases.strata is None else {"stratum": cases.strata})
    by_column = [_by_value(name, column) for name, column in columns.items()]
    found = [*_by_truth(cases), *(part for part in by_column if len(part.values) <= MOST_VALUES)]
    if confidence is None:
        return found
    if np.shape(confidence) != cases.targets.shape[:1] or np.isnan(confidence).any():
        raise ValueError(
            f"confidence must be one number for each of {len(cases.targets)} cases, none of them NaN, "
            f"got shape {np.shape(confidence)}"
        )
    return [*found, _by_quarter("confidence", np.asarray(confidence, np.float64))]


def concentrations(
    outcomes: Mapping[str, np.ndarray],
    parts: Sequence[Partition],
    *,
    subjects: np.ndarray | None,
    significance: float,
    seed: int = 0,
) -> tuple[Concentration, ...]:
    """Test every value of every part for holding more of each outcome than chance would give it.

    One-sided: where few decisions change, nobody needs to be warned. Fisher's exact test where cases are
    independent, a permutation test by subject where one has several; Holm's correction over all tests.

    Args:
        outcomes: Name -> ``(N,)`` bool, e.g. ``"changed"`` and ``"newly wrong"``. Those that no case has
            are not tested.
        parts: From `partitions`. A value that no case or every case has is not tested.
        subjects: ``(N,)``, or None if every case is a subject of its own.
        significance: Corrected p-value up to which a sentence speaks of piling up, in ``(0, 1)``.
        seed: Of the permutations.

    Returns:
        One result per outcome and value, the smallest p-value first, each with its sentence.

    Raises:
        ValueError: If ``significance`` is out of range.

    Example:
        >>> changed = np.arange(540) % 108 == 0
        >>> parts = [Partition(attribute="age_band", values=("<65", "65+"), codes=np.array(changed, int))]
        >>> print(concentrations({"changed": changed}, parts, subjects=None, significance=0.05)[0].sentence)
        Changed decisions pile up in age band 65+: 5 of 5 cases changed (100.0 %) against 0 of 535 elsewhere
        (0.0 %); p < 0.0001 after Holm.

    References:
        Fisher, "The design of experiments", 1935; Holm, "A simple sequentially rejective multiple test
        procedure", Scandinavian Journal of Statistics 6, 1979.
    """
    if not 0 < significance < 1:
        raise ValueError(f"significance must be in (0, 1), got {significance}")
    asked = {name: outcome for name, outcome in outcomes.items() if outcome.any()}
    p_values = _permuted(asked, parts, subjects, seed) if has_repeats(subjects) else _fisher(asked, parts)
    tested = [
        tally
        for (name, outcome), row in zip(asked.items(), p_values, strict=True)
        for part, found in zip(parts, row, strict=True)
        for tally in _tallies(name, outcome, part, found)
    ]
    tested.sort(key=lambda tally: tally.p_value)
    adjusted = holm([tally.p_value for tally in tested])
    return tuple(
        _concentration(tally, p_value, significance)
        for tally, p_value in zip(tested, adjusted.tolist(), strict=True)
    )


@dataclass(frozen=True, kw_only=True)
class _Tally:
    """One outcome in one part, and elsewhere."""

    outcome: str
    attribute: str
    value: str
    n: int
    hits: int
    rest: int
    rest_hits: int
    p_value: float


def _tallies(name: str, outcome: np.ndarray, part: Partition, p_values: np.ndarray) -> Iterator[_Tally]:
    """Every value that some cases have, and some have not."""
    total, all_hits, sizes, hits = len(outcome), int(outcome.sum()), part.sizes, part.hits(outcome)
    for value in np.flatnonzero((sizes > 0) & (sizes < total)).tolist():
        yield _Tally(
            outcome=name,
            attribute=part.attribute,
            value=part.values[value],
            n=int(sizes[value]),
            hits=int(hits[value]),
            rest=total - int(sizes[value]),
            rest_hits=all_hits - int(hits[value]),
            p_value=float(p_values[value]),
        )


def _counts(codes: np.ndarray, values: int) -> np.ndarray:
    return np.bincount(codes + 1, minlength=values + 1)[1:]


def _by_truth(cases: Cases) -> list[Partition]:
    targets, labels = cases.targets, cases.labels
    match cases.kind:
        case "regression":
            return [_by_target(targets)]
        case "multilabel":
            return _by_presence(targets.astype(bool), labels)
        case "segmentation":
            return _by_presence(present_classes(targets, len(labels))[:, 1:], labels[1:])
        case _:
            return [Partition(attribute="class", values=labels, codes=targets)]


def _by_presence(present: np.ndarray, labels: Sequence[str]) -> list[Partition]:
    """Several labels may be true of one case: each parts the cases on its own."""
    return [
        Partition(attribute="class", values=(label,), codes=present[:, index].astype(np.int64) - 1)
        for index, label in enumerate(labels)
    ]


def _by_value(attribute: str, column: np.ndarray) -> Partition:
    values, codes = np.unique(column, return_inverse=True)
    return Partition(attribute=attribute, values=tuple(map(str, values)), codes=codes)


def _by_quarter(attribute: str, numbers: np.ndarray) -> Partition:
    """Four parts of as many cases; equal numbers are together, in the highest part that they reach."""
    reached = np.searchsorted(np.sort(numbers), numbers, side="right")  # cases up to this one
    codes = -(-4 * reached // len(numbers)) - 1
    return Partition(attribute=attribute, values=QUARTERS, codes=codes)


def _by_target(targets: np.ndarray) -> Partition:
    """Quarters of the targets, named by their range."""
    codes = _by_quarter("target", targets).codes
    members = [targets[codes == code] for code in range(len(QUARTERS))]
    names = [f"{part.min():.4g} to {part.max():.4g}" if part.size else "" for part in members]
    return Partition(attribute="target", values=tuple(names), codes=codes)


def _fisher(outcomes: Mapping[str, np.ndarray], parts: Sequence[Partition]) -> list[list[np.ndarray]]:
    return [[_fisher_of(outcome, part) for part in parts] for outcome in outcomes.values()]


def _fisher_of(outcome: np.ndarray, part: Partition) -> np.ndarray:
    total, n = int(outcome.sum()), len(outcome)
    counts = zip(part.hits(outcome).tolist(), part.sizes.tolist(), strict=True)
    return np.array([fisher_greater(hits, size, total, n) for hits, size in counts])


def _permuted(
    outcomes: Mapping[str, np.ndarray], parts: Sequence[Partition], subjects: np.ndarray | None, seed: int
) -> list[list[np.ndarray]]:
    if not outcomes or subjects is None:
        return []
    return permuted_p_values(list(outcomes.values()), [part.codes for part in parts], subjects, seed=seed)


def _concentration(tally: _Tally, adjusted: float, significance: float) -> Concentration:
    figures = (
        f"{tally.hits} of {tally.n} cases {tally.outcome} ({percent(tally.hits / tally.n)}) against "
        f"{tally.rest_hits} of {tally.rest} elsewhere ({percent(tally.rest_hits / tally.rest)}); "
        f"{_p_in_words(adjusted)} after Holm."
    )
    return Concentration(
        attribute=tally.attribute,
        value=tally.value,
        n=tally.n,
        changed=tally.hits,
        elsewhere_n=tally.rest,
        elsewhere_changed=tally.rest_hits,
        p_value=tally.p_value,
        adjusted_p=adjusted,
        sentence=f"{_heading(tally, adjusted <= significance)}: {figures}",
        outcome=tally.outcome,
    )


def _heading(tally: _Tally, piled: bool) -> str:
    """Changes of unsure decisions are what rounding does; elsewhere they are news."""
    what, of_confidence = f"{tally.outcome} decisions", tally.attribute == "confidence"
    where = place({tally.attribute: shown(tally.value)})
    if of_confidence:
        where = f"the {tally.value} of the baseline's confidence"
    if not piled:
        return f"No more {what} than chance would give in {where}"
    if of_confidence and tally.value == QUARTERS[0]:
        return f"As expected, {what} lie near the decision border, in {where}"
    away = "away from the decision border, " if of_confidence else ""
    return f"{what.capitalize()} pile up {away}in {where}"


def percent(share: float) -> str:
    """A share in percent, as sentences print it.

    Example:
        >>> percent(0.1412)
        '14.1 %'
    """
    return f"{100 * share:.1f} %"


def _p_in_words(p_value: float) -> str:
    if p_value < 1e-4:
        return "p < 0.0001"
    return f"p = {p_value:.1g}" if p_value < 0.01 else f"p = {p_value:.2f}"

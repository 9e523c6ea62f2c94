"""The cases that two models decide differently: how many, in which direction, and where they pile up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pastille.stats.changes import MOVED, SAME_DICE, Changes, changes
from pastille.stats.concentration import QUARTERS, concentrations, partitions, percent
from pastille.values import Cases, Concentration, Disagreement

_LISTED = 50  # concentrations that are kept, the smallest p-values
_SAID = 3  # concentrations that the summary speaks of
_GRADED = {
    "segmentation": f"masks changed to a Dice below {SAME_DICE:g} with the baseline's",
    "regression": f"predictions moved by more than {100 * MOVED:g} % of the targets' standard deviation",
}


def disagreement(
    before: np.ndarray,
    after: np.ndarray,
    cases: Cases,
    *,
    confidence_of_baseline: np.ndarray | None = None,
    significance: float = 0.05,
    seed: int = 0,
) -> Disagreement | None:
    """Compare the decisions of a baseline and a candidate, case by case.

    What counts as a change, and as newly wrong, is told by `pastille.stats.changes.changes`; where changes
    pile up, by `pastille.stats.concentration.concentrations`.

    Args:
        before: What the baseline decides: ``(N,)`` classes or numbers, ``(N, L)`` 0 or 1 for each label,
            ``(N, H, W)`` masks.
        after: What the candidate decides.
        cases: The right answers, and the groups, strata and subjects that changes may pile up in.
        confidence_of_baseline: ``(N,)``, larger is surer; any monotone scale, such as
            `pastille.stats.margins.decision_margins`. None leaves confidence out.
        significance: Corrected p-value up to which changes are said to pile up, in ``(0, 1)``.
        seed: Of the permutations that are drawn where subjects have several cases.

    Returns:
        Counts in both directions, and the fifty smallest p-values; None for a custom task.

    Raises:
        ValueError: If shapes do not fit, or a number is out of range.

    Example:
        >>> cases = Cases(kind="binary", split="test", targets=np.array([1, 1, 1, 0, 0, 0]),
        ...               labels=("well", "ill"), positive=(1,))
        >>> found = disagreement(np.array([1, 1, 1, 0, 0, 1]), np.array([1, 1, 0, 0, 0, 1]), cases)
        >>> print(found.summary)
        1 of 6 cases is decided otherwise (16.7 %): 1 from positive to negative, 0 from negative to positive;
        1 newly wrong, 0 newly right. The changed decision is spread evenly over class as far as 6 cases
        can tell.
    """
    found = changes(before, after, cases)
    if found is None:
        return None
    piles = concentrations(
        _outcomes(found),
        partitions(cases, confidence_of_baseline),
        subjects=cases.subjects,
        significance=significance,
        seed=seed,
    )
    return Disagreement(
        n=len(found.changed),
        changed=_count(found.changed),
        positive_to_negative=None if found.lost is None else _count(found.lost),
        negative_to_positive=None if found.gained is None else _count(found.gained),
        newly_wrong=_count(found.newly_wrong),
        newly_right=_count(found.newly_right),
        transitions=found.transitions,
        concentrations=piles[:_LISTED],
        summary=" ".join(_summary(found, cases, piles, significance)),
    )


def _outcomes(found: Changes) -> dict[str, np.ndarray]:
    """What may pile up; asked once where every changed case is newly wrong."""
    newly_wrong = found.newly_wrong
    apart = {} if np.array_equal(found.changed, newly_wrong) else {"newly wrong": newly_wrong}
    return {"changed": found.changed, **apart}


def _count(rows: np.ndarray) -> int:
    return int(np.count_nonzero(rows))


def _summary(
    found: Changes, cases: Cases, piles: Sequence[Concentration], significance: float
) -> Iterator[str]:
    n, changed = len(found.changed), _count(found.changed)
    if changed == 0:
        yield _unchanged(n, cases)
        return
    yield _counts(found, cases)
    piled = _one_per_place([pile for pile in piles if pile.adjusted_p <= significance])
    for pile in piled[:_SAID]:
        yield pile.sentence
    if len(piled) > _SAID:
        yield f"They pile up in {len(piled) - _SAID} more places."
    yield from _spread(changed, n, piles, piled)


def _unchanged(n: int, cases: Cases) -> str:
    if cases.kind in _GRADED:
        return f"0 of {n} {_GRADED[cases.kind]}."
    return f"The two models decide all {n} cases alike." if n > 1 else "The two models decide the case alike."


def _counts(found: Changes, cases: Cases) -> str:
    n, changed = len(found.changed), _count(found.changed)
    worse, better = _count(found.newly_wrong), _count(found.newly_right)
    directions = ""
    if found.lost is not None and found.gained is not None:
        lost, gained = _count(found.lost), _count(found.gained)
        directions = f"{lost} from positive to negative, {gained} from negative to positive; "
    if cases.kind in _GRADED:
        what, outcome = _GRADED[cases.kind], f"{worse} for the worse, {better} for the better"
    else:
        what = f"cases {'is' if changed == 1 else 'are'} decided otherwise"
        outcome = f"{worse} newly wrong, {better} newly right"
    return f"{changed} of {n} {what} ({percent(changed / n)}): {directions}{outcome}."


def _one_per_place(piles: Sequence[Concentration]) -> list[Concentration]:
    """Of several outcomes that pile up in one place, the clearest; what is expected comes last."""
    first: dict[tuple[str, str], Concentration] = {}
    for pile in piles:
        first.setdefault((pile.attribute, pile.value), pile)
    return sorted(
        first.values(), key=lambda pile: (pile.attribute, pile.value) == ("confidence", QUARTERS[0])
    )


def _spread(
    changed: int, n: int, piles: Sequence[Concentration], piled: Sequence[Concentration]
) -> Iterator[str]:
    """Over which attributes the changes are spread, where all cases changing is no news."""
    uneven = {pile.attribute for pile in piled}
    even = list(dict.fromkeys(pile.attribute for pile in piles if pile.attribute not in uneven))
    if not even or changed == n:
        return
    subject = "Otherwise they are" if piled else _the_changed(changed)
    yield f"{subject} spread evenly over {_listed(sorted(even))} as far as {n} cases can tell."


def _the_changed(changed: int) -> str:
    return "The changed decision is" if changed == 1 else f"The {changed} changed decisions are"


def _listed(names: Sequence[str]) -> str:
    spoken = [name.replace("_", " ") for name in names]
    return " and ".join([", ".join(spoken[:-1]), spoken[-1]]) if len(spoken) > 1 else spoken[0]

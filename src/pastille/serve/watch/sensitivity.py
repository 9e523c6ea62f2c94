"""Whether the positives that labels speak of are still found, in all and per group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, final

from pastille.serve.watch import words
from pastille.serve.watch.snapshot import SensitivityView, State
from pastille.stats.confidence_sequence import rate_sequence
from pastille.stats.sensitivity_check import SensitivityCheck
from pastille.values.reference import VariantReference

EVERYONE: Final = "everyone"
MINIMUM: Final = 30
_MOST_UNKNOWN: Final = 32  # groups that validation has no figure for, and that are only counted
_EDGE: Final = 0.001  # a floor of 0 or 1 could not be tested


@final
class Sensitivity:
    """Of the positives among the labelled cases: the share that was called positive.

    The floor of a group is the lower end of what validation left possible for it, so that a group of which
    validation saw few is not accused for validation's own chance.
    """

    def __init__(self, reference: VariantReference | None) -> None:
        seen = () if reference is None else reference.sensitivity
        self._expected = {group.group: group.found / group.positives for group in seen if group.positives}
        floors = {
            group.group: min(1 - _EDGE, max(_EDGE, rate_sequence(group.found, group.positives).low))
            for group in seen
            if group.positives
        }
        self._check = SensitivityCheck(floors, minimum=MINIMUM)
        self._floors = floors
        self._unknown: dict[str, tuple[int, int]] = {}  # positives, found

    @property
    def alarm(self) -> bool:
        """Whether it went off for any group."""
        return any(view.state == "alarm" for view in self.views())

    @property
    def words(self) -> str:
        """What the alarms say."""
        return " ".join(view.words for view in self.views() if view.state == "alarm")

    def add(self, groups: Mapping[str, str], *, found: bool) -> None:
        """Look at one more positive."""
        names = (EVERYONE, *(f"{attribute}={value}" for attribute, value in groups.items()))
        self._check.update(names, found)
        for name in names:
            if name not in self._floors and (name in self._unknown or len(self._unknown) < _MOST_UNKNOWN):
                positives, hits = self._unknown.get(name, (0, 0))
                self._unknown[name] = positives + 1, hits + found

    def views(self) -> tuple[SensitivityView, ...]:
        """Everyone first, then the groups of validation, then those that it does not know."""
        known = [
            self._view(found.group, found.positives, found.found, found.state)
            for found in (self._check.findings() if self._floors else ())
        ]
        unknown = [
            self._view(group, positives, found, "inconclusive")
            for group, (positives, found) in self._unknown.items()
        ]
        return tuple(sorted(known + unknown, key=lambda view: view.group != EVERYONE))

    def _view(self, group: str, positives: int, found: int, state: str) -> SensitivityView:
        interval = rate_sequence(found, positives)
        shown: Mapping[str, State] = {"ok": "ok", "alarm": "alarm"}
        said = shown.get(state, "not_enough_data")
        return SensitivityView(
            group=group,
            positives=positives,
            found=found,
            low=interval.low if positives else None,
            high=interval.high if positives else None,
            expected=self._expected.get(group),
            state=said,
            words=words.sensitivity(
                group,
                positives=positives,
                found=found,
                minimum=MINIMUM,
                floor=self._floors.get(group),
                state=said,
            ),
        )


def positive_found(
    label: str | tuple[str, ...], decision: str | tuple[str, ...], feared: frozenset[str]
) -> bool | None:
    """Whether a positive case was called positive; None for a negative one.

    Args:
        label: What was right.
        decision: What was answered.
        feared: Labels that must not be missed. Of a multiclass task any of them finds any other: what
            counts is that the case was called positive. Of a multilabel task one of those that the case has
            must be found. So it is counted on validation, see `pastille.measure.reference.positives_found`.

    Example:
        >>> positive_found("glioma", "meningioma", frozenset({"glioma", "meningioma"}))
        True
        >>> positive_found(("effusion",), ("mass",), frozenset({"effusion", "mass"}))
        False
    """
    if isinstance(label, str):
        return decision in feared if label in feared else None
    positive = feared.intersection(label)
    return not positive.isdisjoint(decision) if positive else None

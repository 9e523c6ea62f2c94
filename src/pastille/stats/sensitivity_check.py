"""Labels that arrive later: whether the positives of each group are still found as often as they must be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, final

import numpy as np

from pastille.stats.confidence_sequence import rate_sequence
from pastille.stats.eprocess import RateAlarm
from pastille.values import Interval


@dataclass(frozen=True, kw_only=True)
class GroupFinding:
    """One group, as far as labels tell."""

    group: str
    positives: int
    found: int
    interval: Interval | None  # of the sensitivity, valid at every look; None without a positive
    floor: float  # that its sensitivity must have
    evidence: float  # that it has less
    alarm_at: float  # what the evidence must reach, among so many groups
    state: Literal["inconclusive", "ok", "alarm"]


def holm_limits(evidence: np.ndarray, significance: float) -> np.ndarray:
    """What each of several e-values has to reach: Holm's correction for having looked at all of them.

    Args:
        evidence: ``(G,)``, the largest that each has been.
        significance: Chance of any false alarm, in ``(0, 1)``.

    Returns:
        ``(G,)``. Those that reach theirs are alarms; whatever the groups have in common, the chance that
        one of them is false is at most ``significance``, at any time.

    Example:
        >>> holm_limits(np.array([1.0, 500.0, 120.0]), 0.01)
        array([200., 300., 200.])

    References:
        Holm, Scandinavian Journal of Statistics 6, 1979; Vovk and Wang, "E-values: calibration, combination
        and applications", Annals of Statistics 49, 2021.
    """
    order = np.argsort(-evidence, kind="stable")
    steps = np.arange(len(evidence), 0, -1) / significance
    reached = np.logical_and.accumulate(evidence[order] >= steps)
    alarms = int(np.count_nonzero(reached))
    limits = np.empty(len(evidence))
    # Those after the first that fails are held against what that one failed.
    limits[order] = np.minimum.accumulate(np.where(np.arange(len(steps)) <= alarms, steps, np.inf))
    return limits


@final
class SensitivityCheck:
    """Raises an alarm for each group whose sensitivity is shown to be below its floor.

    An e-process per group (see `pastille.stats.eprocess.RateAlarm`) counts the positives that were missed;
    while no group's sensitivity is below its floor, the chance of any alarm within 5,000 labelled positives
    of each is at most ``significance``. The groups are fixed at the start: they come from validation, so
    that neither their number nor the memory they take grows with what clients send.

    Args:
        floors: Group -> the least sensitivity that it may have, in ``(0, 1)``; e.g. what validation gave
            less the permitted drop, under ``"everyone"``, ``"sex=female"`` ….
        significance: Chance of any false alarm, in ``(0, 1)``.
        minimum: Labelled positives below which a group without an alarm is ``inconclusive``, not ``ok``.
        confidence: Of the intervals.

    Raises:
        ValueError: If a floor or ``significance`` is out of range.

    Example:
        >>> check = SensitivityCheck({"everyone": 0.9, "sex=female": 0.9})
        >>> for _ in range(40):
        ...     check.update(["everyone"], found=True)
        ...     check.update(["everyone", "sex=female"], found=False)
        >>> [(group.group, group.found, group.positives, group.state) for group in check.findings()]
        [('everyone', 40, 80, 'alarm'), ('sex=female', 0, 40, 'alarm')]
    """

    def __init__(
        self,
        floors: Mapping[str, float],
        *,
        significance: float = 0.01,
        minimum: int = 30,
        confidence: float = 0.95,
    ) -> None:
        for group, floor in floors.items():
            if not 0 < floor < 1:
                raise ValueError(f"the floor of {group!r} must be in (0, 1), got {floor}")
        self._missed = {group: RateAlarm(1 - floor, significance) for group, floor in floors.items()}
        self._floors = dict(floors)
        self._significance, self._minimum, self._confidence = significance, minimum, confidence
        self._alarms: set[str] = set()

    def update(self, groups: Iterable[str], found: bool) -> None:
        """Look at one more labelled positive.

        Args:
            groups: Those that the case belongs to; names without a floor are left out.
            found: Whether it was called positive.
        """
        for group in set(groups) & self._missed.keys():
            self._missed[group].update(int(not found))
        most = np.array([missed.most for missed in self._missed.values()])
        reached = most >= holm_limits(most, self._significance)
        self._alarms.update(group for group, hit in zip(self._missed, reached, strict=True) if hit)

    def findings(self) -> tuple[GroupFinding, ...]:
        """Every group, in the order of the floors."""
        most = np.array([missed.most for missed in self._missed.values()])
        limits = holm_limits(most, self._significance).tolist()
        return tuple(self._finding(group, at) for group, at in zip(self._missed, limits, strict=True))

    def _finding(self, group: str, alarm_at: float) -> GroupFinding:
        missed = self._missed[group]
        found = missed.n - missed.disagreed
        return GroupFinding(
            group=group,
            positives=missed.n,
            found=found,
            interval=rate_sequence(found, missed.n, self._confidence) if missed.n else None,
            floor=self._floors[group],
            evidence=missed.evidence,
            alarm_at=alarm_at,
            state=self._state(group),
        )

    def _state(self, group: str) -> Literal["inconclusive", "ok", "alarm"]:
        if group in self._alarms:
            return "alarm"
        return "ok" if self._missed[group].n >= self._minimum else "inconclusive"

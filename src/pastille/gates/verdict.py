"""Many checks, one verdict."""

from __future__ import annotations

from collections.abc import Iterable

from pastille.values import Check, SplitName, Status, Verdict

_WORST_FIRST = (Status.REJECTED, Status.INCONCLUSIVE, Status.APPROVED)


def verdict(checks: Iterable[Check], *, split: SplitName) -> Verdict:
    """Join checks: every one must pass. Rejected beats inconclusive beats approved.

    Requiring all to pass needs no correction for their number: a model that breaks any one limit is still
    approved with at most the chance that this one test allows (intersection-union test).

    Args:
        checks: At least one.
        split: The cases they were made on.

    Raises:
        ValueError: If there are no checks: nothing would be approved by default.

    Example:
        >>> from pastille.gates import judge_size
        >>> size = judge_size(3_000_000, 2e6, baseline_bytes=4_800_000)
        >>> verdict([size], split="validation").reason
        'rejected on the validation split: the file has 3 MB (baseline 4.8 MB), beyond the limit of 2 MB'

    References:
        Berger and Hsu, "Bioequivalence trials, intersection-union tests and equivalence confidence
        sets", Statistical Science 11, 1996.
    """
    held = tuple(checks)
    if not held:
        raise ValueError("checks must hold at least one check, got none")
    worst_first = sorted(held, key=lambda check: _WORST_FIRST.index(check.status))
    status = worst_first[0].status
    reasons = "; ".join(check.reason for check in worst_first)
    return Verdict(
        status=status, reason=f"{status} on the {split} split: {reasons}", checks=held, split=split
    )

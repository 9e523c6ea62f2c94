"""Many checks, one verdict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pastille.values import Check, Evidence, SplitName, Status, Verdict

_SAID = 8  # reasons given in full
_WORST_FIRST = (Status.REJECTED, Status.INCONCLUSIVE, Status.APPROVED)


def verdict(
    checks: Iterable[Check],
    *,
    split: SplitName,
    notes: Sequence[str] = (),
    evidence: Evidence | None = None,
) -> Verdict:
    """Join checks: every one must pass. Rejected beats inconclusive beats approved.

    Requiring all to pass needs no correction for their number: a model that breaks any one limit is still
    approved with at most the chance that this one test allows (intersection-union test).

    Args:
        checks: At least one.
        split: The cases they were made on.
        notes: What qualifies the verdict; said in its reason.
        evidence: What the checks rest on.

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
    return Verdict(
        status=status,
        reason="; ".join((f"{status} on the {split} split: {_reasons(worst_first)}", *notes)),
        checks=held,
        split=split,
        notes=tuple(notes),
        evidence=evidence,
    )


def in_brief(said: Verdict, *, most: int = 3) -> str:
    """A verdict's reason for a line that passes by: those that decided, the rest by their number.

    Args:
        said: From `verdict`.
        most: Reasons given in full.

    Example:
        >>> from pastille.gates import judge_size
        >>> sizes = [judge_size(3_000_000, limit, baseline_bytes=4_800_000) for limit in (2e6, 4e6)]
        >>> in_brief(verdict(sizes, split="validation"), most=1)  # doctest: +ELLIPSIS
        'rejected on the validation split: the file has 3 MB ... limit of 2 MB; 1 more approved'
    """
    worst_first = sorted(said.checks, key=lambda check: _WORST_FIRST.index(check.status))
    return f"{said.status} on the {said.split} split: {_reasons(worst_first, most)}"


def _reasons(worst_first: Sequence[Check], most: int = _SAID) -> str:
    """The reasons, those that decided first; of many, the rest by their number."""
    said, rest = worst_first[:most], worst_first[most:]
    counts = {status: sum(check.status is status for check in rest) for status in _WORST_FIRST}
    more = [f"{count} more {status}" for status, count in counts.items() if count]
    return "; ".join([*(check.reason for check in said), *more])

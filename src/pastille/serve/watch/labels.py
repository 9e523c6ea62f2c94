"""Labels that arrive later: which earlier decision they belong to, and what they say of it."""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final, Literal, final

from pastille.serve.errors import Refused
from pastille.serve.values import Answered, Label

MOST: Final = 10_000  # decisions that are remembered
KEEP_S: Final = 7 * 86_400.0  # a laboratory's answer may take days

Decision = str | tuple[str, ...]


@dataclass(slots=True)
class Remembered:
    """The decisions of one request: nothing of its inputs, and of its id only a hash."""

    model: str
    version: str
    decisions: tuple[Decision, ...]
    arm: Literal["a", "b"] | None
    subject: bytes  # a hash with a key that ends with the process; empty where it is in no arm
    against: tuple[str, str]  # model and version of arm a
    at: float  # monotonic seconds
    twice: bool = False  # another request had the same id and was decided otherwise
    labels: dict[int, Decision] = field(default_factory=dict)  # by row: a label counts once


@final
class Memory:
    """The last decisions, by a hash of their request's id; the oldest go first.

    Example:
        >>> Memory().find("unknown", now=0.0) is None
        True
    """

    def __init__(self, most: int = MOST, keep_s: float = KEEP_S) -> None:
        self._kept: OrderedDict[bytes, Remembered] = OrderedDict()
        self._most, self._keep_s = most, keep_s
        self._secret = secrets.token_bytes(16)

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, event: Answered, *, now: float, against: tuple[str, str] = ("", "")) -> None:
        """Remember what a request was answered; without a decision there is nothing to remember.

        Args:
            event: The answer.
            now: Monotonic seconds.
            against: Whose A/B test it is part of: model and version of arm a.
        """
        decisions = event.reply.answer.decisions
        if not decisions:
            return
        reply, key = event.reply, _key(event.call.request_id)
        arm = reply.arm if event.call.subject is not None else None  # who names no subject is in no arm
        subject = b"" if arm is None else _key(event.call.subject or "", self._secret)
        fresh = Remembered(
            model=reply.model,
            version=reply.version,
            decisions=decisions,
            arm=arm,
            subject=subject,
            against=against,
            at=now,
        )
        earlier = self._kept.pop(key, None)
        if earlier is not None and now - earlier.at <= self._keep_s:
            fresh.twice = earlier.twice or _answer(earlier) != _answer(fresh)
            fresh.labels = earlier.labels  # a retry of the same question: its label still counts once
        self._kept[key] = fresh
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def find(self, request_id: str, *, now: float) -> Remembered | None:
        """What a request was answered, if that is still known."""
        found = self._kept.get(_key(request_id))
        return None if found is None or now - found.at > self._keep_s else found

    def forget(self, model: str, version: str) -> None:
        """Let go of what one version decided."""
        kept = [(k, r) for k, r in self._kept.items() if (r.model, r.version) != (model, version)]
        self._kept = OrderedDict(kept)


def _key(text: str, secret: bytes = b"") -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16, key=secret).digest()


def _answer(remembered: Remembered) -> tuple[object, ...]:
    return (
        remembered.model,
        remembered.version,
        remembered.decisions,
        remembered.arm,
        remembered.subject,
    )


def decision_of(remembered: Remembered | None, label: Label) -> Decision:
    """The decision that a label speaks of.

    Raises:
        Refused: ``not_found`` where it is not known (any longer), ``malformed`` where there is no such row,
            or where several requests had this id.
    """
    if remembered is None:
        known = (
            f"the server remembers the last {MOST:,} for {KEEP_S / 86_400:.0f} days, those of versions that "
            "are open, and none over a restart"
        )
        raise Refused("not_found", f"no decision is known for this request id: {known}")
    if remembered.twice:
        raise Refused(
            "malformed",
            "several requests with different decisions had this id, so it is not clear which one the label "
            "is of; send an id of its own with each request",
        )
    if not 0 <= label.row < len(remembered.decisions):
        rows = len(remembered.decisions)
        raise Refused("malformed", f"row must be in 0 … {rows - 1} for this request, got {label.row}")
    return remembered.decisions[label.row]


def counts(remembered: Remembered, label: Label) -> bool:
    """Whether a label is new; the same one again changes nothing.

    Raises:
        Refused: ``malformed`` where another label was given before.
    """
    given = as_decision(label.label)
    if label.row not in remembered.labels:
        remembered.labels[label.row] = given
        return True
    if remembered.labels[label.row] != given:
        raise Refused("malformed", "this case was given another label before; the first one stands")
    return False


def as_decision(label: str | tuple[str, ...]) -> Decision:
    """Several labels in one order, so that they compare."""
    return label if isinstance(label, str) else tuple(sorted(set(label)))

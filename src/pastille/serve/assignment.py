"""Who gets which arm, and which request is compared: by hash, so that it is the same every time."""

from __future__ import annotations

import hmac
from dataclasses import replace
from typing import Final, Literal

from pastille.serve.errors import Cause, Refused
from pastille.serve.settings import Comparison
from pastille.serve.swapping import Other, Served
from pastille.serve.values import Call, Fallback, Reply, Why

Arm = Literal["a", "b"]

NO_SUBJECT: Final = "the request names no subject, so arm a answered and it is not part of the comparison"
_UNABLE: Final[dict[Cause, Why]] = {"fault": "exception", "not_ready": "breaker"}


def arm_of(subject: str, *, salt: str, share: float) -> Arm:
    """Arm of an A/B test that a subject is in, for as long as salt and share stay.

    The share can be raised without moving anyone from b back to a.

    Args:
        subject: Key of the patient or device. Only its keyed hash is looked at.
        salt: Another one gives another, independent assignment.
        share: Of the subjects that get ``"b"``, in [0, 1].

    Example:
        >>> [arm_of("patient 7", salt="trial 1", share=share) for share in (0.0, 0.5, 1.0)]
        ['a', 'b', 'b']
    """
    return "b" if _fraction(f"arm {salt}", subject) < share else "a"


def is_sampled(key: str, *, salt: str, share: float) -> bool:
    """Whether a request is among those that are compared in the shadow.

    Example:
        >>> is_sampled("request 1", salt="", share=1.0)
        True
    """
    return _fraction(f"shadow {salt}", key) < share


async def answer_by_arm(served: Served, other: Other, comparison: Comparison, call: Call) -> Reply:
    """Answer one request of an A/B test.

    `Reply.arm` is what the subject was assigned to, whoever answered: what b fails on counts for b.

    Args:
        served: Arm a.
        other: Arm b.
        comparison: The share of b, and the salt.
        call: What is asked. One without a subject is answered by a, never at random.

    Raises:
        Refused: As `Engine.answer`; a fault of b's bundle is none of the request while a can answer.
    """
    if call.subject is None:
        reply = await served.answer(call)
        return replace(reply, arm="a", warnings=(*reply.warnings, NO_SUBJECT))
    arm = arm_of(call.subject, salt=comparison.salt, share=comparison.share)
    reply = await (served.answer(call) if arm == "a" else _answer_b(served, other, call))
    return replace(reply, arm=arm)


async def _answer_b(served: Served, other: Other, call: Call) -> Reply:
    try:
        return await other.served.answer(call, prefer=other.prefer)
    except Refused as error:
        if other.served is served or error.cause not in _UNABLE:
            raise
        why, detail = _UNABLE[error.cause], f"arm b could not answer: {error}"
    reply = await served.answer(call)
    preferred = other.served.engine.status.preferred or reply.answer.variant
    return replace(reply, fallback=Fallback(preferred=preferred, why=why, detail=detail))


def _fraction(key: str, message: str) -> float:
    """In [0, 1), uniform: 53 bits of an HMAC, which is all that a double can hold."""
    digest = hmac.digest(_encoded(key), _encoded(message), "sha256")
    return float((int.from_bytes(digest[:8], "big") >> 11) / (1 << 53))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # a header may hold anything

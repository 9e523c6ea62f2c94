"""Mode validate: both variants on every request; where they disagree, fp32's answer is given."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Final

from pastille.bundle import VariantName
from pastille.bundle.golden import DECIDING
from pastille.serve.comparing import compare
from pastille.serve.engine.asking import Variants
from pastille.serve.engine.fallback import FaultError
from pastille.serve.engine.replying import Served, Told, reply_of
from pastille.serve.errors import Refused
from pastille.serve.values import Call, Compared, Fallback, Reply

_UNDECIDED: Final = "this task decides nothing that variants could be compared by"


async def validated(
    variants: Variants,
    served: Served,
    call: Call,
    order: tuple[VariantName, ...],
    standing: Fallback | None = None,
) -> Reply:
    """Answer one request by two variants at once; what one cannot answer, the other answers alone.

    Args:
        variants: Those of the bundle.
        served: The bundle.
        call: What is asked.
        order: Two variants or more, the preferred one first; see `pair_of`.
        standing: Why the preferred one is not the one that is wanted, if so.

    Raises:
        Refused: ``overload``, or ``fault`` or ``deadline`` where neither answered.
    """
    name, other = pair_of(order)
    start_by, after = variants.start_by(call), variants.start_by(call, after=1)  # it may wait for the first
    found = await asyncio.gather(
        variants.ask(name, call, start_by), variants.ask(other, call, after), return_exceptions=True
    )
    match found:
        case [Told() as first, Told() as second]:
            return _compared(variants, served, call, (first, second), standing)
        case [Told() as first, _]:
            return unvalidated(reply_of(served, call, first, fallback=standing), f"{other} did not answer")
        case [BaseException() as error, Told() as second]:
            return reply_of(served, call, second, fallback=_fallback(name, error))
        case [BaseException() as error, BaseException()]:
            raise _refusal(error)
    raise AssertionError("gather gives one result for each")


def pair_of(order: tuple[VariantName, ...]) -> tuple[VariantName, VariantName]:
    """Which two are held against each other: the preferred one and fp32, or fp32 and the next.

    Example:
        >>> pair_of(("int8", "fp16", "fp32")), pair_of(("fp32", "int8"))
        (('int8', 'fp32'), ('fp32', 'int8'))
    """
    return order[0], "fp32" if order[0] != "fp32" and "fp32" in order else order[1]


def unvalidated(reply: Reply, why: str) -> Reply:
    """An answer of one variant alone, that says so."""
    return replace(reply, warnings=(*reply.warnings, f"not validated: {why}"))


def _fallback(name: VariantName, error: BaseException) -> Fallback:
    if isinstance(error, FaultError):
        return Fallback(preferred=name, why=error.why, detail=error.detail)
    if isinstance(error, Refused):
        return Fallback(preferred=name, why="timeout", detail="no place was free for it in time")
    raise error


def _refusal(error: BaseException) -> BaseException:
    if not isinstance(error, FaultError):
        return error
    if error.why == "timeout":
        return Refused("deadline", "neither variant answered in time")
    return Refused("fault", "neither variant could answer this request; the server's metrics say why")


def _compared(
    variants: Variants, served: Served, call: Call, told: tuple[Told, Told], standing: Fallback | None
) -> Reply:
    """Whichever of them is fp32 answers where they disagree, for the whole request."""
    first, second = (reply_of(served, call, each, fallback=standing) for each in told)
    if served.manifest.kind not in DECIDING:
        reply = second if told[1].variant == "fp32" else first
        return replace(reply, warnings=(*reply.warnings, _UNDECIDED))
    found = compare(first.answer, second.answer, served.manifest)
    variants.tell(
        Compared(
            served=told[0].variant,
            other=told[1].variant,
            disagree=found.disagree,
            lost=found.lost,
            gained=found.gained,
            at=time.time(),
        )
    )
    count = int(found.disagree.sum())
    if not count or told[1].variant != "fp32":
        return replace(first, disagreement=found.disagree)
    detail = f"{told[0].variant} and fp32 decide {count} of {call.rows} cases differently"
    return replace(
        second,
        disagreement=found.disagree,
        fallback=Fallback(preferred=told[0].variant, why="disagreement", detail=detail),
    )

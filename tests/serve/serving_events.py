"""Events as the application and the engine give them, without either: what watches is tested alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pastille.bundle import Answer
from pastille.serve.values import Answered, Call, Compared, Reply


def answered(
    decisions: Sequence[str] = ("glioma",),
    *,
    request_id: str = "r-1",
    at: float = 1_000_000.0,
    total_s: float = 0.004,
    variant: Any = "int8",
    confidence: Sequence[float] | None = None,
    subject: str | None = None,
    **reply: Any,
) -> Answered:
    """An answered request; ``reply`` changes fields of its `Reply`."""
    rows = len(decisions)
    call = Call(
        inputs={"input": np.zeros((rows, 1), np.float32)},
        request_id=request_id,
        deadline=0.0,
        subject=subject,
    )
    given = Answer(
        outputs=np.zeros((rows, 3), np.float32),
        probabilities=None,
        decisions=tuple(decisions),
        variant=variant,
    )
    known: dict[str, Any] = {"model": "tiny", "version": "1", "model_sha256": "ab" * 32}
    known |= {"threshold": 0.5, "compute_s": 0.002}
    sure = np.asarray([0.9] * rows if confidence is None else confidence, np.float32)
    return Answered(
        call=call, reply=Reply(answer=given, confidence=sure, **(known | reply)), at=at, total_s=total_s
    )


def compared(
    disagree: Sequence[bool], *, served: str = "int8", other: str = "fp32", lost: bool = True
) -> Compared:
    """A comparison of two variants; where they disagree, all is lost, or gained."""
    differ = np.asarray(disagree, bool)
    none = np.zeros_like(differ)
    return Compared(
        served=served,
        other=other,
        disagree=differ,
        lost=differ if lost else none,
        gained=none if lost else differ,
        at=1_000_000.0,
    )

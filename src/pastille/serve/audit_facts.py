"""What the audit log keeps of an answer: the decision and who made it, nothing of the patient."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

import numpy as np

from pastille.serve.audit_lines import MAX_LINE_BYTES
from pastille.serve.values import Answered, Reply

_SURELY_SHORT: Final = 4096  # outputs, of which no list of decisions is as long as a line may be


def decision_facts(event: Answered, salt: bytes) -> dict[str, Any]:
    """The facts of one record.

    Args:
        event: The answer.
        salt: Of the log; the request's id is only kept as a hash with it.

    Returns:
        JSON values. Where nothing is decided (regression, masks), or so much that no line could hold it, a
        digest of the output stands in, so that one can show later which answer was given.
    """
    reply, call = event.reply, event.call
    facts: dict[str, Any] = {
        "request": hashlib.sha256(salt + call.request_id.encode("utf-8", "replace")).hexdigest()[:16],
        "route": call.route,
        "model": reply.model,
        "version": reply.version,
        "variant": reply.answer.variant,
        "model_sha256": reply.model_sha256,
        "rows": len(reply.answer.outputs),
        **_decided(reply),
        "threshold": reply.threshold,
        "fallback": None if reply.fallback is None else [reply.fallback.preferred, reply.fallback.why],
        "disagreement": None if reply.disagreement is None else int(np.count_nonzero(reply.disagreement)),
        "warnings": len(reply.warnings),
    }
    if reply.cached:
        facts["cached"] = True
    if reply.arm is not None:
        facts["arm"] = reply.arm
    return facts


def _decided(reply: Reply) -> dict[str, Any]:
    if not reply.answer.decisions:
        return _digest(reply)
    confidence = None if reply.confidence is None else [round(c, 6) for c in reply.confidence.tolist()]
    facts = {"decisions": reply.answer.decisions, "confidence": confidence}
    if reply.answer.outputs.size > _SURELY_SHORT and len(json.dumps(facts)) > MAX_LINE_BYTES // 2:
        return _digest(reply)
    return facts


def _digest(reply: Reply) -> dict[str, Any]:
    outputs = np.ascontiguousarray(reply.answer.outputs)
    return {"output_sha256": hashlib.sha256(outputs.data).hexdigest()}

"""What a client makes of an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pastille.wire import InferResponse, Scalar

Decision = str | tuple[str, ...]  # multilabel: every label that the case has


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """What a server answered about one case, or about the N cases of arrays.

    Attributes:
        model: Name of the bundle that answered.
        version: Of it, as served.
        variant: Which of its models answered, e.g. ``"int8"``.
        decisions: One per case, at the threshold that the bundle shipped with; empty where nothing is
            decided, e.g. in a regression.
        confidences: Probability of what was decided, one per case; empty where there is none.
        probabilities: ``{label: probability}`` of the only case; empty for arrays.
        outputs: ``{name: (N, ...)}``, as the model gave them; empty for files, rows and text.
        fallback: Why another variant answered than the preferred one; ``""`` where it did not.
        warnings: E.g. that the input lies far outside of what was validated.
        request_id: What `Client.feedback` refers to.
        said: Everything that the server said beside the outputs.
    """

    model: str
    version: str
    variant: str
    decisions: tuple[Decision, ...]
    confidences: tuple[float, ...]
    probabilities: Mapping[str, float] = field(default_factory=dict)
    outputs: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    fallback: str = ""
    warnings: tuple[str, ...] = ()
    request_id: str = ""
    said: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def label(self) -> Decision | None:
        """What was decided about the first case, usually the only one; None where nothing was."""
        return self.decisions[0] if self.decisions else None

    @property
    def confidence(self) -> float | None:
        """How probable that is."""
        return self.confidences[0] if self.confidences else None


def of_arrays(answer: InferResponse, request_id: str) -> Prediction:
    """Read the fields that a Pastille server adds to an answer of the protocol.

    Args:
        answer: As it was read.
        request_id: As the server gave it in a header; ``""`` where it did not.
    """
    said = dict(answer.parameters)
    rows = len(next(iter(answer.outputs.values()), ()))
    detail = str(said.get("fallback_detail", ""))
    return Prediction(
        model=answer.model,
        version=answer.version,
        variant=str(said.get("variant", "")),
        decisions=tuple(map(_decision, _cases(said.get("decision"), rows))),
        confidences=tuple(map(float, _cases(said.get("confidence"), rows))),
        outputs=answer.outputs,
        fallback=f"{said.get('fallback_why')}: {detail}" if said.get("fallback") is True else "",
        warnings=tuple(map(str, _listed(said.get("warnings")))),
        request_id=request_id or answer.id,
        said=said,
    )


def _cases(value: Scalar | None, rows: int) -> list[Any]:
    """One value per case: a plain one of one case, the JSON text of a list of several."""
    if value is None:
        return []
    if rows == 1:
        decided = _listed(value)
        return [decided] if decided or value == "[]" else [value]
    return _listed(value)


def _listed(value: Scalar | None) -> list[Any]:
    try:
        found = json.loads(value) if isinstance(value, str) and value.startswith("[") else []
    except ValueError:  # a label that begins with a bracket
        return []
    return found if isinstance(found, list) else []


def _decision(value: Any) -> Decision:
    return tuple(map(str, value)) if isinstance(value, list) else str(value)


def of_friendly(said: Mapping[str, Any], request_id: str) -> Prediction:
    """Read what ``POST /predict`` answered.

    Args:
        said: Its JSON; an only case stands at its top.
        request_id: As the server gave it in a header; ``""`` where it did not.
    """
    cases, told = said.get("cases") or [said], said.get("fallback")
    decided = [case["decision"] for case in cases if case.get("decision") is not None]
    sure = [case["confidence"] for case in cases if case.get("confidence") is not None]
    return Prediction(
        model=str(said.get("model", "")),
        version=str(said.get("version", "")),
        variant=str(said.get("variant", "")),
        decisions=tuple(map(_decision, decided)),
        confidences=tuple(map(float, sure)),
        probabilities=dict(said.get("probabilities") or {}),
        fallback=f"{told.get('why')}: {told.get('detail')}" if isinstance(told, dict) else "",
        warnings=tuple(map(str, said.get("warnings") or ())),
        request_id=request_id or str(said.get("request_id", "")),
        said=said,
    )

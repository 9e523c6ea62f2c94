"""What ``POST /predict`` answers: a reply in the words of the task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pastille.bundle import Manifest
from pastille.serve.values import Reply

MAX_OUTPUTS = 4096  # numbers of a custom task that are spelled out; /v2 gives any number of them


def predict_body(reply: Reply, manifest: Manifest, latency_ms: float) -> dict[str, Any]:
    """Say what a model answered, ready for JSON.

    Args:
        reply: Of the engine.
        manifest: Of the bundle that answered.
        latency_ms: From the whole request to now.

    Returns:
        What holds for all, and ``cases``: one entry each, with ``label``, ``decision``, ``probabilities`` by
        label, ``positive``, ``confidence`` and ``disagreement``; ``value`` for regression, ``pixels`` by
        label for segmentation, ``outputs`` for custom tasks. An only case stands at the top as well.
    """
    cases = [_case(reply, manifest, row) for row in range(len(reply.answer.outputs))]
    fallback = reply.fallback
    return {
        **(cases[0] if len(cases) == 1 else {}),
        "cases": cases,
        "threshold": reply.threshold,
        "variant": reply.answer.variant,
        "fallback": fallback
        and {"preferred": fallback.preferred, "why": fallback.why, "detail": fallback.detail},
        "warnings": list(reply.warnings),
        "model": reply.model,
        "version": reply.version,
        "model_sha256": reply.model_sha256,
        "arm": reply.arm,
        "cached": reply.cached,
        "latency_ms": round(latency_ms, 3),
    }


def _case(reply: Reply, manifest: Manifest, row: int) -> dict[str, Any]:
    sure = None if reply.confidence is None else float(reply.confidence[row])
    differs = None if reply.disagreement is None else bool(reply.disagreement[row])
    return {**_said(reply, manifest, row), "confidence": sure, "disagreement": differs}


def _said(reply: Reply, manifest: Manifest, row: int) -> dict[str, Any]:
    answer, labels = reply.answer, manifest.labels
    match manifest.kind:
        case "binary" | "multiclass" | "multilabel":
            decision = answer.decisions[row]
            return {
                "label": decision if isinstance(decision, str) else None,
                "decision": decision if isinstance(decision, str) else list(decision),
                "positive": _positive(decision, manifest),
                "probabilities": _probabilities(answer.probabilities, labels, row),
            }
        case "segmentation":
            assert answer.masks is not None
            counts = np.bincount(answer.masks[row].reshape(-1), minlength=len(labels))
            return {"pixels": dict(zip(labels, counts.tolist(), strict=True))}
        case "regression":
            return {"value": float(answer.outputs[row].reshape(-1)[0])}
        case _:
            few = answer.outputs[row].size <= MAX_OUTPUTS
            return {"outputs": answer.outputs[row].tolist() if few else None}


def _positive(decision: str | tuple[str, ...], manifest: Manifest) -> bool | None:
    """Whether anything was found that must not be missed; None where the task names no such label."""
    named = set(manifest.positive)
    if manifest.kind == "binary":
        return decision == manifest.labels[manifest.positive_class]
    if not named:
        return None
    return bool(named & ({decision} if isinstance(decision, str) else set(decision)))


def _probabilities(found: np.ndarray | None, labels: tuple[str, ...], row: int) -> Mapping[str, float]:
    assert found is not None
    values = [1 - found[row], found[row]] if found.ndim == 1 else found[row]
    return {label: float(p) for label, p in zip(labels, values, strict=True)}

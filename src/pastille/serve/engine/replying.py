"""From raw outputs to a `Reply`: pure functions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pastille.bundle import Answer, Manifest, VariantName
from pastille.bundle.load import answer_of
from pastille.serve.values import Call, Fallback, Reply
from pastille.stats.confidence import confidence


@dataclass(frozen=True, kw_only=True, eq=False)
class Told:
    """What one variant said to one call."""

    variant: VariantName
    outputs: np.ndarray
    queue_s: float
    compute_s: float
    batch: int
    answer: Answer | None = None  # where it was made in the thread of the model already


@dataclass(frozen=True, kw_only=True)
class Served:
    """Under which name and version a bundle is served."""

    manifest: Manifest
    model: str
    version: str


def reply_of(
    served: Served,
    call: Call,
    told: Told,
    *,
    fallback: Fallback | None,
    disagreement: np.ndarray | None = None,
    warnings: tuple[str, ...] = (),
) -> Reply:
    """What the client is told.

    Args:
        served: The bundle.
        call: What was asked.
        told: What the variant said.
        fallback: Why it is not the preferred one.
        disagreement: ``(N,)`` bool, of mode validate.
        warnings: Beside those of the call.

    Raises:
        ValueError: The outputs do not fit the bundle's kind of task.
    """
    manifest = served.manifest
    variant = manifest.variant(told.variant)
    made = told.answer or answer_of(told.outputs, manifest, told.variant)
    return Reply(
        answer=made,
        model=served.model,
        version=served.version,
        model_sha256=variant.model.sha256,
        threshold=threshold_of(manifest, told.variant),
        confidence=confidence_of(made, manifest),
        fallback=fallback,
        disagreement=disagreement,
        queue_s=told.queue_s,
        compute_s=told.compute_s,
        batch=told.batch,
        warnings=call.warnings + warnings,
    )


def threshold_of(manifest: Manifest, variant: VariantName) -> float | None:
    """From which probability a case is called positive; None where classes compete."""
    by_threshold = manifest.kind in ("binary", "multilabel") or (
        manifest.kind == "segmentation" and len(manifest.output.shape) + (manifest.output.shape[0] == 1) != 3
    )
    return manifest.threshold_of(manifest.variant(variant)) if by_threshold else None


def confidence_of(answer: Answer, manifest: Manifest) -> np.ndarray | None:
    """Probability of what was decided, ``(N,)``; see `pastille.stats.confidence`."""
    chances = answer.probabilities
    if chances is None or manifest.kind == "segmentation":
        return None
    return confidence(manifest.kind, chances, _decided(answer, chances, manifest))


def _decided(answer: Answer, chances: np.ndarray, manifest: Manifest) -> np.ndarray:
    match manifest.kind:
        case "binary":
            return np.array([manifest.labels.index(str(label)) for label in answer.decisions])
        case "multilabel":
            return np.asarray(chances >= manifest.threshold_of(manifest.variant(answer.variant)))
        case _:
            return np.asarray(chances.argmax(axis=1))

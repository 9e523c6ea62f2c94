"""What a variant may do wrong on one request, and how it is found out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pastille.bundle import Manifest
from pastille.errors import InferenceError
from pastille.runtime.onnxruntime import OnnxRuntimeSession, Stop
from pastille.serve.values import Why
from pastille.stats.scale import to_logits


class FaultError(Exception):
    """A variant failed on a request; the sentence holds nothing of the request."""

    def __init__(self, why: Why, detail: str) -> None:
        super().__init__(detail)
        self.why = why
        self.detail = detail
        self.counted = False  # a batch fails once, however many calls were in it


def ask(
    session: OnnxRuntimeSession,
    inputs: Mapping[str, np.ndarray],
    manifest: Manifest,
    stop: Stop | None = None,
) -> np.ndarray:
    """Run one variant, and hold what it gives against what it must give.

    Args:
        session: The variant.
        inputs: ``{name: (N, ...)}``.
        manifest: Of the bundle.
        stop: Ends the call early.

    Returns:
        Its raw outputs, ``(N, ...)``, finite.

    Raises:
        FaultError: It failed, or its output is misshapen, not finite, or no probabilities where it should be.
    """
    output = manifest.output
    try:
        outputs = session(inputs, stop=stop)[output.name]
    except (InferenceError, MemoryError, KeyError):
        # The runtime's own words may hold values of the input.
        raise FaultError("exception", "the runtime could not run it on this input") from None
    expected = (len(next(iter(inputs.values()))), *output.shape)
    if outputs.shape != expected:
        raise FaultError("shape", f"its output had shape {outputs.shape} instead of {expected}")
    if not np.isfinite(outputs).all():
        raise FaultError("non_finite", "its output held NaN or infinity")
    if manifest.outputs == "probabilities":
        _check_probabilities(outputs, manifest)
    return outputs


def _check_probabilities(outputs: np.ndarray, manifest: Manifest) -> None:
    try:
        to_logits(manifest.kind, outputs, manifest.outputs)
    except ValueError:
        raise FaultError("shape", "its probabilities left [0, 1] or did not sum to 1") from None

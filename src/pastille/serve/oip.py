"""What the Open Inference Protocol and Triton's extensions say of a server, its models and its answers.

Pure functions: statuses, manifests and replies in; what becomes JSON out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pastille.bundle import Manifest
from pastille.serve.values import EngineStatus, Reply
from pastille.values import TensorSpec
from pastille.wire import Encoded, InferRequest, Scalar, datatype_of, encode_response, write_json

EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
)
_PLATFORM, _BACKEND = "onnxruntime_onnx", "onnxruntime"
_MANY_LABELS = 1000  # more are in the bundle's manifest, not in every answer about the model


def health(*, live: bool, ready: bool) -> dict[str, bool]:
    """Of the server: clients read one key or the other, whichever they asked for."""
    return {"live": live, "ready": ready}


def server_metadata(version: str) -> dict[str, Any]:
    """``GET /v2``.

    Example:
        >>> server_metadata("0.1.0")["name"]
        'pastille'
    """
    return {"name": "pastille", "version": version, "extensions": list(EXTENSIONS)}


def model_ready(status: EngineStatus) -> dict[str, Any]:
    """``GET /v2/models/M/ready``; the reason is for people."""
    return {"name": status.model, "version": status.version, "ready": status.ready, "reason": status.reason}


def model_metadata(manifest: Manifest, status: EngineStatus, versions: Sequence[str]) -> dict[str, Any]:
    """``GET /v2/models/M``.

    Args:
        manifest: Of the bundle.
        status: How it stands: which variant answers, and whether that is the one that was selected.
        versions: Every version that is served under the name.
    """
    return {
        "name": status.model,
        "versions": list(versions),
        "platform": _PLATFORM,
        "inputs": [_tensor(spec) for spec in manifest.inputs],
        "outputs": [_tensor(manifest.output)],
        "parameters": _standing(manifest, status),
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": datatype_of(spec.dtype), "shape": [-1, *spec.shape]}


def _standing(manifest: Manifest, status: EngineStatus) -> dict[str, Scalar]:
    """Fields of our own, as parameters may be: no lists."""
    labels = {"labels": _text(list(manifest.labels))} if 0 < len(manifest.labels) <= _MANY_LABELS else {}
    return {
        "kind": manifest.kind,
        "mode": status.mode,
        "variant": status.answering or status.preferred or "",
        "reason": status.reason,
        "degraded": status.degraded,
        "content": status.content,
        **labels,
    }


def model_config(manifest: Manifest, status: EngineStatus, *, rows: int) -> dict[str, Any]:
    """``GET /v2/models/M/config``, as Triton's model configuration.

    Args:
        manifest: Of the bundle.
        status: How it stands.
        rows: Cases that one request may ask about.
    """
    return {
        "name": status.model,
        "platform": _PLATFORM,
        "backend": _BACKEND,
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": rows,
        "input": [_configured(spec) for spec in manifest.inputs],
        "output": [_configured(manifest.output)],
        "instance_group": [{"name": status.model, "kind": "KIND_CPU", "count": max(1, status.places)}],
        "parameters": {
            name: {"string_value": value if isinstance(value, str) else _text(value)}
            for name, value in _standing(manifest, status).items()
        },
    }


def _configured(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "data_type": f"TYPE_{datatype_of(spec.dtype)}", "dims": list(spec.shape)}


def repository_index(statuses: Sequence[EngineStatus], *, ready_only: bool = False) -> list[dict[str, str]]:
    """``POST /v2/repository/index``: every model and version.

    Args:
        statuses: Of each.
        ready_only: The request's ``{"ready": true}``.
    """
    return [
        {
            "name": status.model,
            "version": status.version,
            "state": "READY" if status.ready else "UNAVAILABLE",
            "reason": "" if status.ready else status.reason,
        }
        for status in statuses
        if status.ready or not ready_only
    ]


def answer_parameters(reply: Reply, manifest: Manifest) -> dict[str, Scalar]:
    """Fields of our own beside the outputs: who answered, how sure it is, what it decided, and why.

    A parameter is no list by the protocol. So what belongs to each case (``decision``, ``confidence``,
    ``probability``, ``disagreement``) is a plain value in an answer about one case, and the JSON text of
    a list in an answer about several; ``warnings`` and a multilabel decision are always such a text.

    Args:
        reply: What the engine answered.
        manifest: Of its bundle.
    """
    found: dict[str, Scalar] = {
        "variant": reply.answer.variant,
        "model_sha256": reply.model_sha256,
        "cached": reply.cached,
        **_fallback(reply),
    }
    if reply.threshold is not None:
        found["threshold"] = reply.threshold
    if reply.arm is not None:
        found["arm"] = reply.arm
    if reply.warnings:
        found["warnings"] = _text(list(reply.warnings))
    return found | {name: _cases(values) for name, values in _per_case(reply, manifest).items()}


def _fallback(reply: Reply) -> dict[str, Scalar]:
    if reply.fallback is None:
        return {"fallback": False}
    told = reply.fallback
    return {
        "fallback": True,
        "fallback_from": told.preferred,
        "fallback_why": told.why,
        "fallback_detail": told.detail,
    }


def _per_case(reply: Reply, manifest: Manifest) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    if reply.answer.decisions:
        found["decision"] = list(reply.answer.decisions)
    if reply.confidence is not None:
        found["confidence"] = reply.confidence.tolist()
    if manifest.kind == "binary" and reply.answer.probabilities is not None:
        found["probability"] = _of_positive(reply.answer.probabilities, manifest).tolist()
    if reply.disagreement is not None:
        found["disagreement"] = reply.disagreement.tolist()
    return found


def _of_positive(probabilities: np.ndarray, manifest: Manifest) -> np.ndarray:
    """Of the label that the threshold speaks of, ``(N,)``."""
    return probabilities if manifest.positive_class == 1 else 1 - probabilities


def _cases(values: list[Any]) -> Scalar:
    if len(values) == 1 and isinstance(values[0], (str, int, float)):
        return values[0]
    return _text(values[0] if len(values) == 1 else values)


def _text(value: object) -> str:
    return write_json(value).decode()


def infer_answer(reply: Reply, request: InferRequest, manifest: Manifest) -> Encoded:
    """The whole answer to ``POST …/infer``.

    Args:
        reply: What the engine answered.
        request: What was asked.
        manifest: Of the bundle that answered.
    """
    return encode_response(
        {manifest.output.name: reply.answer.outputs},
        request.outputs,
        model=reply.model,
        version=reply.version,
        request_id=request.id,
        parameters=answer_parameters(reply, manifest),
    )

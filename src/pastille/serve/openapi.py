"""``/openapi.json``: the routes described by hand, in OpenAPI 3.1; a test holds it against what is routed."""

from __future__ import annotations

from typing import Any, Final

Json = dict[str, Any]

_ERROR: Final = {"$ref": "#/components/schemas/Error"}
_WHY: Final = {
    400: "the request is malformed, or its input is not finite or out of range",
    401: "a token is needed, or not known",
    403: "the token lacks the scope, or this is not allowed here",
    404: "there is no such model, version or address",
    405: "the method is not answered here",
    408: "the body did not arrive in time",
    409: "the bundle is not as it was written, or fails here",
    413: "the body is larger than is taken",
    415: "the body is in a form that is not taken",
    429: "too many requests from here",
    500: "every variant failed on this request",
    503: "overloaded, starting, shutting down, or no variant is valid",
}
_TENSOR: Final = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "datatype": {"type": "string", "pattern": "^(BOOL|U?INT(8|16|32|64)|FP(16|32|64))$"},
        "parameters": {"type": "object"},
        "data": {"type": "array"},
    },
}
_SCHEMAS: Final = {
    "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
    "Tensor": _TENSOR,
    "InferRequest": {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string", "maxLength": 128},
            "parameters": {"type": "object"},
            "inputs": {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Tensor"}},
            "outputs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {"name": {"type": "string"}, "parameters": {"type": "object"}},
                },
            },
        },
    },
    "InferAnswer": {
        "type": "object",
        "required": ["model_name", "outputs"],
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "parameters": {"type": "object"},
            "outputs": {"type": "array", "items": {"$ref": "#/components/schemas/Tensor"}},
        },
    },
    "Feedback": {
        "type": "object",
        "required": ["request_id", "label"],
        "additionalProperties": False,
        "properties": {
            "request_id": {"type": "string", "minLength": 1, "maxLength": 256},
            "label": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
            "row": {"type": "integer", "minimum": 0},
            "groups": {"type": "object", "additionalProperties": {"type": "string"}},
        },
    },
}
_BYTES: Final = "application/octet-stream"
_FILE: Final = {"type": "string", "contentMediaType": _BYTES}
_FORM: Final = {"type": "object", "properties": {"file": _FILE}}
_OBJECT: Final = {"type": "object"}


def description(version: str, *, secured: bool) -> Json:
    """What the server answers, as OpenAPI.

    Args:
        version: Of Pastille.
        secured: Whether tokens are in use.

    Example:
        >>> description("1", secured=False)["openapi"]
        '3.1.0'
    """
    security: Json = {"security": [{"token": []}]} if secured else {}
    scheme = {"token": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Pastille",
            "version": version,
            "description": "Open Inference Protocol v2 with binary tensors, friendly endpoints, monitoring.",
        },
        "paths": _paths(),
        "components": {"schemas": _SCHEMAS, **({"securitySchemes": scheme} if secured else {})},
        **security,
    }


def _paths() -> Json:
    return {**_infer_paths(), **_model_paths(), **_server_paths(), **_watch_paths(), **_admin_paths()}


def _infer_paths() -> Json:
    infer = _post(
        "Ask a model: JSON, or JSON and then binary tensors (Inference-Header-Content-Length says where).",
        {"application/json": {"$ref": "#/components/schemas/InferRequest"}, _BYTES: _FILE},
        answers={"application/json": {"$ref": "#/components/schemas/InferAnswer"}, _BYTES: _FILE},
        fails=(400, 401, 403, 404, 408, 413, 415, 429, 500, 503),
    )
    raw = dict.fromkeys(("image/png", "image/jpeg", "application/dicom", "application/zip"), _FILE)
    predict = _post(
        "Ask with a file, a row or a text, as GET at the same address describes.",
        {
            "application/json": _OBJECT,
            "text/plain": {"type": "string"},
            "text/csv": _FILE,
            "multipart/form-data": _FORM,
            **raw,
        },
        fails=(400, 401, 403, 404, 408, 413, 415, 429, 500, 503),
    )
    form = _get("What this model takes at this address.")
    return {
        "/v2/models/{model}/infer": infer | _named("model"),
        "/v2/models/{model}/versions/{version}/infer": infer | _named("model", "version"),
        "/predict": predict | form,
        "/predict/{model}": predict | form | _named("model"),
    }


def _model_paths() -> Json:
    what = {
        "": "What a model takes and gives, and which variant answers.",
        "/ready": "Whether a model can be asked.",
        "/config": "A model's configuration, in Triton's form.",
        "/stats": "How often a model was asked, and how long it took, in Triton's form.",
    }
    plain = {f"/v2/models/{{model}}{end}": _get(text) | _named("model") for end, text in what.items()}
    return plain | {
        f"/v2/models/{{model}}/versions/{{version}}{end}": _get(text) | _named("model", "version")
        for end, text in what.items()
    }


def _server_paths() -> Json:
    probes = {
        "/v2/health/live": "Whether the process answers.",
        "/v2/health/ready": "Whether every model can be asked.",
        "/healthz/live": "Liveness: restart the process where this fails.",
        "/healthz/ready": "Readiness: send requests where this succeeds.",
        "/healthz/startup": "Start-up: until this succeeds, liveness means nothing.",
    }
    return {
        "/v2": _get("Name, version and extensions of the server."),
        "/v2/models/stats": _get("Statistics of every model."),
        **{path: _get(text, fails=(403, 503)) for path, text in probes.items()},
        "/v2/repository/index": _post("Every model and version.", {"application/json": _OBJECT}),
        "/openapi.json": _get("This description.", fails=(403, 429)),
    }


def _watch_paths() -> Json:
    model = {"name": "model", "in": "query", "schema": {"type": "string"}}
    monitor = _get("What the page shows.")
    monitor["get"]["parameters"] = [model]
    metrics = _get("Metrics for Prometheus.", answers={"text/plain": {"type": "string"}})
    taken = {"application/json": {"$ref": "#/components/schemas/Feedback"}}
    return {
        "/metrics": metrics,
        "/monitor.json": monitor,
        "/feedback": _post("What turned out to be right for an earlier request.", taken),
    }


def _admin_paths() -> Json:
    taken = {"application/json": _OBJECT}
    fails = (400, 401, 403, 404, 408, 409, 413, 415, 429, 503)
    model = _named("model")
    return {
        "/v2/repository/models/{model}/load": _post("Read a model anew.", taken, fails=fails) | model,
        "/v2/repository/models/{model}/unload": _post("Stop serving it.", taken, fails=fails) | model,
        "/admin/swap": _post("Serve a bundle, once it is verified.", taken, fails=fails),
        "/admin/rollback": _post("Let the version before answer again.", taken, fails=fails),
    }


def _named(*names: str) -> Json:
    return {
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in names
        ]
    }


def _get(
    summary: str, *, answers: Json | None = None, fails: tuple[int, ...] = (400, 401, 403, 404, 429, 503)
) -> Json:
    return {"get": {"summary": summary, "responses": _responses(answers, (*fails, 405))}}


def _post(
    summary: str,
    taken: Json,
    *,
    answers: Json | None = None,
    fails: tuple[int, ...] = (400, 401, 403, 404, 408, 413, 415, 429, 503),
) -> Json:
    body = {"content": {kind: {"schema": schema} for kind, schema in taken.items()}}
    return {
        "post": {"summary": summary, "requestBody": body, "responses": _responses(answers, (*fails, 405))}
    }


def _responses(answers: Json | None, fails: tuple[int, ...]) -> Json:
    content = {kind: {"schema": schema} for kind, schema in (answers or {"application/json": {}}).items()}
    refusals = {
        str(status): {"description": _WHY[status], "content": {"application/json": {"schema": _ERROR}}}
        for status in sorted(fails)
    }
    return {"200": {"description": "the answer", "content": content}, **refusals}

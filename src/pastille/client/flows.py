"""Every method of a client, as a flow of steps; see `pastille.client.steps`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import numpy as np

from pastille.client.errors import ServerError
from pastille.client.payload import Given, is_arrays, payload_of
from pastille.client.prediction import Prediction, of_arrays, of_friendly
from pastille.client.steps import Asked, Flow, Got, Patience, ask
from pastille.errors import UsageError
from pastille.wire import (
    JSON_LENGTH,
    Scalar,
    WireError,
    WireLimits,
    decode_response,
    dtype_of,
    encode_request,
    read_json_length,
    read_object,
    write_json,
)

_LIMITS = WireLimits(json_bytes=256 << 20, elements=1 << 28, tensors=64)  # of a server that was chosen
_JSON = {"content-type": "application/json"}


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What one input of a model takes."""

    datatype: str
    axes: int  # with the batch axis


@dataclass(kw_only=True)
class Standing:
    """What a client knows of its server.

    Attributes:
        model: That is asked; None: the server's own choice, found out when it matters.
        inputs: Of each model that was asked about, what each input takes.
    """

    model: str | None
    patience: Patience
    inputs: dict[str, Mapping[str, Taken]] = field(default_factory=dict)


def predict(
    known: Standing, given: Given | np.ndarray, *, media_type: str | None, subject: str | None
) -> Flow[Prediction]:
    """A file, bytes, a row: the friendly endpoint. Arrays: the protocol, binary."""
    if isinstance(given, np.ndarray):
        model = yield from chosen_model(known)
        inputs = yield from input_types(known, model)
        if len(inputs) != 1:
            raise UsageError(f"model {model!r} has the inputs {', '.join(inputs)}; give {{name: array}}")
        ((name, taken),) = inputs.items()
        batch = given[None] if given.ndim == taken.axes - 1 else given
        return (yield from infer(known, {name: _floats(batch, taken.datatype)}, subject=subject))
    if is_arrays(given):
        return (yield from infer(known, given, subject=subject))  # type: ignore[arg-type]  # arrays by name
    content, kind = payload_of(given, media_type)
    where = f"/predict/{quote(known.model, safe='')}" if known.model else "/predict"
    headers = {"content-type": kind} | ({} if subject is None else {"x-subject": _header(subject)})
    got = yield from ask(Asked(method="POST", path=where, content=content, headers=headers), known.patience)
    return of_friendly(_object(got), got.headers.get("x-request-id", ""))


def _floats(given: np.ndarray, datatype: str) -> np.ndarray:
    """Floats as wide as the model's: numpy makes them wider unless it is told otherwise."""
    wide = given.dtype.kind == "f" and datatype in ("FP16", "FP32", "FP64")
    with np.errstate(over="ignore"):  # what becomes infinite is refused by the server
        return given.astype(dtype_of(datatype)) if wide else given


def _header(text: str) -> str:
    if not (text.isascii() and text.isprintable()):
        raise UsageError("the subject of a file, row or text must be printable ASCII")
    return text


def infer(
    known: Standing, inputs: Mapping[str, np.ndarray], *, subject: str | None, request_id: str = ""
) -> Flow[Prediction]:
    """Arrays as they are, in binary both ways."""
    model = yield from chosen_model(known)
    parameters: dict[str, Scalar] = {} if subject is None else {"subject": subject}
    sent = encode_request(inputs, parameters=parameters, request_id=request_id)
    headers = {"content-type": "application/octet-stream", JSON_LENGTH: str(sent.json_length)}
    asked = Asked(method="POST", path=f"{_of(model)}/infer", content=sent.body, headers=headers)
    got = yield from ask(asked, known.patience)
    try:
        length = read_json_length(got.headers.get(JSON_LENGTH.lower()))
        answer = decode_response(got.content, json_length=length, limits=_LIMITS)
    except WireError as error:
        raise _no_protocol(error) from None
    return of_arrays(answer, got.headers.get("x-request-id", ""))


def metadata(known: Standing) -> Flow[dict[str, Any]]:
    """What the server says of the model: inputs, outputs, which variant answers."""
    model = yield from chosen_model(known)
    return (yield from _asked_object(known, Asked(method="GET", path=_of(model))))


def monitor(known: Standing) -> Flow[dict[str, Any]]:
    """What the page shows."""
    query = f"?model={quote(known.model, safe='')}" if known.model else ""
    return (yield from _asked_object(known, Asked(method="GET", path=f"/monitor.json{query}")))


def feedback(
    known: Standing, request_id: str, label: str | tuple[str, ...], row: int, groups: Mapping[str, str]
) -> Flow[dict[str, Any]]:
    """What turned out to be right."""
    said: dict[str, Any] = {"request_id": request_id, "label": label, "row": row, "groups": dict(groups)}
    asked = Asked(method="POST", path="/feedback", content=write_json(said), headers=_JSON)
    return (yield from _asked_object(known, asked))


def ready(known: Standing) -> Flow[bool]:
    """Asked once: who wants to wait asks again."""
    came = yield Asked(method="GET", path=f"{_of(known.model)}/ready" if known.model else "/v2/health/ready")
    return isinstance(came, Got) and came.status == 200


def chosen_model(known: Standing) -> Flow[str]:
    """The model that is asked: the one that was named, or the only one that the server has."""
    if known.model is None:
        asked = Asked(method="POST", path="/v2/repository/index", content=b"{}", headers=_JSON)
        got = yield from ask(asked, known.patience)
        names = _names(got.content)
        if len(names) != 1:
            raise UsageError(f"the server has the models {', '.join(names)}; say which: Client(url, model=…)")
        known.model = names[0]
    return known.model


def _names(content: bytes) -> list[str]:
    """The protocol answers with a list, which no other answer is."""
    try:
        index = read_object(b'{"index":' + content + b"}", _LIMITS.json_bytes)["index"]
        return list(dict.fromkeys(str(entry["name"]) for entry in index))
    except (WireError, TypeError, KeyError) as error:
        raise _no_protocol(error) from None


def input_types(known: Standing, model: str) -> Flow[Mapping[str, Taken]]:
    """Names of a model's inputs and what they take, asked for once."""
    if model not in known.inputs:
        said = yield from metadata(known)
        try:
            known.inputs[model] = {
                str(entry["name"]): Taken(datatype=str(entry["datatype"]), axes=len(entry["shape"]))
                for entry in said["inputs"]
            }
        except (TypeError, KeyError) as error:
            raise _no_protocol(error) from None
    return known.inputs[model]


def _asked_object(known: Standing, asked: Asked) -> Flow[dict[str, Any]]:
    return _object((yield from ask(asked, known.patience)))


def _object(got: Got) -> dict[str, Any]:
    try:
        return read_object(got.content, _LIMITS.json_bytes)
    except WireError as error:
        raise _no_protocol(error) from None


def _of(model: str) -> str:
    return f"/v2/models/{quote(model, safe='')}"


def _no_protocol(error: Exception) -> ServerError:
    why = str(error) if isinstance(error, WireError) else "fields are missing"
    return ServerError(f"the server's answer is not of this protocol ({why}); is it a Pastille server?")

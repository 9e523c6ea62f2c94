"""An answer's body: written by the server, read by the client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pastille.wire.errors import WireError, malformed
from pastille.wire.messages import Encoded, InferResponse, RequestedOutput, Scalar, WireLimits
from pastille.wire.requests import parts, read_id, scalars
from pastille.wire.strict_json import read_object
from pastille.wire.tensors import arrays, described, parameters_of
from pastille.wire.writing import joined, tensor_parts


def encode_response(
    outputs: Mapping[str, np.ndarray],
    requested: Sequence[RequestedOutput],
    *,
    model: str,
    version: str,
    request_id: str = "",
    parameters: Mapping[str, Scalar] | None = None,
) -> Encoded:
    """Write one answer.

    Args:
        outputs: ``{name: (N, ...)}``, finite.
        requested: What was asked for, in the order in which it is answered.
        model: Name of the model.
        version: Of the model.
        request_id: The client's own; ``""`` where it gave none.
        parameters: The server's own fields.

    Raises:
        ValueError: A number that travels as JSON is not finite.

    Example:
        >>> asked = [RequestedOutput(name="y")]
        >>> encode_response({"y": np.ones((1, 2), np.float32)}, asked, model="m", version="1").body
        b'{"model_name":"m","model_version":"1","outputs":[{"name":"y",...,"data":[1.0,1.0]}]}'
    """
    head: dict[str, object] = {"model_name": model, "model_version": version}
    if request_id:
        head["id"] = request_id
    if parameters:
        head["parameters"] = parameters
    binary = {output.name for output in requested if output.binary}
    head["outputs"], chunks = tensor_parts({o.name: outputs[o.name] for o in requested}, binary)
    return joined(head, chunks, binary=bool(binary))


def decode_response(
    body: bytes | memoryview, *, json_length: int | None, limits: WireLimits | None = None
) -> InferResponse:
    """Read one answer.

    Args:
        body: As it came, inflated.
        json_length: Bytes of its JSON part; None where all is JSON.
        limits: What it may take.

    Raises:
        WireError: It is not as the protocol says.

    Example:
        >>> sent = encode_response({"y": np.ones(1)}, [RequestedOutput(name="y")], model="m", version="1")
        >>> decode_response(sent.body, json_length=sent.json_length).outputs["y"]
        array([1.])
    """
    allowed = limits or WireLimits()
    head, binary = parts(body, json_length)
    answered = read_object(head, allowed.json_bytes)
    tensors = described(answered.get("outputs"), allowed, what="output")
    model, version = answered.get("model_name"), answered.get("model_version", "")
    if not isinstance(model, str) or not isinstance(version, str):
        raise malformed("an answer must name its model and version")
    return InferResponse(
        model=model,
        version=version,
        outputs=dict(zip((t.name for t in tensors), arrays(tensors, binary), strict=True)),
        parameters=scalars(parameters_of(answered, "the answer")),
        id=read_id(answered),
    )


def error_of(body: bytes) -> str:
    """What an error's body says; what is not one is quoted in brief.

    Example:
        >>> error_of(b'{"error": "no such model"}'), error_of(b"<html>")
        ('no such model', 'an answer that is not of this protocol')
    """
    try:
        said = read_object(body, 1 << 16).get("error")
    except WireError:
        said = None
    return " ".join(said.split())[:500] if isinstance(said, str) else "an answer that is not of this protocol"

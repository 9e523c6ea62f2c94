"""Requests as other clients would write them: plain JSON and bytes, by none of our own code."""

from __future__ import annotations

import json
from typing import Any

from pastille.values import TensorSpec
from pastille.wire import InferRequest, WireLimits, decode_request

X = TensorSpec(name="x", shape=(3,), dtype="float32")
Y = TensorSpec(name="y", shape=(2,), dtype="float32")
LIMITS = WireLimits(json_bytes=4096, inflated_bytes=8192, tensors=2, elements=64, rows=4)


def tensor(**changes: Any) -> dict[str, Any]:
    """One input of one row, as JSON; a value of None takes a key away."""
    whole = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1.0, 2.0, 3.0]} | changes
    return {key: value for key, value in whole.items() if value is not None}


def body(*tensors: dict[str, Any], **more: Any) -> bytes:
    """A request's JSON."""
    return json.dumps({"inputs": list(tensors), **more}).encode()


def decode(sent: bytes, json_length: int | None = None, **changes: Any) -> InferRequest:
    """What the server makes of it, for a model that takes `X` and answers `Y`."""
    settings: dict[str, Any] = {"specs": [X], "outputs": [Y], "limits": LIMITS} | changes
    return decode_request(sent, json_length=json_length, **settings)


def binary(data: bytes, **changes: Any) -> tuple[bytes, int]:
    """A request whose input follows the JSON, and the length of the JSON."""
    parameters = {"binary_data_size": len(data)}
    head = body(tensor(data=None, parameters=parameters, **changes))
    return head + data, len(head)

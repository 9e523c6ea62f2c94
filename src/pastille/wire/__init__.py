"""What goes over the wire, for the server and the client alike: the Open Inference Protocol's bodies."""

from __future__ import annotations

from pastille.wire.addresses import is_loopback
from pastille.wire.compression import compress, inflate
from pastille.wire.datatypes import datatype_of, dtype_of
from pastille.wire.errors import WireCause, WireError
from pastille.wire.messages import (
    JSON_LENGTH,
    Encoded,
    InferRequest,
    InferResponse,
    RequestedOutput,
    Scalar,
    WireLimits,
)
from pastille.wire.requests import decode_request, encode_request, read_json_length
from pastille.wire.responses import decode_response, encode_response, error_of
from pastille.wire.strict_json import read_json, read_object, write_json

__all__ = [
    "JSON_LENGTH",
    "Encoded",
    "InferRequest",
    "InferResponse",
    "RequestedOutput",
    "Scalar",
    "WireCause",
    "WireError",
    "WireLimits",
    "compress",
    "datatype_of",
    "decode_request",
    "decode_response",
    "dtype_of",
    "encode_request",
    "encode_response",
    "error_of",
    "inflate",
    "is_loopback",
    "read_json",
    "read_json_length",
    "read_object",
    "write_json",
]

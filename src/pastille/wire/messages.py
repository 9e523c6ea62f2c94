"""One request and one answer of the Open Inference Protocol, free of bytes: frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

Scalar = str | int | float | bool  # what a parameter may be: no list, no object, no null

JSON_LENGTH = "Inference-Header-Content-Length"  # the header that says where the binary part begins


@dataclass(frozen=True, kw_only=True)
class WireLimits:
    """What one body may take; checked before anything is parsed or allocated."""

    json_bytes: int = 16 << 20  # of the JSON part
    inflated_bytes: int = 128 << 20
    tensors: int = 16
    elements: int = 32 << 20  # of all tensors together
    rows: int = 64  # cases in one request


@dataclass(frozen=True, kw_only=True)
class RequestedOutput:
    """One output that is asked for."""

    name: str
    binary: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class InferRequest:
    """A request, checked against the model that it asks.

    Attributes:
        inputs: ``{name: (N, ...)}``, finite, in the model's types; views of the body where it is binary.
        outputs: What is asked for, in the order in which it is answered; never empty.
        parameters: The client's own. Anything but a string, number or bool is left out.
        id: The client's own, at most 128 printable characters; ``""`` where it gives none.
    """

    inputs: Mapping[str, np.ndarray]
    outputs: tuple[RequestedOutput, ...]
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    id: str = ""

    @property
    def rows(self) -> int:
        """How many cases it asks about: N."""
        return len(next(iter(self.inputs.values())))


@dataclass(frozen=True, kw_only=True, eq=False)
class InferResponse:
    """An answer, as the client reads it."""

    model: str
    version: str
    outputs: Mapping[str, np.ndarray]
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    id: str = ""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A body, and where its JSON part ends.

    Attributes:
        body: JSON, then the binary tensors.
        json_length: Bytes of the JSON part; None where there is no binary part.
    """

    body: bytes
    json_length: int | None

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What is sent beside it.

        Example:
            >>> Encoded(body=b"{}", json_length=None).headers()
            [(b'content-type', b'application/json')]
        """
        if self.json_length is None:
            return [(b"content-type", b"application/json")]
        length = str(self.json_length).encode()
        return [
            (b"content-type", b"application/octet-stream"),
            (b"inference-header-content-length", length),
        ]

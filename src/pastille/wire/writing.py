"""What requests and answers are written with."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from pastille.wire.datatypes import DTYPES, datatype_of
from pastille.wire.messages import Encoded
from pastille.wire.strict_json import write_json

_ALIGNED = 16  # bytes: the JSON is padded, so that who reads need not copy the numbers after it


def tensor_parts(
    tensors: Mapping[str, np.ndarray], binary: Collection[str]
) -> tuple[list[dict[str, Any]], list[memoryview]]:
    """Describe tensors, and cut out the bytes of those that travel as bytes.

    Args:
        tensors: ``{name: array}``, in the order in which they are sent.
        binary: Names of those that follow the JSON.

    Returns:
        What the JSON says of each, and the bytes of the binary ones, in that order.
    """
    heads, chunks = [], []
    for name, array in tensors.items():
        datatype = datatype_of(array.dtype)
        head: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
        if name in binary:
            head["parameters"] = {"binary_data_size": array.nbytes}
            chunks.append(_bytes_of(array, DTYPES[datatype]))
        else:
            head["data"] = array.ravel().tolist()
        heads.append(head)
    return heads, chunks


def _bytes_of(array: np.ndarray, dtype: np.dtype[np.generic]) -> memoryview:
    """Row by row, in the order of bytes that the protocol has; a view where it lies so already."""
    return np.asarray(array, dtype).reshape(-1).view(np.uint8).data


def joined(head: Mapping[str, Any], chunks: Sequence[memoryview], *, binary: bool) -> Encoded:
    """JSON and what follows it, as one body.

    Raises:
        ValueError: A number in the JSON is not finite.
    """
    written = write_json(head)
    if not binary:
        return Encoded(body=written, json_length=None)
    written += b" " * (-len(written) % _ALIGNED)
    return Encoded(body=b"".join([written, *chunks]), json_length=len(written))

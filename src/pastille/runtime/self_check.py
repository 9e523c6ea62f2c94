"""One convolution whose answer tells how a machine adds int8 products: 71 if exactly, 36 if saturating."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from pastille.errors import InferenceError
from pastille.runtime.base import Session
from pastille.runtime.onnxruntime import load

EXACT: Final = 71  # 2 · 255 · 127 = 64770, in units of 910
SATURATED: Final = 36  # 32767, in the same units
CHECK_INPUT: Final = {"input": np.full((1, 4, 1, 1), 255, np.uint8)}
_CHANNELS: Final = 16  # a full block, so that the kernel for most layers is taken
_WEIGHTS: Final = bytes([127, 127, 0, 0]) * _CHANNELS
_FLOAT, _UINT8, _INT8 = 1, 2, 3  # onnx.TensorProto.DataType


def saturates_here(load: Callable[[Path], Session] = load) -> bool:
    """Whether int8 convolutions saturate where a session runs, as on x86 CPUs without VNNI.

    Args:
        load: Makes a file ready to be called.

    Raises:
        InferenceError: The session cannot run, or answers neither the one nor the other.

    Example:
        >>> saturates_here() in (True, False)
        True
    """
    with tempfile.TemporaryDirectory(prefix="pastille-") as folder:
        path = Path(folder) / "check.onnx"
        path.write_bytes(CHECK_MODEL)
        return saturated(load(path)(CHECK_INPUT)["output"])


def saturated(answer: np.ndarray) -> bool:
    """What an answer of the check model says.

    Args:
        answer: Its output, all of whose numbers are equal.

    Raises:
        InferenceError: It is neither the exact nor the saturated one.

    Example:
        >>> saturated(np.array([36, 36], np.uint8))
        True
    """
    found = set(answer.reshape(-1).tolist())
    if found not in ({EXACT}, {SATURATED}):
        raise InferenceError(
            f"the self check must answer {EXACT} (exact) or {SATURATED} (saturated), got {sorted(found)}: "
            "this machine computes int8 wrongly"
        )
    return found == {SATURATED}


def _check_model() -> bytes:
    """The ONNX file, written field by field (onnx.proto3): an edge box has no onnx package."""
    initializers = (
        _tensor("one", _FLOAT, (), struct.pack("<f", 1.0)),
        _tensor("units", _FLOAT, (), struct.pack("<f", 910.0)),
        _tensor("none", _UINT8, (), b"\0"),
        _tensor("level", _INT8, (), b"\0"),
        _tensor("weights", _INT8, (_CHANNELS, 4, 1, 1), _WEIGHTS),
    )
    operands = ("input", "one", "none", "weights", "one", "level", "units", "none")
    node = b"".join(
        (
            *(_field(1, name.encode()) for name in operands),
            _field(2, b"output"),
            _field(3, b"check"),
            _field(4, b"QLinearConv"),
        )
    )
    graph = b"".join(
        (
            _field(1, node),
            _field(2, b"check"),
            *(_field(5, tensor) for tensor in initializers),
            _field(11, _value("input", (1, 4, 1, 1))),
            _field(12, _value("output", (1, _CHANNELS, 1, 1))),
        )
    )
    return _number(1, 8) + _field(7, graph) + _field(8, _number(2, 13))  # IR version 8, operator set 13


def _tensor(name: str, kind: int, shape: tuple[int, ...], raw: bytes) -> bytes:
    sizes = b"".join(_number(1, size) for size in shape)
    return sizes + _number(2, kind) + _field(8, name.encode()) + _field(9, raw)


def _value(name: str, shape: tuple[int, ...]) -> bytes:
    sizes = b"".join(_field(1, _number(1, size)) for size in shape)
    return _field(1, name.encode()) + _field(2, _field(1, _number(1, _UINT8) + _field(2, sizes)))


def _number(field: int, value: int) -> bytes:
    return bytes([field << 3]) + _varint(value)


def _field(field: int, payload: bytes) -> bytes:
    return bytes([field << 3 | 2]) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


CHECK_MODEL: Final = _check_model()

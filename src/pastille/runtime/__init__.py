"""What executes a model file: one file per runtime behind one seam."""

from __future__ import annotations

from pastille.runtime.base import UNKNOWN_DIM, Operators, Runtime, Session
from pastille.runtime.kernels import kernels
from pastille.runtime.onnx_file import check_self_contained
from pastille.runtime.onnxruntime import ONNXRUNTIME, load, optimized_operators

__all__ = [
    "ONNXRUNTIME",
    "UNKNOWN_DIM",
    "Operators",
    "Runtime",
    "Session",
    "check_self_contained",
    "kernels",
    "load",
    "optimized_operators",
]

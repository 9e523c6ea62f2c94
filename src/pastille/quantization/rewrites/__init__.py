"""Patterns without an int8 kernel, rewritten into exactly equal ones that have it."""

from __future__ import annotations

from typing import Any, Final

import onnx

from pastille.quantization.rewrites.alignment import align_
from pastille.quantization.rewrites.average_pool import average_pool
from pastille.quantization.rewrites.batch_norm import batch_norm, batch_norm_after_product
from pastille.quantization.rewrites.concat import concat
from pastille.quantization.rewrites.conv_transpose import conv_transpose
from pastille.quantization.rewrites.edit import Rewrite, rewrite_
from pastille.quantization.rewrites.hard_sigmoid import hard_sigmoid
from pastille.quantization.rewrites.hard_swish import hard_swish
from pastille.quantization.rewrites.linear import linear
from pastille.quantization.rewrites.stem import stem

REWRITES: Final[tuple[Rewrite, ...]] = (
    batch_norm_after_product,
    batch_norm,
    average_pool,
    conv_transpose,
    hard_swish,  # before hard_sigmoid, which takes its gate
    hard_sigmoid,
    concat,
    stem,
    linear,
)


def rewritten(model: Any) -> Any:
    """A graph that answers the same in float, and has more to run in int8.

    Args:
        model: A float ``onnx.ModelProto``; not modified.
    """
    new = onnx.ModelProto()
    new.CopyFrom(model)
    _name_nodes_(new.graph)
    for rewrite in REWRITES:
        rewrite_(new, rewrite)
    align_(new)
    return new


def _name_nodes_(graph: Any) -> None:
    """Placement speaks of nodes by name, and a file from elsewhere need not have any."""
    for node in graph.node:
        node.name = node.name or f"{node.op_type}_{node.output[0]}"

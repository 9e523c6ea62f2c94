"""Tables of embeddings in 8 bits, one scale per row: a look-up takes a row and its scale."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pastille.quantization.conversion import Part, node_name

MIN_WIDTH: Final = 16  # below, the scales cost more than the bits save


def int8_embeddings(model: Any) -> Part:
    """Find the look-ups in float tables and write them as look-ups in 8 bits.

    Standard operators compute ``Cast(table[i]) * scale[i]``; no row is rounded with another's scale.

    Args:
        model: An ``onnx.ModelProto``; not modified. What else is converted is so already: a table that only
            such a layer reads too, as an output head does, is then no one else's weight.
    """
    tables = {t.name: t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    lookups = [n for n in model.graph.node if n.op_type == "Gather" and n.input[0] in tables]
    left = {node_name(n): why for n in lookups if (why := _unfit(n, tables[n.input[0]], model.graph))}
    chosen = [n for n in lookups if node_name(n) not in left]
    names = {n.input[0] for n in chosen}
    return Part(
        nodes={n.output[0]: _lookup(n) for n in chosen},
        tensors=[t for name in sorted(names) for t in _int8_rows(tables[name])],
        changed={node_name(n): "Gather, 8 bits, one scale per row" for n in chosen},
        left=left,
    )


def _unfit(node: Any, table: Any, graph: Any) -> str:
    """Why a look-up stays float; "" where it need not."""
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    if len(table.dims) != 2 or axis or table.dims[1] < MIN_WIDTH:
        return f"no table of rows of {MIN_WIDTH} or more"
    if any(table.name in n.input and n.op_type != "Gather" for n in graph.node):
        return "its table is the weight of a layer that stays float too, and would be stored twice"
    return "" if np.isfinite(numpy_helper.to_array(table)).all() else "its table holds NaN or infinity"


def _int8_rows(table: Any) -> list[Any]:
    rows = numpy_helper.to_array(table)
    largest = np.abs(rows).max(axis=1, keepdims=True)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    steps = np.clip(np.rint(rows / scale), -127, 127).astype(np.int8)
    return [
        numpy_helper.from_array(steps, f"{table.name}_rows_q8"),
        numpy_helper.from_array(scale, f"{table.name}_rows_scale"),
    ]


def _lookup(node: Any) -> list[Any]:
    table, index = node.input
    name, out = node_name(node), node.output[0]
    return [
        helper.make_node("Gather", [f"{table}_rows_q8", index], [f"{out}_row_q8"], name=name, axis=0),
        helper.make_node(
            "Gather", [f"{table}_rows_scale", index], [f"{out}_row_scale"], f"{name}_scale", axis=0
        ),
        helper.make_node(
            "Cast", [f"{out}_row_q8"], [f"{out}_row_steps"], f"{name}_cast", to=onnx.TensorProto.FLOAT
        ),
        helper.make_node("Mul", [f"{out}_row_steps", f"{out}_row_scale"], [out], f"{name}_mul"),
    ]

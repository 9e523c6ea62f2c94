"""Rewriting an exported graph into an equal one that is smaller and has faster kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from pastille.runtime.subgraphs import subgraphs


def cleaned(model: Any, *, inputs: Sequence[str], output: str) -> Any:
    """Drop what depends on the machine that exported, and write pooling as pooling.

    Args:
        model: An ``onnx.ModelProto``; not modified.
        inputs: Names for the graph's inputs, in order.
        output: Name for its first output.

    Returns:
        An equal ``onnx.ModelProto``.
    """
    new = onnx.ModelProto()
    new.CopyFrom(model)
    _strip_(new)
    _name_interface_(new.graph, inputs, output)
    _pool_globally_(new)
    new.producer_name = "pastille"
    new.producer_version = ""
    new.graph.name = "main"
    return new


def _strip_(model: Any) -> None:
    """Source paths, stack traces and inferred shapes: of no use at run time."""
    graph = model.graph
    del model.metadata_props[:]
    model.doc_string = ""
    for part in (graph, *subgraphs(graph), *model.functions):
        tensors = () if part in model.functions else (*part.input, *part.output, *part.initializer)
        for holder in (part, *part.node, *tensors):
            del holder.metadata_props[:]
            holder.doc_string = ""
        del part.value_info[:]
    for tensor in (*graph.input, *graph.output):
        for i, dim in enumerate(tensor.type.tensor_type.shape.dim):
            if i == 0 and dim.HasField("dim_param"):
                dim.dim_param = "N"


def _name_interface_(graph: Any, inputs: Sequence[str], output: str) -> None:
    del graph.output[1:]
    renames = dict(zip([i.name for i in graph.input], inputs, strict=True))
    renames[graph.output[0].name] = output
    for node in (n for part in (graph, *subgraphs(graph)) for n in part.node):
        node.input[:] = [renames.get(name, name) for name in node.input]
        node.output[:] = [renames.get(name, name) for name in node.output]
    for tensor in (*graph.input, *graph.output):
        tensor.name = renames.get(tensor.name, tensor.name)


def _pool_globally_(model: Any) -> None:
    """Write the mean over all positions as GlobalAveragePool: ReduceMean has no int8 kernel.

    The exporter writes every global pooling as ReduceMean; with the pooling operator EfficientNet-B0
    in int8 is 1.25 times faster.
    """
    graph = model.graph
    ranks = _float_ranks(model)
    constants = {t.name: t for t in graph.initializer}
    nodes = []
    for node in graph.node:
        nodes += _as_global_pool(node, constants, ranks) or [node]
    added = {name for n in nodes for name in n.input} - {name for n in graph.node for name in n.input}
    del graph.node[:]
    graph.node.extend(nodes)
    if _FLAT in added:
        graph.initializer.append(numpy_helper.from_array(np.array([0, -1], dtype=np.int64), _FLAT))
    used = {name for part in (graph, *subgraphs(graph)) for n in part.node for name in n.input}
    used |= {o.name for part in (graph, *subgraphs(graph)) for o in part.output}
    kept = [t for t in graph.initializer if t.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


_FLAT = "pastille_flat_shape"


def _float_ranks(model: Any) -> dict[str, int]:
    """Number of axes of each float32 tensor: the pooling kernel takes no other type."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    tensors = (*inferred.value_info, *inferred.input, *inferred.output)
    types = {t.name: t.type.tensor_type for t in tensors}
    return {name: len(t.shape.dim) for name, t in types.items() if t.elem_type == onnx.TensorProto.FLOAT}


def _as_global_pool(node: Any, constants: dict[str, Any], ranks: dict[str, int]) -> list[Any]:
    rank = ranks.get(node.input[0], 0) if node.input else 0
    if node.op_type != "ReduceMean" or rank < 3 or len(node.input) != 2 or node.input[1] not in constants:
        return []
    axes = sorted(int(a) % rank for a in numpy_helper.to_array(constants[node.input[1]]).reshape(-1))
    if axes != list(range(2, rank)):
        return []
    keep = next((bool(a.i) for a in node.attribute if a.name == "keepdims"), True)
    pooled = node.output[0] if keep else f"{node.output[0]}_pooled"
    pool = onnx.helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=f"{node.name}_pool")
    if keep:
        return [pool]
    # (N, C, 1, 1) -> (N, C); Reshape has an int8 kernel, Squeeze has not.
    flat = onnx.helper.make_node("Reshape", [pooled, _FLAT], [node.output[0]], name=f"{node.name}_flat")
    return [pool, flat]

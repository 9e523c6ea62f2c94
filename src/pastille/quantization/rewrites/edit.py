"""What a rewrite sees of a graph, and what it answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from pastille.quantization.nodes import drop_unused_
from pastille.quantization.output import answering_nodes
from pastille.quantization.rewrites.beginning import beginning
from pastille.runtime.subgraphs import subgraphs


@dataclass(frozen=True, kw_only=True)
class View:
    """A graph as it stands: who makes and who reads each tensor, and what is known of it."""

    constants: Mapping[str, np.ndarray]
    shapes: Mapping[str, tuple[int | None, ...]]  # float32 tensors only; None is a free axis
    makers: Mapping[str, Any]
    answers: frozenset[str]  # what the last kernels make, which answer in float
    beginning: frozenset[str]  # what the first nodes make, where those stay float
    readers: Mapping[str, int]  # how many times each tensor is read; as an output of the graph too


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """Nodes to stand where one stood; the last ones write the tensors that it wrote."""

    nodes: tuple[Any, ...]
    tensors: Mapping[str, np.ndarray]


Rewrite = Callable[[Any, View], Replacement | None]


def rewrite_(model: Any, rewrite: Rewrite) -> int:
    """Apply one rewrite wherever it fits, in place.

    Args:
        model: An ``onnx.ModelProto``. Bodies of branches and loops are left alone.
        rewrite: Given a node and the view; None where it does not fit.

    Returns:
        How many nodes were replaced.
    """
    graph = model.graph
    view = view_of(model)
    replaced = [(node, rewrite(node, view)) for node in graph.node]
    found = [new for _, new in replaced if new]
    if found:
        nodes = [n for node, new in replaced for n in (new.nodes if new else (node,))]
        tensors = {name: array for new in found for name, array in new.tensors.items()}
        del graph.node[:], graph.value_info[:]
        graph.node.extend(nodes)
        graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in tensors.items())
        drop_unused_(graph)
    return len(found)


def view_of(model: Any) -> View:
    """Look at a graph as it stands.

    Args:
        model: An ``onnx.ModelProto``.
    """
    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(model).graph
    tensors = (*inferred.value_info, *inferred.input, *inferred.output)
    reads = [name for part in (graph, *subgraphs(graph)) for node in part.node for name in node.input]
    reads += [output.name for part in (graph, *subgraphs(graph)) for output in part.output]
    return View(
        constants={t.name: numpy_helper.to_array(t) for t in graph.initializer},
        shapes={t.name: _sizes(t) for t in tensors if _is_float(t)},
        makers={name: node for node in graph.node for name in node.output if name},
        answers=_answers(graph),
        beginning=beginning(inferred),
        readers=Counter(reads),
    )


def _answers(graph: Any) -> frozenset[str]:
    read = (name for node in answering_nodes(graph) for name in node.input)
    return frozenset((*read, *(output.name for output in graph.output)))


def _is_float(value: Any) -> bool:
    kind = value.type.tensor_type
    return bool(kind.elem_type == onnx.TensorProto.FLOAT and kind.HasField("shape"))


def _sizes(value: Any) -> tuple[int | None, ...]:
    return tuple(d.dim_value if d.dim_value > 0 else None for d in value.type.tensor_type.shape.dim)


def attributes(node: Any) -> dict[str, Any]:
    """A node's attributes by name, as Python values.

    Args:
        node: An ``onnx.NodeProto``.
    """
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def depthwise(
    source: str, output: str, weight: np.ndarray, bias: np.ndarray, shape: tuple[int | None, ...], **how: Any
) -> Replacement:
    """A convolution of each channel by itself: the int8 kernel for whatever acts per channel.

    Args:
        source: The tensor it reads, ``(N, C, ...)``.
        output: The tensor it writes.
        weight: Per channel, ``(C, *kernel)``.
        bias: ``(C,)``.
        shape: Of ``source``.
        **how: Strides and padding, as of ``Conv``, and the node's name.
    """
    names = [f"{output}_weight", f"{output}_bias"]
    how = {"name": f"{output}_depthwise", **how}
    node = onnx.helper.make_node("Conv", [source, *names], [output], group=shape[1], **how)
    tensors = {names[0]: weight.astype(np.float32)[:, None], names[1]: bias.astype(np.float32)}
    return Replacement(nodes=(node,), tensors=tensors)


def channels(tensor: str, view: View) -> int:
    """How many channels a float image or signal has; 0 where that is unknown, or it is neither.

    Args:
        tensor: Its name.
        view: Of the graph.
    """
    shape = view.shapes.get(tensor, ())
    return (shape[1] or 0) if len(shape) in (3, 4) else 0

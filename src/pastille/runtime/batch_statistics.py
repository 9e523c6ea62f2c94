"""Nodes of an ONNX file that compute over the batch axis, so that an answer depends on its neighbours.

The usual cause is a normalization layer that was exported in training mode. Another is dynamic
quantization, whose range is that of the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pastille.runtime.onnx_graph import Graph, Node, read_graph

_REDUCTIONS: Final = frozenset(
    {
        *("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2"),
        *("ReduceMax", "ReduceMin", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd"),
    }
)
_SOFTMAXES: Final = frozenset({"Softmax", "LogSoftmax", "Hardmax", "LpNormalization"})
# What they give does not depend on values, only on shapes.
_OF_SHAPES: Final = frozenset({"Shape", "Size", "ConstantOfShape", "EyeLike", "RandomNormalLike"})
_MVN_AXES: Final = (0, 2, 3)  # that MeanVarianceNormalization takes by default


def batch_statistic_nodes(path: Path) -> tuple[str, ...]:
    """Find the nodes of a model file whose result for one input depends on the others of its batch.

    The batch axis is followed from the model's inputs, where it is the first, through transpositions and
    through axes that are added or taken away; where a reshape may have moved it, it is lost, and nothing is
    said of what follows. Subgraphs and functions are not entered.

    Args:
        path: The ONNX file.

    Returns:
        ``"OPERATOR NAME"`` of each, in the order of the graph; nodes without a name go by their output.

    Raises:
        IntegrityError: The file is missing, not an ONNX model, or keeps weights in another file.
    """
    graph = read_graph(path)
    axes: dict[str, int] = dict.fromkeys(graph.inputs, 0)  # tensor -> where its batch axis lies
    found = []
    for node in graph.nodes:
        axis = next((axes[name] for name in node.inputs if name in axes), None)
        if axis is None or node.op in _OF_SHAPES:
            continue
        if _mixes(node, axis, graph):
            found.append(f"{node.op} {node.name or next(iter(node.outputs), '')}".strip())
        after = _axis_after(node, axis, graph)
        if after is not None:
            axes |= dict.fromkeys(node.outputs, after)
    return tuple(found)


def _mixes(node: Node, axis: int, graph: Graph) -> bool:
    """Whether a node computes over the batch axis."""
    rank = _rank(node, graph.ranks)
    if node.op in _REDUCTIONS:
        return _reduces(node, axis, graph, rank)
    if node.op in _SOFTMAXES:
        return _counted(node.numbers.get("axis", (-1,))[0], rank) == axis
    match node.op:
        case "BatchNormalization":
            return node.numbers.get("training_mode", (0,)) != (0,)
        case "MeanVarianceNormalization":
            return axis in {_counted(a, rank) for a in node.numbers.get("axes", _MVN_AXES)}
        case "LayerNormalization":
            first = _counted(node.numbers.get("axis", (-1,))[0], rank)
            return first is not None and first <= axis
        case "InstanceNormalization":
            return axis > 1
        case "GroupNormalization":
            return axis > 0
        case "DynamicQuantizeLinear":
            return True
    return False


def _reduces(node: Node, axis: int, graph: Graph, rank: int | None) -> bool:
    axes = _axes(node, graph.constants)
    if axes is None:
        return False  # computed while the model runs
    if not axes:
        return node.numbers.get("noop_with_empty_axes", (0,)) == (0,)
    return axis in {_counted(a, rank) for a in axes}


def _axes(node: Node, constants: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """An attribute in older operator sets, the second input in newer ones; () for none, None if unknown."""
    if "axes" in node.numbers:
        return node.numbers["axes"]
    if len(node.inputs) < 2 or not node.inputs[1]:
        return ()
    return constants.get(node.inputs[1])


def _counted(axis: int, rank: int | None) -> int | None:
    """An axis counted from the front; None where that cannot be known."""
    if axis >= 0:
        return axis
    return None if rank is None else axis + rank


def _rank(node: Node, ranks: Mapping[str, int]) -> int | None:
    return ranks.get(node.inputs[0]) if node.inputs else None


def _axis_after(node: Node, axis: int, graph: Graph) -> int | None:
    """Where the batch axis of a node's outputs lies; None where it is lost."""
    rank = _rank(node, graph.ranks)
    match node.op:
        case "Transpose":
            order = node.numbers.get("perm") or (tuple(reversed(range(rank))) if rank else ())
            return order.index(axis) if axis in order else None
        case "Unsqueeze" | "Squeeze":
            return _shifted(node, axis, graph)
        case "Reshape" | "Flatten":
            return axis if axis == 0 else None
    if node.op in _REDUCTIONS and node.numbers.get("keepdims", (1,)) == (0,):
        return _without(axis, [_counted(a, rank) for a in _axes(node, graph.constants) or ()])
    return axis


def _shifted(node: Node, axis: int, graph: Graph) -> int | None:
    axes = _axes(node, graph.constants)
    rank = _rank(node, graph.ranks)
    if not axes:
        return axis if axis == 0 and node.op == "Squeeze" else None
    if node.op == "Squeeze":
        return _without(axis, [_counted(a, rank) for a in axes])
    wider = None if rank is None else rank + len(axes)
    for added in sorted(a for a in (_counted(a, wider) for a in axes) if a is not None):
        axis += added <= axis
    return axis


def _without(axis: int, removed: list[int | None]) -> int | None:
    """Axes that are unknown are counted from the back, where the batch axis hardly ever lies."""
    known = [a for a in removed if a is not None]
    return None if axis in known else axis - sum(a < axis for a in known)

"""A graph read for rewriting: who makes and who reads each tensor, and which numbers are constant."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """Where the tensors of a graph come from and go to.

    Attributes:
        nodes: Name -> node.
        makers: Tensor name -> the node that makes it.
        readers: Tensor name -> the nodes that read it, once per use.
        constants: Name -> initializer.
        outputs: Names of the graph's outputs.
        shapes: Tensor name -> its sizes, None where the file leaves one open.
    """

    nodes: Mapping[str, Any]
    makers: Mapping[str, Any]
    readers: Mapping[str, tuple[Any, ...]]
    constants: Mapping[str, Any]
    outputs: frozenset[str]
    shapes: Mapping[str, tuple[int | None, ...]]

    def array(self, name: str) -> np.ndarray:
        """The numbers of an initializer."""
        found: np.ndarray = numpy_helper.to_array(self.constants[name])
        return found

    def private(self, name: str) -> bool:
        """Whether one node alone sees this tensor."""
        return name not in self.outputs and len(self.readers.get(name, ())) == 1


def wiring(model: Any) -> Wiring:
    """Read who makes and who reads what in the main graph.

    Args:
        model: An ``onnx.ModelProto``; shapes are known where it holds them.
    """
    graph = model.graph
    readers: dict[str, list[Any]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    return Wiring(
        nodes={node.name: node for node in graph.node},
        makers={name: node for node in graph.node for name in node.output},
        readers={name: tuple(nodes) for name, nodes in readers.items()},
        constants={t.name: t for t in graph.initializer},
        outputs=frozenset(o.name for o in graph.output),
        shapes={v.name: _shape(v) for v in (*graph.value_info, *graph.input, *graph.output)},
    )


def _shape(value: Any) -> tuple[int | None, ...]:
    dims = value.type.tensor_type.shape.dim
    return tuple(int(d.dim_value) if d.HasField("dim_value") else None for d in dims)


def attribute(node: Any, name: str, default: Any) -> Any:
    """An attribute of a node, or what it is when the file leaves it out."""
    found = (a for a in node.attribute if a.name == name)
    return next((onnx.helper.get_attribute_value(a) for a in found), default)


def copied(model: Any) -> Any:
    """An equal ``onnx.ModelProto`` that may be changed."""
    new = onnx.ModelProto()
    new.CopyFrom(model)
    return new


def named(model: Any) -> Any:
    """The same model with a name for every node, each different: what is found again after quantizing.

    Args:
        model: An ``onnx.ModelProto``; not modified.
    """
    new = copied(model)
    counts = Counter(node.name for node in new.graph.node)
    taken = set(counts)
    for i, node in enumerate(new.graph.node):
        if not node.name or counts[node.name] > 1:
            fresh = f"{node.op_type}_{i}"
            while fresh in taken:
                fresh += "_"
            taken.add(fresh)
            node.name = fresh
    return new


def replace_input_(graph: Any, node: Any, index: int, array: np.ndarray) -> None:
    """Give a node another constant as an input; others that read the old one keep it."""
    old = node.input[index]
    readers = sum(name == old for other in graph.node for name in other.input)
    tensor = next(t for t in graph.initializer if t.name == old)
    fresh = numpy_helper.from_array(np.array(array, order="C"), old)  # keeps a scalar a scalar
    if readers == 1:
        tensor.CopyFrom(fresh)
        return
    fresh.name = f"{old}_of_{node.name}_{index}"
    node.input[index] = fresh.name
    graph.initializer.append(fresh)

"""Who makes and who reads each tensor of a graph, and which node of a file an executed one stems from."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pastille.runtime.element_types import CONVERSIONS
from pastille.runtime.onnx_graph import Graph, Node

_FAR: Final = 8  # nodes that are walked on from an executed one that the runtime gave no name
# What ONNX Runtime appends to the name of a node that it makes from another.
# A fused operator -> what names it: the one that multiplies.
PLAIN: Final[Mapping[str, str]] = {
    "FusedConv": "Conv",
    "NhwcFusedConv": "Conv",
    "FusedGemm": "Gemm",
    "FusedMatMul": "MatMul",
    "FusedMatMulActivation": "MatMul",
    "NhwcMaxPool": "MaxPool",
}
_SUFFIX: Final = re.compile(r"(_token_\d+|_nchwc|/duplicated|/\w+Fusion/.*)+$")


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """A graph that can be walked in both directions."""

    graph: Graph
    makers: Mapping[str, Node]  # tensor -> the node that makes it
    readers: Mapping[str, tuple[Node, ...]]  # tensor -> the nodes that read it
    named: Mapping[str, Node]

    def made_by(self, tensor: str, op: str) -> Node | None:
        """The node that makes a tensor, if it is an ``op``."""
        maker = self.makers.get(tensor)
        return maker if maker is not None and maker.op == op else None

    def is_constant(self, tensor: str) -> bool:
        """Whether nothing that is fed can change it, as far as is seen at a glance."""
        maker = self.made_by(tensor, "DequantizeLinear")
        return tensor in self.graph.stored or (maker is not None and maker.inputs[0] in self.graph.stored)


def wire(graph: Graph) -> Wiring:
    """Follow every tensor of a graph."""
    readers: dict[str, list[Node]] = defaultdict(list)
    for node in graph.nodes:
        for tensor in dict.fromkeys(node.inputs):
            readers[tensor].append(node)
    return Wiring(
        graph=graph,
        makers={name: node for node in graph.nodes for name in node.outputs if name},
        readers={name: tuple(nodes) for name, nodes in readers.items()},
        named={node.name: node for node in graph.nodes if node.name},
    )


def origin(node: Node, executed: Wiring, file: Wiring) -> Node | None:
    """The node of the file that an executed node stems from; of a fused one, the one that names it.

    Args:
        node: Of the optimised graph.
        executed: The optimised graph.
        file: The graph of the file.
    """
    found = _origin(node, executed, file)
    is_fused = node.op in PLAIN or node.domain.startswith("com.microsoft.nchwc")
    return _fused_from(PLAIN.get(node.op, node.op), found, file) if is_fused and found is not None else found


def _fused_from(op: str, found: Node, file: Wiring) -> Node:
    """The ``op`` that an activation or an addition was fused into, walking back from the last of them."""
    walked: Node | None = found
    for _ in range(_FAR):
        if walked is None or walked.op == op:
            break
        walked = file.makers.get(next(iter(walked.inputs), ""))
    return found if walked is None or walked.op != op else walked


def _origin(node: Node, executed: Wiring, file: Wiring) -> Node | None:
    walked = node
    for _ in range(_FAR):
        found = _same(walked, file)
        if found is not None and (found.op not in CONVERSIONS or walked.op in CONVERSIONS):
            return found
        if found is not None:
            return _behind(found, file)
        after = executed.readers.get(walked.outputs[0], ()) if walked.outputs else ()
        if len(after) != 1:
            return None
        if after[0].op == "QuantizeLinear" and after[0].name in file.named:
            return _behind(file.named[after[0].name], file)
        walked = after[0]
    return None


def _same(node: Node, file: Wiring) -> Node | None:
    """By its name, by that of its output, or by what the runtime made its name from."""
    plain = _SUFFIX.sub("", node.name)
    names = (name for name in (node.name, plain) if name)
    by_name = next((file.named[name] for name in names if name in file.named), None)
    tensors = (*node.outputs[:1], plain)
    return by_name or next((file.makers[name] for name in tensors if name in file.makers), None)


def _behind(conversion: Node, file: Wiring) -> Node | None:
    """The node whose result is converted."""
    walked: Node | None = conversion
    for _ in range(_FAR):
        if walked is None or walked.op not in CONVERSIONS or not walked.inputs:
            return walked
        walked = file.makers.get(walked.inputs[0])
    return None


def spoken(node: Node) -> str:
    """What a node is called: its operator, and its name or else its output's."""
    return f"{node.op} {node.name or next(iter(node.outputs), '')}".strip()

"""The order of a graph's nodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def sort_(graph: Any) -> None:
    """Put every node behind those that it reads from, in place; else the order stays.

    ONNX asks for it, and so do its checker and other runtimes; quantizers put their pairs at the end.

    Args:
        graph: An ``onnx.GraphProto`` without cycles.
    """
    nodes = list(graph.node)
    makers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    placed: dict[int, None] = {}
    waiting = list(reversed(range(len(nodes))))
    while waiting:
        before = [makers[name] for name in _reads(nodes[waiting[-1]]) if name in makers]
        missing = [index for index in before if index not in placed]
        if missing:
            waiting += reversed(missing)
        else:
            placed[waiting.pop()] = None
    ordered = [nodes[index] for index in placed]
    del graph.node[:]
    graph.node.extend(ordered)


def _reads(node: Any) -> Iterator[str]:
    """What a node reads, in the bodies of its branches and loops too."""
    yield from node.input
    for body in (a.g for a in node.attribute if a.HasField("g")):
        for inner in body.node:
            yield from _reads(inner)

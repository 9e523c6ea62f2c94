"""The nodes of a graph: what each reads, which are needed, and their order."""

from __future__ import annotations

from typing import Any


def bodies(node: Any) -> list[Any]:
    """The graphs that a branch or loop, an ``onnx.NodeProto``, holds; they may read what is outside."""
    return [body for a in node.attribute for body in ([a.g] if a.HasField("g") else list(a.graphs))]


def reads(node: Any) -> list[str]:
    """What a node reads, in the bodies of its branches too."""
    inner = [name for body in bodies(node) for n in body.node for name in reads(n)]
    return [*node.input, *inner, *(o.name for body in bodies(node) for o in body.output)]


def drop_unused_(graph: Any) -> None:
    """Take away, in place, nodes and weights that no output depends on.

    Args:
        graph: An ``onnx.GraphProto``.
    """
    makers = {name: node for node in graph.node for name in node.output if name}
    used: set[str] = set()
    pending = [output.name for output in graph.output]
    while pending:
        if (name := pending.pop()) not in used:
            used.add(name)
            pending += reads(makers[name]) if name in makers else []
    nodes = [node for node in graph.node if used.intersection(node.output)]
    tensors = [t for t in graph.initializer if t.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)


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
        before = [makers[name] for name in reads(nodes[waiting[-1]]) if name in makers]
        missing = [index for index in before if index not in placed]
        if missing:
            waiting += reversed(missing)
        else:
            placed[waiting.pop()] = None
    ordered = [nodes[index] for index in placed]
    del graph.node[:]
    graph.node.extend(ordered)

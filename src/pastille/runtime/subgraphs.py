"""The graphs inside a graph: bodies of If, Loop and Scan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def subgraphs(graph: Any) -> Iterator[Any]:
    """The bodies of branches and loops, at any depth; they may read what is outside."""
    for node in graph.node:
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield body
                yield from subgraphs(body)

"""Models so quick that handing a call to a thread costs more than the call: they run on the event loop."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pastille.bundle import Variant, onnx_file
from pastille.errors import PastilleError
from pastille.runtime.onnx_graph import Graph, read_graph

QUICK_MS: Final = 0.25  # for which the event loop may stand still: about what parsing a request takes
_DOMAINS: Final = ("", "ai.onnx", "com.microsoft")  # of the operators; others may be functions of the file
# How long these take is decided by what is in the input, and what is in the input is up to the client.
_UNBOUNDED: Final = frozenset(
    {"Loop", "Scan", "If", "SequenceMap", "Range", "ConstantOfShape", "Expand", "Tile", "Resize", "Upsample"}
)


def quick_rows(directory: Path, variant: Variant, latency_ms: float | None) -> int:
    """How many cases of one call may run on the event loop; 0 where none may.

    Args:
        directory: The bundle, verified.
        variant: Of its manifest.
        latency_ms: Median here, batch 1.
    """
    if latency_ms is None or latency_ms > QUICK_MS:
        return 0
    try:
        with onnx_file(directory, variant) as path:
            bounded = takes_bounded_time(read_graph(path))
    except PastilleError:
        return 0
    return int(QUICK_MS / max(latency_ms, 0.001)) if bounded else 0


def takes_bounded_time(graph: Graph) -> bool:
    """Whether no input of one size can take much longer than another."""
    return all(node.domain in _DOMAINS and node.op not in _UNBOUNDED for node in graph.nodes)

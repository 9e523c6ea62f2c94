"""How long the kernel takes that makes each tensor, by ONNX Runtime's own profiler."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from pastille.errors import InferenceError
from pastille.runtime.onnx_graph import read_graph
from pastille.runtime.onnxruntime import Watched, watch
from pastille.runtime.profiling import ProfileError, read_calls, typical_times
from pastille.runtime.wiring import origin, wire

_WARMUP: Final = 3
_EVENTS: Final = 250_000


def node_times(
    batch: Mapping[str, np.ndarray], *, threads: int = 1, calls: int = 30, budget_s: float = 10.0
) -> Callable[[Any], Mapping[str, float]]:
    """A clock for the nodes of graphs.

    Args:
        batch: ``{name: (N, ...)}``, what every graph is asked.
        threads: That one call may use.
        calls: That are timed; fewer where ``budget_s`` does not permit as many.
        budget_s: Seconds for one graph.

    Returns:
        Given an ``onnx.ModelProto``: name of a tensor in it -> milliseconds of the kernel that makes it, of
        fused operators the one that multiplies. The conversions of a tensor count for that tensor.
    """

    def times(model: Any) -> Mapping[str, float]:
        with tempfile.TemporaryDirectory(prefix="pastille-") as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(model.SerializeToString())
            watched = watch(
                path,
                Path(folder),
                batch,
                threads=threads,
                calls=calls + _WARMUP,
                events=_EVENTS,
                budget_s=budget_s,
            )
            return _by_tensor(path, watched)

    return times


def _by_tensor(path: Path, watched: Watched) -> Mapping[str, float]:
    executed, file = wire(read_graph(watched.optimised)), wire(read_graph(path))
    found: dict[str, float] = defaultdict(float)
    for name, took_ms in _by_name(watched.profile).items():
        node = executed.named.get(name)
        source = origin(node, executed, file) if node is not None else None
        if source is not None and source.outputs:
            found[source.outputs[0]] += took_ms
    return found


def _by_name(profile: Path | None) -> Mapping[str, float]:
    """Milliseconds of each executed operator that has a name."""
    try:
        calls = read_calls(profile) if profile is not None else []
    except ProfileError as error:
        raise InferenceError(f"the runtime's profile is not as expected: {error}") from error
    calls = calls[min(_WARMUP, len(calls) - 1) :]
    if not calls or len({len(call) for call in calls}) > 1:
        return {}
    found: dict[str, float] = defaultdict(float)
    for event, took_us in zip(calls[0], typical_times(calls), strict=True):
        found[event.name] += float(took_us) / 1000
    return found

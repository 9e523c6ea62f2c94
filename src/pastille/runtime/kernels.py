"""Proof of what a file runs in: each operator that ONNX Runtime executes, its numbers and its time.

A quantized file says what could run in 8 bits. What does is read from the graph that the runtime has made of
it, and from the types of the tensors that its kernels gave while they ran. Neither needs the `onnx` package.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from pastille.devices import this_machine
from pastille.errors import UsageError
from pastille.runtime.element_types import element_types, precision
from pastille.runtime.onnx_graph import Node, count_nodes, read_graph
from pastille.runtime.onnxruntime import ONNXRUNTIME, Watched, watch
from pastille.runtime.products import CONVOLUTIONS, FAMILIES, Shape, macs
from pastille.runtime.profiling import Event, ProfileError, read_calls, typical_times
from pastille.runtime.why_float import why_float
from pastille.runtime.wiring import Wiring, origin, spoken, wire
from pastille.values import FloatKernel, KernelProof, KernelUse, Precision

MAX_NODES: Final = 20_000
_WARMUP: Final = 3
_EVENTS: Final = 250_000  # that the profiler may write, some 200 MB
_LISTED: Final = 100  # operators in float that are named
_TYPES: Final = {"float": 1, "uint8": 2, "int8": 3, "float16": 10, "double": 11, "bfloat16": 16} | {
    "uint16": 4,
    "int16": 5,
    "int32": 6,
    "int64": 7,
    "string": 8,
    "bool": 9,
    "uint32": 12,
    "uint64": 13,
    "uint4": 21,
    "int4": 22,
}


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One node that is executed."""

    node: Node
    precision: Precision
    macs: int | None
    share: float | None  # of the time of one call


def kernels(
    path: Path,
    batch: Mapping[str, np.ndarray],
    *,
    threads: int = 1,
    calls: int = 20,
    budget_s: float = 20.0,
) -> KernelProof:
    """Prove what a file runs in on this machine.

    The file is run under ONNX Runtime's own profiler, after three calls to warm up. Times are those of the
    middle half of the calls; the profiler adds some two microseconds to each operator, which flatters no kind
    of kernel but blurs networks that are done within a millisecond.

    Args:
        path: The ONNX file.
        batch: ``{name: (N, ...)}``, what it is asked.
        threads: That one call may use.
        calls: That are timed; fewer where the time or the number of operators does not permit as many.
        budget_s: Seconds after which no further call is made.

    Raises:
        IntegrityError: The file is missing, not an ONNX model, or keeps weights in another file.
        InferenceError: ONNX Runtime does not take it, or cannot run it.
        UsageError: It has more than 20,000 operators.
    """
    _check_size(path, count_nodes(path))
    with tempfile.TemporaryDirectory(prefix="pastille-") as folder:
        watched = watch(
            path,
            Path(folder),
            batch,
            threads=threads,
            calls=calls + _WARMUP,
            events=_EVENTS,
            budget_s=budget_s,
        )
        _check_size(path, count_nodes(watched.optimised))
        graph = read_graph(watched.optimised)
        seen, note = _seen(watched, graph.nodes)
    executed, file = wire(graph), wire(read_graph(path))
    types, found = _executed(executed, file, seen, batch)
    floats = [k for k in found if k.precision == "float"]
    conversions = _conversions(found, executed)
    named = sorted((_float_kernel(k, executed, file, types, conversions) for k in floats), key=_dearest)
    return KernelProof(
        uses=_uses(found),
        floats=tuple(named[:_LISTED]),
        more_floats=max(0, len(named) - _LISTED),
        batch=_batch_size(batch),
        calls=len(seen),
        conditions=this_machine(
            threads=threads, runtime=ONNXRUNTIME.name, runtime_version=ONNXRUNTIME.version
        ),
        note=note,
    )


def _check_size(path: Path, nodes: int) -> None:
    if nodes > MAX_NODES:
        raise UsageError(f"{path.name} has {nodes:,} operators; at most {MAX_NODES:,} are looked at")


def _batch_size(batch: Mapping[str, np.ndarray]) -> int:
    first = next(iter(batch.values()), np.zeros(1))
    return int(first.shape[0]) if first.ndim else 1


def _seen(watched: Watched, nodes: Sequence[Node]) -> tuple[list[list[Event]], str]:
    """What the profiler saw of these nodes, call by call after the warm-up, or why that is not known."""
    if watched.profile is None:
        return [], "the graph has too many operators to be timed"
    try:
        calls = read_calls(watched.profile)
    except ProfileError as error:
        return [], f"not timed, the runtime's profile is not as expected: {error}"
    warm = calls[min(_WARMUP, len(calls) - 1) :] if calls else []
    order = _order(warm[0], nodes) if warm else None
    if order is None or not all(_is_alike(call, warm[0]) for call in warm):
        return [], "not timed: the runtime's profile does not fit the graph that it says it executed"
    return [[call[at] for at in order] for call in warm], ""


def _order(call: Sequence[Event], nodes: Sequence[Node]) -> list[int] | None:
    """For each node, which event of a call is its own; None where that is not certain."""
    if len(call) != len(nodes):
        return None
    if all(_fits(event, node) for event, node in zip(call, nodes, strict=True)):
        return list(range(len(nodes)))  # as a rule the graph is written in the order of execution
    taken = {(event.op, event.name): at for at, event in enumerate(call)}
    named = [taken.pop((node.op, node.name), None) if node.name else None for node in nodes]
    left: dict[str, list[int]] = defaultdict(list)
    for (op, _), at in taken.items():
        left[op].append(at)
    order = [at if at is not None else _only(left[node.op]) for at, node in zip(named, nodes, strict=True)]
    found = [at for at in order if at is not None]
    return found if len(set(found)) == len(nodes) else None


def _only(places: Sequence[int]) -> int | None:
    return places[0] if len(places) == 1 else None


def _fits(event: Event, node: Node) -> bool:
    return event.op == node.op and (not node.name or event.name == node.name)


def _is_alike(call: Sequence[Event], other: Sequence[Event]) -> bool:
    return [(e.op, e.name) for e in call] == [(e.op, e.name) for e in other]


def _executed(
    executed: Wiring, file: Wiring, seen: Sequence[Sequence[Event]], batch: Mapping[str, np.ndarray]
) -> tuple[Mapping[str, int], list[Kernel]]:
    """Types of the tensors, and every node that is executed."""
    nodes = executed.graph.nodes
    results = _results(nodes, seen[-1]) if seen else {}
    types = element_types(executed.graph, {name: kind for name, (kind, _) in results.items() if kind})
    shapes: dict[str, Shape] = {name: np.shape(x) for name, x in batch.items()}
    shapes |= {name: tensor.dims for name, tensor in executed.graph.stored.items()}
    shapes |= {name: shape for name, (_, shape) in results.items()}
    times = typical_times(seen) if seen else np.zeros(len(nodes))
    total = float(times.sum())
    return types, [
        Kernel(
            node=node,
            precision=precision(node, types),
            macs=macs(node, shapes, _weight(node, executed, file)),
            share=float(took) / total if total else None,
        )
        for node, took in zip(nodes, times, strict=True)
    ]


def _results(nodes: Sequence[Node], call: Sequence[Event]) -> dict[str, tuple[int, Shape]]:
    """Type and shape of each tensor that was made; outputs that are left out are in neither list."""
    found: dict[str, tuple[int, Shape]] = {}
    for node, event in zip(nodes, call, strict=True):
        names = [name for name in node.outputs if name]
        found |= {
            name: (_TYPES.get(kind, 0), shape)
            for name, (kind, shape) in zip(names, event.outputs, strict=False)
        }
    return found


def _weight(node: Node, executed: Wiring, file: Wiring) -> Shape | None:
    """Shape of a convolution's weight in the file: for some kernels the runtime pads its channels."""
    if node.domain != "com.microsoft.nchwc" or node.op not in CONVOLUTIONS:
        return None
    source = origin(node, executed, file)
    if source is None:
        return None
    stored = [file.graph.stored[name].dims for name in source.inputs[1:2] if name in file.graph.stored]
    return next(iter(stored), None)


def _conversions(found: Sequence[Kernel], executed: Wiring) -> dict[str, float]:
    """Output of a float node -> share of the time that goes to converting its inputs and outputs.

    What several float nodes read is paid for by each in equal parts.
    """
    shares = {k.node.outputs[0]: k.share for k in found if k.node.outputs and k.precision == "conversion"}
    floats = {k.node.outputs[0] for k in found if k.node.outputs and k.precision == "float"}
    paid: dict[str, float] = defaultdict(float)
    for name, share in shares.items():
        node = executed.makers[name]
        payers = [
            r.outputs[0] for r in executed.readers.get(name, ()) if r.outputs and r.outputs[0] in floats
        ]
        if node.op == "QuantizeLinear" and (maker := executed.makers.get(node.inputs[0])) is not None:
            payers = [x for x in maker.outputs[:1] if x in floats]
        for payer in payers:
            paid[payer] += (share or 0.0) / len(payers)
    return paid


def _float_kernel(
    k: Kernel, executed: Wiring, file: Wiring, types: Mapping[str, int], conversions: Mapping[str, float]
) -> FloatKernel:
    source = origin(k.node, executed, file)
    return FloatKernel(
        operator=k.node.op,
        name=spoken(source or k.node),
        reason=why_float(k.node, executed, types, source, runtime=f"ONNX Runtime {ONNXRUNTIME.version}"),
        macs=k.macs,
        share=k.share,
        conversions=None if k.share is None else conversions.get(next(iter(k.node.outputs), ""), 0.0),
    )


def _dearest(found: FloatKernel) -> tuple[float, int]:
    return -(found.share or 0.0) - (found.conversions or 0.0), -(found.macs or 0)


def _uses(found: Sequence[Kernel]) -> tuple[KernelUse, ...]:
    alike: dict[tuple[str, Precision], list[Kernel]] = defaultdict(list)
    for kernel in found:
        alike[kernel.node.op, kernel.precision].append(kernel)
    uses = [_use(op, kind, group) for (op, kind), group in alike.items()]
    return tuple(sorted(uses, key=lambda use: (-(use.share or 0.0), use.operator)))


def _use(op: str, kind: Precision, group: Sequence[Kernel]) -> KernelUse:
    counted = [k.macs for k in group if k.macs is not None]
    shares = [k.share for k in group if k.share is not None]
    return KernelUse(
        operator=op,
        precision=kind,
        count=len(group),
        macs=sum(counted) if len(counted) == len(group) else None,
        share=sum(shares) if len(shares) == len(group) else None,
        family=FAMILIES.get(op, ""),
    )

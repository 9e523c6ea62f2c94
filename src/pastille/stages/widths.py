"""Widths where this machine's kernels are fast, found by timing small networks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pastille.measure.latency import compare
from pastille.progress import Progress
from pastille.pruning.latency import FastWidths, fast_multiple
from pastille.quantization.post_training import quantize_static
from pastille.recipe import Quantize
from pastille.runtime import load
from pastille.values import Conditions

_REFERENCE: Final = 64  # width that the others are compared with
_DEPTH: Final = 3
_SIDE: Final = 14  # pixels
_OPSET: Final = 20
_SECONDS: Final = 0.5  # for one comparison

Precision = Literal["fp32", "int8"]


def fast_widths(
    precision: Precision, *, threads: int, conditions: Conditions, progress: Progress
) -> FastWidths:
    """Measure of which number widths should be multiples on this machine: `round_to: auto`.

    Args:
        precision: Of the files that ship: int8 where the plan quantizes later.
        threads: That a call may use.
        conditions: What is measured on.
        progress: Shown width by width.
    """
    with tempfile.TemporaryDirectory(prefix="pastille-") as folder:
        clock = _clock(precision, Path(folder), threads, conditions)
        found = fast_multiple(_shown(clock, progress), precision=precision)
    progress.note(found.words)
    return found


def _shown(clock: Callable[[int], float], progress: Progress) -> Callable[[int], float]:
    def timed(width: int) -> float:
        (found,) = [clock(w) for w in progress.track([width], what=f"timing kernels of width {width}")]
        return found

    return timed


def _clock(
    precision: Precision, folder: Path, threads: int, conditions: Conditions
) -> Callable[[int], float]:
    """Width -> time, as a share of the reference's, which is timed in alternation."""
    batch = {"input": np.random.default_rng(0).standard_normal((1, 3, _SIDE, _SIDE)).astype(np.float32)}
    reference = load(_file(_REFERENCE, precision, folder, batch), threads=threads)

    def clock(width: int) -> float:
        session = load(_file(width, precision, folder, batch), threads=threads)
        return 1 / compare(reference, session, batch, conditions=conditions, budget_s=_SECONDS).ratio

    return clock


def _file(width: int, precision: Precision, folder: Path, batch: dict[str, np.ndarray]) -> Path:
    path = folder / f"{width}.onnx"
    onnx.save(probe(width), path)
    if precision == "int8":
        quantize_static(path, path, lambda: [batch], Quantize(recover="none"))
    return path


def probe(width: int) -> Any:
    """A small network of one width throughout, as an ``onnx.ModelProto``: 3×3 and 1×1 convolutions.

    Args:
        width: Channels of each layer.
    """
    sizes = [(3, 1), *[(width, kernel) for _ in range(_DEPTH) for kernel in (3, 1)]]
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "input"
    for number, (reads, kernel) in enumerate(sizes):
        shape = (width, reads, kernel, kernel)
        values = rng.standard_normal(shape, dtype=np.float32) / np.sqrt(reads * kernel**2)
        weights.append(numpy_helper.from_array(values.astype(np.float32), f"weight{number}"))
        weights.append(numpy_helper.from_array(np.zeros(width, np.float32), f"bias{number}"))
        inputs, pads = [last, f"weight{number}", f"bias{number}"], [kernel // 2] * 4
        nodes.append(helper.make_node("Conv", inputs, [f"conv{number}"], name=f"conv{number}", pads=pads))
        nodes.append(helper.make_node("Relu", [f"conv{number}"], [f"relu{number}"], name=f"relu{number}"))
        last = f"relu{number}"
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["output"], name="pool"))
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, _SIDE, _SIDE])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", width, 1, 1])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)

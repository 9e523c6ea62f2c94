"""Temperature scaling inside the file: its answers divided by one number, so that nobody can forget it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from pastille.errors import ExportError, ParityError
from pastille.files import produce_atomic
from pastille.runtime import Session, load
from pastille.runtime.subgraphs import subgraphs

METADATA_KEY = "pastille.temperature"
RELATIVE_TOLERANCE = 1e-6
_NODE = "pastille_temperature"
_FLOATS = {onnx.TensorProto.FLOAT: np.float32, onnx.TensorProto.DOUBLE: np.float64}


def scale_output(source: Path, target: Path, temperature: float, batch: Mapping[str, np.ndarray]) -> float:
    """Write a file that answers with the first output divided by a temperature.

    One multiplication before the output does it; names and shapes stay. A file that has been scaled
    before keeps its one multiplication, and the temperatures multiply. Works on float and on quantized
    files alike, whose answers are float.

    Args:
        source: A self-contained ONNX file; not modified.
        target: Written whole or not at all, once its answers to ``batch`` are right.
        temperature: Positive.
        batch: Real inputs ``{name: (N, ...)}`` that the two files are compared on.

    Returns:
        The temperature in all, of this and earlier scalings; also in the file's metadata.

    Raises:
        ExportError: The output is not float, or nothing computes it.
        ParityError: The new file does not answer like the old one, divided.
        OutputError: The file cannot be written.
        IntegrityError: ``source`` is not a self-contained ONNX model.
        InferenceError: A file cannot be run.
        ValueError: ``temperature`` is out of range.

    References:
        Guo et al., ICML 2017, arXiv:1706.04599.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    expected = _answer(load(source), batch) / temperature
    model = onnx.load(source, load_external_data=False)
    total = temperature * recorded_temperature(model)
    _scale_(model, source.name, total)
    onnx.helper.set_model_props(model, {**_metadata(model), METADATA_KEY: repr(total)})
    data = model.SerializeToString(deterministic=True)

    def produce(draft: Path) -> None:
        draft.write_bytes(data)
        _require_same(_answer(load(draft), batch), expected, target.name)

    produce_atomic(target, produce)
    return total


def temperature_of(path: Path) -> float:
    """What a file's answers have been divided by; 1 if nothing was.

    Args:
        path: An ONNX file.
    """
    return recorded_temperature(onnx.load(path, load_external_data=False))


def recorded_temperature(model: Any) -> float:
    """As `temperature_of`, of an ``onnx.ModelProto``."""
    return float(_metadata(model).get(METADATA_KEY, "1"))


def _metadata(model: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def _scale_(model: Any, name: str, total: float) -> None:
    graph = model.graph
    output = graph.output[0]
    dtype = _FLOATS.get(output.type.tensor_type.elem_type)
    maker = next((node for node in graph.node if output.name in node.output), None)
    if dtype is None or maker is None:
        what = "is not float32 or float64" if dtype is None else "is computed by no operator"
        raise ExportError(
            f"{name} cannot be scaled: its output {output.name!r} {what}; leave calibrate out of the plan",
            operator=output.name,
        )
    if maker.name != _NODE:
        maker = _append_(graph, output.name, maker)
    factor = numpy_helper.from_array(np.asarray(1 / total, dtype), maker.input[1])
    others = [tensor for tensor in graph.initializer if tensor.name != factor.name]
    del graph.initializer[:]
    graph.initializer.extend([*others, factor])


def _append_(graph: Any, output: str, maker: Any) -> Any:
    """Let a multiplication make the output; what made it so far, and who reads that, takes a new name."""
    raw = f"{output}_before_temperature"
    for node in (n for part in (graph, *subgraphs(graph)) for n in part.node):
        node.input[:] = [raw if read == output else read for read in node.input]
    for result in (r for body in subgraphs(graph) for r in body.output):
        result.name = raw if result.name == output else result.name
    maker.output[:] = [raw if made == output else made for made in maker.output]
    node = onnx.helper.make_node("Mul", [raw, f"{_NODE}_factor"], [output], name=_NODE)
    graph.node.append(node)
    return graph.node[-1]


def _answer(session: Session, batch: Mapping[str, np.ndarray]) -> np.ndarray:
    return session(batch)[session.outputs[0].name].astype(np.float64)


def _require_same(found: np.ndarray, expected: np.ndarray, name: str) -> None:
    error = float(np.abs(found - expected).max())
    tolerance = RELATIVE_TOLERANCE * float(np.abs(expected).max())
    if not error <= tolerance:
        raise ParityError(
            f"{name} does not answer like the file it was scaled from: it differs by {error:.3g}, "
            f"tolerated {tolerance:.3g}",
            max_abs_error=error,
            tolerance=tolerance,
        )

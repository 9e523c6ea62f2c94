"""Training in int8: the quantized file becomes a module, is trained, and is written back with other numbers.

PTQ and this share one placement by construction: nothing but integers, scales and zero points of the
file changes, so its kernels, and their speed, are those of the file that PTQ wrote.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch

from pastille.errors import PreconditionError, StageError
from pastille.files import produce_atomic
from pastille.quantization.origins import origins
from pastille.quantization.qdq_reading import float_graph, simulation
from pastille.quantization.qdq_writing import written
from pastille.quantization.rewrites import rewritten
from pastille.quantization.simulation import Simulation
from pastille.task.forward import forward

if TYPE_CHECKING:
    from torch import Tensor, nn

_TOLERANCE = 1e-3  # of the answers' largest magnitude, as for an exported file


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A quantized file made ready to be trained.

    Attributes:
        simulation: Answers as the file does; its parameters are copies of the module's.
        source: The float graph that was quantized, an ``onnx.ModelProto``.
        quantized: The file's graph, an ``onnx.ModelProto``.
        left: Names of weights that require a gradient and stay as they are all the same: the file holds
            something that was computed from them.
    """

    simulation: Simulation
    source: Any
    quantized: Any
    left: tuple[str, ...] = ()


def prepare(source: Path, quantized: Path, module: nn.Module, *, weight_bits: int | None = None) -> Prepared:
    """Make a quantized file trainable, starting from its own ranges and the module's own weights.

    Batch norms keep their statistics: they are folded in the file, so they are in training.

    Args:
        source: The float file that the module was exported to.
        quantized: What `pastille.quantization.quantize_static` made of it.
        module: Not modified; its parameters that require a gradient are those that are trained.
        weight_bits: Of weights, fewer than the file's; they are stored in its eight.

    Raises:
        PreconditionError: An operator cannot be trained through, or nothing in the file can be trained.
    """
    exported = onnx.load(source, load_external_data=False)
    graph, float_model = onnx.load(quantized, load_external_data=False), rewritten(exported)
    half = None if weight_bits is None else 2 ** (weight_bits - 1)
    simulated = simulation(graph, float_model, half=half)
    simulated.learn(origins(exported, rewritten, module), module)
    weights = {s.name for s in simulated.stored if s.kind == "weight"}
    if not weights & set(simulated.origins):
        raise PreconditionError(
            "quantize: none of the weights that run in int8 is a parameter of the model that requires a "
            "gradient; let its factory unfreeze some, or use method: ptq"
        )
    asked = [name for name, p in module.named_parameters() if p.requires_grad and p.ndim > 1]
    left = tuple(name for name in asked if name not in simulated.parameter_names)
    return Prepared(simulation=simulated, source=float_model, quantized=graph, left=left)


def measure_ranges(
    simulated: Simulation, batches: Iterable[Mapping[str, Tensor]], *, again: bool = False
) -> None:
    """Note how far activations reach before training; their ranges then change as that does.

    Args:
        simulated: From `prepare`; its buffers change.
        batches: Of training inputs, ``{name: (N, ...)}``, of the size that training will use.
        again: Whether to hold them against what was noted before training, on the same batches.
    """
    simulated.eval()
    simulated.set_ranges("again" if again else "measure")
    with torch.no_grad():
        for batch in batches:
            forward(simulated, batch)
    simulated.set_ranges("fixed")


def finish(
    prepared: Prepared, trained: Simulation, module: nn.Module, target: Path, batch: Mapping[str, Tensor]
) -> nn.Module:
    """Write the trained file, and give back the module with the float weights behind it.

    Args:
        prepared: From `prepare`.
        trained: Its simulation, trained.
        module: What the file was exported from; not modified.
        target: Written whole or not at all.
        batch: Real inputs that the module with its new weights is compared on.

    Raises:
        StageError: That module does not answer like the float graph with the same weights.
        OutputError: The file cannot be written.
    """
    data = written(prepared.quantized, trained).SerializeToString(deterministic=True)
    new = _with_parameters(module, trained)
    in_float = float_graph(prepared.source)
    in_float.learn(trained.origins, new)
    with torch.no_grad():
        expected, found = forward(in_float.eval(), batch), forward(new.eval(), batch)
    if not bool((found - expected).abs().max() <= _TOLERANCE * expected.abs().max()):
        raise StageError("stage 'quantize' must give the module the weights that it trained, but did not")
    produce_atomic(target, lambda draft: draft.write_bytes(data))
    return new


def _with_parameters(module: nn.Module, trained: Simulation) -> nn.Module:
    new = copy.deepcopy(module)
    parameters = dict(new.named_parameters())
    with torch.no_grad():
        for name, value in zip(trained.parameter_names, trained.learned, strict=True):
            parameters[name].copy_(value.detach().to(parameters[name].device))
    return new

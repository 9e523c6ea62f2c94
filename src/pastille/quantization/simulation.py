"""A quantized ONNX file as a torch module that rounds where the file rounds and can be trained.

What is trained is the file: every pair of QuantizeLinear and DequantizeLinear becomes a rounding whose
gradient passes straight through, and every other operator runs in torch as ONNX defines it. So training
and file have one placement, whatever wrote the file; and batch norms, which are folded in the file, are
folded in training, their statistics fixed from the start.

References:
    Bengio et al., 2013, arXiv:1308.3432 (straight-through gradients).
    Nagel et al., 2021, arXiv:2106.08295, section 4.2 (training with batch norms folded beforehand, from a
    trained model, against following their statistics as in Jacob et al., CVPR 2018, arXiv:1712.05877).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from pastille.errors import PreconditionError
from pastille.quantization.fake import Activation, Mode, fake_bias, fake_constant, fake_weight, weight_scales
from pastille.quantization.onnx_operators import OPERATORS, UnknownFormError
from pastille.quantization.origins import Origin

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Step:
    """One operator, or a rounding."""

    call: str  # of OPERATORS, or "round" with an Activation's number, or "stored" with a Stored's
    attributes: Mapping[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    rounding: int = -1


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A constant that the file holds in integers.

    Attributes:
        kind: ``weight`` is symmetric, ``constant`` has a zero point, ``bias`` is rounded to steps of the
            products that it is added to: that moves one answer in some hundred by a step, and a deep
            network makes much of it.
        axis: Of the channels that have steps of their own; None for one step size for all.
        half: Largest integer of a weight.
        levels: First and last integer of a constant.
        tensors: Names of the integers, the scale and the zero point in the file; "" where it has none.
        factors: Of a bias, the scale of the activation and the name of the weight whose products it is
            added to; None of the others.
    """

    name: str
    kind: Literal["weight", "constant", "bias"]
    axis: int | None
    half: int
    levels: tuple[int, int]
    tensors: tuple[str, str, str]
    factors: tuple[str, str] | None = None


class Simulation(nn.Module):
    """An ONNX graph in torch; from `pastille.quantization.qdq_reading`."""

    def __init__(
        self,
        steps: tuple[Step, ...],
        interface: tuple[tuple[str, ...], str],
        constants: Mapping[str, np.ndarray],
        roundings: Mapping[str, Activation],
        stored: tuple[Stored, ...],
    ) -> None:
        super().__init__()
        self.steps, self.stored = steps, stored
        self.inputs, self.output = interface
        self.grids = tuple(roundings)  # name of the scale in the file, in the order of the roundings
        self.roundings = nn.ModuleList(roundings.values())
        self.names = tuple(constants)
        self.origins: Mapping[str, Origin] = {}
        self.parameter_names: tuple[str, ...] = ()
        self.learned = nn.ParameterList()
        for number, value in enumerate(constants.values()):
            self.register_buffer(f"constant_{number}", torch.from_numpy(np.array(value)))

    def forward(self, *given: Tensor, **named: Tensor) -> Tensor:
        """Answer a batch: the inputs by position or by name, ``(N, ...)``."""
        values: dict[str, Any] = {**dict(zip(self.inputs, given, strict=False)), **named}
        values |= {name: self.constant(name) for name in self.names}
        for step in self.steps:
            values |= zip(step.outputs, self._run(step, values), strict=False)
        return values[self.output]  # type: ignore[no-any-return]

    def _run(self, step: Step, values: Mapping[str, Any]) -> tuple[Any, ...]:
        inputs: list[Any] = [values[name] if name else None for name in step.inputs]
        if step.call == "round":
            return (self.roundings[step.rounding](inputs[0]),)
        if step.call == "stored":
            return (self._rounded(inputs[0], self.stored[step.rounding]),)
        try:
            out = OPERATORS[step.call](step.attributes, *inputs)
        except UnknownFormError as error:
            raise unsimulated(f"{step.call} with {error}") from error
        return out if isinstance(out, tuple) else (out,)

    def _rounded(self, value: Tensor, stored: Stored) -> Tensor:
        if stored.factors is not None:
            return fake_bias(value, self.bias_steps(*stored.factors))
        if stored.kind == "weight":
            return fake_weight(value, stored.axis, stored.half)
        return fake_constant(value, stored.levels)

    def bias_steps(self, scale: str, weight: str) -> Tensor:
        """The steps of a bias, by its `Stored.factors`: those of the input times those of the weight."""
        rounding = self.roundings[self.grids.index(scale)]
        assert isinstance(rounding, Activation)
        of_weight = next(s for s in self.stored if s.name == weight)
        return rounding.grid()[0] * weight_scales(self.constant(weight), of_weight.axis, of_weight.half)

    def constant(self, name: str) -> Tensor:
        """A constant of the graph, as the parameter that is learned makes it where there is one."""
        origin = self.origins.get(name)
        if origin is None:
            return getattr(self, f"constant_{self.names.index(name)}")  # type: ignore[no-any-return]
        return origin.constant(self.learned[self.parameter_names.index(origin.parameter)])

    def learn(self, origins: Mapping[str, Origin], module: nn.Module) -> None:
        """Let constants follow from copies of a module's parameters, which an optimizer can then change."""
        known = dict(module.named_parameters())
        self.origins = {name: origin for name, origin in origins.items() if name in self.names}
        self.parameter_names = tuple(dict.fromkeys(o.parameter for o in self.origins.values()))
        copies = (known[name].detach().clone() for name in self.parameter_names)
        self.learned = nn.ParameterList(copies)

    def set_ranges(self, mode: Mode, *, batches: int = 1) -> None:
        """Whether ranges of activations are fixed, measured, or follow, in epochs of so many batches."""
        for rounding in self.roundings:
            assert isinstance(rounding, Activation)
            rounding.begin(mode, batches)


def unsimulated(what: str) -> PreconditionError:
    """Training cannot go through this operator."""
    return PreconditionError(
        f"quantize: training in int8 cannot go through operator {what}; leave quantize out, or use "
        "method: ptq or dynamic where the risk tier permits it"
    )

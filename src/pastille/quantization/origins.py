"""Which parameter of the user's module a constant of an exported file follows from, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

_PREFIX = "model."  # the export calls the user's module so
_RELATIVE, _ABSOLUTE = 1e-4, 1e-6
_DIGIT = 1 << 24  # whole numbers below it are exact in float32, and two of them reach its square


@dataclass(frozen=True, kw_only=True)
class Origin:
    """How a constant follows from a parameter: ``gain · parameter + shift``, moved to its places.

    Attributes:
        parameter: Dotted name in the module.
        transposed: Whether rows and columns are swapped.
        gain: Broadcasts over the parameter; what batch norm folding multiplied by.
        shift: What it added.
        places: Index into the flat result for each element of the constant, -1 for a zero; None where
            it is taken as it is.
    """

    parameter: str
    transposed: bool = False
    gain: Tensor
    shift: Tensor
    places: Tensor | None = None

    def constant(self, parameter: Tensor) -> Tensor:
        """The constant that a parameter makes; differentiable."""
        device = parameter.device
        value = parameter.T if self.transposed else parameter
        value = value * self.gain.to(device) + self.shift.to(device)
        if self.places is None:
            return value
        places = self.places.to(device)
        flat = torch.cat([value.reshape(-1), value.new_zeros(1)])
        return flat[places.reshape(-1)].reshape(places.shape)


def origins(exported: Any, rewrite: Callable[[Any], Any], module: nn.Module) -> dict[str, Origin]:
    """Find the parameter behind each constant, by name and value.

    A constant that stands for two parameters of equal values is left out: what is learned of it could
    not be written back.

    Args:
        exported: The float ``onnx.ModelProto`` that the module was exported to.
        rewrite: Gives the equal one that was quantized.
        module: What was exported.

    Returns:
        Name of a constant, of the exported or of the rewritten graph -> its origin, where it has one.
    """
    tied = dict(module.named_parameters(remove_duplicate=False))
    parameters = {n: p.detach().cpu() for n, p in tied.items() if p.requires_grad}
    constants = _floats(exported)
    found: dict[str, Origin] = {}
    for name, value in constants.items():
        if value.numel() and name not in found:
            found |= _origin(name, value, constants, parameters, module)
    first = {id(p): name for name, p in module.named_parameters()}
    found = {n: replace(o, parameter=first[id(tied[o.parameter])]) for n, o in found.items()}
    unused = set(first.values()) - {o.parameter for o in found.values()}
    free = [parameters[name] for name in unused & set(parameters)]
    found = {n: o for n, o in found.items() if not any(_equal(parameters[o.parameter], p) for p in free)}
    moved = places(exported, rewrite).items()
    return found | {n: replace(found[source], places=at) for n, (source, at) in moved if source in found}


def _floats(model: Any) -> dict[str, Tensor]:
    held = (t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    return {t.name: torch.from_numpy(np.array(numpy_helper.to_array(t))) for t in held}


def _origin(
    name: str,
    value: Tensor,
    constants: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    module: nn.Module,
) -> dict[str, Origin]:
    named = name.removeprefix(_PREFIX)
    own = parameters.get(named)
    if own is not None and _equal(own, value):
        return {name: _plain(named)}
    if own is not None and own.shape == value.shape and own.ndim > 1:
        return _folded(name, value, own, constants, parameters, module)
    if own is None and value.ndim == 2:
        same = next((p for p, x in parameters.items() if x.ndim == 2 and _equal(x.T, value)), None)
        return {} if same is None else {name: _plain(same, transposed=True)}
    return {}


def _plain(parameter: str, *, transposed: bool = False) -> Origin:
    return Origin(parameter=parameter, transposed=transposed, gain=torch.ones(()), shift=torch.zeros(()))


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=_RELATIVE, atol=_ABSOLUTE)


def _folded(
    name: str,
    value: Tensor,
    own: Tensor,
    constants: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    module: nn.Module,
) -> dict[str, Origin]:
    """A weight and its bias into which a batch norm was folded; the batch norm is found by its numbers."""
    layer = name.removeprefix(_PREFIX).rpartition(".")[0]
    bias = parameters.get(f"{layer}.bias", torch.zeros(()))
    held = [n for n in (f"{name}_bias", f"{_PREFIX}{layer}.bias") if n in constants]
    axis = 1 if isinstance(module.get_submodule(layer), _TRANSPOSED) else 0
    for norm, gain, shift in _batch_norms(module):
        gains = gain.reshape([-1 if i == axis else 1 for i in range(own.ndim)])
        if gain.numel() != own.shape[axis] or not _scaled(own, gain, value, axis):
            continue
        weight = {name: replace(_plain(f"{layer}.weight"), gain=gains)}
        learned, moved = parameters.get(f"{norm}.bias"), bias * gain + shift
        matching = [n for n in held if learned is not None and _close(learned + moved, constants[n])]
        return weight | {n: replace(_plain(f"{norm}.bias"), shift=moved) for n in matching[:1]}
    return {}


def _scaled(own: Tensor, gain: Tensor, value: Tensor, axis: int) -> bool:
    """Whether a weight times the gains of its channels is the value; one number of each is tried first."""
    a, b = own.movedim(axis, 0), value.movedim(axis, 0)
    ones = [1] * (own.ndim - 1)
    one = [x.flatten(1)[:, 0] if ones else x for x in (a, b)]
    return _close(one[0] * gain, one[1]) and _close(a * gain.reshape(-1, *ones), b)


_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _batch_norms(module: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, gain and shift of each batch norm with fixed statistics, without its own bias."""
    for name, norm in module.named_modules():
        mean, var = getattr(norm, "running_mean", None), getattr(norm, "running_var", None)
        if mean is None or var is None:
            continue
        held: Any = norm
        gain = (var.double() + held.eps).rsqrt().cpu()
        gain = gain if held.weight is None else gain * held.weight.detach().double().cpu()
        yield name, gain.float(), (-mean.double().cpu() * gain).float()


def places(exported: Any, rewrite: Callable[[Any], Any]) -> dict[str, tuple[str, Tensor]]:
    """Where a rewriting puts the elements of each constant, found by rewriting numbered ones.

    Args:
        exported: An ``onnx.ModelProto``.
        rewrite: Gives an equal one with other constants.

    Returns:
        Name of a new constant -> the constant all its elements come from, and the flat index of each,
        -1 for a zero. Constants that are computed rather than moved are not in it.
    """
    sizes = {n: x.numel() for n, x in _floats(exported).items()}
    starts = dict(zip(sizes, np.cumsum([1, *sizes.values()])[:-1].tolist(), strict=True))
    before, real = _floats(exported), _floats(rewrite(exported))
    if real.keys() <= before.keys():
        return {}
    powers = range(1 if sum(sizes.values()) + 1 < _DIGIT else 2)
    digits = [_floats(rewrite(_numbered(exported, starts, power))) for power in powers]
    found = {}
    for name, value in real.items():
        if name in before or any(name not in d or d[name].shape != value.shape for d in digits):
            continue
        parts = [d[name].double() * float(_DIGIT) ** power for power, d in enumerate(digits)]
        numbers = torch.stack(parts).sum(dim=0).long()
        used = numbers[numbers > 0]
        source = next((n for n, s in starts.items() if used.numel() and s <= used[0] < s + sizes[n]), None)
        if source is None:
            continue
        index = torch.where(numbers > 0, numbers - starts[source], -1)
        inside = bool((index >= -1).all() and (index < sizes[source]).all())
        flat = torch.cat([before[source].reshape(-1), torch.zeros(1)])
        if inside and _equal(flat[index.reshape(-1)].reshape(value.shape), value):
            found[name] = (source, index)
    return found


def _numbered(model: Any, starts: Mapping[str, int], power: int) -> Any:
    """The model, its constants replaced by one digit of the running number of each element."""
    new = onnx.ModelProto()
    new.CopyFrom(model)
    for tensor in new.graph.initializer:
        if tensor.name in starts:
            size = int(np.prod(tuple(tensor.dims)))
            numbers = np.arange(starts[tensor.name], starts[tensor.name] + size)
            digit = (numbers // _DIGIT) if power else numbers % _DIGIT
            value = digit.astype(np.float32).reshape(tuple(tensor.dims))
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return new

"""Shortcuts of the first ResNets: modules without weights that subsample and add channels of zeros.

Which channels they pad is written into their code, so that they would pad a pruned network wrongly. A
convolution of one pixel that copies each channel does the same, and can be cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pastille.task.forward import forward

if TYPE_CHECKING:
    from torch import Tensor


def option_a_convolutions(model: nn.Module, batch: Mapping[str, Tensor]) -> Mapping[str, nn.Conv2d]:
    """Find the modules that equal a convolution of ones and zeros, by trying them on random images.

    Args:
        model: In eval mode; not modified.
        batch: Example inputs, ``{name: (N, ...)}``.

    Returns:
        Module name -> the convolution, which answers bit for bit the same.

    References:
        He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385: option A.
    """
    return {
        name: conv
        for name, shape in _widening(model, batch).items()
        if (conv := _equal_convolution(model.get_submodule(name), shape)) is not None
    }


def with_convolutions_(model: nn.Module, batch: Mapping[str, Tensor]) -> nn.Module:
    """Put those convolutions in the place of the modules.

    Args:
        model: Changed in place, and returned.
        batch: As for `option_a_convolutions`.
    """
    for name, conv in option_a_convolutions(model, batch).items():
        model.set_submodule(name, conv)
    return model


def _widening(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Modules without weights that put out more channels than they get: shape of their input."""
    candidates = dict(_weightless(model))
    found: dict[str, list[torch.Size | None]] = {}

    def note(name: str, inputs: tuple[Any, ...], output: Any) -> None:
        if len(inputs) == 1 and _is_image(inputs[0]) and _is_image(output):
            found.setdefault(name, []).append(
                inputs[0].shape if output.shape[1] > inputs[0].shape[1] else None
            )

    if not candidates:
        return {}
    with ExitStack() as hooks, torch.no_grad():
        for name, module in candidates.items():
            hooks.callback(module.register_forward_hook(lambda _, i, o, name=name: note(name, i, o)).remove)
        forward(model, batch)
    once = {name: shapes[0] for name, shapes in found.items() if len(shapes) == 1}
    return {name: shape for name, shape in once.items() if shape is not None}


def _weightless(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    for module, known in names.items():
        if not module.state_dict() and len(known) == 1 and known[0]:
            yield known[0], module


def _is_image(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 4


def _equal_convolution(module: nn.Module, shape: torch.Size) -> nn.Conv2d | None:
    first, second = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    with torch.no_grad():
        answer = module(first)
        strides = {-(-before // after) for before, after in zip(shape[2:], answer.shape[2:], strict=True)}
        step = strides.pop()
        subsampled = first[:, :, ::step, ::step]
        if strides or subsampled.shape[2:] != answer.shape[2:]:
            return None
        conv = nn.Conv2d(shape[1], answer.shape[1], 1, stride=step, bias=False).eval()
        conv.weight.copy_(_copies(subsampled, answer)[:, :, None, None])
        return conv if torch.equal(conv(second), module(second)) else None


def _copies(x: Tensor, answer: Tensor) -> Tensor:
    """Which channel of the answer is which of the input, ``(O, C)`` of ones and zeros."""
    lines, made = x.transpose(0, 1).flatten(1), answer.transpose(0, 1).flatten(1)
    return torch.stack([(lines == line).all(dim=1) for line in made]).to(x.dtype)

"""Shortcuts of the first ResNets: modules without weights that subsample and add channels of zeros.

Which channels they pad is written into their code, so that they would pad a pruned network wrongly. A
convolution of one pixel that copies each channel does the same, and can be cut.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pastille.task.forward import forward

if TYPE_CHECKING:
    from torch import Tensor

# The first is what a convolution is made from; a clip or a threshold shows at one of the others.
_SCALES = (1.0, 1e-6, 1e-3, 1.0, 1e3, 1e6)


def option_a_convolutions(model: nn.Module, batch: Mapping[str, Tensor]) -> Mapping[str, nn.Conv2d]:
    """Find the modules that equal a convolution of ones and zeros, by trying them.

    Each is tried on what it is given in the model, and on random images from tiny to huge numbers, in eval
    and in training mode: code that also clips, rounds or drops something is no such module.

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
        for name, given in _widening(model, batch).items()
        if (conv := _equal_convolution(model.get_submodule(name), given)) is not None
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


def _widening(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Modules without weights that put out more channels than they get: what they are given."""
    candidates = dict(_weightless(model))
    found: dict[str, list[Tensor | None]] = {}

    def note(name: str, inputs: tuple[Any, ...], output: Any) -> None:
        if len(inputs) == 1 and _is_image(inputs[0]) and _is_image(output):
            found.setdefault(name, []).append(inputs[0] if output.shape[1] > inputs[0].shape[1] else None)

    if not candidates:
        return {}
    with ExitStack() as hooks, torch.no_grad():
        for name, module in candidates.items():
            hooks.callback(module.register_forward_hook(lambda _, i, o, name=name: note(name, i, o)).remove)
        forward(model, batch)
    once = {name: given[0] for name, given in found.items() if len(given) == 1}
    return {name: given for name, given in once.items() if given is not None}


def _weightless(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    for module, known in names.items():
        if not module.state_dict() and len(known) == 1 and known[0]:
            yield known[0], module


def _is_image(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 4 and value.is_floating_point()


def _equal_convolution(module: nn.Module, given: Tensor) -> nn.Conv2d | None:
    """A convolution that does what a module does; None if the module does anything else."""
    random = torch.Generator().manual_seed(0)
    first, *others = (
        scale * torch.randn(given.shape, generator=random, dtype=given.dtype) for scale in _SCALES
    )
    try:
        with torch.no_grad():
            conv = _copying(first, copy.deepcopy(module)(first))
            if conv is not None and all(_agree(conv, module, x) for x in (given, *others)):
                return conv
    except Exception:  # the user's code, with numbers that it never had to expect
        return None
    return None


def _agree(conv: nn.Module, module: nn.Module, x: Tensor) -> bool:
    answer = conv(x)
    return all(torch.equal(answer, copy.deepcopy(module).train(mode)(x)) for mode in (False, True))


def _copying(x: Tensor, answer: Tensor) -> nn.Conv2d | None:
    """The convolution of one pixel that makes an answer of copies of channels; None if pixels do not fit."""
    strides = {-(-before // after) for before, after in zip(x.shape[2:], answer.shape[2:], strict=True)}
    step = strides.pop()
    subsampled = x[:, :, ::step, ::step]
    if strides or subsampled.shape[2:] != answer.shape[2:]:
        return None
    conv = nn.Conv2d(x.shape[1], answer.shape[1], 1, stride=step, bias=False, dtype=x.dtype).eval()
    conv.weight.copy_(_copies(subsampled, answer)[:, :, None, None])
    return conv


def _copies(x: Tensor, answer: Tensor) -> Tensor:
    """Which channel of the answer is which of the input, ``(O, C)`` of ones and zeros."""
    lines, made = x.transpose(0, 1).flatten(1), answer.transpose(0, 1).flatten(1)
    return torch.stack([(lines == line).all(dim=1) for line in made]).to(x.dtype)

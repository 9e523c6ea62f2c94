"""Modules that take the place of others in a changed model: the closed list that a plan may name.

Some layers cannot lose a part of themselves: `torch.nn.MultiheadAttention` computes the width of a
head from the width of its input, a residual block cannot be nothing. Each is first replaced by a module
of this list that answers the same. A plan holds the kind and a few bounded integers; everything else,
down to the dropout, is read from the module that the user's factory builds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pastille.pruning.attention import Attention, WindowAttention, is_window_attention

if TYPE_CHECKING:
    from torch import Tensor

MAX_WIDTH = 1 << 20
MAX_RETURNS = 16


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """What takes the place of a module.

    Attributes:
        kind: ``"attention"``, ``"window_attention"``, ``"conv"`` or ``"skip"``.
        sizes: What the factory's module does not say, integers alone.
    """

    kind: str
    sizes: Mapping[str, int]


class Skip(nn.Module):
    """A block that does nothing: it returns its first argument, in the form that the block returned it.

    Args:
        returns: Length of the tuple that the block returned, the others are None; 0 for a bare tensor.
    """

    def __init__(self, returns: int = 0) -> None:
        super().__init__()
        self.returns = returns

    def forward(self, *args: Tensor, **kwargs: Any) -> Any:
        """The first argument."""
        first = args[0] if args else next(iter(kwargs.values()))
        return (first, *[None] * (self.returns - 1)) if self.returns else first


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """How a kind is recognized, described and built; ``bounds`` are the sizes it has, (least, most)."""

    fits: Callable[[nn.Module], bool]
    replaces: Callable[[nn.Module], bool]
    bounds: Mapping[str, tuple[int, int]]
    build: Callable[[nn.Module, Mapping[str, int]], nn.Module]
    size: Callable[[nn.Module, str], int] = getattr


def _is_pointwise(module: nn.Module) -> bool:
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == module.dilation == (1, 1)
        and module.padding in {0, (0, 0)}
        and module.stride[0] == module.stride[1]
    )


def _conv_size(module: nn.Module, name: str) -> int:
    value = getattr(module, name)
    if name == "bias":
        return int(value is not None)
    return int(value[0] if isinstance(value, tuple) else value)


def _conv(_: nn.Module, sizes: Mapping[str, int]) -> nn.Module:
    widths = sizes["in_channels"], sizes["out_channels"]
    return nn.Conv2d(*widths, 1, sizes["stride"], groups=sizes["groups"], bias=bool(sizes["bias"]))


_KINDS: Mapping[str, _Kind] = {
    "attention": _Kind(
        fits=lambda m: type(m) is Attention,
        replaces=lambda m: type(m) is nn.MultiheadAttention,
        bounds={"num_heads": (1, MAX_WIDTH)},
        build=lambda original, sizes: Attention.shell(original, **sizes),
    ),
    "window_attention": _Kind(
        fits=lambda m: type(m) is WindowAttention,
        replaces=is_window_attention,
        bounds={"num_heads": (1, MAX_WIDTH)},
        build=lambda original, sizes: WindowAttention.shell(original, **sizes),
    ),
    "conv": _Kind(
        fits=_is_pointwise,
        replaces=lambda m: not isinstance(m, nn.modules.conv._ConvNd),
        bounds={
            "in_channels": (1, MAX_WIDTH),
            "out_channels": (1, MAX_WIDTH),
            "stride": (1, 1024),
            "groups": (1, MAX_WIDTH),
            "bias": (0, 1),
        },
        build=_conv,
        size=_conv_size,
    ),
    "skip": _Kind(
        fits=lambda m: type(m) is Skip,
        replaces=lambda m: type(m) is not Skip,
        bounds={"returns": (0, MAX_RETURNS)},
        build=lambda _, sizes: Skip(**sizes),
    ),
}


def replacements_in(model: nn.Module, original: nn.Module) -> dict[str, Replacement]:
    """Which modules of a changed model took the place of others, by name.

    Args:
        model: The changed model.
        original: What its factory builds.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), Skip())
        >>> replacements_in(net, nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
        {'1': Replacement(kind='skip', sizes={'returns': 0})}
    """
    known = dict(original.named_modules(remove_duplicate=False))
    pairs = ((n, m, known[n]) for n, m in model.named_modules(remove_duplicate=False) if n and n in known)
    return {name: found for name, new, old in pairs for found in _described(new, old)}


def _described(module: nn.Module, original: nn.Module) -> Iterator[Replacement]:
    for name, kind in _KINDS.items():
        if kind.fits(module) and kind.replaces(original):
            yield Replacement(kind=name, sizes={size: kind.size(module, size) for size in kind.bounds})
            return


def blank(replacement: Replacement, original: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Build a replacement without memory for its weights, on the meta device.

    Args:
        replacement: From a plan that nobody has checked.
        original: The module of the factory's model that it takes the place of.
        dtype: Of its floating-point weights.

    Raises:
        ValueError: No such kind, sizes that it does not have, or that are out of bounds.
        RuntimeError: PyTorch refuses the sizes.
    """
    kind = _KINDS.get(replacement.kind)
    if kind is None:
        raise ValueError(
            f"kind of a replacement must be one of {', '.join(_KINDS)}, got {replacement.kind[:40]!r}"
        )
    _check_sizes(replacement, kind.bounds)
    if not kind.replaces(original):
        raise ValueError(f"{replacement.kind} cannot take the place of a {type(original).__name__}")
    with torch.device("meta"):
        return kind.build(original, replacement.sizes).to(dtype)


def _check_sizes(replacement: Replacement, bounds: Mapping[str, tuple[int, int]]) -> None:
    if replacement.sizes.keys() != bounds.keys():
        raise ValueError(f"sizes of {replacement.kind} must be {', '.join(bounds)}")
    for name, (least, most) in bounds.items():
        value = replacement.sizes[name]
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"{name} of {replacement.kind} must be within {least} … {most}")


def is_trained(name: str, model: nn.Module) -> bool:
    """Whether a parameter of a changed model takes a gradient: as it did, or as any of what was replaced.

    Args:
        name: Of the parameter, in the changed model.
        model: Before the change.

    Example:
        >>> frozen = nn.Sequential(nn.MultiheadAttention(4, 2).requires_grad_(False))
        >>> is_trained("0.q_proj.weight", frozen)
        False
    """
    known, modules = dict(model.named_parameters()), dict(model.named_modules())
    if name in known:
        return known[name].requires_grad
    while name not in modules:
        name = name.rpartition(".")[0]
    replaced = list(modules[name].parameters())
    return not replaced or any(parameter.requires_grad for parameter in replaced)

"""Which channels must stay, and why."""

from __future__ import annotations

import fnmatch

from torch import nn

WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear)
# Code that reshapes by a number of heads would run on with the wrong heads.
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads")

OUTPUT = "makes the model's output"
ATTENTION = "part of an attention layer"
PROJECTED = "recurrent layer with a projection (proj_size)"
FIRST = "makes the first state of a recurrent layer"
GIVEN = "its code gives it a first state, of a width of its own"
IDLE = f"{GIVEN}; that is zeros anyway: without it, it could be pruned"
SHARED = "its weights are shared with another layer, or computed"
REARRANGED = "its channels are split, joined, padded or rearranged on their way"
UNSAVED = "its channels run along a buffer that is not saved (persistent=False)"
UNPROVEN = "with fewer of its channels the model does not answer as if they were not read"
COUPLED = "so coupled that none of its channels can go alone"
PROTECTED = "protected by the recipe"
# The first that holds is said.
_ORDER = (OUTPUT, PROTECTED, ATTENTION, PROJECTED, GIVEN, SHARED, UNSAVED, COUPLED)


def rank(why: str) -> int:
    """How much a reason says; the lowest says most, and no reason ranks last.

    Example:
        >>> rank(OUTPUT) < rank(REARRANGED) < rank("")
        True
    """
    known = (i for i, reason in enumerate(_ORDER) if why.startswith(reason))
    return next(known, len(_ORDER) + (why == REARRANGED) + 2 * (not why))


def unfollowed(operation: str) -> str:
    """The reason for channels that run through what is not followed."""
    return f"its channels run through {operation or 'code'}, which is not followed"


def summed(operation: str) -> str:
    """The reason for channels that are added up or weighed against each other."""
    return f"its channels are taken together by {operation}"


def by_hand(parameter: str) -> str:
    """The reason for layers whose code uses a parameter of its own as a weight."""
    return f"its code multiplies with {parameter} by hand"


def handmade(kind: str) -> str:
    """The reason for layers of a kind that is no layer of PyTorch's."""
    return f"it runs through {kind}, whose code multiplies by hand"


def protected(names: tuple[str, ...], patterns: tuple[str, ...]) -> str:
    """The reason for a group of layers of which the recipe protects some; empty if none.

    Example:
        >>> protected(("stem", "conv2"), ("stem",))
        'protected by the recipe (stem, and with it conv2)'
        >>> protected(("stem",), ("stem",))
        'protected by the recipe'
    """
    named = [name for name in names if any(is_within(name, pattern) for pattern in patterns)]
    others = [name for name in names if name not in named]
    if not named or not others:
        return PROTECTED if named else ""
    return f"{PROTECTED} ({_few(named)}, and with it {_few(others)})"


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def is_within(name: str, pattern: str) -> bool:
    """Whether a pattern names a module, or one that holds it.

    Example:
        >>> is_within("stages.2.conv", "stages.*"), is_within("stages.2.conv", "stage")
        (True, False)
    """
    return any(fnmatch.fnmatchcase(owner, pattern) for owner in _owners(name))


def _owners(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts) + 1)]


def attends(model: nn.Module, name: str) -> bool:
    """Whether a layer belongs to an attention: a module around it counts heads, not only holds one."""
    layer = model.get_submodule(name)
    return any(_attends_with(model.get_submodule(owner), layer) for owner in _owners(name))


def _attends_with(owner: nn.Module, layer: nn.Module) -> bool:
    if not _counts_heads(owner):
        return False
    inner = (m for m in owner.modules() if m is not owner and _counts_heads(m))
    return all(any(part is layer for part in m.modules()) for m in inner)


def _counts_heads(module: nn.Module) -> bool:
    # A number: torchvision's vision transformer has its classifier under `heads`.
    return any(isinstance(getattr(module, key, None), int) for key in _HEADS)

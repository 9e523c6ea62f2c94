"""Names of modules, as a recipe writes them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from torch import nn

from pastille.errors import PreconditionError
from pastille.pruning.whole import is_within


def check_names(model: nn.Module, key: str, patterns: Iterable[str]) -> None:
    """Refuse names of modules that a model does not have.

    Args:
        model: That they should be in.
        key: Of the recipe that they come from, below ``prune``.
        patterns: Names; ``*`` matches any part.

    Raises:
        PreconditionError: With the closest names.
    """
    names = [name for name, _ in model.named_modules() if name]
    for pattern in patterns:
        if not any(is_within(name, pattern) for name in names):
            close = difflib.get_close_matches(pattern, names, n=3) or names[:3]
            raise PreconditionError(
                f"prune.{key}: no module of the model is called {pattern!r}; closest: {', '.join(close)}"
            )

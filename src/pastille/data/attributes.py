"""Whether the groups that a recipe is fair by are among the data's."""

from __future__ import annotations

import difflib

from pastille.data.split import Splits
from pastille.errors import RecipeError
from pastille.recipe import FairnessLimits


def check_attributes(splits: Splits, fairness: FairnessLimits | None) -> None:
    """See that every split has every attribute of ``requirements.fairness.by``.

    Raises:
        RecipeError: One is missing; names the closest attribute that is there.

    Example:
        >>> import numpy as np
        >>> from pastille.data.split import Split
        >>> split = Split(inputs=np.zeros((2, 1)), targets=np.arange(2), groups={"sex": np.array(["f", "m"])})
        >>> splits = Splits(train=split, validation=split, test=split)
        >>> check_attributes(splits, FairnessLimits(by=["sexx"]))
        Traceback (most recent call last):
        pastille.errors.RecipeError: requirements.fairness.by names 'sexx', which train has no ...
    """
    for attribute in fairness.by if fairness else ():
        for name, split in splits:
            if attribute not in split.groups:
                raise RecipeError(
                    f"requirements.fairness.by names {attribute!r}, which {name} has no group of; "
                    f"{_hint(attribute, list(split.groups))}",
                    key="requirements.fairness.by",
                )


def _hint(attribute: str, known: list[str]) -> str:
    close = difflib.get_close_matches(attribute, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    if known:
        return f"the data has {', '.join(known)}"
    return "the data has no groups: name columns in data.groups, or give Split(groups=...)"

"""What every perturbation is: a named, pure function with five severities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

T = TypeVar("T")
Modality = Literal["image", "signal", "table", "text"]
MODALITIES: tuple[Modality, ...] = ("image", "signal", "table", "text")
SEVERITIES = (1, 2, 3, 4, 5)

# (input, severity from 1 to 5, generator) -> input of the same shape and dtype; str for text.
Perturb = Callable[[Any, int, np.random.Generator], Any]


@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """One way in which inputs go wrong."""

    name: str  # as a recipe calls it: "gaussian_noise", or "FILE.py:CALLABLE"
    setting: str  # what the severities mean; empty for the user's own
    function: Perturb

    @property
    def spoken(self) -> str:
        """What it is called in a sentence."""
        return self.name if ":" in self.name else self.name.replace("_", " ")


def at(levels: Sequence[T], severity: int) -> T:
    """The level of a severity.

    Raises:
        ValueError: If the severity is not one of `SEVERITIES`.

    Example:
        >>> at((0.1, 0.2, 0.3, 0.4, 0.5), 2)
        0.2
    """
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be between 1 and 5, got {severity}")
    return levels[severity - 1]


def listed(levels: Sequence[float], *, percent: bool = False) -> str:
    """Levels in words, for a setting.

    Example:
        >>> listed((0.02, 0.1), percent=True)
        '2, 10 %'
    """
    factor, unit = (100, " %") if percent else (1, "")
    return ", ".join(f"{factor * level:.4g}" for level in levels) + unit

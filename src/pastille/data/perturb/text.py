"""Text that was typed or cut off badly.

Each function takes a string, a severity from 1 to 5 and a generator, and gives a string.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from pastille.data.perturb.perturbation import Perturbation, at, listed

_TYPOS = (0.01, 0.02, 0.05, 0.1, 0.15)  # share of the characters
_CASE = (0.1, 0.25, 0.5, 0.75, 1.0)  # share of the words
_KEPT = (0.95, 0.9, 0.75, 0.6, 0.4)  # share of the characters


def typos(text: str, severity: int, generator: np.random.Generator) -> str:
    """Letters left out, doubled or swapped with the next; at least one."""
    letters = list(text)
    count = max(1, round(at(_TYPOS, severity) * len(text)))
    for place in generator.permutation(len(text))[:count].tolist():
        _slip(letters, place, how=int(generator.integers(3)))
    return "".join(letters)


def _slip(letters: list[str], place: int, *, how: int) -> None:
    if how == 0 and place + 1 < len(letters):
        letters[place : place + 2] = letters[place + 1], letters[place]
    else:
        letters[place] *= 2 if how == 1 else 0


def case(text: str, severity: int, generator: np.random.Generator) -> str:
    """Words in capitals, or in small letters where they were in capitals; at least one."""
    words = text.split(" ")
    count = max(1, round(at(_CASE, severity) * len(words)))
    for place in generator.permutation(len(words))[:count].tolist():
        words[place] = words[place].lower() if words[place].isupper() else words[place].upper()
    return " ".join(words)


def truncation(text: str, severity: int, _generator: np.random.Generator) -> str:
    """The end cut off, at any character; the first always stays."""
    return text[: max(1, round(at(_KEPT, severity) * len(text)))]


_ALL = (
    Perturbation(
        name="typos", setting=f"in {listed(_TYPOS, percent=True)} of the characters", function=typos
    ),
    Perturbation(name="case", setting=f"turned in {listed(_CASE, percent=True)} of the words", function=case),
    Perturbation(
        name="truncation",
        setting=f"cut off after {listed(_KEPT, percent=True)} of the characters",
        function=truncation,
    ),
)
TEXTS: Mapping[str, Perturbation] = MappingProxyType({one.name: one for one in _ALL})

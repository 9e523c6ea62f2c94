"""Rows of a table that were filled in badly.

Each function takes ``(F,)`` floats, a severity from 1 to 5 and a generator, and gives a new array of the same
shape and dtype.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from pastille.data.perturb.perturbation import Perturbation, at, listed

_MISSING = (0.05, 0.1, 0.2, 0.3, 0.5)  # share of the features
_SLIPS = ((1, 2.2), (1, 10.0), (2, 10.0), (3, 10.0), (5, 10.0))  # features, factor


def missing_values(
    row: np.ndarray, severity: int, generator: np.random.Generator, *, typical: np.ndarray
) -> np.ndarray:
    """Values that nobody entered, filled in as is usual: with the typical one.

    Args:
        row: ``(F,)``.
        severity: Which share is missing; at least one is.
        generator: Chooses which.
        typical: ``(F,)``, mean or median of each feature in train.

    Raises:
        ValueError: If ``typical`` has another shape than ``row``.
    """
    if typical.shape != row.shape:
        raise ValueError(f"typical must have one value per feature, {row.shape}, got {typical.shape}")
    lost = _some(len(row), max(1, round(at(_MISSING, severity) * len(row))), generator)
    filled = row.copy()
    filled[lost] = typical[lost]
    return filled


def unit_slip(row: np.ndarray, severity: int, generator: np.random.Generator) -> np.ndarray:
    """Values in the wrong unit: pounds for kilograms, or a decimal point that slipped, either way."""
    count, factor = at(_SLIPS, severity)
    slipped = _some(len(row), count, generator)
    up = generator.integers(2, size=len(slipped)) == 1
    wrong = row.copy()
    wrong[slipped] = row[slipped] * np.where(up, factor, 1 / factor)
    return wrong


def _some(n: int, count: int, generator: np.random.Generator) -> np.ndarray:
    return generator.permutation(n)[:count]


TABLES = ("missing_values", "unit_slip")


def tables(typical: np.ndarray) -> Mapping[str, Perturbation]:
    """Every perturbation of tables.

    Args:
        typical: ``(F,)``, mean or median of each feature in train: what a missing value is filled in with.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> tables(np.zeros(3))["missing_values"].function(np.ones(3), 1, rng)
        array([1., 1., 0.])
    """
    found = (
        Perturbation(
            name="missing_values",
            setting=f"{listed(_MISSING, percent=True)} of the features replaced by their typical value",
            function=functools.partial(missing_values, typical=typical),
        ),
        Perturbation(
            name="unit_slip",
            setting="1 feature × or ÷ 2.2; then 1, 2, 3, 5 features × or ÷ 10",
            function=unit_slip,
        ),
    )
    return MappingProxyType({one.name: one for one in found})

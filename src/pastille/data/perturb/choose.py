"""Which perturbations a recipe asks for."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pastille.data.perturb.material import NAMES, Material
from pastille.data.perturb.perturbation import Perturbation
from pastille.errors import RecipeError
from pastille.references import load_callable

_KEY = "requirements.stress.perturbations"


def choose(
    asked: Sequence[str] | Literal["auto"], material: Material, base: Path
) -> tuple[Perturbation, ...]:
    """Find what ``requirements.stress.perturbations`` names.

    Args:
        asked: Names, ``FILE.py:CALLABLE`` or ``package.module:CALLABLE``, or ``"auto"``: all that are built
            in for such inputs, which is none where nothing fits.
        material: What the inputs are made of.
        base: Folder of the recipe.

    Returns:
        Each once, in the order asked.

    Raises:
        RecipeError: A name is unknown, or not for such inputs; the closest is named.
        UsageError: A callable cannot be imported.

    Example:
        >>> [p.spoken for p in choose(["Baseline-Wander"], Material(modality="signal"), Path())]
        ['baseline wander']
    """
    known = material.perturbations
    if asked == "auto":
        return tuple(known.values())
    if not asked:
        raise RecipeError(f"{_KEY} must name at least one perturbation, or be auto", key=_KEY)
    found = (_own(name, base) if ":" in name else _built_in(name, known, material) for name in asked)
    return tuple({one.name: one for one in found}.values())


def _own(reference: str, base: Path) -> Perturbation:
    return Perturbation(name=reference, setting="", function=load_callable(reference, base, key=_KEY))


def _built_in(asked: str, known: dict[str, Perturbation], material: Material) -> Perturbation:
    name = asked.strip().lower().replace(" ", "_").replace("-", "_")
    if name in known:
        return known[name]
    allowed = (
        f"{', '.join(known)} or FILE.py:CALLABLE" if known else "FILE.py:CALLABLE: no name fits these inputs"
    )
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    elsewhere = next((modality for modality, names in NAMES.items() if name in names), None)
    if elsewhere:
        hint = f", which is for inputs of modality {elsewhere}; these are {material.modality or 'of none'}"
    raise RecipeError(f"{_KEY} must be {allowed}, got {asked!r}{hint}", key=_KEY)

"""What the inputs of a split are made of, and how they were prepared: what must be undone to perturb them.

A split holds prepared inputs. Noise of a camera comes before the normalization, so an input is taken back to
what was recorded, perturbed there, and prepared again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pastille.data.normalize import normalized
from pastille.data.perturb.images import IMAGES
from pastille.data.perturb.perturbation import MODALITIES, Modality, Perturb, Perturbation
from pastille.data.perturb.signals import SIGNALS
from pastille.data.perturb.tables import TABLES, tables
from pastille.data.perturb.text import TEXTS
from pastille.data.split import Inputs, named
from pastille.data.text import TokenizedText
from pastille.errors import DataError
from pastille.values import Normalization, Preprocessing

_LOOKED_AT = 200  # inputs, for the range of values and for typical ones
_ROUNDING = 1e-3  # of normalization undone: values this far outside [0, 1] are still on that scale
_BY_RANK: dict[int, Modality] = {1: "table", 2: "signal", 3: "image"}

NAMES: dict[Modality, tuple[str, ...]] = {
    "image": tuple(IMAGES),
    "signal": tuple(SIGNALS),
    "table": TABLES,
    "text": tuple(TEXTS),
}


@dataclass(frozen=True, kw_only=True)
class Material:
    """How inputs are taken back to what was recorded, and what can be done to them there."""

    modality: Modality | None  # None: no perturbation is built in for such inputs
    normalization: Normalization | None = None
    low: float = 0.0  # of recorded values of an image; [0, 1] for one that was decoded here
    high: float = 1.0
    typical: np.ndarray | None = None  # (F,) of tables, recorded values

    def recorded(self, x: np.ndarray) -> np.ndarray:
        """Undo the normalization, into a new array."""
        if self.normalization is None:
            return x.copy()
        return _denormalized(x, self.normalization)

    def prepared(self, recorded: np.ndarray, like: np.ndarray) -> np.ndarray:
        """Normalize again; the dtype is that of ``like``."""
        x = normalized(recorded, self.normalization)
        if like.dtype.kind in "iu":
            bounds = np.iinfo(like.dtype)
            x = np.clip(np.rint(x), bounds.min, bounds.max)
        with np.errstate(over="ignore"):  # what overflows is refused as not finite
            return x.astype(like.dtype)

    @property
    def perturbations(self) -> dict[str, Perturbation]:
        """What is built in for such inputs, by name; each takes recorded values."""
        if self.modality == "image":
            return {name: replace(p, function=self._in_range(p.function)) for name, p in IMAGES.items()}
        if self.modality == "table" and self.typical is not None:
            return dict(tables(self.typical))
        return dict(SIGNALS if self.modality == "signal" else TEXTS if self.modality == "text" else {})

    def _in_range(self, function: Perturb) -> Perturb:
        """Let what takes values in [0, 1] take those of the images."""
        low, width = self.low, self.high - self.low

        def perturb(image: np.ndarray, severity: int, generator: np.random.Generator) -> np.ndarray:
            unit = np.clip((image - low) / width, 0.0, 1.0)
            return np.asarray(low + width * function(unit, severity, generator))

        return perturb


def _denormalized(x: np.ndarray, normalization: Normalization) -> np.ndarray:
    per_channel = (-1,) + (1,) * (x.ndim - 1)
    mean, std = (np.asarray(v).reshape(per_channel) for v in (normalization.mean, normalization.std))
    return np.asarray(x * std + mean, x.dtype if x.dtype.kind == "f" else np.float32)


def material_of(
    inputs: Inputs, preprocessing: Preprocessing | None, *, train: Inputs | None = None
) -> Material:
    """Look at inputs: what they are by their ``modality`` if they name one, else by their shape.

    ``(C, H, W)`` with 1, 3 or 4 channels is an image, ``(C, T)`` a signal, ``(F,)`` a row of a table.
    Integers of rank 1 or 2 are taken for token ids: only raw text can be perturbed, see `TokenizedText`.

    Args:
        inputs: Of the split that is perturbed, prepared.
        preprocessing: What prepared them; without a normalization they are perturbed as they are.
        train: Inputs of the train split, for the typical values of a table and the range of images; without
            them, ``inputs`` themselves are looked at.

    Raises:
        DataError: There are no inputs, they name an unknown modality, or the normalization does not fit.

    Example:
        >>> material_of(np.zeros((5, 3, 8, 8), np.float32), None).modality
        'image'
    """
    if len(inputs) == 0:
        raise DataError("there are no inputs to perturb")
    if isinstance(inputs, TokenizedText):
        return Material(modality="text")
    arrays = named(inputs[0])
    if len(arrays) != 1:
        return Material(modality=None)
    (first,) = arrays.values()
    modality = _modality(first, getattr(inputs, "modality", None))
    normalization = _fitting(preprocessing, first)
    seen = _recorded_sample(inputs if train is None or len(train) == 0 else train, normalization)
    return _measured(modality, normalization, seen)


def _modality(first: np.ndarray, told: object) -> Modality | None:
    if told is not None:
        if told not in MODALITIES[:3]:
            raise DataError(
                f"modality of the inputs must be one of {', '.join(MODALITIES[:3])}, got {told!r}"
            )
        return told
    guess = _BY_RANK.get(first.ndim)
    if guess == "image":
        return guess if first.shape[0] in {1, 3, 4} and first.dtype.kind in "fiu" else None
    return guess if first.dtype.kind == "f" else None


def _fitting(preprocessing: Preprocessing | None, first: np.ndarray) -> Normalization | None:
    normalization = preprocessing.normalization if preprocessing else None
    if normalization and (first.ndim == 0 or len(normalization.mean) not in {1, first.shape[0]}):
        raise DataError(
            f"preprocessing.normalization must have one mean for each channel of an input, shape "
            f"{first.shape}, got {len(normalization.mean)}"
        )
    return normalization


def _recorded_sample(inputs: Inputs, normalization: Normalization | None) -> list[np.ndarray]:
    """Some inputs, evenly over all of them, as they were recorded."""
    rows = np.unique(np.linspace(0, len(inputs) - 1, _LOOKED_AT).round().astype(int))
    undo = Material(modality=None, normalization=normalization).recorded
    return [undo(next(iter(named(inputs[int(row)]).values()))) for row in rows]


def _measured(
    modality: Modality | None, normalization: Normalization | None, seen: list[np.ndarray]
) -> Material:
    if modality == "image":
        low, high = min(float(x.min()) for x in seen), max(float(x.max()) for x in seen)
        usual = (low >= -_ROUNDING and high <= 1 + _ROUNDING) or low == high
        low, high = (0.0, 1.0) if usual else (low, high)
        return Material(modality=modality, normalization=normalization, low=low, high=high)
    typical = np.median(np.stack(seen), axis=0) if modality == "table" else None
    return Material(modality=modality, normalization=normalization, typical=typical)

"""Inputs that are perturbed as they are read."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pastille.data.perturb.material import Material
from pastille.data.perturb.perturbation import Perturbation
from pastille.data.split import Inputs, named
from pastille.data.text import TokenizedText
from pastille.errors import UsageError
from pastille.references import one_line


@dataclass(frozen=True, kw_only=True)
class PerturbedInputs:
    """Inputs of a split under one perturbation at one severity; they are `Inputs` themselves.

    The randomness of an input depends on the seed, the perturbation, the severity and the index alone, so
    that an input is perturbed alike for every model, in any order and however often.

    Attributes:
        inputs: All inputs of a split, prepared, or `TokenizedText`; never changed.
        perturbation: Takes inputs as they were recorded; the user's own as well. Of several named inputs it
            takes and gives them all, ``{name: array}``, as they are prepared; of text, a string.
        severity: From 1 to 5.
        material: What ``inputs`` are made of.
        seed: Of the run.

    Example:
        >>> from pastille.data.perturb.material import material_of
        >>> x = np.linspace(0, 1, 8, dtype=np.float32).reshape(1, 1, 8).repeat(3, axis=0)[None]
        >>> material = material_of(x, None)
        >>> darker = PerturbedInputs(inputs=x, perturbation=material.perturbations["contrast"], severity=5,
        ...                          material=material, seed=0)
        >>> len(darker), float(darker[0].max())
        (1, 0.6...)
    """

    inputs: Inputs
    perturbation: Perturbation
    severity: int
    material: Material
    seed: int

    def __len__(self) -> int:
        return len(self.inputs)

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int, /) -> Any:
        """One input, perturbed.

        Raises:
            UsageError: The perturbation failed, or what it gave is not an input of the same kind.
        """
        if isinstance(self.inputs, TokenizedText):
            return self.inputs.tokenize(self._text(self.inputs.texts[index], index))
        sample = self.inputs[index]
        arrays = named(sample)
        if len(arrays) == 1:
            ((name, array),) = arrays.items()
            changed = self._array(array, index)
            return {name: changed} if isinstance(sample, Mapping) else changed
        return self._several(arrays, index)

    def _text(self, text: str, index: int) -> str:
        found = self._called(text, index)
        if not isinstance(found, str):
            raise self._refused(index, f"must give a string for a string, got {type(found).__name__}")
        return found

    def _array(self, array: np.ndarray, index: int) -> np.ndarray:
        found = self._checked(self._called(self.material.recorded(array), index), array, index)
        return self._finite(self.material.prepared(found, array), index)

    def _several(self, arrays: Mapping[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
        found = self._called({name: array.copy() for name, array in arrays.items()}, index)
        if not isinstance(found, Mapping) or set(found) != set(arrays):
            raise self._refused(index, f"must give the inputs {', '.join(sorted(arrays))} by name")
        plain = Material(modality=None)
        return {
            name: self._finite(plain.prepared(self._checked(found[name], array, index), array), index)
            for name, array in arrays.items()
        }

    def _called(self, original: Any, index: int) -> Any:
        """Call the perturbation with what it may change as it likes."""
        try:
            return self.perturbation.function(original, self.severity, self._generator(index))
        except Exception as error:
            raise self._refused(index, f"failed: {one_line(error)}") from error

    def _generator(self, index: int) -> np.random.Generator:
        name = zlib.crc32(self.perturbation.name.encode())
        return np.random.default_rng([self.seed, name, self.severity, index])

    def _checked(self, found: Any, original: np.ndarray, index: int) -> np.ndarray:
        if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiu":
            got = f"dtype {found.dtype}" if isinstance(found, np.ndarray) else type(found).__name__
            raise self._refused(index, f"must give an array of numbers, got {got}")
        if found.shape != original.shape:
            raise self._refused(index, f"must keep the shape {original.shape}, got {found.shape}")
        return self._finite(found, index)

    def _finite(self, x: np.ndarray, index: int) -> np.ndarray:
        bad = x.size - int(np.isfinite(x).sum())
        if bad:
            raise self._refused(index, f"gave NaN or infinity in {bad} of {x.size} values")
        return x

    def _refused(self, index: int, why: str) -> UsageError:
        where = f"at severity {self.severity}, input {index}"
        return UsageError(f"requirements.stress.perturbations: {self.perturbation.name} ({where}) {why}")

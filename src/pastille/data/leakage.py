"""One pass over every input: digest, leaks between splits, shapes, and values that are not finite."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pastille.data.checks import require_finite
from pastille.data.ids import at
from pastille.data.split import Inputs, Splits, named
from pastille.errors import DataError, LeakageError, PastilleError
from pastille.progress import Progress
from pastille.references import one_line
from pastille.stats.alignment import shown
from pastille.values import SplitName, TensorSpec

_SHOWN = 5  # leaks that an error names
_NAME_LENGTH = 40  # of what an error names
_RECORDED = 20  # leaks that a record describes

_Place = tuple[SplitName, int]


@dataclass(frozen=True, kw_only=True)
class Leak:
    """The same thing in two splits."""

    what: Literal["subject", "case", "input"]
    name: str  # the subject, the case's id, or the input's SHA-256
    first: tuple[SplitName, int]  # split and index
    second: tuple[SplitName, int]

    @property
    def places(self) -> str:
        """Where it lies, without naming anybody.

        Example:
            >>> Leak(what="subject", name="P7", first=("train", 3), second=("test", 0)).places
            'train[3] and test[0]'
        """
        return " and ".join(f"{split}[{index}]" for split, index in (self.first, self.second))


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What one pass over all inputs found."""

    digest: str  # SHA-256 over every input and target in order, in hexadecimal
    leaks: tuple[Leak, ...]  # one per subject, case or input and pair of splits
    inputs: tuple[TensorSpec, ...]


def inspect(splits: Splits, *, progress: Progress) -> Inspection:
    """Read every input of every split once.

    Args:
        splits: Their targets checked by `pastille.data.checks.check_targets`.
        progress: Shows the pass.

    Returns:
        A digest that depends on names, dtypes, shapes and values only, so that it is the same on every
        machine; subjects, case ids and identical inputs found in two splits, an input that is the same
        case only once; and the inputs' names, shapes and dtypes.

    Raises:
        DataError: An input cannot be read, is no array of numbers, holds NaN or infinity, or differs in
            name, shape or dtype from the first. Names the split and the index.
    """
    digest = hashlib.sha256()
    specs: tuple[TensorSpec, ...] | None = None
    seen: dict[bytes, list[_Place]] = {}
    total = sum(split.n for _, split in splits)
    samples = progress.track(_samples(splits), what="inspecting data", total=total)
    for place, where, target, sample in samples:
        specs = _specs(sample, where) if specs is None else specs
        _require_like(sample, where, specs)
        key = _hash(sample)
        digest.update(f"{place[0]}:".encode() + key + _array_bytes(target))
        seen.setdefault(key, []).append(place)
    if specs is None:
        raise DataError("all splits are empty; each needs at least one case")
    inputs = {key.hex(): places for key, places in seen.items()}
    return Inspection(digest=digest.hexdigest(), leaks=_all_leaks(splits, inputs), inputs=specs)


def check_leaks(leaks: Sequence[Leak], *, allow: bool) -> tuple[str, ...]:
    """Stop at leaks, or describe them for the record.

    Args:
        leaks: As `inspect` found them.
        allow: Whether the user accepts them.

    Returns:
        A sentence for each, the first twenty, without naming subjects: a record travels with the bundle.

    Raises:
        LeakageError: There are some, and they are not allowed. Names the first few.
    """
    if leaks and not allow:
        more = f", and {len(leaks) - _SHOWN} more" if len(leaks) > _SHOWN else ""
        first = ", ".join(
            f"{leak.what} {shown(leak.name[:_NAME_LENGTH])} in {leak.places}" for leak in leaks[:_SHOWN]
        )
        raise LeakageError(
            f"the splits leak in {len(leaks)} places: {first}{more}; split by subject and remove duplicates, "
            "or record it instead with --allow-leakage",
            pairs=[_pair(leak) for leak in leaks],
        )
    sentences = tuple(f"The same {leak.what} is in {leak.places}." for leak in leaks[:_RECORDED])
    unsaid = len(leaks) - len(sentences)
    return (*sentences, f"There are {unsaid} more leaks.") if unsaid else sentences


def _pair(leak: Leak) -> tuple[str, str]:
    first, _, second = leak.places.partition(" and ")
    return first, second


def _samples(splits: Splits) -> Iterator[tuple[_Place, str, np.ndarray, dict[str, np.ndarray]]]:
    """Each case's place, what errors call it, its target and its input."""
    for name, split in splits:
        for index in range(split.n):
            where = at(name, index, split.ids)
            yield (name, index), where, split.targets[index], _read(split.inputs, index, where)


def _read(inputs: Inputs, index: int, where: str) -> dict[str, np.ndarray]:
    try:
        return named(inputs[index])
    except PastilleError:
        raise
    except Exception as error:
        raise DataError(f"input {where} cannot be read: {one_line(error)}") from error


def _specs(sample: dict[str, np.ndarray], where: str) -> tuple[TensorSpec, ...]:
    for name, array in sample.items():
        if array.dtype.kind not in "fiub" or array.ndim == 0:
            raise DataError(
                f"input {name!r} of {where} must be an array of numbers, got {array.dtype} {array.shape}"
            )
    return tuple(TensorSpec(name=n, shape=a.shape, dtype=a.dtype.name) for n, a in sample.items())


def _require_like(sample: dict[str, np.ndarray], where: str, specs: Sequence[TensorSpec]) -> None:
    if set(sample) != {spec.name for spec in specs}:
        expected = ", ".join(spec.name for spec in specs)
        raise DataError(f"{where} must have the inputs {expected} like the first, got {', '.join(sample)}")
    for spec in specs:
        array = sample[spec.name]
        if (array.shape, array.dtype.name) != (spec.shape, spec.dtype):
            raise DataError(
                f"input {spec.name!r} of {where} must be {spec.dtype} {spec.shape} like the first, got "
                f"{array.dtype.name} {array.shape}"
            )
        require_finite(array, name=spec.name, where=where)


def _hash(sample: dict[str, np.ndarray]) -> bytes:
    digest = hashlib.sha256()
    for name in sorted(sample):
        digest.update(f"{name}:".encode() + _array_bytes(sample[name]))
    return digest.digest()


def _array_bytes(array: np.ndarray) -> bytes:
    """Dtype, shape and values, little-endian and in C order on every machine."""
    little = np.asarray(array, dtype=array.dtype.newbyteorder("<"))
    return f"{little.dtype.name}{little.shape}".encode() + little.tobytes()


def _all_leaks(splits: Splits, inputs: dict[str, list[_Place]]) -> tuple[Leak, ...]:
    subjects = _leaks("subject", _places({name: split.subjects for name, split in splits}))
    cases = tuple(_leaks("case", _places({name: split.ids for name, split in splits})))
    said = {(leak.first, leak.second) for leak in cases}
    doubles = (leak for leak in _leaks("input", inputs) if (leak.first, leak.second) not in said)
    return (*subjects, *cases, *doubles)


def _places(columns: dict[SplitName, np.ndarray | None]) -> dict[str, list[_Place]]:
    """Where each value stands."""
    places: dict[str, list[_Place]] = {}
    for name, column in columns.items():
        for index, value in enumerate(() if column is None else column.tolist()):
            places.setdefault(str(value), []).append((name, index))
    return places


def _leaks(what: Literal["subject", "case", "input"], places: dict[str, list[_Place]]) -> Iterator[Leak]:
    for name, found in places.items():
        firsts: dict[SplitName, _Place] = {}
        for place in found:
            firsts.setdefault(place[0], place)
        for second in list(firsts.values())[1:]:
            yield Leak(what=what, name=name, first=found[0], second=second)

"""One part of the data, and the three parts together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from pastille.values import Preprocessing, SplitName

INPUT = "input"  # the name of a model's only input

SPLIT_NAMES: tuple[SplitName, ...] = ("train", "validation", "test")


class Inputs(Protocol):
    """What can be read by row: a list, an array, or a lazy reader of files."""

    def __len__(self) -> int:
        """How many inputs there are."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """One input: an array without a batch axis, or ``{name: array}``."""
        ...

    def __iter__(self) -> Iterator[Any]:
        """Every input, in order; Python gives this to whatever can be indexed."""
        ...


@dataclass(frozen=True, kw_only=True)
class Split:
    """One part of the data. Inputs are read lazily, one at a time.

    Attributes:
        inputs: Map-style: ``inputs[i]`` gives one array without a batch axis, or
            ``{input name: array}``. ``float32`` for images, signals and tables.
        targets: ``(N,)`` int classes, or ``(N,)`` float for regression.
        groups: Demographic attributes, ``(N,)`` each, e.g. ``{"sex": …, "age_band": …}``.
        subjects: ``(N,)`` patient ids: what may not cross splits.
        strata: ``(N,)`` difficulty or source: what calibration samples are balanced over.
        ids: ``(N,)`` what each case is called in the user's own files, e.g. the file's name; text, each
            different. Errors and lists of cases then speak of these.

    Raises:
        ValueError: The columns differ in length.

    Example:
        >>> Split(inputs=np.zeros((3, 4), np.float32), targets=np.array([0, 1, 1])).n
        3
    """

    inputs: Inputs
    targets: np.ndarray
    groups: Mapping[str, np.ndarray] = field(default_factory=lambda: MappingProxyType({}))
    subjects: np.ndarray | None = None
    strata: np.ndarray | None = None
    ids: np.ndarray | None = None

    def __post_init__(self) -> None:
        columns = {"targets": self.targets, "subjects": self.subjects, "strata": self.strata}
        columns |= {"ids": self.ids}
        columns |= {f"groups[{name!r}]": column for name, column in self.groups.items()}
        for name, column in columns.items():
            if column is not None and len(column) != len(self.inputs):
                raise ValueError(
                    f"{name} must have one entry per input, got {len(column)} for {len(self.inputs)} inputs"
                )

    @property
    def n(self) -> int:
        """How many cases it holds."""
        return len(self.inputs)


@dataclass(frozen=True, kw_only=True)
class Splits:
    """What a user's data callable returns: three splits, and what prepared their inputs.

    Attributes:
        train: What is learned from.
        validation: What every choice is made on.
        test: Opened once.
        preprocessing: What turned raw inputs into those of the splits; a server does the same.
        files: That it needs, by name, e.g. ``{"tokenizer.json": path}``; the bundle will hold them.
    """

    train: Split
    validation: Split
    test: Split
    preprocessing: Preprocessing | None = None
    files: Mapping[str, Path] = field(default_factory=lambda: MappingProxyType({}))

    def __iter__(self) -> Iterator[tuple[SplitName, Split]]:
        for name in SPLIT_NAMES:
            yield name, getattr(self, name)


def named(sample: Any) -> dict[str, np.ndarray]:
    """One input as ``{name: array}``, whether it came bare or named.

    Example:
        >>> named(np.zeros(2))
        {'input': array([0., 0.])}
    """
    if isinstance(sample, Mapping):
        return {str(name): np.asarray(array) for name, array in sample.items()}
    return {INPUT: np.asarray(sample)}


def collate(samples: Sequence[Any]) -> dict[str, np.ndarray]:
    """Stack inputs along a new batch axis.

    Args:
        samples: Inputs as `Split.inputs` gives them, all of one shape.

    Returns:
        ``{name: (N, ...)}``.
    """
    rows = [named(sample) for sample in samples]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def batches(inputs: Inputs, indices: Sequence[int], size: int) -> Iterator[dict[str, np.ndarray]]:
    """Read inputs lazily, ``size`` at a time, in the order of ``indices``."""
    for start in range(0, len(indices), size):
        yield collate([inputs[int(i)] for i in indices[start : start + size]])

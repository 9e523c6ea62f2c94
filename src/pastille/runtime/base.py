"""The seam to what executes a model file: load it, then call it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from pastille.values import TensorSpec

UNKNOWN_DIM = -1  # in a `TensorSpec.shape` of a session: the file leaves this size open


@runtime_checkable
class Session(Protocol):
    """One loaded file. Safe to call from several threads."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What it is fed, without the batch axis; a size that the file leaves open is `UNKNOWN_DIM`."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What it answers with, without the batch axis."""
        ...

    @property
    def fixed_batch(self) -> int | None:
        """The only batch size that it takes; None where any will do."""
        ...

    @property
    def threads(self) -> int:
        """How many threads one call may use."""
        ...

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answer one batch.

        Args:
            inputs: ``{name: (N, ...)}``, every name and dtype as in `inputs`.

        Returns:
            ``{name: (N, ...)}``.

        Raises:
            InferenceError: A name, shape or dtype does not fit, or the runtime failed.
        """
        ...


class Runtime(Protocol):
    """What can execute a file."""

    @property
    def name(self) -> str:
        """E.g. ``"onnxruntime"``."""
        ...

    @property
    def version(self) -> str:
        """E.g. ``"1.31.1"``."""
        ...

    def load(self, path: Path, *, threads: int) -> Session:
        """Make a file ready to be called.

        Raises:
            IntegrityError: The file is not what it should be; nothing of it was executed.
            InferenceError: The runtime does not take the file.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Operators:
    """What a runtime executes of a file once it has optimised the graph, as ``{operator: count}``."""

    int8: Mapping[str, int] = field(default_factory=dict)  # kernels that compute on 8-bit integers
    floating: Mapping[str, int] = field(default_factory=dict)  # operators that stayed in floating point
    conversions: Mapping[str, int] = field(default_factory=dict)  # the borders: QuantizeLinear and back

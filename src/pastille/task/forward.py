"""How a module is called with a named batch, wherever Pastille calls one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pastille.data.split import INPUT, Inputs, collate

if TYPE_CHECKING:
    from torch import Tensor, nn


def forward(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Call a module: a single bare input by position, named inputs by keyword.

    Args:
        model: The module; its first output counts where it returns a tuple.
        batch: ``{name: (N, ...)}``.

    Returns:
        The output, ``(N, ...)``.
    """
    out = _called(model, batch)
    while isinstance(out, tuple | list) and out:
        out = out[0]
    return out  # type: ignore[no-any-return]


def answers(model: nn.Module, batch: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """Every tensor that a module answers with, auxiliary outputs included."""
    pending = [_called(model, batch)]
    while pending:
        out = pending.pop(0)
        if isinstance(out, tuple | list):
            pending[:0] = out
        elif isinstance(out, Mapping):
            pending[:0] = out.values()
        elif isinstance(out, torch.Tensor):
            yield out


def _called(model: nn.Module, batch: Mapping[str, Tensor]) -> Any:
    return model(batch[INPUT]) if list(batch) == [INPUT] else model(**batch)


def to_tensors(batch: Mapping[str, np.ndarray], device: str = "cpu") -> dict[str, Tensor]:
    """Arrays as tensors, sharing memory where they can."""
    return {name: torch.from_numpy(np.ascontiguousarray(array)).to(device) for name, array in batch.items()}


def example_batch(inputs: Inputs, n: int = 2) -> dict[str, Tensor]:
    """The first ``n`` inputs as one batch; a single input is repeated."""
    return to_tensors(collate([inputs[i % len(inputs)] for i in range(n)]))

"""Where a training runs: on which device, in which arithmetic, in one process or among several."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol, final

import numpy as np
import torch

from pastille.errors import PreconditionError
from pastille.processes import here
from pastille.recipe import Precision
from pastille.train.precision import dtype_for

if TYPE_CHECKING:
    from torch import Tensor, nn


class Place(Protocol):
    """Where a training runs. Every process calls the same methods in the same order."""

    @property
    def device(self) -> str:
        """As torch names it."""
        ...

    @property
    def rank(self) -> int:
        """Of this process, from 0."""
        ...

    @property
    def processes(self) -> int:
        """How many there are."""
        ...

    def own(self, n: int) -> int:
        """How many of ``n`` rows are this process's."""
        ...

    def share(self, rows: np.ndarray) -> np.ndarray:
        """Of rows, those that this process takes: every one is taken by one process, see `sizes`.

        A process that has none of its own looks at another's too: all must take part. They do not count,
        see `own`.
        """
        ...

    def gathered(self, mine: Tensor, n: int) -> Tensor:
        """What all processes found for their shares of ``range(n)``, in order, ``(n, ...)``; on the CPU."""
        ...

    def wrapped(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """What is called in place of the model, so that its gradients are those of the whole batch.

        What the optimizer holds beside the model's parameters is taken care of as well.
        """
        ...

    def released(self, model: nn.Module) -> nn.Module:
        """A model that was wrapped, whole and as it was before that."""
        ...

    def autocast(self) -> AbstractContextManager[object]:
        """Arithmetic in the precision that was asked for."""
        ...

    def backward(self, loss: Tensor, *, n: int, of: int) -> None:
        """Gradients of a loss that is a mean over ``n`` of the ``of`` cases of the whole batch."""
        ...

    def step(self, optimizer: torch.optim.Optimizer, clip_norm: float | None) -> None:
        """One step of the optimizer, by gradients of at most that norm, and none afterwards."""
        ...

    def total(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        ...

    def settled(self, model: nn.Module) -> None:
        """Make what a model counts while it trains, such as running means, the same in every process."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """What the arithmetic itself learned so far: the scale of fp16's gradients."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` gave."""
        ...


class Arithmetic:
    """A precision, and what it takes to train in it.

    Args:
        device: ``cpu`` or ``cuda``.
        dtype: That products are computed in; None for float32.
    """

    def __init__(self, device: str, dtype: torch.dtype | None) -> None:
        self.device, self.dtype = device, dtype
        scaled = dtype == torch.float16  # whose small gradients would be zero
        self._scaler = torch.amp.GradScaler(device) if scaled else None

    def autocast(self) -> AbstractContextManager[object]:
        """As torch does it; nothing for fp32."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device, dtype=self.dtype)

    def backward(self, loss: Tensor) -> None:
        """Gradients, scaled where they must be."""
        scaled = loss if self._scaler is None else self._scaler.scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]

    def step(self, optimizer: torch.optim.Optimizer, clip_norm: float | None) -> None:
        """As torch does it; what was scaled is first scaled back."""
        if self._scaler is not None and clip_norm is not None:
            self._scaler.unscale_(optimizer)
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters_of(optimizer), clip_norm)
        if self._scaler is None:
            optimizer.step()
        else:
            self._scaler.step(optimizer)
            self._scaler.update()
        optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Tensor]:
        """Of the scaler, as tensors."""
        found = {} if self._scaler is None else self._scaler.state_dict()
        return {name: torch.tensor(float(value)) for name, value in found.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Of the scaler."""
        if self._scaler is not None and state:
            kinds = {name: type(value) for name, value in self._scaler.state_dict().items()}
            self._scaler.load_state_dict({name: kinds[name](x.item()) for name, x in state.items()})


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All that an optimizer changes."""
    return [p for group in optimizer.param_groups for p in group["params"]]


@final
class Here:
    """One process, on one device.

    Args:
        device: ``cpu`` or ``cuda``.
        dtype: That products are computed in; None for float32.

    Example:
        >>> Here(device="cpu").share(np.array([4, 2]))
        array([4, 2])
    """

    def __init__(self, *, device: str, dtype: torch.dtype | None = None) -> None:
        self.device, self.rank, self.processes = device, 0, 1
        self._arithmetic = Arithmetic(device, dtype)

    def own(self, n: int) -> int:
        """All of them."""
        return n

    def share(self, rows: np.ndarray) -> np.ndarray:
        """All of them."""
        return rows

    def gathered(self, mine: Tensor, n: int) -> Tensor:
        """As they are."""
        return mine

    def wrapped(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """The model itself."""
        return model

    def released(self, model: nn.Module) -> nn.Module:
        """The model itself."""
        return model

    def autocast(self) -> AbstractContextManager[object]:
        """As torch does it; nothing for fp32."""
        return self._arithmetic.autocast()

    def backward(self, loss: Tensor, *, n: int, of: int) -> None:
        """As torch does it."""
        self._arithmetic.backward(loss)

    def step(self, optimizer: torch.optim.Optimizer, clip_norm: float | None) -> None:
        """As torch does it."""
        self._arithmetic.step(optimizer, clip_norm)

    def total(self, values: Tensor) -> Tensor:
        """As it is."""
        return values

    def settled(self, model: nn.Module) -> None:
        """There is no other process."""

    def state_dict(self) -> dict[str, Tensor]:
        """The scale of fp16's gradients."""
        return self._arithmetic.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The scale of fp16's gradients."""
        self._arithmetic.load_state_dict(state)


def place_for(precision: Precision = "fp32") -> Place:
    """Where this process trains: by itself, or with the others that a launcher started.

    Raises:
        PreconditionError: The machine has no such arithmetic.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = dtype_for(precision, device)
    if here().world == 1:
        return Here(device=device, dtype=dtype)
    from pastille.train.among import Many  # accelerate takes a second to import

    return Many(device=device, dtype=dtype)


def sizes(n: int, processes: int, *, least: int = 1) -> list[int]:
    """How many of ``n`` rows each process takes: even shares, the first ones have one more.

    Args:
        n: Of all of them.
        processes: How many there are.
        least: Of a process that takes some. A batch norm that counts its own process alone needs two, which
            may leave some processes with none of the last batch of an epoch.

    Example:
        >>> sizes(7, 3), sizes(3, 2, least=2), sizes(1, 2, least=2)
        ([3, 2, 2], [3, 0], [1, 0])
    """
    takers = max(1, min(processes, n // least))
    return [(n // takers + (rank < n % takers)) * (rank < takers) for rank in range(processes)]


def require_enough(place: Place, *, batch_size: int, train: int, validation: int) -> None:
    """See that every process has something to do.

    Args:
        place: Where the training runs.
        batch_size: Of all processes together.
        train: Cases that are learned from.
        validation: Cases that the best epoch is chosen by.

    Raises:
        PreconditionError: There are more processes than cases.
    """
    least = {"batch_size": batch_size, "the cases of train": train, "the cases of validation": validation}
    for what, n in least.items():
        if n < place.processes:
            more = "raise batch_size, or " if what == "batch_size" else ""
            raise PreconditionError(
                f"there are {place.processes} processes, which is more than {what} ({n}): {more}start fewer"
            )

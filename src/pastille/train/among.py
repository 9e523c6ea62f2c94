"""Training in several processes, through Accelerate: each takes its share of every batch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from pastille.processes import losses_named, started, talk
from pastille.train.places import Arithmetic, parameters_of, sizes

if TYPE_CHECKING:
    from torch import Tensor

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@final
class Many:
    """This process among those that a launcher started.

    The gradients are those of a mean over the whole batch, whoever has how many of its cases, so a training
    comes to the same weights as in one process, but for rounding, for batch norm on a CPU, whose statistics
    are then of the main process's share, and for losses that are no mean over cases.

    Args:
        device: ``cpu`` or ``cuda``; of several GPUs this process has its own.
        dtype: That products are computed in; None for float32.

    References:
        Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", VLDB 2020,
        arXiv:2006.15704.
    """

    def __init__(self, *, device: str, dtype: torch.dtype | None = None) -> None:
        from accelerate import Accelerator, DistributedDataParallelKwargs

        state = started()
        self.device = device
        self.rank, self.processes = int(state.process_index), int(state.num_processes)
        self._arithmetic = Arithmetic(device, dtype)
        # A distilled or partly frozen model need not use every parameter in every step.
        handlers = [DistributedDataParallelKwargs(find_unused_parameters=True)]
        # The arithmetic is the recipe's, not the launcher's: a run must not depend on who started it.
        self._accelerator: Any = Accelerator(
            cpu=device == "cpu", mixed_precision="no", kwargs_handlers=handlers
        )
        self._beside: list[Tensor] = []
        self._norms: list[tuple[nn.Module, type[nn.Module]]] = []

    def _sizes(self, n: int) -> list[int]:
        return sizes(n, self.processes, least=2 if self.device == "cpu" else 1)

    def own(self, n: int) -> int:
        """An even share, see `pastille.train.places.sizes`."""
        return self._sizes(n)[self.rank]

    def share(self, rows: np.ndarray) -> np.ndarray:
        """The rows of this process in one piece, in order of the processes."""
        each = self._sizes(len(rows))
        start = sum(each[: self.rank])
        return rows[start : start + each[self.rank]] if each[self.rank] else rows[: each[0]]

    def gathered(self, mine: Tensor, n: int) -> Tensor:
        """Of all processes, by their rank."""
        each = self._sizes(n)
        padded = mine.new_zeros((max(each), *mine.shape[1:]), device="cpu")
        padded[: self.own(n)] = mine[: self.own(n)]
        parts = [torch.empty_like(padded) for _ in range(self.processes)]
        with losses_named():
            dist.all_gather(parts, padded, group=talk())
        return torch.cat([part[:size] for part, size in zip(parts, each, strict=True)])

    def wrapped(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """As Accelerate does it; every process begins with the main one's tensors."""
        within = {id(p) for p in model.parameters()}
        self._beside = [p for p in parameters_of(optimizer) if id(p) not in within]
        if self.device != "cpu":
            self._norms = _synchronised(model)
        with losses_named():
            for tensor in self._beside:
                dist.broadcast(tensor.data, 0)
            return _Called(self._accelerator.prepare_model(model))

    def released(self, model: nn.Module) -> nn.Module:
        """The model, its norms being of their own class again."""
        for norm, kind in self._norms:
            norm.__class__ = kind
        return model

    def autocast(self) -> AbstractContextManager[object]:
        """As torch does it; nothing for fp32."""
        return self._arithmetic.autocast()

    def backward(self, loss: Tensor, *, n: int, of: int) -> None:
        """Gradients whose mean over the processes is that of the whole batch."""
        with losses_named():
            self._arithmetic.backward(loss * (self.own(of) * self.processes / of))

    def step(self, optimizer: torch.optim.Optimizer, clip_norm: float | None) -> None:
        """The same in every process."""
        with losses_named():
            for tensor in self._beside:
                gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
                dist.all_reduce(gradient)
                tensor.grad = gradient / self.processes
        self._arithmetic.step(optimizer, clip_norm)

    def total(self, values: Tensor) -> Tensor:
        """Over all processes."""
        summed = values.detach().clone()
        with losses_named():
            dist.all_reduce(summed)
        return summed

    def settled(self, model: nn.Module) -> None:
        """Every process has the main one's buffers."""
        with losses_named():
            for buffer in model.buffers():
                # Not every backend sends booleans.
                dist.broadcast(buffer.view(torch.uint8) if buffer.dtype == torch.bool else buffer, 0)

    def state_dict(self) -> dict[str, Tensor]:
        """The scale of fp16's gradients."""
        return self._arithmetic.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The scale of fp16's gradients."""
        self._arithmetic.load_state_dict(state)


class _Called(nn.Module):
    """A module in which the loss of another process is told from an error of its own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *given: Tensor, **named: Tensor) -> Any:
        """What the inner module gives."""
        with losses_named():
            return self.inner(*given, **named)


def _synchronised(model: nn.Module) -> list[tuple[nn.Module, type[nn.Module]]]:
    """Let batch norms count over all processes; they stay the same objects, which others may watch."""
    found = [(m, type(m)) for m in model.modules() if type(m) in _NORMS]
    for norm, _ in found:
        norm.process_group = None  # type: ignore[assignment]  # all of them
        norm.__class__ = nn.SyncBatchNorm
    return found

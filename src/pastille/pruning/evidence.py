"""What the data says about each unit, in one pass: for criteria that look at more than weights."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import nn

from pastille.errors import PreconditionError
from pastille.progress import SILENT, Progress
from pastille.pruning.criteria import Need, Observed
from pastille.pruning.removal import trainable_copy
from pastille.pruning.units import ChannelGroup, Entries, Member
from pastille.pruning.whole import WEIGHTED
from pastille.task.forward import forward

if TYPE_CHECKING:
    from torch import Tensor

Batch = Mapping[str, "Tensor"]
# Inputs ``{name: (N, ...)}``, targets ``(N, ...)``, and how much each case counts, ``(N,)``; None: all alike.
WeighedBatch = tuple[Batch, "Tensor | None", "Tensor | None"]
Loss = Callable[["Tensor", "Tensor"], "Tensor"]

EVERYTHING: frozenset[Need] = frozenset({"gradients", "activations"})


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What the data said.

    Attributes:
        what: Was looked at.
        groups: Name of a group -> what was seen of its units.
        losses: Of each case, ``(N,)`` float64; empty where gradients were not looked at.
        cases: How many were looked at.
    """

    what: frozenset[Need]
    groups: Mapping[str, Observed]
    losses: Tensor
    cases: int


def gather(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    batches: Iterable[WeighedBatch],
    loss: Loss | None = None,
    *,
    what: frozenset[Need] = EVERYTHING,
    progress: Progress = SILENT,
) -> Evidence:
    """Look at cases one by one, and keep a few sums per unit.

    One by one, for what a unit does to one case must not hide what it does to another, as in a mean
    gradient over a batch it would; so the result does not depend on how cases are batched. Memory is that
    of the model, its gradient and one case.

    Args:
        model: Not modified; a copy in eval mode is run, on the device that the model is on.
        groups: From `pastille.pruning.survey`; those that must be left whole are passed over.
        batches: Of the training split. Weights, where given, say how much a case counts in every mean:
            see `case_weights`.
        loss: Of outputs and targets, to be differentiated; a mean over cases, or one value per case.
        what: To look at.
        progress: Shown batch by batch.

    Raises:
        PreconditionError: There is no case, no case counts, or a loss is not finite.
        ValueError: Gradients are to be looked at, but no loss or no target is given.

    Example:
        >>> from pastille.pruning import survey
        >>> net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> for parameter in net.parameters():
        ...     _ = parameter.data.fill_(1)
        >>> x = {"input": torch.ones(4, 1)}
        >>> found = gather(net, survey(net, x), [(x, torch.zeros(4), None)], lambda out, y: out.mean() - y)
        >>> found.groups["0"].first_order  # each unit is 1 + 1, read with a weight of 1
        tensor([2., 2.], dtype=torch.float64)
    """
    if "gradients" in what and loss is None:
        raise ValueError("loss must be given to look at gradients, e.g. torch.nn.functional.cross_entropy")
    look = _Look(
        model=_differentiable(model, groups),
        groups=tuple(group for group in groups if not group.whole),
        loss=loss if "gradients" in what else None,
        activations="activations" in what,
    )
    total: dict[str, _Sums] = defaultdict(dict)
    weighed, losses = 0.0, []
    with _without_cudnn(look.model):
        for batch, target, weight in _cases(look.model, progress.track(batches, what="weighing units")):
            value, seen = _one_case(look, batch, target)
            losses.append(value)
            weighed += weight
            for name, sums in seen.items():
                _add_(total[name], sums, weight)
    if not losses or not (math.isfinite(weighed) and weighed > 0):
        raise PreconditionError("prune.criterion: there is no case to look at, or none counts")
    return Evidence(
        what=frozenset(what),
        groups={name: _observed(sums, weighed) for name, sums in total.items()},
        losses=torch.tensor(losses if look.loss else [], dtype=torch.float64),
        cases=len(losses),
    )


# Field of `Observed` -> ``(C,)`` float64, and ``seen``: whether a unit's activations were.
_Sums = dict[str, "Tensor"]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Look:
    model: nn.Module
    groups: tuple[ChannelGroup, ...]
    loss: Loss | None
    activations: bool


def _add_(total: _Sums, sums: _Sums, weight: float) -> None:
    for field, values in sums.items():
        total[field] = total.get(field, torch.zeros_like(values)) + weight * values


def _observed(total: _Sums, weighed: float) -> Observed:
    means = {field: values / weighed for field, values in total.items()}
    if not bool((means.pop("seen", torch.ones(1)) > 0).all()):
        means = {field: values for field, values in means.items() if field not in ("size", "active")}
    return Observed(**means)


def _one_case(look: _Look, batch: Batch, target: Tensor | None) -> tuple[float, dict[str, _Sums]]:
    """The loss of a case, and what it shows of each group."""
    with torch.set_grad_enabled(look.loss is not None), _watched(look) as fed:
        output = forward(look.model, batch)
    value, slopes = 0.0, dict[str, _Sums]()
    if look.loss is not None:
        value, slopes = _slopes(look, output, target)
    activity = {g.name: _activity(g, fed) if look.activations else {} for g in look.groups}
    return value, {name: {**slopes.get(name, {}), **sums} for name, sums in activity.items()}


def _readers(group: ChannelGroup) -> list[Member]:
    """Where a unit is read, and so where it is gone once the weights are zero; else where it is made."""
    reads = [member for member in group.members if member.role == "reads"]
    return reads or [member for member in group.members if member.role == "makes"]


def _slopes(look: _Look, output: Tensor, target: Tensor | None) -> tuple[float, dict[str, _Sums]]:
    """How the loss of a case changes to first order when all weights that read a unit become zero."""
    if target is None or look.loss is None:
        raise ValueError("targets must be given to look at gradients")
    loss = look.loss(output, target).mean()
    if not bool(torch.isfinite(loss)):
        raise PreconditionError(
            f"prune.criterion: the loss of a case is {loss.item():g}, so nothing follows from it"
        )
    weights = {name: p for name, p in look.model.named_parameters() if p.requires_grad}
    if not weights or not loss.requires_grad:  # code that runs layers without gradients
        return loss.item(), {}
    slopes = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    found = zip(weights.items(), slopes, strict=True)
    products = {name: weight.detach() * slope for (name, weight), slope in found if slope is not None}
    change = {group.name: _summed(group, products) for group in look.groups if _reached(group, products)}
    return loss.item(), {n: {"first_order": x.abs(), "second_order": x.square()} for n, x in change.items()}


def _reached(group: ChannelGroup, products: Mapping[str, Tensor]) -> bool:
    return any(member.entries.parameter in products for member in _readers(group))


def _summed(group: ChannelGroup, products: Mapping[str, Tensor]) -> Tensor:
    total = torch.zeros(group.num_channels, dtype=torch.float64)
    for member in _readers(group):
        if member.entries.parameter in products:
            found = _sum_by_slice(products[member.entries.parameter], member.entries)
            total.index_add_(0, member.channels, found.double().cpu())
    return total


def _sum_by_slice(tensor: Tensor, entries: Entries) -> Tensor:
    """As the sums of `Entries.rows`, without lining a whole parameter up for every case."""
    apart = tensor.reshape(entries.blocks, -1, *tensor.shape[1:])
    others = [axis for axis in range(1, apart.ndim) if axis != entries.axis + 1]
    return (apart.sum(dim=others) if others else apart).flatten()[entries.indices]


@contextmanager
def _watched(look: _Look) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """While a case runs: parameter -> for each call, mean size and active share of each input feature."""
    fed: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    names = {m.entries.parameter for group in look.groups for m in group.members if m.role == "reads"}

    def watch(name: str, module: nn.Module) -> Any:
        axis = -1 if isinstance(module, nn.Linear) else 1

        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            features = inputs[0].detach().movedim(axis, 0).flatten(1).abs().double().cpu()
            fed[name].append((features.mean(dim=1), (features > 0).double().mean(dim=1)))

        return module.register_forward_pre_hook(hook)

    owners = {name: look.model.get_submodule(name.rpartition(".")[0]) for name in names if look.activations}
    hooks = [watch(name, m) for name, m in owners.items() if isinstance(m, WEIGHTED)]
    try:
        yield fed
    finally:
        for hook in hooks:
            hook.remove()


def _activity(group: ChannelGroup, fed: Mapping[str, list[tuple[Tensor, Tensor]]]) -> _Sums:
    """Means over the layers that read a unit, and over the features of each that it becomes."""
    size, active, count = torch.zeros(3, group.num_channels, dtype=torch.float64)
    for member in group.members:
        for sizes, shares in fed.get(member.entries.parameter, ()) if member.role == "reads" else ():
            if int(member.entries.indices.max()) < len(sizes):
                size.index_add_(0, member.channels, sizes[member.entries.indices])
                active.index_add_(0, member.channels, shares[member.entries.indices])
                count.index_add_(0, member.channels, torch.ones(len(member.channels), dtype=torch.float64))
    calls = count.clamp(min=1)
    return {"size": size / calls, "active": active / calls, "seen": (count > 0).double()}


def _differentiable(model: nn.Module, groups: Sequence[ChannelGroup]) -> nn.Module:
    """A copy in eval mode that computes gradients of the weights that are looked at, and no others."""
    copied = trainable_copy(model)
    looked_at = {m.entries.parameter for group in groups if not group.whole for m in _readers(group)}
    for name, parameter in copied.named_parameters():
        parameter.requires_grad_(name in looked_at)
    return copied


def _without_cudnn(model: nn.Module) -> AbstractContextManager[Any]:
    """Let recurrent layers be differentiated in eval mode, which cuDNN refuses."""
    recurrent = any(isinstance(m, nn.RNNBase) for m in model.modules())
    return torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext()


def _cases(model: nn.Module, batches: Iterable[WeighedBatch]) -> Iterator[tuple[Batch, Tensor | None, float]]:
    device = next(model.parameters()).device
    for batch, targets, weights in batches:
        inputs = {name: x.to(device) for name, x in batch.items()}
        truth = None if targets is None else targets.to(device)
        for i in range(len(next(iter(inputs.values())))):
            case = {name: x[i : i + 1] for name, x in inputs.items()}
            weight = 1.0 if weights is None else float(weights[i])
            yield case, None if truth is None else truth[i : i + 1], weight


MOST: Final = 100.0  # that one case may count: a handful must not decide which channels stay


def case_weights(members: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """How much each case counts, so that groups count by how badly they fare and not by how large they are.

    Each group's share is its mean loss over the sum of all groups' mean losses, spread evenly over its
    cases: what group DRO's adversary prefers, without the winner taking all, since a criterion that looks
    at the worst group alone would leave the next one unprotected.

    Args:
        members: Which case is in which group, ``(N, G)`` bool; groups may overlap.
        losses: Of each case, under the model that is to be pruned, ``(N,)``; none negative.

    Returns:
        ``(N,)`` float64; a case that is in no group counts 1, and none more than 100.

    References:
        Sagawa et al., "Distributionally Robust Neural Networks for Group Shifts", ICLR 2020,
        arXiv:1911.08731.

    Example:
        >>> members = np.array([[True, False], [True, False], [True, False], [False, True]])
        >>> case_weights(members, np.array([0.1, 0.1, 0.1, 0.3]))
        array([0.33333333, 0.33333333, 0.33333333, 3.        ])
    """
    counts = members.sum(axis=0).clip(min=1)
    means = losses @ members / counts
    shares = means / means.sum() if means.sum() > 0 else np.full(len(means), 1 / len(means))
    weights: np.ndarray = members @ (shares * len(losses) / counts)
    return np.where(members.any(axis=1), weights.clip(max=MOST), 1.0)

"""Training that no patient group pays for: groups that fare worse count more, as they do (group DRO)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, final

import numpy as np
import torch

from pastille.data.split import Split
from pastille.errors import DataError
from pastille.stats.groups import groups_of
from pastille.train.batches import Drawn
from pastille.train.losses import MAX_WEIGHT, Loss, case_losses_for
from pastille.train.scoring import Choice
from pastille.values import Cases

if TYPE_CHECKING:
    from torch import Tensor

LEAST = 30  # cases of a group: fewer would be learned by heart


def attributes_of(split: Split, asked: Sequence[str]) -> tuple[str, ...]:
    """Attributes whose groups are protected: those that the recipe judges by, else all that there are.

    Raises:
        DataError: The data has no groups.
    """
    if not split.groups:
        raise DataError(
            "prune.fairness: protect needs patient groups, but the data has none; name them in data.groups, "
            "or leave fairness out"
        )
    return tuple(asked) or tuple(split.groups)


def memberships(cases: Cases, by: Sequence[str], *, least: int = LEAST) -> np.ndarray:
    """Which case is in which group.

    Args:
        cases: Of one split.
        by: Attributes.
        least: Groups with fewer cases are left out.

    Returns:
        ``(N, G)`` bool, one column for each group.

    Raises:
        DataError: An attribute does not exist, or fewer than two groups are large enough.

    Example:
        >>> sex = np.array(["f", "m", "f", "x"])
        >>> cases = Cases(kind="binary", split="train", targets=np.array([0, 1, 1, 0]), labels=("a", "b"),
        ...               groups={"sex": sex})
        >>> memberships(cases, ["sex"], least=1).sum(axis=0)
        array([2, 1, 1])
    """
    found = groups_of(cases, by, intersections=False).values()
    rows = [group.rows for groups in found for group in groups if len(group.rows) >= least]
    if len(rows) < 2:
        raise DataError(
            f"prune.fairness: protect needs two groups of at least {least} cases in {cases.split}, "
            f"but {', '.join(by)} has {len(rows)}; leave fairness out, or name other attributes in "
            "requirements.fairness.by"
        )
    members = np.zeros((len(cases.targets), len(rows)), bool)
    for column, inside in enumerate(rows):
        members[inside, column] = True
    return members


def means_by_group(losses: Tensor, members: Tensor) -> Tensor:
    """Mean loss of each group; NaN of one that is not there.

    Args:
        losses: ``(N,)``.
        members: ``(N, G)`` bool.

    Returns:
        ``(G,)``.

    Example:
        >>> means_by_group(torch.tensor([1.0, 3.0]), torch.tensor([[True, False], [True, False]]))
        tensor([2., nan])
    """
    inside = members.to(losses.dtype)
    return (losses @ inside) / inside.sum(dim=0)


def shifted(weights: Tensor, losses: Tensor, *, rate: float) -> Tensor:
    """Weights of the groups after one step of exponentiated gradient ascent: the worse off gain.

    Args:
        weights: ``(G,)``, they sum to 1.
        losses: Mean loss of each group, ``(G,)``.
        rate: How fast.

    References:
        Sagawa et al., "Distributionally Robust Neural Networks for Group Shifts", ICLR 2020,
        arXiv:1911.08731, algorithm 1.

    Example:
        >>> shifted(torch.tensor([0.5, 0.5]), torch.tensor([0.0, math.log(3)]), rate=1.0)
        tensor([0.2500, 0.7500])
    """
    return torch.softmax(weights.log() + rate * losses, dim=0)


def rate_for(groups: int, steps: int) -> float:
    """How fast group weights move, so that a training of any length moves them far enough and no further.

    The rate at which exponentiated weights regret least against the worst group in hindsight (Freund and
    Schapire, 1997); a fixed one would leave a fine-tuning of a few hundred steps as good as unweighted.
    """
    return math.sqrt(2 * math.log(groups) / max(1, steps))


def case_weights(weights: Tensor, members: Tensor, shares: Tensor) -> Tensor:
    """How much each case counts, so that a mean over cases is the weighted mean over groups.

    Args:
        weights: Of the groups, ``(G,)``.
        members: ``(N, G)`` bool.
        shares: Of the split that each group is, ``(G,)``: those of a batch would make small groups count
            less, since few batches hold them.

    Returns:
        ``(N,)``; a case that is in no group counts 1, and none more than `MAX_WEIGHT`: a group that only
        few batches hold would throw the others off.

    Example:
        >>> case_weights(torch.tensor([0.5, 0.5]), torch.tensor([[True, False], [False, True]]),
        ...              torch.tensor([0.9, 0.1]))
        tensor([0.5556, 5.0000])
    """
    each = (members.to(weights.dtype) @ (weights / shares)).clamp(max=MAX_WEIGHT)
    return torch.where(members.any(dim=1), each, 1.0)


@final
class RobustLoss:
    """A loss for one training that weighs groups by how they fare, and moves the weights as they do.

    Args:
        each: Of outputs and targets, the loss of each case.
        members: Of the training split, ``(N, G)`` bool.
        steps: That the training takes.

    Attributes:
        weights: Of the groups, ``(G,)``; they sum to 1.
    """

    def __init__(self, each: Loss, members: np.ndarray, *, steps: int) -> None:
        groups = members.shape[1]
        self._each, self._rate = each, rate_for(groups, steps)
        self._inside, self._shares = torch.from_numpy(members), torch.from_numpy(members.mean(axis=0)).float()
        self.weights, self._latest = torch.full((groups,), 1 / groups), torch.zeros(groups)

    def __call__(self, batch: Drawn, outputs: Tensor) -> Tensor:
        """Of a batch, by weights that have just been moved by it."""
        losses, members = self._each(outputs, batch.targets), self._inside[torch.from_numpy(batch.rows)]
        now = means_by_group(losses.detach().float().cpu(), members)
        # One that this batch lacks is as it was seen last.
        self._latest = torch.where(now.isnan(), self._latest, now)
        self.weights = shifted(self.weights, self._latest, rate=self._rate)
        return (case_weights(self.weights, members, self._shares).to(losses) * losses).mean()

    def state_dict(self) -> dict[str, Tensor]:
        """What it remembers, for a training that is killed."""
        return {"weights": self.weights, "latest": self._latest}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Remember what `state_dict` gave."""
        self.weights, self._latest = tensors["weights"].cpu(), tensors["latest"].cpu()


def worst_group(cases: Cases, members: np.ndarray) -> Choice:
    """Choose the epoch whose worst group fares best on validation.

    Args:
        cases: Of validation.
        members: Of validation, ``(N, G)`` bool.
    """
    each, inside = case_losses_for(cases), torch.from_numpy(members)
    targets = torch.from_numpy(cases.targets)

    def value(found: np.ndarray) -> float:
        return -float(means_by_group(each(torch.from_numpy(found), targets), inside).max())

    return Choice(metric="worst_group_log_likelihood", value=value)

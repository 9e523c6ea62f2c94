"""The scores of every group of a model, by one criterion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from pastille.errors import PreconditionError
from pastille.pruning.criteria import COMPARABLE, CRITERIA, NEEDS, Observed, View, layer_of
from pastille.pruning.units import ChannelGroup

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pastille.pruning.evidence import Evidence


def group_scores(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    criterion: str,
    evidence: Evidence | None = None,
    *,
    seed: int = 0,
    normalise: bool | None = None,
) -> dict[str, Tensor]:
    """How much each unit of each group matters.

    Args:
        model: That the groups were found in.
        groups: From `pastille.pruning.survey`; those that must be left whole are passed over.
        criterion: A name of `pastille.pruning.criteria.CRITERIA`.
        evidence: From `pastille.pruning.evidence.gather`, for criteria that look at data.
        seed: Of the criterion ``"random"``.
        normalise: Divide each group's scores by their mean, so that a group of large weights or many
            layers does not outvote the others where groups are compared. By default done for all criteria
            but those whose scores mean the same in every group.

    Returns:
        Name of a group -> scores ``(C,)`` float64 on the CPU; low ones go first.

    Raises:
        ValueError: There is no such criterion, or it looks at data and ``evidence`` does not have what it
            needs.
        PreconditionError: A group's scores are not finite, or no gradient reaches it.

    Example:
        >>> from torch import nn
        >>> from pastille.pruning import survey
        >>> net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> _ = [p.data.copy_(torch.tensor([[1.0], [3.0]]).reshape(p.shape))
        ...      for p in (net[0].weight, net[2].weight)]
        >>> group_scores(net, survey(net, {"input": torch.zeros(1, 1)}), "l1")
        {'0': tensor([0.5000, 1.5000], dtype=torch.float64)}
    """
    score = CRITERIA.get(criterion)
    if score is None:
        raise ValueError(f"criterion must be one of {', '.join(CRITERIA)}, got {criterion!r}")
    normalised = criterion not in COMPARABLE if normalise is None else normalise
    scores = {}
    for group in groups:
        if not group.whole:
            observed = _observed(group, criterion, evidence)
            found = _finite(score(_view(model, group, observed, seed)), group, criterion)
            scores[group.name] = found / found.mean().clamp(min=1e-300) if normalised else found
    return scores


def _view(model: nn.Module, group: ChannelGroup, observed: Observed, seed: int) -> View:
    layers = tuple(layer_of(m, model.get_parameter(m.entries.parameter)) for m in group.members)
    return View(name=group.name, num_units=group.num_channels, layers=layers, observed=observed, seed=seed)


def _observed(group: ChannelGroup, criterion: str, evidence: Evidence | None) -> Observed:
    need = NEEDS.get(criterion)
    if need is None:
        return Observed()
    if evidence is None or need not in evidence.what:
        raise ValueError(f"criterion {criterion!r} looks at data: needs evidence of {need}")
    observed = evidence.groups[group.name]
    if need == "gradients" and observed.first_order is None:
        raise PreconditionError(
            f"prune.criterion: {criterion} needs gradients, but none reaches what reads {group.name} (the "
            f"model's code runs it without them); protect {group.name} (prune.protect), or choose l2"
        )
    return observed


def _finite(scores: Tensor, group: ChannelGroup, criterion: str) -> Tensor:
    if not bool(torch.isfinite(scores).all()):
        raise PreconditionError(
            f"prune.criterion: {criterion} of {group.name} is not finite: its weights, or the loss on the "
            "cases looked at, are not"
        )
    return scores

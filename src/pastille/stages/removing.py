"""One removal: what is looked at, how much each unit matters, how many stay, and the cut."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from pastille.errors import PreconditionError
from pastille.processes import here
from pastille.progress import Progress
from pastille.pruning import Pruned, remove, survey
from pastille.pruning.allocation import allocate, removals
from pastille.pruning.blocks import block_influences, number_of_blocks, residual_blocks, without_blocks
from pastille.pruning.criteria import NEEDS
from pastille.pruning.evidence import Evidence, WeighedBatch, case_weights, gather
from pastille.pruning.removal import layer_widths
from pastille.pruning.scores import group_scores
from pastille.pruning.structured import NO_HEADS
from pastille.pruning.units import ChannelGroup
from pastille.recipe import Prune
from pastille.stages.pruning_tuning import members_of
from pastille.task import Task, example_batch
from pastille.task.forward import forward
from pastille.train.batches import reader
from pastille.train.losses import case_losses_for, loss_problem

if TYPE_CHECKING:
    from torch import Tensor, nn

_BATCH: Final = 64

Harm = Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """How much is gone after a step, as fractions of what there was before the first one.

    Attributes:
        sparsity: Of the channels; None leaves them alone, but for those that ``layers`` names.
        layers: Module -> a sparsity of its own.
        heads: Of each layer's attention heads.
        blocks: Of the residual blocks.
        widths: Name of a group -> units that stay, in place of a sparsity: what a budget came to.
    """

    sparsity: float | None = None
    layers: Mapping[str, float]
    heads: float | None = None
    blocks: float | None = None
    widths: Mapping[str, int] | None = None

    @property
    def kinds(self) -> frozenset[str]:
        """What it takes units of."""
        channels = self.sparsity is not None or self.layers or self.widths is not None
        heads = self.heads is not None or self.widths is not None
        return frozenset([*(["channels"] if channels else []), *(["heads"] if heads else [])])


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """The groups of a model, and how much each of their units matters."""

    groups: tuple[ChannelGroup, ...]
    scores: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What stays the same from step to step.

    Attributes:
        settings: As asked in the recipe.
        task: The user's.
        original: Name of a group -> its units before the first step.
        round_to: Widths kept are multiples of this.
        harm: What a sensitivity scan found, for ``allocation: sensitivity``.
        blocks: How many residual blocks there were before the first step.
    """

    settings: Prune
    task: Task
    original: Mapping[str, int]
    round_to: int
    harm: Harm | None = None
    blocks: int = 0


def goals(settings: Prune, *, original: Mapping[str, int], widths: Mapping[str, int] | None) -> list[Goal]:
    """What is gone after each step: every step takes the same share of what is left.

    Args:
        settings: As asked in the recipe.
        original: Name of a group -> its units before the first step.
        widths: What a budget came to; None where a sparsity was asked for.
    """
    return [
        Goal(
            sparsity=_after(settings.sparsity, done),
            layers={name: _after(share, done) or 0.0 for name, share in settings.layers.items()},
            heads=_after(settings.heads, done),
            blocks=_after(settings.blocks, done),
            widths=None if widths is None else between(original, widths, done),
        )
        for done in (k / settings.steps for k in range(1, settings.steps + 1))
    ]


def _after(target: float | None, done: float) -> float | None:
    """A fraction after a share of the steps; at the end exactly what was asked."""
    return target if target is None or done == 1 else 1 - (1 - target) ** done


def between(original: Mapping[str, int], final: Mapping[str, int], done: float) -> dict[str, int]:
    """Widths after a share of the steps, on the way to those of a budget.

    Example:
        >>> between({"conv": 64}, {"conv": 16}, 0.5)
        {'conv': 32}
    """
    return {
        name: max(width, round(original[name] * (width / original[name]) ** done))
        for name, width in final.items()
    }


def scored(module: nn.Module, goal: Goal, work: Work, progress: Progress) -> Scored:
    """Find the groups that a step may prune, and weigh their units by the recipe's criterion."""
    settings, task = work.settings, work.task
    groups = survey(module, example_batch(task.splits.train.inputs), protect=settings.protect)
    groups = tuple(group for group in groups if group.kind in goal.kinds)
    if all(group.whole for group in groups):
        return Scored(groups=groups, scores={})

    def weighed() -> Mapping[str, Tensor]:
        evidence = _evidence(module, groups, settings, task, progress)
        return group_scores(module, groups, settings.criterion, evidence, seed=task.recipe.seed)

    return Scored(groups=groups, scores=here().agreed(weighed))  # a last digit would prune another network


def leaving(found: Scored, goal: Goal, work: Work) -> dict[str, Tensor]:
    """The units of each group that go; name -> ``(n,)`` int64."""
    share = partial(
        allocate, layers=goal.layers, round_to=work.round_to, original=work.original, harm=work.harm
    )
    heads = [group for group in found.groups if group.kind == "heads"]
    channels = [group for group in found.groups if group.kind == "channels"]
    if goal.heads and not heads:
        raise PreconditionError(NO_HEADS)
    kept = share(heads, found.scores, sparsity=goal.heads or 0.0)
    if goal.widths is None:
        how = work.settings.allocation if goal.sparsity else "uniform"
        kept |= share(channels, found.scores, sparsity=goal.sparsity or 0.0, allocation=how)
    else:
        now = {group.name: group.num_channels for group in found.groups if not group.whole}
        kept |= {name: min(now[name], width) for name, width in goal.widths.items() if name in now}
    return removals(found.groups, found.scores, kept)


def narrowed(module: nn.Module, goal: Goal, work: Work, progress: Progress) -> Pruned:
    """Remove what a step is to remove.

    Args:
        module: Not modified.
        goal: Of the step.
        work: What stays the same.
        progress: Shown while cases are looked at.

    Raises:
        PreconditionError: The model cannot be followed, or no longer runs.
    """
    module = shallower(module, goal, work)
    found = scored(module, goal, work, progress)
    batch = example_batch(work.task.splits.train.inputs)
    gone = leaving(found, goal, work)
    pruned = remove(module, batch, gone, protect=work.settings.protect)
    return replace(pruned, left_whole={**_left(found.groups, gone, work), **pruned.left_whole})


def shallower(module: nn.Module, goal: Goal, work: Work) -> nn.Module:
    """Leave out the residual blocks that change least of what they are given.

    Args:
        module: Not modified.
        goal: Of the step.
        work: What stays the same.

    References:
        Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", 2024,
        arXiv:2403.03853.
    """
    batch, protect = example_batch(work.task.splits.train.inputs), work.settings.protect
    blocks = residual_blocks(module, batch, protect=protect) if goal.blocks else ()
    count = number_of_blocks(goal.blocks or 0.0, work.blocks) - (work.blocks - len(blocks))
    if count <= 0:
        return module
    read, rows = reader(work.task.splits.train), sampled(work.task, work.settings.samples)
    cases = (read(rows[start : start + _BATCH]) for start in range(0, len(rows), _BATCH))
    influence = block_influences(module, cases, blocks)
    free = sorted((block.name for block in blocks if not block.whole), key=lambda name: influence[name])
    return without_blocks(module, batch, free[:count], protect=protect)


def count_blocks(module: nn.Module, settings: Prune, task: Task) -> int:
    """How many residual blocks there are.

    Raises:
        PreconditionError: None of them can be left out, or the share asked for is less than one.
    """
    if settings.blocks is None:
        return 0
    blocks = residual_blocks(module, example_batch(task.splits.train.inputs), protect=settings.protect)
    free = sum(not block.whole for block in blocks)
    if not free or number_of_blocks(settings.blocks, len(blocks)) < 1:
        why = "; ".join(sorted({f"{block.name}: {block.whole}" for block in blocks if block.whole}))
        raise PreconditionError(
            f"prune.blocks: {settings.blocks:g} of {len(blocks)} residual blocks, of which {free} can be "
            f"left out, is none{f' ({why})' if why else ''}; raise blocks, or leave it out"
        )
    return len(blocks)


def _left(groups: Sequence[ChannelGroup], gone: Mapping[str, Tensor], work: Work) -> dict[str, str]:
    """Layers that lose nothing, and why."""
    why = {
        group: group.whole or (f"no narrower multiple of {work.round_to}" if work.round_to > 1 else "")
        for group in groups
        if group.name not in gone
    }
    return {name: reason for group, reason in why.items() if reason for name in group.outputs}


def _evidence(
    module: nn.Module, groups: Sequence[ChannelGroup], settings: Prune, task: Task, progress: Progress
) -> Evidence | None:
    """What the criterion must see of the training split; None if it looks at weights alone."""
    need = NEEDS.get(settings.criterion)
    if need is None:
        return None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = copy.deepcopy(module).to(device)
    loss = None if loss_problem(task.recipe.task) else case_losses_for(task.cases["train"])
    rows = sampled(task, settings.samples)
    cases = _weighed(model, rows, settings, task)
    return gather(model, groups, cases, loss, what=frozenset({need}), progress=progress)


def sampled(task: Task, samples: int) -> np.ndarray:
    """Rows of train that a criterion looks at, ``(n,)`` ascending: as they are mixed there."""
    n = task.splits.train.n
    order = np.random.default_rng(task.recipe.seed).permutation(n)
    return np.sort(order[:samples])


def _weighed(model: nn.Module, rows: np.ndarray, settings: Prune, task: Task) -> Iterator[WeighedBatch]:
    """Cases in batches; those of groups that fare worse count more, where that is asked."""
    read, weights = reader(task.splits.train), None
    # What has no loss may have targets of any kind, which nothing then looks at.
    targets = None if loss_problem(task.recipe.task) else torch.from_numpy(task.cases["train"].targets)
    if settings.fairness == "protect":
        members = members_of(task, "train")[rows]
        weights = torch.from_numpy(case_weights(members, _losses(model, rows, task)))
    for start in range(0, len(rows), _BATCH):
        some = rows[start : start + _BATCH]
        count = None if weights is None else weights[start : start + _BATCH]
        yield read(some), None if targets is None else targets[some], count


def _losses(model: nn.Module, rows: np.ndarray, task: Task) -> np.ndarray:
    """The loss of each case under the model as it is, ``(N,)``."""
    read, cases = reader(task.splits.train), task.cases["train"]
    each, targets = case_losses_for(cases), torch.from_numpy(cases.targets)
    device = next(model.parameters()).device
    found = []
    with torch.inference_mode():
        for some in np.array_split(rows, -(-len(rows) // _BATCH)):
            batch = {name: x.to(device) for name, x in read(some).items()}
            found.append(each(forward(model, batch), targets[some].to(device)).double().cpu())
    return torch.cat(found).numpy()


def share_gone(before: nn.Module, after: nn.Module, groups: Sequence[ChannelGroup]) -> float:
    """Share of the output channels of layers that could be narrowed which are gone; of blocks, all.

    Args:
        before: The model that the groups were found in.
        after: The pruned one.
        groups: Those that must be left whole do not count.
    """
    prunable = {name for group in groups if not group.whole for name in group.outputs}
    old, new = layer_widths(before), layer_widths(after)
    total = sum(old[name] for name in prunable if name in old)
    return 1 - sum(new.get(name, 0) for name in prunable if name in old) / total if total else 0.0

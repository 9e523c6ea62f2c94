"""What a pruning changed of a model: for the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pastille.pruning.allocation import unrounded
from pastille.pruning.heads import head_groups
from pastille.pruning.removal import layer_widths
from pastille.pruning.replacements import Skip
from pastille.pruning.units import ChannelGroup
from pastille.pruning.whole import is_within
from pastille.record import WidthChange
from pastille.stages.preparing import Prepared
from pastille.task import Task, example_batch

if TYPE_CHECKING:
    from torch import nn


def changes(before: nn.Module, after: nn.Module, ready: Prepared, task: Task) -> tuple[WidthChange, ...]:
    """Blocks that were left out, attention that lost heads, and layers that were narrowed.

    Args:
        before: The model before the first step.
        after: The pruned one.
        ready: What was found of the model before.
        task: Gives example inputs.
    """
    blocks = [name for name in _skipped(after) if name not in _skipped(before)]
    heads = _heads(ready.groups, after, ready, task)
    told = {name for g in ready.groups if g.name in {h.module for h in heads} for name in g.outputs}
    widths, notes = layer_widths(after), _notes(ready)
    return (
        *(WidthChange(module=name, before=1, after=0, kind="blocks") for name in blocks),
        *heads,
        *(
            WidthChange(module=name, before=width, after=widths[name], note=notes.get(name, ""))
            for name, width in layer_widths(before).items()
            if name in widths and widths[name] != width and name not in told
        ),
    )


def _notes(ready: Prepared) -> dict[str, str]:
    """Layers whose widths can not be rounded as asked, and why."""
    why = {group: unrounded(group, ready.work.round_to, ready.work.original) for group in ready.groups}
    return {name: reason for group, reason in why.items() if reason for name in group.outputs}


def _skipped(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, Skip)]


def _heads(
    groups: Sequence[ChannelGroup], after: nn.Module, ready: Prepared, task: Task
) -> list[WidthChange]:
    """Counted anew: not every head that was chosen could be removed."""
    had = {group.name: group.num_channels for group in groups if group.kind == "heads"}
    if not had or not any("heads" in goal.kinds for goal in ready.goals):
        return []
    now = head_groups(after, example_batch(task.splits.train.inputs))
    return [
        WidthChange(module=g.name, before=had[g.name], after=g.num_channels, kind="heads")
        for g in now
        if g.num_channels != had.get(g.name, g.num_channels)
    ]


def still_whole(
    whole: Mapping[str, str], changed: Sequence[WidthChange], before: nn.Module
) -> dict[str, str]:
    """Layers of the model before that lost nothing at all, and why.

    Args:
        whole: Layer -> why it lost nothing in the last step.
        changed: From `changes`.
        before: The model before the first step.
    """
    names = layer_widths(before)
    return {
        name: why
        for name, why in whole.items()
        if name in names and not any(is_within(name, change.module) for change in changed)
    }

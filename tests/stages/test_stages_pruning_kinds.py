"""What the pruning stage removes beside channels, and how much of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pruning_stage import TUNE, deep, given, run, stage, tokens, transformer
from torch import nn

from pastille.errors import PreconditionError, StageError
from pastille.measure.counts import macs
from pastille.pruning.removal import layer_widths
from pastille.record import StageDetails, WidthChange
from pastille.stages import StageResult
from pastille.stages.removing import between
from pastille.task import example_batch
from pastille.task.forward import forward


def grouped() -> nn.Module:
    torch.manual_seed(0)
    convolutions = nn.Conv2d(1, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 3, groups=3), nn.ReLU()
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 3)).eval()


class TestMore:
    def test_blocks_are_left_out_a_few_at_a_time(self, tmp_path: Path) -> None:
        artifact, task = given(tmp_path, deep())
        task = replace(task, build=deep)
        result = run(stage(blocks=0.5, steps=2, finetune=TUNE), artifact, task)
        gone = [change for change in result.details.widths if change.kind == "blocks"]
        assert len(gone) == 3
        assert all((change.before, change.after) == (1, 0) for change in gone)
        first, last = result.details.steps
        assert 0 < first.sparsity < last.sparsity
        answer = forward(result.module, example_batch(task.splits.train.inputs))
        assert answer.shape[1] == 3

    def test_heads_are_counted(self, tmp_path: Path) -> None:
        artifact, task = given(tmp_path, tokens())
        result = run(stage(heads=0.5), artifact, replace(task, build=tokens))
        assert result.details.widths == (WidthChange(module="attend", before=4, after=2, kind="heads"),)
        assert "attend.out_proj" not in result.details.left_whole
        both = run(stage(heads=0.5, sparsity=0.25), artifact, replace(task, build=tokens)).details.widths
        assert {change.kind for change in both} == {"heads", "channels"}

    def test_less_than_one_block_is_refused(self, tmp_path: Path) -> None:
        artifact, task = given(tmp_path, deep(3))
        with pytest.raises(
            PreconditionError, match=r"prune.blocks: 0.1 of 3 residual blocks, .* raise blocks"
        ):
            run(stage(blocks=0.1), artifact, task)

    def test_a_budget_is_reached_step_by_step(self, tmp_path: Path) -> None:
        artifact, task = given(tmp_path)
        most = 0.4 * macs(artifact.file)
        asked = stage(budget={"max_macs": most}, criterion="l2", steps=2, finetune=TUNE)
        one, two = run(asked, artifact, task).details.steps
        assert one.macs is not None
        assert two.macs is not None
        assert 0.9 * most <= two.macs <= most < one.macs

    def test_widths_on_the_way_to_a_budget(self) -> None:
        assert between({"a": 64, "b": 10}, {"a": 16, "b": 10}, 0.5) == {"a": 32, "b": 10}
        assert between({"a": 64}, {"a": 16}, 1.0) == {"a": 16}

    def test_a_custom_task_needs_a_criterion_without_a_loss(self, tmp_path: Path) -> None:
        artifact, task = given(tmp_path)
        section = task.recipe.task.model_copy(update={"kind": "custom"})
        task = replace(task, recipe=task.recipe.model_copy(update={"task": section}))
        with pytest.raises(
            PreconditionError, match=r"prune.criterion: a custom task has no loss .*set criterion: l2"
        ):
            stage(sparsity=0.5).requires(artifact, task)
        with pytest.raises(PreconditionError, match=r"prune.fairness: a custom task has no loss"):
            stage(sparsity=0.5, criterion="apoz", fairness="protect").requires(artifact, task)
        words = {**task.cases, "train": replace(task.cases["train"], targets=np.array(["a"] * 48, object))}
        for criterion in ("l2", "activation"):
            found = run(stage(sparsity=0.5, criterion=criterion), artifact, replace(task, cases=words))
            assert layer_widths(found.module)["conv1"] == 16

    @pytest.mark.parametrize(
        ("asked", "said"),
        [
            (
                {"layers": {"conv3": 0.5}},
                r"prune.layers: no module of the model is called 'conv3'; closest: conv",
            ),
            (
                {"protect": ["cnv1"]},
                r"prune.protect: no module of the model is called 'cnv1'; closest: conv1",
            ),
            ({"protect": ["conv*"]}, r"nothing can be removed .*protected by the recipe"),
        ],
    )
    def test_names(self, asked: dict[str, Any], said: str, tmp_path: Path) -> None:
        artifact, task = given(tmp_path)
        with pytest.raises(PreconditionError, match=said):
            run(stage(sparsity=0.5, **asked), artifact, task)

    def test_a_layer_of_its_own(self, tmp_path: Path) -> None:
        artifact, task = given(tmp_path)
        result = run(stage(layers={"conv1": 0.5}, criterion="l2"), artifact, task)
        assert layer_widths(result.module) == {"conv1": 16, "conv2": 32, "head": 3}

    def test_parts_of_a_width_that_can_not_be_rounded_are_none_the_worse(self, tmp_path: Path) -> None:
        artifact, task = given(tmp_path, grouped())
        asked = stage(sparsity=0.4, criterion="l1", round_to=8)
        result = run(asked, artifact, replace(task, build=grouped))
        changed, other = result.details.widths
        assert (changed.module, changed.after, other.after) == ("0", 15, 15)
        assert "not rounded to 8" in changed.note
        with pytest.raises(StageError, match=r"must keep multiples of 8: \['0'\]"):
            asked.ensures(
                artifact, replace(result, details=StageDetails(widths=(replace(changed, note=""),)))
            )

    def test_promises(self, tmp_path: Path) -> None:
        artifact, _ = given(tmp_path)
        same = StageResult(module=artifact.module, details=StageDetails())
        with pytest.raises(StageError, match="must remove parameters"):
            stage(heads=0.5).ensures(artifact, same)


class TestTransformer:
    def test_heads_and_blocks_and_channels_go_together(self, tmp_path: Path) -> None:
        artifact, task = given(tmp_path, transformer())
        task = replace(task, build=transformer)
        asked = stage(heads=0.5, blocks=0.5, sparsity=0.25, criterion="l2", steps=2, finetune=TUNE)
        result = run(asked, artifact, task)
        assert {change.kind for change in result.details.widths} == {"heads", "blocks", "channels"}
        first, last = result.details.steps
        assert 0 < first.removed < last.removed
        left = sum(p.numel() for p in result.module.parameters())
        assert last.removed == 1 - left / sum(p.numel() for p in transformer().parameters())
        answer = forward(result.module, example_batch(task.splits.train.inputs))
        assert answer.shape[1] == 3

    def test_of_heads_alone_no_channel_is_counted(self, tmp_path: Path) -> None:
        artifact, task = given(tmp_path, tokens())
        (step,) = run(stage(heads=0.5, criterion="l2"), artifact, replace(task, build=tokens)).details.steps
        assert step.removed > 0.05
        assert step.sparsity == 0

"""The pruning stage: its steps, when it goes back, and what a killed run takes up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pruning_stage import TUNE, given, run, stage, trained_net
from stages_task import Net, Notes, split
from torch import nn

from pastille.data.cases import cases
from pastille.data.split import Splits
from pastille.errors import DataError, PreconditionError
from pastille.files import write_atomic
from pastille.measure.counts import macs
from pastille.pruning import read_model
from pastille.pruning.removal import layer_widths
from pastille.pruning.units import Entries
from pastille.recipe import FairnessLimits, FinetuneStep, PruneStep, Train
from pastille.stages.contract import state_digest
from pastille.stages.pruning_tuning import growing_penalty, slowed
from pastille.task import Task
from pastille.task.forward import forward
from pastille.values import to_json
from pastille.values.scanned import Effect, Scan

BARELY = {"epochs": 1, "learning_rate": 1e-9, "batch_size": 16}
LEARN = {"epochs": 20, "learning_rate": 0.005, "shrink": 1e-4}


class TestSteps:
    def test_each_is_looked_at_and_told(self, tmp_path: Path) -> None:
        artifact, task = given(tmp_path)
        result = run(stage(sparsity=0.5, steps=2, finetune=TUNE), artifact, task)
        one, two = result.details.steps
        assert (one.number, two.number) == (1, 2)
        assert one.sparsity == pytest.approx(1 - 0.5**0.5, abs=0.03)
        assert two.sparsity == pytest.approx(0.5, abs=0.01)
        assert two.parameters == sum(p.numel() for p in result.module.parameters())
        assert two.macs == macs(tmp_path / "stage/steps/02/model.onnx")
        assert two.metric == max(result.details.curves[1].validation)
        assert two.spent is not None
        assert not two.rejected
        assert layer_widths(result.module) == {"conv1": 16, "conv2": 16, "head": 3}

    def test_one_alone_is_left_to_the_gate(self, tmp_path: Path) -> None:
        artifact, task = given(tmp_path)
        result = run(stage(sparsity=0.25, finetune=TUNE), artifact, task)
        (step,) = result.details.steps
        assert (step.spent, step.macs) == (None, None)
        assert not (tmp_path / "stage/steps").exists()

    def test_the_run_goes_back_to_the_last_that_broke_no_limit(self, tmp_path: Path) -> None:
        """Barely tuned, a late one of four steps to 95 % loses what the model knew."""
        artifact, task = given(tmp_path)
        progress = Notes()
        result = run(stage(sparsity=0.95, steps=4, finetune=BARELY), artifact, task, progress)
        *before, last = result.details.steps
        assert before
        assert last.rejected
        assert "on the validation" in last.note or "accuracy" in last.note
        assert not any(step.rejected for step in before)
        assert before[-1].parameters == sum(p.numel() for p in result.module.parameters())
        (note,) = (n for n in result.details.notes if "broke a limit" in n)
        whole = sum(p.numel() for p in artifact.module.parameters())
        gone, back = (f"{1 - step.parameters / whole:.0%} of the weights gone" for step in (last, before[-1]))
        assert f"step {last.number} of 4 broke a limit on validation with {gone}" in note
        assert f"step {before[-1].number} is what it went back to, with {back}" in note
        assert note in progress.notes
        assert len(result.details.curves) == len(result.details.steps)

    def test_a_first_one_that_breaks_a_limit_is_left_to_the_gate(self, tmp_path: Path) -> None:
        artifact, task = given(tmp_path, trained_net(width=4))
        asked = stage(sparsity=0.95, steps=2, criterion="random", finetune=BARELY)
        result = run(asked, artifact, replace(task, build=lambda: Net(4)))
        (step,) = result.details.steps
        assert step.rejected
        assert step.parameters == sum(p.numel() for p in result.module.parameters())
        assert any("step 1 of 2 already broke a limit" in note for note in result.details.notes)

    def test_without_fine_tuning_each_is_looked_at_too(self, tmp_path: Path) -> None:
        artifact, task = given(tmp_path)
        steps = run(stage(sparsity=0.95, steps=3, criterion="random"), artifact, task).details.steps
        assert all(step.spent is not None and step.macs is not None for step in steps)
        assert steps[-1].rejected
        assert len(steps) < 3

    def test_before_a_finetune_none_is_judged(self, tmp_path: Path) -> None:
        """Only after it a gate is fair."""
        artifact, task = given(tmp_path)
        plan = [
            PruneStep.model_validate({"prune": {"round_to": 1, "sparsity": 0.95, "steps": 3}}),
            FinetuneStep.model_validate({"finetune": TUNE}),
        ]
        task = replace(task, recipe=task.recipe.model_copy(update={"plan": plan}))
        result = run(stage(sparsity=0.95, steps=3), artifact, task)
        assert [step.spent for step in result.details.steps] == [None] * 3
        assert result.details.steps[-1].sparsity > 0.9

    def test_much_at_once_is_noted(self, tmp_path: Path) -> None:
        artifact, task = given(tmp_path)
        notes = run(stage(sparsity=0.75, finetune=TUNE), artifact, task).details.notes
        assert notes[0].startswith(
            "the only step is asked to remove 75% of the channels that are left; 10 % to 20 %"
        )
        assert "(steps: 7)" in notes[0]

    def test_learning_slows_from_step_to_step(self) -> None:
        train = Train(epochs=1, learning_rate=0.8)
        assert [slowed(train, k, 0.5).learning_rate for k in (1, 2, 3)] == [0.8, 0.4, 0.2]


class Killed(BaseException):
    """What ends a process, without a trace."""


class Dying(Notes):
    """Ends the process when a note is made."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self.at = at

    def note(self, text: str) -> None:
        super().note(text)
        if self.at in text:
            raise Killed


class TestTakenUp:
    def test_a_killed_run_ends_with_the_same_model(self, tmp_path: Path) -> None:
        artifact, task = given(tmp_path)
        asked = stage(sparsity=0.5, steps=2, finetune=TUNE, regularize={"epochs": 1})
        whole = run(asked, artifact, task)
        (tmp_path / "again").mkdir()
        artifact, _ = given(tmp_path / "again")
        with pytest.raises(Killed):
            run(asked, artifact, task, Dying("pruning step 2 of 2: 2 layers"))
        progress = Notes()
        again = run(asked, artifact, task, progress)
        assert state_digest(again.module) == state_digest(whole.module)
        assert again.details == whole.details
        trained = [what for what, _ in progress.tracked if what.startswith(("fine-tuning", "learning"))]
        assert trained == ["fine-tuning, pruning step 2 of 2"]
        assert progress.notes[:2] == [
            "learning to do without: finished before, taken up",
            "pruning step 1 of 2: finished before, taken up",
        ]


def validation_loss(model: nn.Module, task: Task) -> float:
    held = task.splits.validation
    with torch.inference_mode():
        found = forward(model, {"input": torch.from_numpy(np.stack(list(held.inputs)))})
    return float(nn.functional.cross_entropy(found, torch.from_numpy(task.cases["validation"].targets)))


class TestTraining:
    def test_a_pruned_model_learns_from_the_one_before(self, tmp_path: Path) -> None:
        """With labels that are wrong on purpose, the teacher's answers are all that is true."""
        artifact, task = given(tmp_path)
        wrong = replace(task.cases["train"], targets=(task.cases["train"].targets + 1) % 3)
        task = replace(task, cases={**task.cases, "train": wrong})
        tune = {**TUNE, "epochs": 6}
        found = {}
        for name, more in dict[str, Any]({"labels": {}, "teacher": {"distill": {"alpha": 1.0}}}).items():
            asked = stage(sparsity=0.25, criterion="l2", finetune=tune, **more)
            (found[name],) = run(asked, artifact, task).details.curves
        assert found["teacher"].validation[-1] > 0.75
        assert found["labels"].validation[-1] < 0.5

    def test_what_will_go_is_small_before_it_goes(self, tmp_path: Path) -> None:
        """So the others have learned what it did: the pruned model still knows it."""
        artifact, task = given(tmp_path)
        found = {}
        for name, more in dict[str, Any]({"at once": {}, "first": {"regularize": LEARN}}).items():
            result = run(stage(sparsity=0.75, criterion="l1", **more), artifact, task)
            found[name] = validation_loss(result.module, task)
        before = read_model(task.build, tmp_path / "stage/steps/00")
        assert found["first"] == pytest.approx(validation_loss(before, task), abs=0.02)
        assert found["first"] < 0.8 * found["at once"]
        assert [curve.stage for curve in result.details.curves] == ["learning to do without"]

    def test_the_penalty_alone_leaves_what_was_asked(self) -> None:
        """Of plain gradient descent, the growing factor shrinks a weight to the share that it is made for."""
        model, steps, rate = nn.Linear(1, 1, bias=False), 400, 0.01
        nn.init.constant_(model.weight, 2.0)
        weight = [Entries(parameter="weight", axis=0, indices=torch.tensor([0]))]
        most = 2 * np.log(1 / 0.05) / (rate * steps)
        penalty = growing_penalty(weight, most=most)
        optimizer = torch.optim.SGD(model.parameters(), rate)
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            penalty(model, step / steps).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        assert float(model.weight.detach()) == pytest.approx(2.0 * 0.05, rel=0.05)


def grouped(task: Task, *, n: int = 120) -> Task:
    """With patient groups, and enough cases of each."""
    parts: dict[str, Any] = {}
    for seed, name in enumerate(("train", "validation", "test")):
        part = split(n, seed)
        parts[name] = replace(part, groups={"sex": np.where(np.arange(n) % 4, "m", "f")})
    splits = Splits(**parts)
    held: Any = {name: cases(part, name, task.recipe.task) for name, part in splits}
    return replace(task, splits=splits, cases=held)


class TestFairness:
    def test_the_worst_group_decides_which_epoch_stays(self, tmp_path: Path) -> None:
        artifact, task = given(tmp_path)
        result = run(stage(sparsity=0.5, finetune=TUNE, fairness="protect"), artifact, grouped(task))
        (curve,) = result.details.curves
        assert curve.metric == "worst_group_log_likelihood"
        assert all(value <= 0 for value in curve.validation)

    def test_data_without_groups_are_refused(self, tmp_path: Path) -> None:
        artifact, task = given(tmp_path)
        asked = stage(sparsity=0.5, fairness="protect")
        with pytest.raises(DataError, match=r"protect needs patient groups, but the data has none"):
            asked.requires(artifact, task)
        with pytest.raises(DataError, match=r"needs two groups of at least 30 cases in train, but sex has 1"):
            asked.requires(artifact, grouped(task, n=60))
        limits = FairnessLimits(by=["age"])
        requirements = task.recipe.requirements.model_copy(update={"fairness": limits})
        recipe = task.recipe.model_copy(update={"requirements": requirements})
        with pytest.raises(DataError, match="age"):
            asked.requires(artifact, replace(grouped(task), recipe=recipe))


class TestScan:
    def scan(self, folder: Path, model: nn.Module, **changes: Any) -> dict[str, Any]:
        levels = {"conv1": (0.5, 2.0), "conv2": (0.001, 0.002)}
        effects = tuple(
            Effect(
                technique="pruning",
                layer=name,
                level=level,
                loss=loss,
                loss_low=0.0,
                loss_high=9.0,
                metric=0.0,
                cases=48,
            )
            for name, losses in levels.items()
            for level, loss in zip((0.25, 0.75), losses, strict=True)
        )
        found = Scan(
            model_digest=state_digest(model),
            data_digest="",
            metric="accuracy",
            baseline_metric=1.0,
            baseline_loss=0.1,
            confidence=0.95,
            effects=effects,
            layers={"conv1": 1, "conv2": 1},
            skipped={},
            seconds=1.0,
        )
        write_atomic(folder / "scan.json", to_json(replace(found, **changes)))
        return {"sparsity": 0.4, "allocation": "sensitivity", "scan": "scan.json", "criterion": "l2"}

    def test_what_minds_it_most_stays_wider(self, tmp_path: Path) -> None:
        artifact, task = given(tmp_path)
        result = run(stage(tmp_path, **self.scan(tmp_path, task.model)), artifact, task)
        widths = layer_widths(result.module)
        assert widths["conv1"] > 1.5 * widths["conv2"]
        assert widths["conv1"] + widths["conv2"] == pytest.approx(0.6 * 64, abs=2)

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"model_digest": "0" * 64}, "made of a model with other weights"),
            ({"schema": 99}, "has schema 99, but this Pastille reads 1"),
            ({"effects": ()}, "holds no effect of pruning"),
        ],
    )
    def test_one_that_does_not_fit_is_refused_first(
        self, changes: dict[str, Any], said: str, tmp_path: Path
    ) -> None:
        artifact, task = given(tmp_path)
        with pytest.raises(PreconditionError, match=said):
            stage(tmp_path, **self.scan(tmp_path, task.model, **changes)).requires(artifact, task)

    def test_what_is_no_scan_is_refused(self, tmp_path: Path) -> None:
        artifact, task = given(tmp_path)
        asked = self.scan(tmp_path, task.model)
        (tmp_path / "scan.json").write_text('{"schema": 1}')
        with pytest.raises(PreconditionError, match=r"scan.json is not a scan .*pastille scan") as caught:
            stage(tmp_path, **asked).requires(artifact, task)
        assert "\n" not in str(caught.value)

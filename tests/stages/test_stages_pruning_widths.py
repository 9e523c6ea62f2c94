"""What decides how much of each layer the pruning stage removes: budgets, scans, this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pruning_stage import given, run, stage, tokens, trained_net
from stages_task import Notes

from pastille.errors import PreconditionError
from pastille.measure.counts import macs
from pastille.pruning.latency import FastWidths
from pastille.pruning.removal import layer_widths
from pastille.stages.budget import BudgetPlan
from pastille.task import Task
from pastille.values import from_json
from pastille.values.scanned import Scan

BARELY = {"epochs": 1, "learning_rate": 1e-9, "batch_size": 16}


def hurried(task: Task) -> Task:
    """Each measurement takes a moment."""
    measure = task.recipe.measure.model_copy(update={"seconds": 0.1})
    return replace(task, recipe=task.recipe.model_copy(update={"measure": measure}))


class TestBudget:
    def test_a_generous_time_is_kept_and_told(self, tmp_path: Path) -> None:
        """How near it comes is a matter of the machine: only what is said and written is held here."""
        artifact, task = given(tmp_path)
        asked = stage(budget={"max_latency": {"p95": "10 s"}, "max_macs": 0.7 * macs(artifact.file)})
        details = run(asked, artifact, hurried(task)).details
        plan = from_json(BudgetPlan, (tmp_path / "stage/steps/budget.json").read_bytes())
        assert plan.within
        assert plan.limits["max_latency.p95"] == 10_000
        assert 0 < plan.measured["max_latency.p95"] < 10_000
        assert set(plan.notes) <= set(details.notes)
        time, operations = details.budget
        assert (time.name, time.by_ratio) == ("max_latency.p95", plan.measured["max_latency.p95"])
        assert time.reached is not None
        assert operations.reached == plan.measured["max_macs"]
        assert any(note.startswith("latency table: ") for note in details.notes)
        assert {name: change.after for change in details.widths for name in [change.module]} == {
            name: width for name, width in plan.kept.items() if width < 32
        }

    def test_a_size_is_kept_by_the_file(self, tmp_path: Path) -> None:
        artifact, task = given(tmp_path)
        most = 0.5 * artifact.file.stat().st_size
        result = run(stage(budget={"max_size": most}, criterion="l2"), artifact, task)
        plan = from_json(BudgetPlan, (tmp_path / "stage/steps/budget.json").read_bytes())
        assert plan.within
        assert 0.8 * most < plan.measured["max_size"] <= most
        (limit,) = result.details.budget
        assert (limit.name, limit.asked, limit.by_ratio) == ("max_size", most, None)
        assert limit.reached == pytest.approx(plan.measured["max_size"], rel=0.01)
        assert result.details.notes[-1].startswith("budget: max_size ")
        assert layer_widths(result.module) == {**plan.kept, "head": 3}

    def test_one_that_is_kept_already_is_refused_with_what_was_measured(self, tmp_path: Path) -> None:
        artifact, task = given(tmp_path)
        here = f"{macs(artifact.file) / 1e6:.4g} M"
        with pytest.raises(
            PreconditionError, match=rf"already keeps to it \(max_macs {here} of 900 M\); lower"
        ):
            run(stage(budget={"max_macs": "900 M"}, criterion="l2"), artifact, task)

    def test_the_file_that_is_given_back_is_what_is_measured(self, tmp_path: Path) -> None:
        """The stage goes back to a step on the way to the budget, which the plan's own figures keep."""
        artifact, task = given(tmp_path)
        most = 0.02 * macs(artifact.file)
        asked = stage(budget={"max_macs": most}, criterion="random", steps=4, finetune=BARELY)
        details = run(asked, artifact, task).details
        (limit,), steps = details.budget, details.steps
        assert steps[-1].rejected
        kept = [step for step in steps if not step.rejected][-1]
        assert limit.reached is not None
        assert limit.reached == kept.macs
        assert limit.reached > most
        assert any(note.startswith("the budget is not kept: ") for note in details.notes)

    def test_heads_go_where_a_budget_needs_them(self, tmp_path: Path) -> None:
        artifact, task = given(tmp_path, tokens())
        asked = stage(budget={"max_macs": 0.5 * macs(artifact.file)}, criterion="l2")
        found = run(asked, artifact, replace(task, build=tokens)).details.widths
        assert {change.kind for change in found} == {"heads", "channels"}


class TestThisMachine:
    def test_widths_are_multiples_of_what_it_is_fast_at(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pastille.stages.widths._SECONDS", 0.05)
        artifact, task = given(tmp_path, trained_net(width=64))
        task = replace(task, recipe=task.recipe.model_copy(update={"plan": []}))  # so float kernels matter
        result = run(stage(sparsity=0.6, round_to="auto", criterion="l2"), artifact, hurried(task))
        known = from_json(FastWidths, (tmp_path / "stage/steps/widths.json").read_bytes())
        assert known.words in result.details.notes
        assert all(change.after % known.multiple == 0 for change in result.details.widths)


class TestSensitivity:
    def test_without_a_file_it_scans_by_itself_with_its_own_criterion(self, tmp_path: Path) -> None:
        """Magnitude and what the first layer's weights are scaled by disagree on which channels go first."""
        found = {}
        for criterion in ("l2", "random"):
            (folder := tmp_path / criterion).mkdir()
            artifact, task = given(folder)
            progress = Notes()
            asked = stage(sparsity=0.4, allocation="sensitivity", criterion=criterion)
            result = run(asked, artifact, task, progress)
            scan = from_json(Scan, (folder / "stage/steps/scan.json").read_bytes())
            assert set(scan.harm("pruning")) == {"conv1", "conv2"}
            assert any(what.startswith("scanning") for what, _ in progress.tracked)
            assert sum(layer_widths(result.module).values()) - 3 == pytest.approx(0.6 * 64, abs=2)
            found[criterion] = scan.harm("pruning")
        assert found["l2"] != found["random"]
        again = Notes()
        run(asked, artifact, task, again)
        assert not any(what.startswith("scanning") for what, _ in again.tracked)

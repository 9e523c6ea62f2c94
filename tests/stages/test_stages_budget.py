"""The loop from a budget to widths: on machines whose every time is known, and once on this one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stages_task import Net, task_of

from pastille.errors import PreconditionError
from pastille.export import export_onnx
from pastille.progress import SILENT
from pastille.pruning import survey
from pastille.pruning.budgeted import lost_by_scores
from pastille.pruning.cost import Costs, costs
from pastille.pruning.removal import Pruned
from pastille.recipe import Quantize
from pastille.recipe.pruning import Budget
from pastille.record import BudgetLimit
from pastille.stages.budget import BudgetPlan, Steps, asked, movable, planned, widths_for_budget
from pastille.stages.budget_spent import budget_words
from pastille.stages.closing import ROUNDS, corrected
from pastille.stages.trials import Means, undisturbed_ratio
from pastille.task import example_batch
from pastille.values import Conditions, from_json, to_json

HERE = Conditions(
    device="a CPU", isa="avx2", cores=1, threads=1, runtime="none", runtime_version="1", os="an OS"
)
WIDTH = 96


@dataclass(kw_only=True)
class Machine:
    """A machine by formula; every file is a copy of one, and known by its name."""

    cost: Costs
    template: Path
    folder: Path
    slow: Callable[[np.ndarray], float]  # shares of what is left of each layer (P, 2) -> ms of the network
    timed: int = 0
    kept: dict[Path, Mapping[str, int]] = field(default_factory=dict)

    def make(self, kept: Mapping[str, int]) -> Path:
        path = self.folder / f"{len(self.kept)}.onnx"
        shutil.copyfile(self.template, path)
        self.kept[path] = dict(kept)
        return path

    def shares(self, file: Path) -> np.ndarray:
        found: np.ndarray = self.cost.shares(self.cost.vector(self.kept[file])[None])[0]
        return found

    def times(self, file: Path) -> dict[str, float]:
        """Kernels look quicker alone than they are in the network, and steps of 16 do not show."""
        self.timed += 1
        work = self.shares(file).prod(axis=1) * self.cost.sizes * self.cost.uses
        return {"all of it": float(work.sum()) / 1e6}

    def latency(self, file: Path, percentiles: Sequence[float]) -> dict[float, float]:
        return {q: self.slow(self.shares(file)) * (1 + q) for q in percentiles}

    @property
    def means(self) -> Means:
        return Means(
            make=self.make,
            times=self.times,
            latency=self.latency,
            macs=lambda file: float(self.cost.macs(self.cost.vector(self.kept[file])[None])[0]),
            conditions=HERE,
        )


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> tuple[Costs, Path]:
    torch.manual_seed(0)
    model, batch = Net(WIDTH).eval(), {"x": torch.randn(2, 1, 8, 8)}
    file = tmp_path_factory.mktemp("network") / "model.onnx"
    export_onnx(model, batch, file)
    return costs(model, batch, survey(model, batch)), file


@pytest.fixture
def machine(network: tuple[Costs, Path], tmp_path: Path) -> Machine:
    cost, file = network
    work = cost.sizes * cost.uses

    def slow(shares: np.ndarray) -> float:
        stepped = np.ceil(shares * WIDTH / 16) * 16 / WIDTH
        return 0.4 + 3.0 * float(stepped.prod(axis=1) @ work / work.sum())

    return Machine(cost=cost, template=file, folder=tmp_path, slow=slow)


def plan_of(machine: Machine, budget: dict[str, Any], *, multiple: int = 4, **more: Any) -> BudgetPlan:
    cost = machine.cost
    generator = torch.Generator().manual_seed(0)
    lost = {
        name: lost_by_scores(torch.rand(int(width), generator=generator))
        for name, width in zip(cost.groups, cost.widths, strict=True)
    }
    return planned(
        cost,
        lost,
        Budget.model_validate(budget),
        machine.means,
        steps=dict.fromkeys(cost.groups, Steps(usual=multiple)),
        progress=SILENT,
        **more,
    )


@pytest.mark.parametrize("share", [0.7, 0.5, 0.35])
def test_closes_on_what_is_measured(machine: Machine, share: float) -> None:
    full = machine.slow(np.ones((len(machine.cost.parameters), 2))) * 1.95
    plan = plan_of(machine, {"max_latency": {"p95": share * full}})
    measured, limit = plan.measured["max_latency.p95"], plan.limits["max_latency.p95"]
    assert plan.within
    assert 0.8 * limit <= measured <= limit, "steps of 16 units are coarser than the last 5 %"
    assert 1 <= len(plan.rounds) <= ROUNDS
    assert measured == machine.latency(machine.make(plan.kept), [0.95])[0.95]
    first = plan.rounds[0]
    assert first.predicted != first.measured, "the formula is not what the table knows"


def test_within_five_percent_where_the_machine_has_no_steps(machine: Machine) -> None:
    work = machine.cost.sizes * machine.cost.uses
    machine.slow = lambda shares: 1.0 + float((shares.prod(axis=1) ** 1.5) @ work / work.sum())
    plan = plan_of(machine, {"max_latency": {"p50": 2.2}}, multiple=1)
    assert 0.95 * 2.2 <= plan.measured["max_latency.p50"] <= 2.2
    assert len(plan.rounds) > 1, "the first prediction knows nothing of the power of 1.5"


def test_noise_of_the_machine_is_survived(machine: Machine) -> None:
    quiet, rng = machine.slow, np.random.default_rng(1)
    machine.slow = lambda shares: quiet(shares) * float(rng.uniform(0.93, 1.07))
    plan = plan_of(machine, {"max_latency": {"p95": 4.0}})
    assert plan.within
    assert plan.measured["max_latency.p95"] <= 4.0


def test_macs_are_kept_exactly_and_in_one_round(machine: Machine) -> None:
    limit = 0.5 * float(machine.cost.macs(machine.cost.widths[None])[0])
    plan = plan_of(machine, {"max_macs": limit}, multiple=1)
    assert plan.predicted == plan.measured
    assert 0.95 * limit <= plan.measured["max_macs"] <= limit
    assert len(plan.rounds) == 1
    assert machine.timed == 0, "no latency was asked for"


def test_nothing_goes_where_the_budget_is_wide(machine: Machine) -> None:
    plan = plan_of(machine, {"max_latency": {"p95": 1e6}, "max_macs": 1e15})
    assert plan.kept == machine.cost.named(machine.cost.widths)
    assert plan.within
    assert len(plan.rounds) == 1
    assert machine.timed == 0, "no table is needed to know that"


def test_widths_are_multiples(machine: Machine) -> None:
    limit = 0.5 * float(machine.cost.macs(machine.cost.widths[None])[0])
    plan = plan_of(machine, {"max_macs": limit}, multiple=4)
    assert all(width % 4 == 0 for width in plan.kept.values())
    assert len(plan.rounds) == 1


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_finer_widths_are_tried_where_multiples_stay_far_below(machine: Machine, share: float) -> None:
    limit = share * float(machine.cost.macs(machine.cost.widths[None])[0])
    plan = plan_of(machine, {"max_macs": limit}, multiple=32)
    coarse, *_ = plan.rounds
    assert all(width % 32 == 0 for width in coarse.kept.values())
    assert coarse.measured["max_macs"] < 0.95 * limit
    assert 0.95 * limit <= plan.measured["max_macs"] <= limit
    assert plan.notes[-1].startswith("multiples of round_to are given up to come nearer to the budget, in ")


def test_narrower_than_a_multiple_only_where_nothing_else_is_left(machine: Machine) -> None:
    limit = 0.01 * float(machine.cost.macs(machine.cost.widths[None])[0])
    plan = plan_of(machine, {"max_macs": limit}, multiple=32)
    assert plan.within
    assert min(plan.kept.values()) < 32


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({"max_latency": {"p95": "0.1 ms"}}, r"prune\.budget\.max_latency\.p95: 0\.1 ms cannot be reached"),
        ({"max_macs": 10}, r"prune\.budget\.max_macs: 1e-05 M cannot be reached"),
        ({"max_size": "1 B"}, r"prune\.budget\.max_size: 1e-06 MB cannot be reached"),
    ],
)
def test_out_of_reach_says_what_is_possible(machine: Machine, budget: dict[str, Any], words: str) -> None:
    with pytest.raises(PreconditionError, match=words + r": the smallest .* takes about .* here; raise it"):
        plan_of(machine, budget)


def test_the_smallest_that_is_named_can_be_reached(machine: Machine) -> None:
    with pytest.raises(PreconditionError) as caught:
        plan_of(machine, {"max_macs": 10})
    smallest = float(str(caught.value).split("takes about ")[1].split(" M")[0])
    plan = plan_of(machine, {"max_macs": smallest * 1.001e6})
    assert plan.within
    assert set(plan.kept.values()) == {1}


def test_a_latency_is_refused_only_once_the_smallest_was_made_and_measured(machine: Machine) -> None:
    """A latency table may think too ill of narrow networks."""
    with pytest.raises(PreconditionError) as caught:
        plan_of(machine, {"max_latency": {"p95": "0.1 ms"}})
    smallest = float(str(caught.value).split("takes about ")[1].split(" ms")[0])
    assert plan_of(machine, {"max_latency": {"p95": smallest * 1.01}}).within


def test_a_table_that_was_kept_is_not_measured_again(machine: Machine, tmp_path: Path) -> None:
    kept_at = tmp_path / "table.json"
    budget = {"max_latency": {"p95": 4.0}}
    first = plan_of(machine, budget, table=kept_at)
    timed = machine.timed
    assert timed
    assert plan_of(machine, budget, table=kept_at) == first
    assert machine.timed == timed
    kept_at.write_text("{}")
    assert plan_of(machine, budget, table=kept_at) == first
    assert machine.timed == 2 * timed


def test_a_plan_survives_json(machine: Machine) -> None:
    plan = plan_of(machine, {"max_macs": 1e5})
    assert from_json(BudgetPlan, to_json(plan)) == plan


def test_percentiles_keep_their_names() -> None:
    limits = asked(Budget.model_validate({"max_latency": {"p50": 1, "p99": "3 ms"}, "max_size": "2 MB"}))
    assert limits == {"max_latency.p50": 1.0, "max_latency.p99": 3.0, "max_size": 2e6}


def test_corrections_that_contradict_follow_the_last() -> None:
    assert corrected([(2.0, 1.0), (1.0, 8.0)], 4.0) == 8.0


def scored(model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> tuple[Any, dict[str, torch.Tensor]]:
    groups = survey(model, batch)
    return groups, {g.name: torch.arange(g.num_channels) % 7 + 1.0 for g in groups if not g.whole}


def test_here_with_int8_files(tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = task_of(Net(32).eval())
    task = task.__class__(**{**vars(task), "recipe": quick(task.recipe)})
    batch = example_batch(task.splits.train.inputs)
    groups, scores = scored(task.model, batch)
    full = float(costs(task.model, batch, groups).macs(np.array([[32, 32]]))[0])
    export_onnx(task.model, batch, tmp_path / "before.onnx")
    asked_for = {"max_latency": {"p50": "10 s"}, "max_macs": 0.5 * full, "precision": "int8"}
    plan = widths_for_budget(
        task.model,
        task,
        groups,
        scores,
        Budget.model_validate(asked_for),
        baseline=tmp_path / "before.onnx",
        folder=tmp_path / "stage",
        multiple=16,
        progress=SILENT,
        quantize=Quantize(weight_bits=8),
        table=tmp_path / "stage" / "table.json",
    )
    assert plan.within, plan.rounds
    assert plan.measured["max_macs"] == pytest.approx(plan.predicted["max_macs"], rel=0.01)
    assert plan.measured["max_latency.p50"] > 0
    assert plan.notes[0].startswith("latency table: 3 layers, from ")
    assert [file.name for file in (tmp_path / "stage").iterdir()] == ["table.json"], "trials are removed"


def test_a_percentile_that_takes_more_calls_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    task = task_of(Net(8).eval())
    measure = task.recipe.measure.model_copy(update={"seconds": 1e-3})
    task = task.__class__(**{**vars(task), "recipe": task.recipe.model_copy(update={"measure": measure})})
    batch = example_batch(task.splits.train.inputs)
    groups, scores = scored(task.model, batch)
    export_onnx(task.model, batch, tmp_path / "before.onnx")
    with pytest.raises(
        PreconditionError, match=r"prune.budget.max_latency.p99: \d+ calls in 0.001 s are too"
    ):
        widths_for_budget(
            task.model,
            task,
            groups,
            scores,
            Budget.model_validate({"max_latency": {"p99": "1 ms"}}),
            baseline=tmp_path / "before.onnx",
            folder=tmp_path / "stage",
            multiple=1,
            progress=SILENT,
        )
    assert not [*(tmp_path / "stage").rglob("*.*")]


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ([("max_macs", 3e6, 2.9e6, None)], ["budget: max_macs 3 M asked, 2.9 M reached"]),
        (
            [("max_size", 4e6, 5e6, None), ("max_macs", 3e6, 2.9e6, None)],
            [
                "budget: max_size 4 MB asked, 5 MB reached",
                "budget: max_macs 3 M asked, 2.9 M reached",
                "the budget is not kept: 125 % of it is spent",
            ],
        ),
        (
            [("max_latency.p95", 5.0, 6.0, 4.9)],
            [
                "budget: max_latency.p95 5 ms asked, 6 ms reached when timed alone (4.9 ms by how many times "
                "faster than before it is)",
                "the budget is not kept: 120 % of it is spent when timed alone; the machine was quicker when "
                "this was planned",
            ],
        ),
        (
            [("max_latency.p99", 5.0, None, None)],
            ["budget: max_latency.p99 5 ms asked, not told by so few calls; raise measure.seconds"],
        ),
    ],
)
def test_what_became_of_a_budget_is_told(limits: list[Any], words: list[str]) -> None:
    keys = ("name", "asked", "reached", "by_ratio")
    assert budget_words([BudgetLimit(**dict(zip(keys, limit, strict=True))) for limit in limits]) == words


def quick(recipe: Any) -> Any:
    return recipe.model_copy(update={"measure": recipe.measure.model_copy(update={"seconds": 0.05})})


def test_size_is_that_of_the_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = task_of(Net(64).eval())
    batch = example_batch(task.splits.train.inputs)
    groups, scores = scored(task.model, batch)
    export_onnx(task.model, batch, tmp_path / "before.onnx")
    limit = 0.5 * (tmp_path / "before.onnx").stat().st_size
    plan = widths_for_budget(
        task.model,
        task,
        groups,
        scores,
        Budget(max_size=limit),
        baseline=tmp_path / "before.onnx",
        folder=tmp_path,
        multiple=1,
        progress=SILENT,
    )
    assert 0.95 * limit <= plan.measured["max_size"] <= limit


def test_a_model_with_nothing_to_narrow_is_refused(tmp_path: Path) -> None:
    task = task_of(Net(8).eval())
    batch = example_batch(task.splits.train.inputs)
    groups, scores = scored(task.model, batch)
    with pytest.raises(PreconditionError, match="no channel of this model can be removed; protect fewer"):
        widths_for_budget(
            task.model,
            task,
            [g for g in groups if g.whole],
            scores,
            Budget(max_macs=1.0),
            baseline=tmp_path / "none.onnx",
            folder=tmp_path,
            multiple=1,
            progress=SILENT,
        )


def test_groups_that_turn_out_whole_are_left_out() -> None:
    model, batch = Net(8).eval(), {"x": torch.randn(2, 1, 8, 8)}
    groups, scores = scored(model, batch)

    refused = Pruned(model=model, widths={}, left_whole={"conv1": "its channels are rearranged"})
    found = movable(groups, scores, lambda gone: refused)
    assert [group.name for group in found] == ["conv2"]


def test_what_disturbs_a_call_does_not_count() -> None:
    rng, now = np.random.default_rng(0), [0.0]

    def taking(ms: float) -> Callable[[], None]:
        def call() -> None:
            waits = 30 * (rng.uniform() < ms / 4)  # the longer it takes, the likelier it is put aside
            now[0] += (ms + waits) * 1e6

        return call

    found = undisturbed_ratio(taking(3.0), taking(1.0), budget_s=5.0, clock=lambda: int(now[0]))
    assert found == pytest.approx(3.0, rel=1e-6)

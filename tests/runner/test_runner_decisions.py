"""The small decisions of a run: what is kept, what is served, what is refused before work."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pastille.errors import RecipeError
from pastille.recipe import Recipe, parse_recipe
from pastille.runner.final import select, synthetic, variant_name
from pastille.runner.reachable import check_reachable
from pastille.runner.run import outcome_of
from pastille.runner.staged import decide, is_provisional
from pastille.values import Conditions, Interval, Metrics, Profile, Speedup, Status, Verdict

PRUNE = {"prune": {"sparsity": 0.5}}
FINETUNE = {"finetune": {"epochs": 1}}
SPARSE: dict[str, Any] = {"prune": {"method": "unstructured", "sparsity": 0.75}}
QUANTIZE: dict[str, Any] = {"quantize": {}}
HERE = Conditions(
    device="cpu", isa="avx2", cores=1, threads=1, runtime="onnxruntime", runtime_version="1", os="Linux"
)
PROFILE = Profile(
    name="quantize",
    file="f",
    sha256="0",
    size_bytes=1000,
    precision="int8",
    parameters=1000,
    macs=1,
    metrics=Metrics(split="validation", n=1, overall={}),
    latency=(),
    speedup=None,
    footprint=None,
    preprocessing=None,
)


def recipe(*plan: dict[str, Any], **requirements: Any) -> Recipe:
    asked: dict[str, Any] = {
        "name": "r",
        "task": {"kind": "regression", "model": "m.py:f"},
        "data": {"source": "d.py:s"},
        "requirements": {"risk": "low", **requirements},
        "plan": list(plan) or [QUANTIZE],
    }
    return parse_recipe(asked)


def said(status: Status) -> Verdict:
    return Verdict(status=status, reason="why", checks=(), split="test")


def speedup(low: float, high: float) -> Speedup:
    interval = Interval(low=low, high=high, confidence=0.95)
    return Speedup(ratio=(low + high) / 2, interval=interval, pairs=9, batch=1, conditions=HERE)


@pytest.mark.parametrize(
    ("plan", "provisional"),
    [
        ((PRUNE, FINETUNE, QUANTIZE), [True, False, False]),
        ((PRUNE, QUANTIZE), [False, False]),
        ((FINETUNE, PRUNE), [False, False]),
        ((PRUNE, PRUNE, FINETUNE), [False, True, False]),
        ((SPARSE, FINETUNE, SPARSE), [True, False, False]),
    ],
)
def test_only_a_prune_before_a_finetune_is_provisional(plan: Any, provisional: list[bool]) -> None:
    steps = recipe(*plan).plan
    assert [is_provisional(steps, i) for i in range(1, len(steps) + 1)] == provisional


@pytest.mark.parametrize(
    ("status", "provisional", "kept"),
    [
        (Status.APPROVED, False, True),
        (Status.INCONCLUSIVE, False, True),
        (Status.REJECTED, False, False),
        (Status.REJECTED, True, True),
    ],
)
def test_what_is_kept(status: Status, provisional: bool, kept: bool) -> None:
    assert decide(said(status), provisional=provisional)[0] is kept


def test_what_the_next_stage_starts_from() -> None:
    new: Any = SimpleNamespace(name="new")
    old: Any = SimpleNamespace(name="old")
    assert outcome_of(new, Status.APPROVED, stays=True, kept=old) == (new, new)
    assert outcome_of(new, Status.INCONCLUSIVE, stays=True, kept=old) == (new, new)
    assert outcome_of(new, Status.REJECTED, stays=True, kept=old) == (new, old)  # a finetune follows
    assert outcome_of(new, Status.REJECTED, stays=False, kept=old) == (old, old)


class TestSelect:
    """Which variant the bundle serves."""

    def chosen(
        self, status: Status, speed: Speedup | None, baseline_bytes: int = 4000, **requirements: Any
    ) -> tuple[str, str]:
        task: Any = SimpleNamespace(recipe=recipe(**requirements))
        baseline = replace(PROFILE, sha256="f" * 64, precision="fp32", size_bytes=baseline_bytes)
        return select(said(status), PROFILE, baseline, [speed] if speed else [], task)

    def test_an_approved_one_that_is_faster(self) -> None:
        name, why = self.chosen(Status.APPROVED, speedup(1.9, 2.1))
        assert name == "int8"
        assert "2.00 times as fast" in why

    def test_an_approved_one_whose_speed_is_undecided_claims_none(self) -> None:
        name, why = self.chosen(Status.APPROVED, speedup(0.9, 1.1))
        assert (name, "fast" in why) == ("int8", False)

    def test_one_that_is_the_baseline_itself(self) -> None:
        task: Any = SimpleNamespace(recipe=recipe())
        name, why = select(said(Status.APPROVED), PROFILE, PROFILE, [speedup(0.9, 1.1)], task)
        assert name == "fp32"
        assert why == "nothing that was tried is better than the model as it was brought"

    def test_a_slower_one_is_not_served_for_its_size_alone(self) -> None:
        name, why = self.chosen(Status.APPROVED, speedup(0.7, 0.8))
        assert name == "fp32"
        assert "slower than the baseline" in why

    def test_a_slower_one_is_served_where_the_baseline_is_too_large(self) -> None:
        name, why = self.chosen(Status.APPROVED, speedup(0.7, 0.8), max_size=2000)
        assert name == "int8"
        assert "slower than the baseline" in why

    @pytest.mark.parametrize("status", [Status.REJECTED, Status.INCONCLUSIVE])
    def test_what_is_not_approved_is_never_served(self, status: Status) -> None:
        name, why = self.chosen(status, speedup(9, 10), max_size=2000)
        assert name == "fp32"
        assert str(status) in why

    def test_names(self) -> None:
        assert variant_name(PROFILE) == "int8"
        assert variant_name(replace(PROFILE, precision="fp32")) == "compressed"


class TestReachable:
    """A size that no outcome of the plan can have is refused before any work."""

    def check(self, limit: float, *plan: dict[str, Any]) -> None:
        candidate: Any = SimpleNamespace(profile=PROFILE)  # 1000 parameters
        check_reachable(recipe(*plan, max_size=limit), candidate)

    @pytest.mark.parametrize(
        ("plan", "least"),
        [
            ((QUANTIZE,), 1000),
            ((PRUNE,), 1000),
            ((PRUNE, QUANTIZE), 250),
            ((PRUNE, PRUNE), 250),
            ((FINETUNE,), 4000),
            ((SPARSE,), 1000),
            ((PRUNE, SPARSE, QUANTIZE), 62.5),
            (({"prune": {"heads": 0.5}},), 1000),
            (({"prune": {"sparsity": 0.25, "layers": {"stem": 0.75}}},), 250),
            (({"prune": {"sparsity": 0.5, "blocks": 0.25}},), 50),
            (({"prune": {"budget": {"max_macs": "3 M"}}},), 10),
            (({"prune": {"sparsity": 0.5, "allocation": "global"}},), 10),
        ],
    )
    def test_the_bound(self, plan: Any, least: float) -> None:
        self.check(1.001 * least, *plan)
        with pytest.raises(RecipeError, match="cannot be reached") as error:
            self.check(0.999 * least, *plan)
        assert error.value.key == "requirements.max_size"


def test_synthetic_golden_inputs_hold_no_real_one() -> None:
    rng = np.random.default_rng(1)
    real = [
        {"x": rng.normal(5, 2, (3, 4)).astype(np.float32), "ids": rng.integers(7, 20, 5)} for _ in range(40)
    ]
    made = synthetic(real, seed=0)
    assert made["x"].shape == (64, 3, 4)
    assert made["x"].dtype == np.float32
    assert made["ids"].dtype == np.int64
    assert made["x"].mean() == pytest.approx(5, abs=0.5)
    assert made["ids"].min() >= 7
    assert made["ids"].max() <= 19
    assert not any((made["x"][i] == row["x"]).any() for i in range(64) for row in real)
    assert all(np.array_equal(made[k], synthetic(real, seed=0)[k]) for k in made)

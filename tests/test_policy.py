from __future__ import annotations

from typing import Any

import pytest

from pastille import policy
from pastille.errors import RecipeError
from pastille.recipe import Recipe, parse_recipe

ITERATIVE = {"prune": {"sparsity": 0.5, "steps": 3, "finetune": {"epochs": 1}}}
TASKS: dict[str, dict[str, Any]] = {
    "binary": {"kind": "binary", "model": "m.py:f", "labels": ["healthy", "ill"]},
    "positive": {"kind": "multiclass", "model": "m.py:f", "labels": ["a", "b", "c"], "positive": ["a"]},
    "plain": {"kind": "multiclass", "model": "m.py:f", "labels": ["a", "b", "c"]},
    "regression": {"kind": "regression", "model": "m.py:f"},
}


def _recipe(
    task: str,
    risk: str,
    max_drop: dict[str, Any] | None = None,
    plan: list[Any] | None = None,
    override: dict[str, str] | None = None,
) -> Recipe:
    return parse_recipe(
        {
            "name": "r",
            "task": TASKS[task],
            "data": {"source": "d.py:s"},
            "requirements": {"risk": risk, "max_drop": max_drop or {}, "override": override},
            "plan": plan or [ITERATIVE],
        }
    )


def test_tiers_are_those_of_the_design() -> None:
    assert {name: tier.max_drop for name, tier in policy.TIERS.items()} == {
        "critical": 0.005,
        "high": 0.01,
        "medium": 0.02,
        "low": 0.05,
    }
    assert [tier.example for tier in policy.TIERS.values()] == [
        "diabetic retinopathy grading",
        "drug interaction detection",
        "chest X-ray triage",
        "chart summarization",
    ]
    assert [tier.technique for tier in policy.TIERS.values()] == [
        "QAT; post-training quantization alone is never approved",
        "QAT + iterative pruning, validated at each step",
        "distillation + QAT",
        "aggressive distillation + int4",
    ]
    assert all(name == tier.risk for name, tier in policy.TIERS.items())


@pytest.mark.parametrize("risk", ["critical", "high", "medium", "low"])
def test_another_network_takes_the_models_place_only_from_medium_on(risk: str) -> None:
    def asked(**distill: Any) -> dict[str, Any]:
        return {"distill": {"epochs": 1, **distill}}

    same = _recipe("binary", risk, {}, plan=[asked(student="same")])
    policy.check(same)
    other = _recipe("binary", risk, {}, plan=[asked(student={"width": 0.5})])
    if risk in ("medium", "low"):
        policy.check(other)
        return
    with pytest.raises(RecipeError, match=r"plan.0.distill.student must be 'same' at risk tier"):
        policy.check(other)
    override = {"by": "Dr. Ada Kern", "reason": "research use only"}
    signed = _recipe("binary", risk, {}, plan=[asked(student={"width": 0.5})], override=override)
    policy.check(signed)
    assert "distill.student is another network" in str(policy.override_note(signed))


@pytest.mark.parametrize(
    ("task", "given", "expected"),
    [
        ("binary", {}, {"accuracy": 0.02, "sensitivity": 0.02}),
        ("positive", {"sensitivity": "1 %"}, {"accuracy": 0.02, "sensitivity": 0.01}),
        ("plain", {}, {"accuracy": 0.02}),
        ("regression", {}, {"r2": 0.02}),
        ("regression", {"r2": 0.005}, {"r2": 0.005}),
        ("binary", {"specificity": "2 %"}, {"accuracy": 0.02, "sensitivity": 0.02, "specificity": 0.02}),
    ],
)
def test_the_tier_fills_in_what_is_not_given(
    task: str, given: dict[str, Any], expected: dict[str, float]
) -> None:
    recipe = _recipe(task, "medium", given)
    policy.check(recipe)
    assert policy.limits(recipe) == expected


@pytest.mark.parametrize("risk", ["critical", "high", "medium", "low"])
def test_a_limit_equal_to_the_tier_is_accepted_and_a_looser_one_is_not(risk: str) -> None:
    limit = policy.TIERS[risk].max_drop  # type: ignore[index]
    policy.check(_recipe("plain", risk, {"accuracy": limit}))
    with pytest.raises(RecipeError, match=f"must be at most .* at risk tier '{risk}', got") as caught:
        policy.check(_recipe("plain", risk, {"accuracy": limit + 1e-6}))
    assert caught.value.key == "requirements.max_drop.accuracy"


@pytest.mark.parametrize(
    ("task", "risk", "max_drop", "message"),
    [
        (
            "plain",
            "high",
            {"accuracy": "3 %"},
            "requirements.max_drop.accuracy must be at most 1 % at risk tier 'high', got 3 %; tighten it, "
            "set requirements.risk to 'low' if its use permits that, or say who permits it and why: "
            "requirements.override: {by, reason}",
        ),
        (
            "regression",
            "high",
            {"r2": "10 %"},
            "requirements.max_drop.r2 must be at most 1 % at risk tier 'high', got 10 %; tighten it, or say "
            "who permits it and why: requirements.override: {by, reason}",
        ),
        (
            "binary",
            "low",
            {"sensitvity": "1 %"},
            "requirements.max_drop.sensitvity is not a metric that can be judged; did you mean "
            "'sensitivity'? allowed: accuracy, sensitivity, specificity, balanced_accuracy, precision, f1, "
            "auroc, average_precision",
        ),
        (
            "plain",
            "low",
            {"sensitivity": "1 %"},
            "requirements.max_drop.sensitivity needs task.positive, the labels that must not be missed; give "
            "them, or leave it out (allowed: accuracy, balanced_accuracy, precision, f1, auroc, "
            "average_precision)",
        ),
        (
            "regression",
            "low",
            {"accuracy": "1 %"},
            "requirements.max_drop.accuracy does not fit a regression task; leave it out (allowed: r2, rmse, "
            "mae, bias)",
        ),
        (
            "binary",
            "low",
            {"r2": "1 %"},
            "requirements.max_drop.r2 does not fit a binary task; leave it out (allowed: accuracy, "
            "sensitivity, specificity, balanced_accuracy, precision, f1, auroc, average_precision)",
        ),
    ],
)
def test_limits_that_are_refused(task: str, risk: str, max_drop: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        policy.check(_recipe(task, risk, max_drop))
    assert str(caught.value) == message
    assert caught.value.key == f"requirements.max_drop.{next(iter(max_drop))}"


OVERRIDE = {"by": "Dr. Ada Kern", "reason": "bench study, no patient is treated by it"}


def _asked(risk: str, **requirements: Any) -> Recipe:
    recipe = _recipe("binary", risk).model_dump(mode="json")
    return parse_recipe({**recipe, "requirements": {"risk": risk, **requirements}})


def test_an_override_permits_what_the_tier_does_not_and_is_put_into_words() -> None:
    drops = {"accuracy": "3 %", "sensitivity": "0.5 %"}
    with pytest.raises(RecipeError, match="at most 1 %"):
        policy.check(_asked("high", max_drop=drops))
    recipe = _asked("high", max_drop=drops, max_class_drop={"recall": "4 %"}, override=OVERRIDE)
    policy.check(recipe)
    assert policy.override_note(recipe) == (
        "Override by Dr. Ada Kern of risk tier 'high' (1 %): max_drop.accuracy 3 %, "
        "max_class_drop.recall 4 %. Reason given: bench study, no patient is treated by it"
    )
    assert policy.override_note(_asked("high", max_drop={"accuracy": "1 %"})) is None


def test_an_override_does_not_permit_a_technique() -> None:
    recipe = _asked("critical", override=OVERRIDE)
    plan = [{"quantize": {"method": "ptq"}}]
    with pytest.raises(RecipeError, match="is never approved there"):
        policy.check(parse_recipe({**recipe.model_dump(mode="json"), "plan": plan}))


@pytest.mark.parametrize("given", [{"by": "Dr. Ada Kern"}, {"by": "x", "reason": "because it is fine"}, {}])
def test_an_override_needs_a_name_and_a_reason(given: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match=r"requirements\.override"):
        _asked("high", override=given)


@pytest.mark.parametrize("risk", ["critical", "high", "medium", "low"])
def test_groups_that_cannot_be_decided_keep_the_verdict_open_at_high_risk(risk: str) -> None:
    recipe = _asked(risk, fairness={"by": ["sex"], "undecided": "report"})
    if risk in ("medium", "low"):
        policy.check(recipe)
        return
    with pytest.raises(RecipeError, match=r"fairness\.undecided must be 'inconclusive' at risk tier"):
        policy.check(recipe)


def test_groups_are_held_to_the_overall_limits_unless_said_otherwise() -> None:
    fairness = {"by": ["sex"], "max_drop": {"sensitivity": "1 %", "specificity": "2 %"}}
    found = policy.bar(_asked("medium", fairness=fairness)).fairness
    assert found is not None
    assert found.max_drop == {"accuracy": 0.02, "sensitivity": 0.01, "specificity": 0.02}
    with pytest.raises(RecipeError, match=r"fairness\.max_drop\.sensitivity must be at most 2 %"):
        policy.check(_asked("medium", fairness={"by": ["sex"], "max_drop": {"sensitivity": "3 %"}}))


@pytest.mark.parametrize(
    ("kind", "extra", "expected"),
    [
        ("multilabel", {"labels": ["a", "b"], "positive": ["a"]}, {"balanced_accuracy", "sensitivity"}),
        ("multilabel", {"labels": ["a", "b"]}, {"balanced_accuracy"}),
        ("segmentation", {"labels": ["background", "tumour"]}, {"dice"}),
        ("custom", {"metric": "m.py:error_rate"}, {"error_rate"}),
        ("regression", {"metric": "m.py:error_rate"}, {"r2", "error_rate"}),
    ],
)
def test_every_kind_has_metrics_that_are_always_judged(
    kind: str, extra: dict[str, Any], expected: set[str]
) -> None:
    base = _recipe("plain", "low").model_dump(mode="json")
    recipe = parse_recipe({**base, "task": {"kind": kind, "model": "m.py:f", **extra}})
    policy.check(recipe)
    assert set(policy.limits(recipe)) == expected


def test_probabilities_and_groups_are_needed_for_their_limits() -> None:
    recipe = _recipe("regression", "low").model_dump(mode="json")
    with pytest.raises(RecipeError, match=r"requirements\.calibration does not fit a regression task"):
        policy.check(parse_recipe({**recipe, "requirements": {"risk": "low", "calibration": {}}}))


def test_post_training_quantization_is_never_approved_at_critical() -> None:
    plan = [ITERATIVE, {"quantize": {"method": "ptq"}}]
    with pytest.raises(
        RecipeError, match="is never approved there; train in int8 with method: qat"
    ) as caught:
        policy.check(_recipe("binary", "critical", plan=plan))
    assert caught.value.key == "plan.1.quantize.method"
    trained = {"method": "qat", "train": {"epochs": 10}}
    policy.check(_recipe("binary", "critical", plan=[ITERATIVE, {"quantize": trained}]))
    for method in ("mixed", "auto", "dynamic", "fp16"):
        with pytest.raises(RecipeError, match=f"must not be '{method}' at risk tier 'critical'"):
            policy.check(_recipe("binary", "critical", plan=[{"quantize": {"method": method}}]))
    for risk in ("high", "medium", "low"):
        policy.check(_recipe("binary", risk, plan=plan))


@pytest.mark.parametrize("risk", ["critical", "high"])
def test_pruning_must_be_iterative_where_the_tier_says_so(risk: str) -> None:
    tuned = {"finetune": {"epochs": 1}}
    with pytest.raises(
        RecipeError, match=r"plan.0.prune.steps must be at least 2 .* got 1; set steps"
    ) as caught:
        policy.check(_recipe("binary", risk, plan=[{"prune": {"sparsity": 0.5, "steps": 1, **tuned}}]))
    assert caught.value.key == "plan.0.prune.steps"
    with pytest.raises(
        RecipeError, match=r"plan.0.prune.finetune must be given .* after each step"
    ) as caught:
        policy.check(_recipe("binary", risk, plan=[{"prune": {"sparsity": 0.5, "steps": 2}}]))
    assert caught.value.key == "plan.0.prune.finetune"
    policy.check(_recipe("binary", risk, plan=[{"prune": {"sparsity": 0.5, "steps": 2, **tuned}}]))


@pytest.mark.parametrize("risk", ["critical", "high"])
@pytest.mark.parametrize(
    "much", [{"heads": 0.5}, {"blocks": 0.25}, {"budget": {"max_macs": "3 M"}}, {"layers": {"stem": 0.5}}]
)
def test_heads_blocks_and_budgets_too(much: dict[str, Any], risk: str) -> None:
    with pytest.raises(
        RecipeError, match=r"prune.steps must be at least 2 .*; .*prune.finetune must be given"
    ):
        policy.check(_recipe("binary", risk, plan=[{"prune": much}]))
    policy.check(_recipe("binary", risk, plan=[{"prune": {**much, "steps": 2, "original_epochs": 90}}]))


@pytest.mark.parametrize("risk", ["critical", "high"])
@pytest.mark.parametrize("method", ["unstructured", "2:4"])
def test_zeros_must_be_set_in_training_where_the_tier_says_so(method: str, risk: str) -> None:
    section = {"method": method, **({"sparsity": 0.8} if method == "unstructured" else {})}
    with pytest.raises(
        RecipeError, match=r"plan.0.prune.train must be given at risk tier .*epochs: 10"
    ) as found:
        policy.check(_recipe("binary", risk, plan=[{"prune": section}]))
    assert found.value.key == "plan.0.prune.train"
    policy.check(_recipe("binary", risk, plan=[{"prune": {**section, "train": {"epochs": 3}}}]))
    policy.check(_recipe("binary", "low", plan=[{"prune": section}]))


@pytest.mark.parametrize("risk", ["medium", "low"])
def test_other_tiers_may_prune_at_once(risk: str) -> None:
    policy.check(_recipe("binary", risk, plan=[{"prune": {"sparsity": 0.5}}, {"finetune": {"epochs": 1}}]))


def test_every_problem_is_named_in_one_line() -> None:
    recipe = _recipe(
        "binary", "critical", {"accuracy": "1 %"}, [{"prune": {"sparsity": 0.5}}, {"quantize": {}}]
    )
    with pytest.raises(RecipeError) as caught:
        policy.check(recipe)
    assert "\n" not in str(caught.value)
    for key in ("max_drop.accuracy", "plan.0.prune.steps", "plan.0.prune.finetune", "plan.1.quantize.method"):
        assert key in str(caught.value)

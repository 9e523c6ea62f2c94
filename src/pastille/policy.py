"""Risk tiers: the largest loss that may be permitted, and how one may get there."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType

from pastille.errors import RecipeError
from pastille.recipe import Prune, PruneStep, Quantize, QuantizeStep, Recipe, Risk


@dataclass(frozen=True, kw_only=True)
class Tier:
    """One risk level."""

    risk: Risk
    example: str
    max_drop: float  # absolute, of every metric that is judged
    technique: str
    single_step_pruning: bool  # False: pruned in several steps, fine-tuned and validated after each
    post_training_quantization: bool  # False: never approved on its own


TIERS = MappingProxyType(
    {
        tier.risk: tier
        for tier in (
            Tier(
                risk="critical",
                example="diabetic retinopathy grading",
                max_drop=0.005,
                technique="QAT; post-training quantization alone is never approved",
                single_step_pruning=False,
                post_training_quantization=False,
            ),
            Tier(
                risk="high",
                example="drug interaction detection",
                max_drop=0.01,
                technique="QAT + iterative pruning, validated at each step",
                single_step_pruning=False,
                post_training_quantization=True,
            ),
            Tier(
                risk="medium",
                example="chest X-ray triage",
                max_drop=0.02,
                technique="distillation + QAT",
                single_step_pruning=True,
                post_training_quantization=True,
            ),
            Tier(
                risk="low",
                example="chart summarization",
                max_drop=0.05,
                technique="aggressive distillation + int4",
                single_step_pruning=True,
                post_training_quantization=True,
            ),
        )
    }
)

_CLASSIFICATION = ("accuracy", "sensitivity", "specificity")
_REGRESSION = ("r2",)


def limits(recipe: Recipe) -> dict[str, float]:
    """The largest absolute drop of every metric that is judged.

    What ``requirements.max_drop`` leaves out is filled in from the tier: accuracy for classification,
    sensitivity where there are positive classes, R² for regression. Specificity is judged on request.

    Args:
        recipe: A recipe that `check` accepts.

    Returns:
        Metric -> limit in ``[0, 1]``.

    Example:
        >>> from pastille.recipe import parse_recipe
        >>> limits(parse_recipe({
        ...     "name": "r", "data": {"source": "d.py:s"}, "plan": [{"quantize": {}}],
        ...     "task": {"kind": "binary", "model": "m.py:f", "labels": ["healthy", "ill"]},
        ...     "requirements": {"risk": "medium", "max_drop": {"accuracy": "1 %"}}}))
        {'accuracy': 0.01, 'sensitivity': 0.02}
    """
    asked = recipe.requirements.max_drop
    always = [name for name in _judgeable(recipe) if name != "specificity"]
    return dict.fromkeys(always, TIERS[recipe.requirements.risk].max_drop) | asked


def check(recipe: Recipe) -> None:
    """Refuse a recipe that breaks its risk tier, or sets a limit on what cannot be judged.

    Raises:
        RecipeError: With every problem, and what to do about it; ``.key`` is that of the first.

    Example:
        >>> from pastille.recipe import parse_recipe
        >>> check(parse_recipe({
        ...     "name": "r", "data": {"source": "d.py:s"}, "plan": [{"quantize": {}}],
        ...     "task": {"kind": "regression", "model": "m.py:f"},
        ...     "requirements": {"max_drop": {"r2": "3 %"}}}))
        Traceback (most recent call last):
        pastille.errors.RecipeError: requirements.max_drop.r2 must be at most 1 % at risk tier 'high', got ...
    """
    problems = [*_limit_problems(recipe), *_plan_problems(recipe)]
    if problems:
        raise RecipeError("; ".join(text for _, text in problems), key=problems[0][0])


def check_run(recipe: Recipe) -> None:
    """Refuse a recipe that judges, but says neither what to compress nor how.

    Raises:
        RecipeError: ``task.model`` or ``plan`` is missing.
    """
    if not recipe.task.model:
        raise RecipeError("task.model is missing: a run needs the model to compress", key="task.model")
    if not recipe.plan:
        raise RecipeError(
            "plan is missing: a run needs at least one stage, e.g. plan: [{quantize: {}}]", key="plan"
        )


def _judgeable(recipe: Recipe) -> tuple[str, ...]:
    if recipe.task.kind == "regression":
        return _REGRESSION
    return _CLASSIFICATION if recipe.task.positive_classes else _CLASSIFICATION[:1]


def _limit_problems(recipe: Recipe) -> Iterator[tuple[str, str]]:
    tier = TIERS[recipe.requirements.risk]
    allowed = _judgeable(recipe)
    for metric, limit in recipe.requirements.max_drop.items():
        key = f"requirements.max_drop.{metric}"
        if metric not in allowed:
            yield key, f"{key} {_unfit(metric, recipe, allowed)}"
        elif limit > tier.max_drop:
            most = f"{_percent(tier.max_drop)} at risk tier {tier.risk!r}"
            yield key, f"{key} must be at most {most}, got {_percent(limit)}; tighten it{_looser(limit)}"


def _unfit(metric: str, recipe: Recipe, allowed: tuple[str, ...]) -> str:
    """Why a metric cannot be judged, what can, and what to do."""
    known = (*_CLASSIFICATION, *_REGRESSION)
    shown = f"allowed: {', '.join(allowed)}"
    if metric not in known:
        close = difflib.get_close_matches(metric, allowed, n=1, cutoff=0.7)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"is not a metric that can be judged; {hint}{shown}"
    if recipe.task.kind != "regression" and metric != "r2":
        return (
            f"needs task.positive, the labels that must not be missed; give them, or leave it out ({shown})"
        )
    return f"does not fit a {recipe.task.kind} task; leave it out ({shown})"


def _looser(limit: float) -> str:
    fitting = [tier.risk for tier in TIERS.values() if limit <= tier.max_drop]
    if not fitting:
        return ": no risk tier permits as much"
    return f", or set requirements.risk to {fitting[0]!r} if its use permits that"


def _percent(share: float) -> str:
    return f"{100 * share:.6g} %"


def _plan_problems(recipe: Recipe) -> Iterator[tuple[str, str]]:
    tier = TIERS[recipe.requirements.risk]
    for place, step in enumerate(recipe.plan):
        key = f"plan.{place}"
        if isinstance(step, QuantizeStep):
            yield from _quantize_problems(step.quantize, tier, f"{key}.quantize")
        elif isinstance(step, PruneStep):
            yield from _prune_problems(step.prune, tier, f"{key}.prune")


def _quantize_problems(step: Quantize, tier: Tier, key: str) -> Iterator[tuple[str, str]]:
    if step.method == "ptq" and not tier.post_training_quantization:
        text = (
            f"{key}.method must not be 'ptq' at risk tier {tier.risk!r}: post-training quantization alone is "
            "never approved there, and quantization-aware training is not in this version; leave quantize "
            "out, or set requirements.risk to 'high' if its use permits that"
        )
        yield f"{key}.method", text


def _prune_problems(step: Prune, tier: Tier, key: str) -> Iterator[tuple[str, str]]:
    if tier.single_step_pruning:
        return
    lead = f"at risk tier {tier.risk!r}, where pruning must be iterative"
    if step.steps < 2:
        yield f"{key}.steps", f"{key}.steps must be at least 2 {lead}, got {step.steps}; set steps: 5"
    if step.finetune is None:
        mend = "add finetune: {epochs: 3}"
        yield (
            f"{key}.finetune",
            f"{key}.finetune must be given {lead} with fine-tuning after each step; {mend}",
        )

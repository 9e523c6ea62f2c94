"""Risk tiers: the largest loss that may be permitted, and how one may get there."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from pastille.errors import RecipeError
from pastille.recipe import (
    METHODS,
    CalibrationLimits,
    DistillStep,
    FairnessLimits,
    Override,
    PlanStep,
    Prune,
    PruneStep,
    Pruning,
    Quantization,
    QuantizeStep,
    Recipe,
    Risk,
    SparsePrune,
)


@dataclass(frozen=True, kw_only=True)
class Tier:
    """One risk level."""

    risk: Risk
    example: str
    max_drop: float  # absolute, of every metric that is judged
    technique: str
    single_step_pruning: bool  # False: pruned in several steps, fine-tuned and validated after each
    other_students: bool  # False: a distillation trains the model itself, which no other network replaces
    quantization: tuple[str, ...]  # methods that it permits

    @property
    def post_training_quantization(self) -> bool:
        """Whether quantization without training is ever approved."""
        return "ptq" in self.quantization


_BUT_INT4 = tuple(method for method in METHODS if method != "int4")

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
                other_students=False,
                quantization=("qat",),
            ),
            Tier(
                risk="high",
                example="drug interaction detection",
                max_drop=0.01,
                technique="QAT + iterative pruning, validated at each step",
                single_step_pruning=False,
                other_students=False,
                quantization=_BUT_INT4,
            ),
            Tier(
                risk="medium",
                example="chest X-ray triage",
                max_drop=0.02,
                technique="distillation + QAT",
                single_step_pruning=True,
                other_students=True,
                quantization=_BUT_INT4,
            ),
            Tier(
                risk="low",
                example="chart summarization",
                max_drop=0.05,
                technique="aggressive distillation + int4",
                single_step_pruning=True,
                other_students=True,
                quantization=METHODS,
            ),
        )
    }
)

_LEAST_CONFIDENCE = 0.95
_SIGNED = "or say who permits it and why: requirements.override: {by, reason}"
_SHARES = ("accuracy", "balanced_accuracy", "precision", "f1", "auroc", "average_precision")
# Metrics that a limit can be set on; the first ones are judged even where none is set.
# Their limits are shares of the targets' standard deviation.
IN_DEVIATIONS = ("rmse", "mae", "bias")
_JUDGED: dict[str, tuple[str, ...]] = {
    "binary": ("accuracy",),
    "multiclass": ("accuracy",),
    "multilabel": ("balanced_accuracy",),
    "regression": ("r2",),
    "segmentation": ("dice",),
    "custom": (),
}
_MORE: dict[str, tuple[str, ...]] = {
    "binary": _SHARES,
    "multiclass": _SHARES,
    "multilabel": (*_SHARES, "sensitivity", "specificity", "exact_match"),
    "regression": ("rmse", "mae", "bias"),
    "segmentation": ("iou", "pixel_accuracy"),
    "custom": (),
}
KNOWN_METRICS = frozenset({name for names in (*_JUDGED.values(), *_MORE.values()) for name in names})
_OF_A_CLASS: dict[str, tuple[str, ...]] = {
    "multiclass": ("recall", "specificity", "precision", "f1", "auroc", "average_precision"),
    "binary": ("recall",),
    "multilabel": (*_SHARES, "sensitivity", "specificity"),
    "segmentation": ("dice", "iou"),
}


@dataclass(frozen=True, kw_only=True)
class Bar:
    """Everything that answers are held against, tier and recipe put together.

    Limits are absolute; those of RMSE, MAE and bias are shares of the targets' standard deviation.
    """

    max_drop: Mapping[str, float]
    confidence: float
    max_class_drop: Mapping[str, float] = field(default_factory=dict)
    fairness: FairnessLimits | None = None  # its max_drop is complete
    calibration: CalibrationLimits | None = None
    override: Override | None = None


def bar(recipe: Recipe) -> Bar:
    """What a recipe holds a candidate against.

    Args:
        recipe: One that `check` accepts.

    Example:
        >>> from pastille.recipe import parse_recipe
        >>> bar(parse_recipe({
        ...     "name": "r", "data": {"source": "d.py:s"}, "plan": [{"quantize": {}}],
        ...     "task": {"kind": "binary", "model": "m.py:f", "labels": ["healthy", "ill"]},
        ...     "requirements": {"risk": "medium", "fairness": {"by": ["sex"]}}})).fairness.max_drop
        {'accuracy': 0.02, 'sensitivity': 0.02}
    """
    asked = recipe.requirements
    overall = limits(recipe)
    return Bar(
        max_drop=overall,
        confidence=asked.confidence,
        max_class_drop=asked.max_class_drop,
        fairness=_fairness(recipe, overall),
        calibration=asked.calibration,
        override=asked.override,
    )


def _fairness(recipe: Recipe, overall: Mapping[str, float]) -> FairnessLimits | None:
    """Groups are held to the limits that hold overall, where the recipe does not say otherwise."""
    asked = recipe.requirements.fairness
    if asked is None:
        return None
    return asked.model_copy(update={"max_drop": {**overall, **asked.max_drop}})


def limits(recipe: Recipe) -> dict[str, float]:
    """The largest absolute drop of every metric that is judged.

    What ``requirements.max_drop`` leaves out is filled in from the tier: accuracy for classification
    (balanced accuracy where a case has several labels), sensitivity where there are positive classes, R²,
    Dice, or the metric of the user's own. The others are judged on request.

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
    return dict.fromkeys(_always(recipe), TIERS[recipe.requirements.risk].max_drop) | asked


def _always(recipe: Recipe) -> tuple[str, ...]:
    task = recipe.task
    sensitive = task.kind in ("binary", "multiclass", "multilabel") and task.positive_classes
    own = (custom_name(task.metric),) if task.metric else ()
    return (*_JUDGED[task.kind], *(("sensitivity",) if sensitive else ()), *own)


def custom_name(reference: str) -> str:
    """What a metric of the user's own is called: the name of its callable.

    Example:
        >>> custom_name("metrics.py:word_error_rate")
        'word_error_rate'
    """
    return reference.rpartition(":")[2].rpartition(".")[2]


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
    problems = [*_limit_problems(recipe), *_confidence_problems(recipe), *_plan_problems(recipe)]
    if problems:
        raise RecipeError("; ".join(text for _, text in problems), key=problems[0][0])


def check_run(recipe: Recipe) -> None:
    """Refuse a recipe that judges, but says neither what to compress nor how.

    Raises:
        RecipeError: ``task.model`` or ``plan`` is missing.
    """
    check_model(recipe)
    if not recipe.plan:
        raise RecipeError(
            "plan is missing: a run needs at least one stage, e.g. plan: [{quantize: {}}]", key="plan"
        )


def check_model(recipe: Recipe) -> None:
    """Refuse a recipe that names no model.

    Raises:
        RecipeError: ``task.model`` is missing.
    """
    if not recipe.task.model:
        raise RecipeError(
            "task.model is missing: name the model, e.g. FILE.py:CALLABLE; only judging two files does "
            "without one",
            key="task.model",
        )


def _judgeable(recipe: Recipe) -> tuple[str, ...]:
    """Metrics of the task that a limit can be set on, those first that always have one."""
    positive = ("sensitivity", "specificity") if recipe.task.positive_classes else ()
    return tuple(dict.fromkeys((*_always(recipe), *positive, *_MORE[recipe.task.kind])))


def _limit_problems(recipe: Recipe) -> Iterator[tuple[str, str]]:
    asked, kind = recipe.requirements, recipe.task.kind
    yield from _drop_problems("requirements.max_drop", asked.max_drop, _judgeable(recipe), recipe)
    of_class = _OF_A_CLASS.get(kind, ())
    yield from _drop_problems("requirements.max_class_drop", asked.max_class_drop, of_class, recipe)
    if asked.fairness is not None:
        drops, allowed = asked.fairness.max_drop, _judgeable(recipe)
        yield from _drop_problems("requirements.fairness.max_drop", drops, allowed, recipe)
        yield from _undecided_problems(recipe, asked.fairness)
    if asked.calibration is not None and kind not in ("binary", "multiclass", "multilabel"):
        text = f"does not fit a {kind} task, which gives no probabilities; leave it out"
        yield "requirements.calibration", f"requirements.calibration {text}"


def _drop_problems(
    section: str, asked: Mapping[str, float], allowed: tuple[str, ...], recipe: Recipe
) -> Iterator[tuple[str, str]]:
    tier = TIERS[recipe.requirements.risk]
    for metric, limit in asked.items():
        key = f"{section}.{metric}"
        if metric not in allowed:
            yield key, f"{key} {_unfit(metric, recipe, allowed)}"
        elif limit > tier.max_drop and recipe.requirements.override is None:
            most = f"{_percent(tier.max_drop)} at risk tier {tier.risk!r}"
            unit = " of the targets' standard deviation" if metric in IN_DEVIATIONS else ""
            got = f"{_percent(limit)}{unit}"
            yield key, f"{key} must be at most {most}, got {got}; tighten it{_looser(limit)}"


def _confidence_problems(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """A lower confidence approves what the tier would not."""
    asked = recipe.requirements
    if asked.confidence < _LEAST_CONFIDENCE and asked.override is None:
        key = "requirements.confidence"
        least = _percent(_LEAST_CONFIDENCE)
        yield key, f"{key} must be at least {least}, got {_percent(asked.confidence)}; raise it, {_SIGNED}"


def _undecided_problems(recipe: Recipe, asked: FairnessLimits) -> Iterator[tuple[str, str]]:
    """At critical and high risk, a group that the cases cannot decide keeps the verdict open."""
    risk = recipe.requirements.risk
    if asked.undecided == "report" and risk in ("critical", "high") and recipe.requirements.override is None:
        key = "requirements.fairness.undecided"
        text = (
            f"must be 'inconclusive' at risk tier {risk!r}, got 'report'; leave it out, or give requirements"
        )
        yield key, f"{key} {text}.override: {{by, reason}}"


def _unfit(metric: str, recipe: Recipe, allowed: tuple[str, ...]) -> str:
    """Why a metric cannot be judged, what can, and what to do."""
    shown = f"allowed: {', '.join(allowed) or 'none'}"
    without = not recipe.task.positive_classes
    if metric in ("sensitivity", "specificity") and recipe.task.kind in ("binary", "multiclass") and without:
        return (
            f"needs task.positive, the labels that must not be missed; give them, or leave it out ({shown})"
        )
    if metric not in KNOWN_METRICS:
        close = difflib.get_close_matches(metric, allowed, n=1, cutoff=0.7)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"is not a metric that can be judged; {hint}{shown}"
    return f"does not fit a {recipe.task.kind} task; leave it out ({shown})"


def _looser(limit: float) -> str:
    fitting = [tier.risk for tier in TIERS.values() if limit <= tier.max_drop]
    if not fitting:
        return f", {_SIGNED}"
    return f", set requirements.risk to {fitting[0]!r} if its use permits that, {_SIGNED}"


def override_note(recipe: Recipe) -> str | None:
    """Who loosened what the tier permits, in a sentence that every document carries; None if nobody did.

    Example:
        >>> from pastille.recipe import parse_recipe
        >>> override_note(parse_recipe({
        ...     "name": "r", "data": {"source": "d.py:s"},
        ...     "task": {"kind": "regression", "model": "m.py:f"},
        ...     "requirements": {"max_drop": {"r2": "3 %"},
        ...                      "override": {"by": "Dr. Ada Kern", "reason": "research use only"}}}))
        "Override by Dr. Ada Kern of risk tier 'high' (1 %): max_drop.r2 3 %. Reason given: research use only"
    """
    override = recipe.requirements.override
    if override is None:
        return None
    tier = TIERS[recipe.requirements.risk]
    loosened = ", ".join(_loosened(recipe, tier.max_drop)) or "nothing is looser than the tier"
    head = f"Override by {override.by} of risk tier {tier.risk!r} ({_percent(tier.max_drop)})"
    return f"{head}: {loosened}. Reason given: {override.reason}"


def _loosened(recipe: Recipe, most: float) -> Iterator[str]:
    asked = recipe.requirements
    groups = asked.fairness.max_drop if asked.fairness else {}
    sections = {
        "max_drop": asked.max_drop,
        "max_class_drop": asked.max_class_drop,
        "fairness.max_drop": groups,
    }
    for section, drops in sections.items():
        yield from (f"{section}.{name} {_percent(limit)}" for name, limit in drops.items() if limit > most)
    if asked.confidence < _LEAST_CONFIDENCE:
        yield f"confidence {_percent(asked.confidence)}"
    if asked.fairness and asked.fairness.undecided == "report" and asked.risk in ("critical", "high"):
        yield "groups that the cases cannot decide are only reported"
    steps = [step.quantize for step in recipe.plan if isinstance(step, QuantizeStep)]
    methods = TIERS[asked.risk].quantization
    yield from (f"quantize.method {step.method}" for step in steps if step.method not in methods)
    if not TIERS[asked.risk].other_students and any(_other_student(step) for step in recipe.plan):
        yield "distill.student is another network"


def _percent(share: float) -> str:
    return f"{100 * share:.6g} %"


def _plan_problems(recipe: Recipe) -> Iterator[tuple[str, str]]:
    tier = TIERS[recipe.requirements.risk]
    for place, step in enumerate(recipe.plan):
        key = f"plan.{place}"
        if isinstance(step, QuantizeStep):
            yield from _quantize_problems(step.quantize, recipe, f"{key}.quantize")
        elif isinstance(step, PruneStep):
            yield from _prune_problems(step.prune, tier, f"{key}.prune")
        elif _other_student(step) and not _permits_students(recipe):
            yield from _student_problems(tier, f"{key}.distill")


def _quantize_problems(step: Quantization, recipe: Recipe, key: str) -> Iterator[tuple[str, str]]:
    tier = TIERS[recipe.requirements.risk]
    if step.method in tier.quantization or _permits_int4(step, recipe):
        return
    head = f"{key}.method must not be {step.method!r} at risk tier {tier.risk!r}"
    if not tier.post_training_quantization:
        text = (
            f"{head}: post-training quantization alone is never approved there; train in int8 with method: "
            "qat and train: {epochs: 10}, or set requirements.risk to 'high' if its use permits that"
        )
    else:
        text = (
            f"{head}, which permits {', '.join(tier.quantization)}; choose one of them, set "
            f"requirements.risk to 'low' if its use permits that, {_SIGNED}"
        )
    yield f"{key}.method", text


def _other_student(step: PlanStep) -> bool:
    return isinstance(step, DistillStep) and step.distill.students is not None


def _permits_students(recipe: Recipe) -> bool:
    return TIERS[recipe.requirements.risk].other_students or recipe.requirements.override is not None


def _student_problems(tier: Tier, key: str) -> Iterator[tuple[str, str]]:
    """A smaller network in one move is what iterative pruning is there to avoid; a teacher is welcome."""
    yield (
        f"{key}.student",
        f"{key}.student must be 'same' at risk tier {tier.risk!r}: another network takes its place in one "
        "move; prune in steps with distill, set requirements.risk to 'medium' if its use permits that, "
        f"{_SIGNED}",
    )


def _permits_int4(step: Quantization, recipe: Recipe) -> bool:
    """An override may permit fewer bits, but never post-training quantization at critical risk."""
    tier = TIERS[recipe.requirements.risk]
    overridden = recipe.requirements.override is not None
    return step.method == "int4" and overridden and tier.post_training_quantization


def _prune_problems(step: Pruning, tier: Tier, key: str) -> Iterator[tuple[str, str]]:
    if tier.single_step_pruning:
        return
    lead = f"at risk tier {tier.risk!r}, where pruning must be iterative"
    match step:
        case Prune():
            yield from _one_shot_problems(step, lead, key)
        case SparsePrune(train=None):
            text = f"must be given {lead}: zeros are set while the model trains; add train: {{epochs: 10}}"
            yield f"{key}.train", f"{key}.train {text}"


def _one_shot_problems(step: Prune, lead: str, key: str) -> Iterator[tuple[str, str]]:
    if step.steps < 2:
        yield f"{key}.steps", f"{key}.steps must be at least 2 {lead}, got {step.steps}; set steps: 5"
    if step.tuning is None:
        mend = "add finetune: {epochs: 3}, or original_epochs"
        yield (
            f"{key}.finetune",
            f"{key}.finetune must be given {lead} with fine-tuning after each step; {mend}",
        )

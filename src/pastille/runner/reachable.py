"""Whether a plan can reach a size at all."""

from __future__ import annotations

from pastille.errors import RecipeError
from pastille.recipe import DistillStep, PruneStep, Pruning, QuantizeStep, Recipe, SparsePrune
from pastille.recipe.pruning import MOST
from pastille.runner.candidate import Candidate

_STORED = {"int4": 0.5, "fp16": 2.0, "bf16": 2.0}  # bytes of a weight; all other methods take one


def check_reachable(recipe: Recipe, baseline: Candidate) -> None:
    """Refuse a size that the plan cannot reach, before any work is spent on it.

    Pruning keeps at least ``(1 − sparsity)²`` of the weights, since no layer loses more than that
    share of its inputs and outputs, and single weights at least ``1 − sparsity``; quantization stores a
    weight in one byte, or two or a half, instead of four.

    Raises:
        RecipeError: ``max_size`` lies below that bound.
    """
    limit = recipe.requirements.max_size
    share, stored = 1.0, 4.0
    for step in recipe.plan:
        if isinstance(step, DistillStep) and step.distill.students is not None:
            return  # a student may be as small as it likes
        if isinstance(step, PruneStep):
            share *= _least_left(step.prune)
        if isinstance(step, QuantizeStep):
            stored = _STORED.get(step.quantize.method, 1)
    least = baseline.profile.parameters * share * stored
    if limit is not None and limit < least:
        raise RecipeError(
            f"requirements.max_size: {limit / 1e6:.3g} MB cannot be reached: this plan leaves at least "
            f"{least / 1e6:.3g} MB of {baseline.profile.parameters} parameters; "
            "raise max_size or the sparsity, or quantize",
            key="requirements.max_size",
        )


def _least_left(step: Pruning) -> float:
    """Share of the weights that a prune leaves at least."""
    if isinstance(step, SparsePrune):
        return 1 - step.share
    even = step.budget is None and step.allocation == "uniform"  # else one layer may lose almost all
    most = max([step.sparsity or 0.0, step.heads or 0.0, *step.layers.values()]) if even else MOST
    # Blocks differ in size: a quarter of them may hold most of the weights.
    return float((1 - most) ** 2) * (1.0 if step.blocks is None else 1 - MOST)

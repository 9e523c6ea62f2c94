"""Limits on how much less the probabilities may mean what they say."""

from __future__ import annotations

from dataclasses import replace

from pastille.gates.drops import check_drop
from pastille.recipe.sections import CalibrationLimits
from pastille.stats.calibration import SAME
from pastille.values import Calibration, Check, Comparison


def calibration_checks(calibration: Calibration, limits: CalibrationLimits) -> tuple[Check, ...]:
    """Hold the growth of the calibration error, and of the Brier score where asked, against its limit.

    Args:
        calibration: Of both models on the same cases.
        limits: From the recipe.

    Returns:
        One check per limit: expected calibration error, then Brier score.

    Example:
        >>> from pastille.values import Comparison, Estimate, Interval
        >>> ece = Comparison(
        ...     metric="ece", n=540, baseline=Estimate(value=0.031, interval=None, n=540, method=""),
        ...     candidate=Estimate(value=0.035, interval=None, n=540, method=""), drop=0.004,
        ...     interval=Interval(low=-0.002, high=0.011, confidence=0.95), method="paired BCa bootstrap")
        >>> found = Calibration(comparisons=(ece,), baseline_bins=(), candidate_bins=(), of="malignant")
        >>> print(calibration_checks(found, CalibrationLimits())[0].reason)
        expected calibration error grew by 0.4 points (95 % CI −0.2 to 1.1, 540 cases), within the limit of
        2 points
    """
    asked = {"ece": limits.max_ece_increase, "brier": limits.max_brier_increase}
    found = {comparison.metric: comparison for comparison in calibration.comparisons}
    return tuple(_check(found[name], limit) for name, limit in asked.items() if limit is not None)


def _check(found: Comparison, limit: float) -> Check:
    """Identical answers are approved whatever the limit; the reason says why there is no width."""
    check = check_drop(found, limit)
    return replace(check, reason=f"{check.reason}: {SAME}") if found.method == SAME else check

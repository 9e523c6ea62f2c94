"""Calibration slope and intercept: how log-odds would have to be stretched and shifted to be right.

Each fit gives its deviation from the ideal (slope 1, intercept 0) case by case, as pseudo-values: their mean
is the deviation, and their spread over cases or subjects is its uncertainty (the infinitesimal jackknife).
So two models on the same cases are compared in pairs without fitting either again.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit

from pastille.stats.statements import as_label_odds
from pastille.stats.temperature import case_scores, fit_temperature, is_bound, root
from pastille.values import Cases

_STEPS = 100


def slope_deviation(outputs: np.ndarray, cases: Cases) -> np.ndarray | None:
    """Calibration slope less 1: below 0 the probabilities are too extreme, above 0 too timid.

    Binary and multilabel: the slope of a logistic regression of what came true on the log-odds.
    Multiclass: the factor on the logits at which the targets are most likely.

    Args:
        outputs: Logits, as in `pastille.stats.temperature.fit_temperature`.
        cases: The right answers.

    Returns:
        Pseudo-values, ``(M,)``, one per probability stated; their mean is the deviation. None where no slope
        is best: the log-odds are all equal, or tell the cases that came true from the others without fault.

    Raises:
        ValueError: As `fit_temperature`.

    Example:
        >>> odds = np.array([-4.0, -4, -4, -4, 4, 4, 4, 4])  # says 98 %, comes true in 3 of 4
        >>> cases = Cases(kind="binary", split="test", targets=np.array([0, 0, 0, 1, 1, 1, 1, 0]),
        ...               labels=("healthy", "ill"))
        >>> round(1 + float(slope_deviation(odds, cases).mean()), 3)
        0.275

    References:
        Cox, "Two further applications of a model for binary regression", Biometrika 45, 1958.
        Van Calster et al., "Calibration: the Achilles heel of predictive analytics", BMC Medicine 17, 2019.
    """
    if cases.kind == "multiclass":
        return _factor_deviation(outputs, cases)
    odds, came = (x.ravel() for x in as_label_odds(outputs, cases))
    overlap = came.any() and not came.all() and _overlap(odds[came], odds[~came])
    return _logistic_deviation(odds, came) if overlap else None


def intercept_deviation(outputs: np.ndarray, cases: Cases) -> np.ndarray | None:
    """Calibration in the large: by how much all log-odds are too low (the slope being 1).

    Args:
        outputs: Logits of a binary or multilabel task.
        cases: The right answers.

    Returns:
        Pseudo-values, ``(M,)``, whose mean is the intercept. None where all or none of the cases came true.

    Raises:
        ValueError: As `fit_temperature`.

    Example:
        >>> cases = Cases(kind="binary", split="test", targets=np.array([0, 0, 0, 1]), labels=("no", "yes"))
        >>> round(float(intercept_deviation(np.zeros(4), cases).mean()), 4)  # says 50 %, comes true in 25 %
        -1.0986
    """
    odds, came = (x.ravel() for x in as_label_odds(outputs, cases))
    if came.all() or not came.any():
        return None
    share = came.mean()
    center = float(np.log(share) - np.log1p(-share))

    def excess(shift: float) -> tuple[float, float]:
        stated = expit(odds + shift)
        return float((stated - came).mean()), float((stated * (1 - stated)).mean())

    shift = root(excess, center - float(odds.max()), center - float(odds.min()))
    stated = expit(odds + shift)
    information = float((stated * (1 - stated)).mean())
    return shift + (came - stated) / information if information > 0 else None


def _factor_deviation(outputs: np.ndarray, cases: Cases) -> np.ndarray | None:
    temperature = fit_temperature(outputs, cases)
    score, curvature = case_scores(outputs, cases)(1 / temperature)
    information = float(curvature.mean())
    if is_bound(temperature) or information <= 0:
        return None
    return (1 / temperature - 1) - score / information


def _overlap(positive: np.ndarray, negative: np.ndarray) -> bool:
    """Whether a finite slope is best (Albert and Anderson, Biometrika 71, 1984)."""
    return bool(positive.min() < negative.max() and negative.min() < positive.max())


def _logistic_deviation(odds: np.ndarray, came: np.ndarray) -> np.ndarray:
    """Newton's method on standardized log-odds, with steps halved until the likelihood rises."""
    center, spread = odds.mean(), odds.std()
    design = np.column_stack([np.ones_like(odds), (odds - center) / spread])  # (M, 2)
    weights = np.zeros(2)
    for _ in range(_STEPS):
        step = np.linalg.solve(*_normal_equations(design, came, weights))
        while _loss(design, came, weights + step) > _loss(design, came, weights) + 1e-12:
            step /= 2
        weights = weights + step
        if np.abs(step).max() <= 1e-10 * max(1.0, np.abs(weights).max()):
            break
    information, _ = _normal_equations(design, came, weights)
    residuals = came - expit(design @ weights)
    influence = len(odds) * np.linalg.solve(information, (design * residuals[:, None]).T)[1]  # (M,)
    pseudo: np.ndarray = (weights[1] + influence) / spread - 1
    return pseudo


def _normal_equations(
    design: np.ndarray, came: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    stated = expit(design @ weights)
    information = (design * (stated * (1 - stated))[:, None]).T @ design
    return information, design.T @ (came - stated)


def _loss(design: np.ndarray, came: np.ndarray, weights: np.ndarray) -> float:
    odds = design @ weights
    return float(np.logaddexp(0, np.where(came, -odds, odds)).mean())

"""Metrics of a regression: R², RMSE, MAE and bias, all functions of column sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from pastille.stats.decisions import predict
from pastille.stats.forms import OfSums
from pastille.values import Cases


def error_columns(predicted: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """What the metrics of a regression need of each case, for their sums.

    Returns:
        ``(N, 6)``: 1, error, absolute error, squared error, and the target, centred, and its square.
    """
    error = predicted - targets
    centred = targets - targets.mean()  # sums of squares of large numbers would lose all digits
    return np.column_stack([np.ones(len(error)), error, np.abs(error), error**2, centred, centred**2])


def total_squares(sums: np.ndarray) -> np.ndarray:
    """Squared distance of the targets from their mean, from sums of `error_columns` ``(..., 6)``.

    Zero (up to rounding) is given as NaN: R² is undefined where all targets are equal.
    """
    squares: np.ndarray = sums[..., 5] - sums[..., 4] ** 2 / sums[..., 0]
    return np.where(squares > 1e-12 * sums[..., 5], squares, np.nan)


def r_squared(sums: np.ndarray) -> np.ndarray:
    """R² from sums of `error_columns` ``(..., 6)``; NaN where all targets are equal."""
    unexplained: np.ndarray = sums[..., 3] / total_squares(sums)
    return 1.0 - unexplained


def _mean_error(sums: np.ndarray) -> np.ndarray:
    mean: np.ndarray = sums[..., 1] / sums[..., 0]
    return mean


_WORSE: Mapping[str, Callable[[np.ndarray], np.ndarray]] = MappingProxyType(
    {
        "rmse": lambda s: np.sqrt(s[..., 3] / s[..., 0]),
        "mae": lambda s: s[..., 2] / s[..., 0],
        "bias": lambda s: np.abs(_mean_error(s)),
    }
)


def regression_forms(outputs: np.ndarray, cases: Cases) -> dict[str, OfSums]:
    """R², RMSE, MAE and bias, all of the same columns.

    The bias is the distance of the mean of prediction - target from 0: predicting too much is as bad as
    predicting too little. See `signed_bias` for which of the two it is.

    Args:
        outputs: ``(N,)`` or ``(N, 1)``.
        cases: The right answers.

    Raises:
        ValueError: If the outputs do not fit or are not finite.
    """
    columns = error_columns(predict(outputs, cases), cases.targets)
    everyone = np.ones(len(columns), bool)
    r2 = OfSums(columns=columns, among=everyone, statistic=r_squared)
    return {"r2": r2} | {
        name: replace(r2, statistic=statistic, higher_is_better=False) for name, statistic in _WORSE.items()
    }


def signed_bias(form: OfSums) -> OfSums:
    """The mean of prediction - target, positive where too much is predicted, from the form of the bias."""
    return replace(form, statistic=_mean_error)

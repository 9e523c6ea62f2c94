"""How sure an answer is of what it decided, and how that is spread over many: what drift is seen in."""

from __future__ import annotations

import numpy as np

from pastille.values import Kind

BINS, GRID = 10, 101


def confidence(kind: Kind, probabilities: np.ndarray, decided: np.ndarray) -> np.ndarray | None:
    """Probability of what was decided.

    Args:
        kind: What the task is.
        probabilities: ``(N,)`` of the second label for binary, ``(N, K)`` or ``(N, L)`` otherwise.
        decided: ``(N,)`` class indices; multilabel ``(N, L)`` 0 or 1.

    Returns:
        ``(N,)`` float64. Multilabel: of the label that is least sure. None for segmentation, and where there
        are no probabilities.

    Example:
        >>> confidence("binary", np.array([0.9, 0.2]), np.array([1, 1]))
        array([0.9, 0.2])
        >>> confidence("multilabel", np.array([[0.9, 0.4]]), np.array([[1, 0]]))
        array([0.6])
    """
    match kind:
        case "binary":
            return np.where(decided == 1, probabilities, 1 - probabilities)
        case "multiclass":
            return np.asarray(probabilities[np.arange(len(decided)), decided])
        case "multilabel":
            return np.asarray(np.where(decided == 1, probabilities, 1 - probabilities).min(axis=1))
        case _:
            return None


def quantile_bins(values: np.ndarray, bins: int = BINS) -> tuple[np.ndarray, np.ndarray]:
    """Bins of [0, 1] that each hold about as many of the values, and the share that each holds.

    Args:
        values: ``(N,)`` in [0, 1], N of at least 1.
        bins: How many are asked for; quantiles that coincide are one edge.

    Returns:
        Edges ``(B + 1,)`` from 0 to 1, and shares ``(B,)``; a bin includes its lower edge, the last
        its upper one too.

    Example:
        >>> edges, shares = quantile_bins(np.array([0.6, 0.7, 0.8, 0.9]), bins=2)
        >>> edges.round(2).tolist(), shares.tolist()
        ([0.0, 0.75, 1.0], [0.5, 0.5])
    """
    inner = np.quantile(values, np.arange(1, bins) / bins)
    edges = np.unique(np.concatenate([[0.0], inner[(inner > 0) & (inner < 1)], [1.0]]))
    counts, _ = np.histogram(values, edges)
    return edges, counts / len(values)


def quantile_grid(values: np.ndarray, points: int = GRID) -> np.ndarray:
    """Quantiles at 0 %, 1 % … 100 %.

    Args:
        values: ``(N,)``, N of at least 1.
        points: How many, both ends included.

    Returns:
        ``(points,)``, ascending.

    Example:
        >>> quantile_grid(np.array([0.0, 1.0]), points=3)
        array([0. , 0.5, 1. ])
    """
    return np.asarray(np.quantile(values, np.linspace(0, 1, points)))

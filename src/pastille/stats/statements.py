"""What a model states with its probabilities: how likely something is, and whether it came true."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pastille.stats.decisions import log_odds, probabilities
from pastille.values import Cases

PROBABLE_KINDS = frozenset({"binary", "multiclass", "multilabel"})


@dataclass(frozen=True, kw_only=True)
class Statements:
    """The probabilities that one model gave, ``M`` of them: one per case, or per case and label."""

    chance: np.ndarray  # (M,) float64, stated probability
    came: np.ndarray  # (M,) bool, whether it came true
    penalty: np.ndarray  # (M,) float64, squared error; of multiclass summed over the classes
    about: np.ndarray | None = None  # (N,) int64, the class that is spoken of; None except for multiclass

    @property
    def gap(self) -> np.ndarray:
        """How much more was stated than came true, ``(M,)``."""
        gap: np.ndarray = self.chance - self.came
        return gap


def statements(outputs: np.ndarray, cases: Cases, *, about: np.ndarray | None = None) -> Statements:
    """What a model states of each case.

    Binary: the probability of the positive label. Multiclass: that the decided class is right.
    Multilabel: the probability of every label, case by case.

    Args:
        outputs: Logits, as in `pastille.stats.temperature.fit_temperature`.
        cases: The right answers.
        about: Multiclass: the class of each case, ``(N,)``, to speak of instead of the decided one.

    Raises:
        ValueError: If the kind has no probabilities, or outputs do not fit, or are not finite.

    Example:
        >>> cases = Cases(kind="multiclass", split="test", targets=np.array([2]), labels=("a", "b", "c"))
        >>> stated = statements(np.log([[0.2, 0.2, 0.6]]), cases)
        >>> stated.chance.round(3), stated.came, stated.penalty.round(3)
        (array([0.6]), array([ True]), array([0.24]))
    """
    if cases.kind == "multiclass":
        chances = probabilities("multiclass", checked_multiclass(outputs, cases))  # (N, K)
        rows, about = np.arange(len(chances)), chances.argmax(axis=1) if about is None else about
        wanted = np.zeros_like(chances)
        wanted[rows, cases.targets] = 1.0
        penalty = ((chances - wanted) ** 2).sum(axis=1)
        came = about == cases.targets
        return Statements(chance=chances[rows, about], came=came, penalty=penalty, about=about)
    odds, came = (x.ravel() for x in as_label_odds(outputs, cases))
    chance = probabilities("binary", odds)
    return Statements(chance=chance, came=came, penalty=(chance - came) ** 2)


def stated_of(cases: Cases) -> str:
    """What the probability is of, in words.

    Example:
        >>> stated_of(Cases(kind="binary", split="test", targets=np.zeros(1, int), labels=("no", "ill")))
        'ill'
    """
    if cases.kind == "binary":
        return cases.labels[positive_label(cases)]
    return "the decided class" if cases.kind == "multiclass" else "every label"


def positive_label(cases: Cases) -> int:
    """Index of the label that a binary task speaks of."""
    return cases.positive[0] if cases.positive else 1


def as_label_odds(outputs: np.ndarray, cases: Cases) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds of what is stated, and whether it is so; of a binary or multilabel task.

    Returns:
        Binary: ``(N,)`` float64 of the positive label, and ``(N,)`` bool. Multilabel: ``(N, L)`` each.

    Raises:
        ValueError: As `statements`.
    """
    if cases.kind == "binary":
        _require_rows(len(outputs), cases)
        positive, odds = positive_label(cases), log_odds(outputs)
        return (odds if positive == 1 else -odds), cases.targets == positive
    if cases.kind == "multilabel":
        _require_rows(len(outputs), cases)
        odds = np.asarray(outputs, np.float64)
        if odds.shape != cases.targets.shape:
            raise ValueError(
                f"outputs must have one number per case and label, shape {cases.targets.shape}, "
                f"got {odds.shape}"
            )
        _require_finite(odds)
        return odds, cases.targets == 1
    raise ValueError(f"kind must be one of {sorted(PROBABLE_KINDS)}, got {cases.kind!r}")


def checked_multiclass(outputs: np.ndarray, cases: Cases) -> np.ndarray:
    """Logits of a multiclass task, ``(N, K)`` float64.

    Raises:
        ValueError: They do not fit the cases, or are not finite.
    """
    logits = np.asarray(outputs, np.float64)
    if logits.ndim != 2 or logits.shape[1] != len(cases.labels):
        raise ValueError(
            f"outputs must have shape (N, {len(cases.labels)}), one per label, got {logits.shape}"
        )
    _require_rows(len(logits), cases)
    _require_finite(logits)
    return logits


def _require_rows(rows: int, cases: Cases) -> None:
    if rows != len(cases.targets) or rows == 0:
        raise ValueError(
            f"outputs must have one row per case and at least one, got {rows} for {len(cases.targets)} cases"
        )


def _require_finite(values: np.ndarray) -> None:
    broken = values.size - int(np.count_nonzero(np.isfinite(values)))
    if broken:
        raise ValueError(f"outputs must be finite, got NaN or infinity in {broken} of {values.size} values")

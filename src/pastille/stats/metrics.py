"""Score a model's outputs on one split: every metric with its interval, overall, by class and by group."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from pastille.stats.decisions import decide
from pastille.stats.estimates import estimate_all, value
from pastille.stats.forms import Form, OfSums
from pastille.stats.kinds import forms
from pastille.stats.regression import signed_bias
from pastille.values import Cases, Estimate, Kind, Metrics

_HEADLINE: Mapping[Kind, str] = MappingProxyType(
    {
        "binary": "accuracy",
        "multiclass": "accuracy",
        "multilabel": "auroc",
        "regression": "r2",
        "segmentation": "dice",
    }
)
_OF_CLASS: Mapping[Kind, str] = MappingProxyType(
    {"binary": "recall", "multiclass": "recall", "multilabel": "sensitivity", "segmentation": "dice"}
)
# Those that do not compare classes with each other, which a small group may lack, and that are cheap.
_OF_GROUP: Mapping[Kind, tuple[str, ...]] = MappingProxyType(
    {
        "binary": ("accuracy", "sensitivity", "specificity", "auroc"),
        "multiclass": ("accuracy", "sensitivity", "specificity"),
        "multilabel": ("accuracy", "sensitivity", "specificity", "auroc", "exact_match"),
        "regression": ("r2", "rmse", "mae", "bias"),
        "segmentation": ("dice", "iou", "pixel_accuracy"),
        "custom": (),
    }
)
_LOWER_IS_BETTER = frozenset({"rmse", "mae", "bias"})


def selection_metric(cases: Cases, *, balanced: bool) -> str:
    """The metric that the best epoch of a training is chosen by.

    Accuracy would choose the epoch that calls everything by the commonest name where one class is rare:
    on 85 % benign lesions a model that finds no melanoma scores 85 %. So a binary task, and one that
    weighs its classes alike, is chosen by balanced accuracy.

    Args:
        cases: The validation split's cases.
        balanced: Whether the training weighs classes by their rarity.

    Raises:
        ValueError: If a custom task names no metric.

    Example:
        >>> cases = Cases(kind="binary", split="validation", targets=np.array([0, 1]), labels=("a", "b"))
        >>> selection_metric(cases, balanced=False)
        'balanced_accuracy'
    """
    rare = cases.kind == "binary" or (balanced and cases.kind == "multiclass")
    return "balanced_accuracy" if rare else headline(cases)


def selection_value(outputs: np.ndarray, cases: Cases, *, metric: str) -> float:
    """The metric of `selection_metric` alone, the larger the better: cheap enough for every epoch.

    Args:
        outputs: Logits or predictions, ``(N, ...)``, as in `pastille.stats.decisions`.
        cases: The right answers.
        metric: From `selection_metric`.

    Returns:
        The metric's value; its negative where lower is better (see `higher_is_better`).

    Raises:
        ValueError: If the outputs do not fit or are not finite, or the cases cannot define the metric.

    Example:
        >>> cases = Cases(kind="binary", split="test", targets=np.array([0, 0, 0, 1]), labels=("a", "b"))
        >>> selection_value(np.array([-1.0, -1.0, -1.0, -1.0]), cases, metric="balanced_accuracy")
        0.5
    """
    found = _value(outputs, cases, metric)
    return found if higher_is_better(metric, cases) else -found


def higher_is_better(metric: str, cases: Cases) -> bool:
    """Which way a metric of a task points.

    Example:
        >>> cases = Cases(kind="regression", split="test", targets=np.array([1.0]), labels=())
        >>> higher_is_better("r2", cases), higher_is_better("rmse", cases)
        (True, False)
    """
    own = {one.name: one.higher_is_better for one in cases.metrics}
    return own.get(metric, metric not in _LOWER_IS_BETTER)


def headline(cases: Cases) -> str:
    """The one metric that a training loop and a table of stages go by.

    Of a multilabel task it is the mean AUROC: labels are mostly rare, and few models call a rare one from
    a probability of 0.5 on, so that a metric of decisions would tell no two epochs apart. Of a custom
    task it is the first metric that it names.

    Raises:
        ValueError: If a custom task names none.

    Example:
        >>> headline(Cases(kind="regression", split="test", targets=np.array([1.0]), labels=()))
        'r2'
    """
    if cases.kind != "custom":
        return _HEADLINE[cases.kind]
    if not cases.metrics:
        raise ValueError("metrics of a custom task must name at least one, got none")
    return cases.metrics[0].name


def headline_value(outputs: np.ndarray, cases: Cases) -> float:
    """The headline metric alone, without an interval: cheap enough for every epoch.

    Args:
        outputs: Logits or predictions, ``(N, ...)``, as in `pastille.stats.decisions`.
        cases: The right answers.

    Raises:
        ValueError: If the outputs do not fit or are not finite, or the cases cannot define the metric, as
            R² where all targets are equal.

    Example:
        >>> cases = Cases(kind="regression", split="test", targets=np.array([1.0, 2.0, 3.0]), labels=())
        >>> headline_value(np.array([1.0, 2.0, 3.5]), cases)
        0.875
    """
    return _value(outputs, cases, headline(cases))


_UNDEFINED = MappingProxyType(
    {
        "r2": "targets must differ from each other for R² to be defined",
        "auroc": "targets must have a label that is present in some cases and absent in others",
        "dice": "targets must hold a class other than the background",
    }
)


def _value(outputs: np.ndarray, cases: Cases, metric: str) -> float:
    if metric == "accuracy" and cases.kind != "multilabel":  # without sorting scores for the others
        return float(np.mean(decide(outputs, cases) == cases.targets))
    found = value(forms(outputs, cases).overall[metric])
    if not math.isfinite(found):
        raise ValueError(
            _UNDEFINED.get(metric, f"metric {metric!r} must be defined by the cases, got {found}")
        )
    return found


def score(outputs: np.ndarray, cases: Cases, *, confidence: float = 0.95, bootstrap: bool = True) -> Metrics:
    """Every metric of the task, with intervals, overall, by class and by group.

    What the metrics of each kind are is said in `pastille.stats.kinds`, and how they are estimated in
    `pastille.stats.estimates`. The bias of a regression has its sign here: the mean of prediction -
    target. A metric that the cases cannot define is left out.

    Args:
        outputs: Logits or predictions, ``(N, ...)``, as in `pastille.stats.decisions`.
        cases: The right answers. Where one subject has several cases, intervals treat subjects as
            independent, not cases, and `Estimate.method` says so.
        confidence: Of the intervals, in ``(0, 1)``.
        bootstrap: Whether metrics without a closed form get an interval, which takes seconds for
            100,000 cases; else their value alone.

    Returns:
        By class: the recall of each label; of a multilabel task its sensitivity, of a segmentation its
        Dice. By group: the shares of the task, AUROC where it is binary or multilabel, and every metric of
        a regression or segmentation.

    Raises:
        ValueError: If there are no cases, targets are outside the labels, or the outputs do not fit or
            are not finite.

    Example:
        >>> cases = Cases(kind="binary", split="test", targets=np.array([0, 0, 1, 1]),
        ...               labels=("healthy", "ill"), positive=(1,))
        >>> metrics = score(np.array([-1.0, 0.5, 1.0, 2.0]), cases)
        >>> {name: round(estimate.value, 3) for name, estimate in metrics.overall.items()}
        {'accuracy': 0.75, 'balanced_accuracy': 0.75, 'sensitivity': 1.0, 'specificity': 0.5,
         'precision': 0.667, 'f1': 0.8, 'auroc': 1.0, 'average_precision': 1.0}
    """
    found = forms(outputs, cases)
    subjects = None if cases.subjects is None else np.unique(cases.subjects, return_inverse=True)[1]

    def estimated(of: Mapping[str, Form]) -> dict[str, Estimate]:
        return estimate_all(_signed(of), subjects=subjects, confidence=confidence, bootstrap=bootstrap)

    narrowed = {name: found.overall[name] for name in _OF_GROUP[cases.kind] if name in found.overall}
    return Metrics(
        split=cases.split,
        n=len(cases.targets),
        overall=estimated(found.overall),
        per_class=estimated(
            {label: of_class[_OF_CLASS[cases.kind]] for label, of_class in found.classes.items()}
        ),
        groups={
            attribute: {
                str(name): estimated(
                    {metric: form.within(column == name) for metric, form in narrowed.items()}
                )
                for name in np.unique(column)
            }
            for attribute, column in cases.groups.items()
        },
        confusion=found.confusion,
    )


def _signed(of: Mapping[str, Form]) -> dict[str, Form]:
    """A comparison asks how large the bias is; who reads the figure also wants to know which way it goes."""
    return {
        name: signed_bias(form) if name == "bias" and isinstance(form, OfSums) else form
        for name, form in of.items()
    }

"""What a model's outputs are held against."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pastille.data.split import Split
from pastille.errors import UsageError
from pastille.policy import custom_name
from pastille.recipe import TaskSection
from pastille.references import load_callable
from pastille.values import Cases, CustomMetric, Kind, SplitName


def cases(
    split: Split, name: SplitName, task: TaskSection, *, metrics: tuple[CustomMetric, ...] = ()
) -> Cases:
    """The right answers of one split, and whom they belong to.

    Args:
        split: Checked by `pastille.data.checks.check_targets`.
        name: Of the split.
        task: Says what targets mean.
        metrics: From `own_metrics`.

    Example:
        >>> from pastille.recipe import TaskSection
        >>> task = TaskSection(kind="binary", model="m.py:f", labels=["benign", "malignant"])
        >>> split = Split(inputs=np.zeros((2, 1)), targets=np.array([0, 1], np.uint8))
        >>> cases(split, "test", task).targets, cases(split, "test", task).positive
        (array([0, 1]), (1,))
    """
    return Cases(
        kind=task.kind,
        split=name,
        targets=_targets(split.targets, task.kind),
        labels=tuple(task.labels),
        positive=task.positive_classes,
        threshold=task.fixed_threshold,
        groups={attribute: column.astype(str) for attribute, column in split.groups.items()},
        subjects=split.subjects,
        strata=None if split.strata is None else split.strata.astype(str),
        ids=None if split.ids is None else split.ids.astype(str),
        metrics=metrics,
    )


def _targets(given: np.ndarray, kind: Kind) -> np.ndarray:
    match kind:
        case "custom":
            return given
        case "regression":
            return given.astype(np.float64)
        case _:
            return given.astype(np.int64)


def own_metrics(task: TaskSection, base: Path) -> tuple[CustomMetric, ...]:
    """The metric of the user's own that a recipe names, loaded; none where it names none.

    It is called with the answers ``(M, ...)`` of the exported file (as logits, where the task has classes)
    and the targets ``(M, ...)``, and returns one number. Larger is better, unless the callable has an
    attribute ``higher_is_better = False``.

    Args:
        task: Its ``metric``.
        base: The recipe's folder, which ``metric`` is relative to.

    Raises:
        UsageError: It cannot be imported, or its ``higher_is_better`` is neither true nor false.

    Example:
        >>> task = TaskSection(kind="custom", metric="scipy.spatial.distance:euclidean")
        >>> [(metric.name, metric.higher_is_better) for metric in own_metrics(task, Path())]
        [('euclidean', True)]
    """
    if task.metric is None:
        return ()
    function = load_callable(task.metric, base, key="task.metric")
    higher = getattr(function, "higher_is_better", True)
    if not isinstance(higher, bool):
        raise UsageError(f"task.metric: higher_is_better must be True or False, got {higher!r}")
    return (CustomMetric(name=custom_name(task.metric), function=function, higher_is_better=higher),)

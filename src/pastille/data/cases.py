"""What a model's outputs are held against."""

from __future__ import annotations

import numpy as np

from pastille.data.split import Split
from pastille.recipe import TaskSection
from pastille.values import Cases, SplitName


def cases(split: Split, name: SplitName, task: TaskSection) -> Cases:
    """The right answers of one split, and whom they belong to.

    Args:
        split: Checked by `pastille.data.checks.check_targets`.
        name: Of the split.
        task: Says what targets mean.

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
        targets=split.targets.astype(np.float64 if task.kind == "regression" else np.int64),
        labels=tuple(task.labels),
        positive=task.positive_classes,
        threshold=task.fixed_threshold,
        groups={attribute: column.astype(str) for attribute, column in split.groups.items()},
        subjects=split.subjects,
        strata=None if split.strata is None else split.strata.astype(str),
    )

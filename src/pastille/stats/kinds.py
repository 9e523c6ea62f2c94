"""Which metrics a kind of task has, each as the form that it takes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pastille.stats.catalogue import MetricForms
from pastille.stats.custom import custom_forms
from pastille.stats.decisions import check_rows
from pastille.stats.multiclass import binary_forms, multiclass_forms
from pastille.stats.multilabel import multilabel_forms
from pastille.stats.regression import regression_forms
from pastille.stats.segmentation import segmentation_forms
from pastille.stats.validity import check_cases
from pastille.values import Cases


def forms(outputs: np.ndarray, cases: Cases) -> MetricForms:
    """Every metric of the task, those of the user's own last.

    A metric that the task has is there even where the cases cannot define it (no case of a positive class):
    its estimate is then None. Classification is by the task's threshold; see the functions of each kind for
    what its metrics are. One of the user's own replaces one of the same name.

    Args:
        outputs: Logits, predictions or, of a custom task, anything, ``(N, ...)``; as in
            `pastille.stats.decisions`.
        cases: The right answers.

    Raises:
        ValueError: If there are no cases; targets are outside the labels or do not fit the kind; or the
            outputs do not fit or are not finite.

    Example:
        >>> cases = Cases(kind="regression", split="test", targets=np.array([1.0, 2.0]), labels=())
        >>> list(forms(np.array([1.0, 2.5]), cases).overall)
        ['r2', 'rmse', 'mae', 'bias']
    """
    check_cases(cases)
    check_rows(outputs, cases)
    own = _own_forms(np.asarray(outputs), cases)
    return replace(own, overall={**own.overall, **custom_forms(outputs, cases)})


def _own_forms(outputs: np.ndarray, cases: Cases) -> MetricForms:
    match cases.kind:
        case "binary":
            return binary_forms(outputs, cases)
        case "multiclass":
            return multiclass_forms(outputs, cases)
        case "multilabel":
            return multilabel_forms(outputs, cases)
        case "segmentation":
            return segmentation_forms(outputs, cases)
        case "regression":
            return MetricForms(overall=regression_forms(outputs, cases))
        case "custom":
            return MetricForms(overall={})

"""How metrics are called and printed: the one list that gates, reports and the terminal share."""

from __future__ import annotations

from collections.abc import Mapping

# Print as percent, their differences as points; everything else is a plain number.
SHARES = frozenset(
    {
        *("accuracy", "balanced_accuracy", "sensitivity", "specificity", "recall", "precision", "f1"),
        *("auroc", "average_precision", "exact_match", "dice", "iou", "pixel_accuracy"),
        *("underdiagnosis", "ece"),
        *("equalized odds difference", "equal opportunity gap", "accuracy gap"),
        *("dice gap", "sensitivity gap", "specificity gap"),
    }
)
LOWER_IS_BETTER = frozenset({"rmse", "mae", "bias", "ece", "brier", "underdiagnosis"})
_SPOKEN = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "dice": "Dice",
    "ece": "expected calibration error",
    "f1": "F1",
    "iou": "IoU",
    "mae": "MAE",
    "r2": "R²",
    "brier": "Brier score",
    "rmse": "RMSE",
    "underdiagnosis": "underdiagnosis rate",
}
_CASES = {
    "sensitivity": "cases of a positive class",
    "underdiagnosis": "cases of a positive class",
    "specificity": "cases of no positive class",
}


def spoken(metric: str) -> str:
    """What a metric is called in a sentence.

    Example:
        >>> spoken("auroc"), spoken("balanced_accuracy")
        ('AUROC', 'balanced accuracy')
    """
    return _SPOKEN.get(metric) or metric.replace("_", " ")


def is_share(metric: str) -> bool:
    """Whether it prints as percent."""
    return metric in SHARES


def cases_of(metric: str) -> str:
    """What the cases are called that a metric rests on.

    Example:
        >>> cases_of("accuracy"), cases_of("sensitivity")
        ('cases', 'cases of a positive class')
    """
    return _CASES.get(metric, "cases")


def many(count: int) -> str:
    """A number in a sentence: from 10,000 on with commas.

    Example:
        >>> many(1740), many(15698)
        ('1740', '15,698')
    """
    return f"{count:,}" if count >= 10_000 else str(count)


def counted(count: int, metric: str = "") -> str:
    """How many cases, in a sentence.

    Example:
        >>> counted(1), counted(300, "sensitivity")
        ('1 case', '300 cases of a positive class')
    """
    kind = cases_of(metric)
    return f"{many(count)} {kind.replace('cases', 'case', 1) if count == 1 else kind}"


def place(where: Mapping[str, str]) -> str:
    """Which cases a figure speaks of, as in `Comparison.where`.

    Example:
        >>> place({"sex": "female", "age_band": "65+"}), place({"class": "melanoma"}), place({})
        ('sex female and age band 65+', 'class melanoma', '')
    """
    return " and ".join(f"{name.replace('_', ' ')} {value}" for name, value in where.items())

"""The list of changed cases, from what two files answered."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pastille.measure.disagreements import write_disagreements
from pastille.stats.decisions import decide, predict, probabilities
from pastille.stats.margins import decision_margins
from pastille.stats.statements import PROBABLE_KINDS
from pastille.values import Cases

FILE = "disagreements.csv"


def list_changed(path: Path, before: np.ndarray, after: np.ndarray, cases: Cases) -> bool:
    """Write the cases that two models decide differently, if any.

    Args:
        path: The CSV file, as `pastille.measure.disagreements.write_disagreements` describes it.
        before: What the baseline answered, ``(N, ...)``, as in `pastille.stats.decisions`.
        after: What the candidate answered.
        cases: The right answers.

    Returns:
        Whether there is a file: there is none for a custom task.

    Raises:
        OutputError: It cannot be written.
    """
    if cases.kind == "custom":
        return False
    if cases.kind == "regression":
        write_disagreements(path, predict(before, cases), predict(after, cases), cases)
        return True
    chances = [
        probabilities(cases.kind, x) if cases.kind in PROBABLE_KINDS else None for x in (before, after)
    ]
    write_disagreements(
        path,
        decide(before, cases),
        decide(after, cases),
        cases,
        baseline_probability=chances[0],
        candidate_probability=chances[1],
        confidence_of_baseline=None if chances[0] is None else decision_margins(chances[0], cases),
    )
    return True

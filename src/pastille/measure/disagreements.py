"""The list of the cases that two models decide differently, for whoever looks at them one by one."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pastille.data.ids import MAX_ID
from pastille.files import write_atomic
from pastille.stats.changes import Changes, changes, mask_dice, present_classes
from pastille.values import Cases

LOST, GAINED = "positive → negative", "negative → positive"
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?", re.ASCII)
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")  # the last four are full-width forms


def write_disagreements(
    path: Path,
    before: np.ndarray,
    after: np.ndarray,
    cases: Cases,
    *,
    baseline_probability: np.ndarray | None = None,
    candidate_probability: np.ndarray | None = None,
    confidence_of_baseline: np.ndarray | None = None,
) -> int:
    """Write one row per changed case, atomically; of a multilabel task, one per changed label of a case.

    First the cases that lost a positive, then those that gained one, then the rest; among each, the ones
    that the baseline was surest of come first. Columns: ``id``, ``index`` in the split, ``direction``,
    ``label`` (multilabel only), ``truth``, ``baseline``, ``candidate``, ``effect`` (newly wrong, newly
    right), ``baseline_probability``, ``candidate_probability``, ``dice`` of the two masks (segmentation
    only), ``stratum`` and ``group: NAME`` for each group attribute. Subjects are left out: they are
    personal, and the id finds the case.

    Args:
        path: The file; UTF-8, quoted as RFC 4180 says. Text that a spreadsheet would take for a formula
            is led by an apostrophe; cells are cut at `MAX_ID` characters.
        before: What the baseline decides; see `pastille.stats.changes.changes`.
        after: What the candidate decides.
        cases: The right answers.
        baseline_probability: As `pastille.stats.decisions.probabilities` gives them: binary ``(N,)``,
            written as that of the positive label; multiclass ``(N, K)``, of which that of the decided class
            is written; multilabel ``(N, L)``. None, as for other kinds: left empty.
        candidate_probability: The same of the candidate.
        confidence_of_baseline: ``(N,)``, larger is surer. None keeps the order of the split.

    Returns:
        How many rows were written, without the header. A custom task has none, and gets no file.

    Raises:
        ValueError: If shapes do not fit.
        OutputError: The file cannot be written.

    Example:
        >>> import tempfile
        >>> cases = Cases(kind="binary", split="test", targets=np.array([1, 0]), labels=("well", "ill"),
        ...               positive=(1,), ids=np.array(["a.png", "b.png"]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "disagreements.csv"
        ...     write_disagreements(path, np.array([1, 0]), np.array([0, 0]), cases)
        ...     print(path.read_text().splitlines()[1])
        1
        a.png,0,positive → negative,ill,ill,well,newly wrong,,
    """
    found = changes(before, after, cases)
    if found is None:
        return 0
    answers = _Answers(
        before=np.asarray(before),
        after=np.asarray(after),
        baseline_probability=baseline_probability,
        candidate_probability=candidate_probability,
    )
    table = _columns(found, answers, cases, confidence_of_baseline)
    write_atomic(path, _as_csv(table))
    return len(table["id"])


@dataclass(frozen=True, kw_only=True)
class _Answers:
    """What both models said of every case."""

    before: np.ndarray
    after: np.ndarray
    baseline_probability: np.ndarray | None
    candidate_probability: np.ndarray | None


_Table = dict[str, Sequence[str]]  # heading -> one cell per row


def _columns(found: Changes, answers: _Answers, cases: Cases, confidence: np.ndarray | None) -> _Table:
    rows = _in_order(found, confidence)
    if cases.kind == "multilabel":
        differing = answers.before[rows] != answers.after[rows]  # (M, L)
        entry, label = np.nonzero(differing)
        rows = rows[entry]
        told = _of_labels(rows, label, answers, cases)
    else:
        told = _told(rows, found, answers, cases)
    return _known(rows, cases) | told | _whereabouts(rows, cases)


def _in_order(found: Changes, confidence: np.ndarray | None) -> np.ndarray:
    """Rows of the changed cases, those that a clinician should see first before the rest."""
    rows = np.flatnonzero(found.changed)
    unsure = np.zeros(len(rows)) if confidence is None else -np.asarray(confidence, np.float64)[rows]
    rank = np.zeros(len(rows))
    if found.lost is not None and found.gained is not None:
        rank = np.where(found.lost, 0, np.where(found.gained, 1, 2))[rows]
    return np.asarray(rows[np.lexsort((unsure, rank))])


def _known(rows: np.ndarray, cases: Cases) -> _Table:
    ids = [""] * len(rows) if cases.ids is None else cases.ids[rows].tolist()
    return {"id": _safe(ids), "index": [str(row) for row in rows.tolist()]}


def _whereabouts(rows: np.ndarray, cases: Cases) -> _Table:
    strata = {} if cases.strata is None else {"stratum": _safe(cases.strata[rows].tolist())}
    groups = {_cell(f"group: {name}"): _safe(c[rows].tolist()) for name, c in cases.groups.items()}
    return strata | groups


def _told(rows: np.ndarray, found: Changes, answers: _Answers, cases: Cases) -> _Table:
    before, after, truth = answers.before[rows], answers.after[rows], cases.targets[rows]
    table = {
        "direction": _direction(found.lost, found.gained, rows),
        "truth": _named(truth, cases),
        "baseline": _named(before, cases),
        "candidate": _named(after, cases),
        "effect": _pick(found.newly_wrong[rows], "newly wrong", found.newly_right[rows], "newly right"),
        "baseline_probability": _probability(answers.baseline_probability, rows, before, cases),
        "candidate_probability": _probability(answers.candidate_probability, rows, after, cases),
    }
    if cases.kind == "segmentation":
        table["dice"] = _numbers(mask_dice(before, after, len(cases.labels)).min(axis=1))
    return table


def _of_labels(rows: np.ndarray, label: np.ndarray, answers: _Answers, cases: Cases) -> _Table:
    """Every changed label of a case is a row of its own."""
    truth, before = cases.targets[rows, label], answers.before[rows, label]
    counts = np.isin(label, cases.positive)
    was, right = before.astype(bool), before == truth
    return {
        "direction": _pick(was & counts, LOST, ~was & counts, GAINED),
        "label": _safe([cases.labels[index] for index in label.tolist()]),
        "truth": _pick(truth == 1, "yes", truth == 0, "no"),
        "baseline": _pick(was, "yes", ~was, "no"),
        "candidate": _pick(~was, "yes", was, "no"),
        "effect": _pick(right, "newly wrong", ~right, "newly right"),
        "baseline_probability": _probability(answers.baseline_probability, rows, label, cases),
        "candidate_probability": _probability(answers.candidate_probability, rows, label, cases),
    }


def _direction(lost: np.ndarray | None, gained: np.ndarray | None, rows: np.ndarray) -> Sequence[str]:
    if lost is None or gained is None:
        return [""] * len(rows)
    return _pick(lost[rows], LOST, gained[rows], GAINED)


def _pick(one: np.ndarray, name: str, other: np.ndarray, other_name: str) -> Sequence[str]:
    return list(np.where(one, name, np.where(other, other_name, "")).tolist())


def _named(decided: np.ndarray, cases: Cases) -> Sequence[str]:
    if cases.kind == "regression":
        return _numbers(decided)
    if cases.kind == "segmentation":
        found = present_classes(decided, len(cases.labels))[:, 1:]
        names = np.array(cases.labels[1:])
        return _safe([", ".join(names[row]) or "none" for row in found])
    return _safe([cases.labels[index] for index in decided.tolist()])


def _probability(
    chances: np.ndarray | None, rows: np.ndarray, column: np.ndarray, cases: Cases
) -> Sequence[str]:
    """Of the positive label, or of the class or label that ``column`` names."""
    if chances is None or cases.kind in ("regression", "segmentation"):
        return [""] * len(rows)
    if cases.kind == "binary":
        return _numbers(1 - chances[rows] if cases.positive == (0,) else chances[rows])
    return _numbers(chances[rows, column])


def _numbers(values: np.ndarray) -> Sequence[str]:
    return [f"{value:.6g}" for value in values.tolist()]


def _safe(cells: Iterable[str]) -> Sequence[str]:
    return [_cell(cell) for cell in cells]


def _cell(text: str) -> str:
    """Bounded, and no formula."""
    cut = text if len(text) <= MAX_ID else text[: MAX_ID - 1] + "…"
    return f"'{cut}" if _FORMULA.match(cut) and not _NUMBER.fullmatch(cut) else cut


def _as_csv(table: Mapping[str, Sequence[str]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)  # RFC 4180: lines end in CR LF
    writer.writerow(table)
    writer.writerows(zip(*table.values(), strict=True))
    return text.getvalue().encode("utf-8", "backslashreplace")  # file names may hold what is no text

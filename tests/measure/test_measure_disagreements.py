from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pastille.errors import OutputError
from pastille.measure.disagreements import _cell, write_disagreements
from pastille.values import Cases, Kind


def cases_of(kind: Kind, targets: np.ndarray, labels: tuple[str, ...] = (), **more: Any) -> Cases:
    return Cases(kind=kind, split="test", targets=targets, labels=labels, **more)


def written(
    folder: Path, before: np.ndarray, after: np.ndarray, cases: Cases, **more: Any
) -> list[dict[str, str]]:
    path = folder / "new" / "disagreements.csv"
    count = write_disagreements(path, before, after, cases, **more)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    assert len(rows) == count
    return rows


def test_what_turned_negative_comes_first_and_the_surest_of_it(tmp_path: Path) -> None:
    cases = cases_of(
        "binary",
        np.array([1, 0, 1, 1, 0]),
        ("well", "ill"),
        positive=(1,),
        groups={"sex": np.array(list("FMFFM"))},
        strata=np.array(list("xyxyx")),
        subjects=np.array(["Ms A", "Mr B", "Ms C", "Ms D", "Mr E"]),
        ids=np.array(["a.png", "b.png", "c.png", "d.png", "e.png"]),
    )
    rows = written(
        tmp_path,
        np.array([1, 0, 1, 1, 1]),
        np.array([0, 1, 0, 1, 0]),
        cases,
        baseline_probability=np.array([0.51, 0.4, 0.9, 0.8, 0.6]),
        candidate_probability=np.array([0.49, 0.6, 0.123456789, 0.8, 0.3]),
        confidence_of_baseline=np.array([0.01, 0.1, 0.4, 0.3, 0.1]),
    )
    assert [row["id"] for row in rows] == ["c.png", "e.png", "a.png", "b.png"]
    assert rows[0] == {
        "id": "c.png",
        "index": "2",
        "direction": "positive → negative",
        "truth": "ill",
        "baseline": "ill",
        "candidate": "well",
        "effect": "newly wrong",
        "baseline_probability": "0.9",
        "candidate_probability": "0.123457",
        "stratum": "x",
        "group: sex": "F",
    }
    assert [row["direction"] for row in rows[1:]] == ["positive → negative"] * 2 + ["negative → positive"]
    assert [row["effect"] for row in rows[1:]] == ["newly right", "newly wrong", "newly wrong"]
    assert "Ms" not in (tmp_path / "new" / "disagreements.csv").read_text()


def test_probability_is_that_of_the_decided_class(tmp_path: Path) -> None:
    chances = np.array([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]])
    cases = cases_of("multiclass", np.array([2, 0]), ("a", "b", "c"))
    (row,) = written(
        tmp_path,
        np.array([2, 0]),
        np.array([1, 0]),
        cases,
        baseline_probability=chances,
        candidate_probability=chances[:, ::-1],
    )
    assert (row["baseline"], row["candidate"], row["direction"], row["id"]) == ("c", "b", "", "")
    assert (row["baseline_probability"], row["candidate_probability"]) == ("0.7", "0.2")


def test_a_binary_probability_is_that_of_the_positive_label(tmp_path: Path) -> None:
    cases = cases_of("binary", np.array([0, 1]), ("ill", "well"), positive=(0,))
    (row,) = written(
        tmp_path, np.array([0, 1]), np.array([1, 1]), cases, baseline_probability=np.array([0.25, 0.9])
    )
    assert (row["direction"], row["baseline_probability"]) == ("positive → negative", "0.75")
    assert row["candidate_probability"] == ""


def test_every_changed_label_is_a_row(tmp_path: Path) -> None:
    truth = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1]])
    before, after = truth.copy(), np.array([[1, 1, 1], [0, 0, 0], [0, 1, 0]])
    cases = cases_of("multilabel", truth, ("x", "y", "z"), positive=(0, 1))
    chances = np.arange(9).reshape(3, 3) / 10
    rows = written(tmp_path, before, after, cases, baseline_probability=chances)
    assert [(row["index"], row["label"], row["direction"]) for row in rows] == [
        ("2", "x", "positive → negative"),
        ("2", "z", ""),
        ("0", "y", "negative → positive"),
    ]
    assert [rows[0][name] for name in ("truth", "baseline", "candidate", "effect")] == [
        "yes", "yes", "no", "newly wrong",
    ]  # fmt: skip
    assert [row["baseline_probability"] for row in rows] == ["0.6", "0.8", "0.1"]


def test_masks_say_what_they_hold(tmp_path: Path) -> None:
    before = np.array([[[1, 1, 2, 0]], [[0, 0, 0, 0]]])
    after = np.array([[[0, 0, 2, 0]], [[0, 0, 0, 0]]])
    (row,) = written(
        tmp_path, before, after, cases_of("segmentation", before, ("ground", "x", "y"), positive=(1,))
    )
    assert [row[name] for name in ("baseline", "candidate", "dice", "direction", "effect")] == [
        "x, y", "y", "0", "positive → negative", "newly wrong",
    ]  # fmt: skip


def test_numbers_are_written_as_numbers(tmp_path: Path) -> None:
    truth = np.array([-1.5, 2.0])
    (row,) = written(tmp_path, truth, truth - np.array([1.0, 0.0]), cases_of("regression", truth))
    assert (row["truth"], row["candidate"], row["effect"]) == ("-1.5", "-2.5", "newly wrong")


def test_no_changes_leave_the_header_and_a_custom_task_no_file(tmp_path: Path) -> None:
    cases = cases_of("binary", np.array([0, 1]), ("a", "b"), positive=(1,))
    assert written(tmp_path, cases.targets, cases.targets, cases) == []
    assert (tmp_path / "new" / "disagreements.csv").read_bytes().startswith(b"id,index,direction,truth,")
    path = tmp_path / "custom.csv"
    assert write_disagreements(path, np.zeros(2), np.ones(2), cases_of("custom", np.zeros(2))) == 0
    assert not path.exists()


HOSTILE = {  # what comes in, and the cell that a reader finds
    'a,"b"': 'a,"b"',
    "two\nlines\r\n": "two\nlines\r\n",
    "=1+1": "'=1+1",
    '=HYPERLINK("x")': '\'=HYPERLINK("x")',
    "+49": "+49",
    "-1.5e-3": "-1.5e-3",
    "-x": "'-x",
    "+1+1": "'+1+1",
    "@cmd": "'@cmd",
    "\t=1": "'\t=1",
    " =2": "' =2",
    "\uff1d3": "'\uff1d3",
    "naïve 漢字": "naïve 漢字",
    "y" * 10_000: "y" * 999 + "…",
}


def test_hostile_ids_and_groups_come_back_as_text(tmp_path: Path) -> None:
    n, names = len(HOSTILE), np.array(list(HOSTILE))
    cases = cases_of("binary", np.zeros(n, int), ("a", "b"), ids=names, groups={"=cmd": names[::-1]})
    rows = written(tmp_path, np.zeros(n, int), np.ones(n, int), cases)
    assert [row["id"] for row in rows] == list(HOSTILE.values())
    assert [row["group: =cmd"] for row in rows] == list(HOSTILE.values())[::-1]


def test_a_file_name_that_is_no_text_can_be_written(tmp_path: Path) -> None:
    cases = cases_of(
        "binary", np.zeros(1, int), ("a", "b"), ids=np.array([b"\xff.png".decode("utf-8", "surrogateescape")])
    )
    assert written(tmp_path, np.zeros(1, int), np.ones(1, int), cases)[0]["id"] == "\\udcff.png"


@given(st.text(max_size=30))
def test_no_cell_begins_a_formula(text: str) -> None:
    cell = _cell(text)
    assert cell in (text, f"'{text}")
    if cell[:1] in {"=", "@", "\t", "\r", "\n"}:
        raise AssertionError(cell)
    if cell[:1] in {"+", "-"}:
        float(cell)


def test_lines_end_as_rfc_4180_says(tmp_path: Path) -> None:
    cases = cases_of("binary", np.array([0]), ("a", "b"))
    written(tmp_path, np.array([0]), np.array([1]), cases)
    assert (tmp_path / "new" / "disagreements.csv").read_bytes().count(b"\r\n") == 2


def test_what_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cases = cases_of("binary", np.array([0]), ("a", "b"))
    with pytest.raises(OutputError, match=r"^cannot write "):
        write_disagreements(tmp_path / "file" / "x.csv", np.array([0]), np.array([1]), cases)

"""The scan that a pruning makes or is given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from pruning_stage import given, run, stage
from stages_task import Notes

from pastille.files import write_atomic
from pastille.stages.scanning import ScanSettings, scan
from pastille.values import from_json, to_json
from pastille.values.scanned import Scan

T = TypeVar("T")


class StopError(Exception):
    """The process was killed."""


class Killed(Notes):
    """In the midst of a scan."""

    def track(self, items: Iterable[T], *, what: str, total: int | None = None) -> Iterator[T]:
        for number, item in enumerate(super().track(items, what=what, total=total)):
            if what.startswith("scanning") and number == 3:
                raise StopError
            yield item


def test_a_pruning_that_is_killed_while_it_scans_goes_on(tmp_path: Path) -> None:
    artifact, task = given(tmp_path)
    asked = stage(sparsity=0.4, allocation="sensitivity", criterion="taylor")
    with pytest.raises(StopError):
        run(asked, artifact, task, Killed())
    journal = tmp_path / "stage/steps/scan.journal"
    before = journal.read_bytes()
    assert before.count(b"\n") == 4  # what was asked, and three findings
    with pytest.raises(StopError):  # three that are known, and then it stops at the same place
        run(asked, artifact, task, Killed())
    assert journal.read_bytes() == before
    run(asked, artifact, task)
    assert not journal.exists()
    found = from_json(Scan, (tmp_path / "stage/steps/scan.json").read_bytes())
    assert found.criterion == "taylor"
    (fresh := tmp_path / "fresh").mkdir()
    artifact, task = given(fresh)
    run(asked, artifact, task)
    again = from_json(Scan, (fresh / "stage/steps/scan.json").read_bytes())
    assert replace(again, seconds=0.0) == replace(found, seconds=0.0)


def test_a_scan_by_another_criterion_is_noted(tmp_path: Path) -> None:
    _, task = given(tmp_path)
    found = scan(task.model, task, ScanSettings(techniques=("pruning",), criterion="l1"))
    write_atomic(tmp_path / "scan.json", to_json(found))
    notes = {}
    for criterion in ("l1", "l2"):
        (folder := tmp_path / criterion).mkdir()
        asked = stage(tmp_path, sparsity=0.4, allocation="sensitivity", scan="scan.json", criterion=criterion)
        notes[criterion] = run(asked, given(folder)[0], task).details.notes
    assert not [note for note in notes["l1"] if "measured the removal" in note]
    (note,) = (note for note in notes["l2"] if "measured the removal" in note)
    assert note.startswith("scan.json measured the removal of the channels that matter least by l1, but l2 ")

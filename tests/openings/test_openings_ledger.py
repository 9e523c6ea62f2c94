from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from pastille.data.split import Split
from pastille.errors import OutputError
from pastille.openings import Opening, earlier_looks, read_openings, record_opening, shared, sketch


def _split(first: int, n: int) -> Split:
    inputs = np.arange(first, first + n, dtype=np.float32)[:, None]
    return Split(inputs=inputs, targets=np.arange(n) % 2)


def _opening(by: str, split: Split) -> Opening:
    return Opening(
        at="2026-01-02T03:04:05+00:00", purpose="final gate", by=by, cases=split.n, sketch=sketch(split)
    )


def test_the_sketch_is_of_the_set_of_cases() -> None:
    split = _split(0, 200)
    order = np.random.default_rng(0).permutation(200)
    shuffled = Split(inputs=np.asarray(split.inputs)[order], targets=split.targets[order])
    assert sketch(split) == sketch(shuffled)
    assert len(sketch(split)) == 32
    assert sketch(split) != sketch(_split(1000, 200))


@pytest.mark.parametrize(("start", "truth"), [(0, 1.0), (1000, 1 / 3), (2000, 0.0)])
def test_the_share_of_common_cases_is_estimated(start: int, truth: float) -> None:
    found = shared(sketch(_split(0, 2000)), sketch(_split(start, 2000)))
    assert found == pytest.approx(truth, abs=0.2)
    assert (found == 0) == (truth == 0)


def test_only_earlier_looks_of_others_at_the_same_cases_count(tmp_path: Path) -> None:
    ledger, cases, others = tmp_path / "runs" / "test-openings.jsonl", _split(0, 100), _split(500, 100)
    assert record_opening(ledger, _opening("runs/a", cases)) == ()
    assert record_opening(ledger, _opening("runs/a", cases)) == ()  # the same run, taken up again
    assert record_opening(ledger, _opening("runs/b", others)) == ()
    earlier = record_opening(ledger, _opening("runs/c", cases))
    assert [o.by for o in earlier] == ["runs/a", "runs/a"]
    said = earlier_looks(earlier, sketch(cases))
    assert said is not None
    assert said.startswith(
        "these test cases were opened 2 times before (last 2026-01-02, final gate of runs/a)"
    )
    assert len(read_openings(ledger)) == 4


def test_nothing_is_said_of_a_first_look() -> None:
    assert earlier_looks((), ("a",)) is None


def test_a_line_cut_short_neither_hides_the_others_nor_swallows_the_next(tmp_path: Path) -> None:
    ledger, cases = tmp_path / "ledger.jsonl", _split(0, 50)
    record_opening(ledger, _opening("a", cases))
    whole = ledger.read_bytes()
    ledger.write_bytes(whole + whole[: len(whole) // 2])
    assert [o.by for o in record_opening(ledger, _opening("b", cases))] == ["a"]
    assert [o.by for o in read_openings(ledger)] == ["a", "b"]


def _write_many(ledger: Path, name: str) -> None:
    for _ in range(20):
        record_opening(ledger, _opening(name, _split(0, 3)))


def test_two_processes_lose_no_line(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_write_many, args=(ledger, name)) for name in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(read_openings(ledger)) == 40


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        record_opening(tmp_path / "file" / "ledger.jsonl", _opening("a", _split(0, 3)))

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from measure_models import FakeSession, mlp_file, split_of

from pastille.data.split import Split
from pastille.errors import InferenceError
from pastille.measure.evaluate import BatchAnswers, answer, same_for_batches
from pastille.runtime import load

T = TypeVar("T")


def sums(x: np.ndarray) -> np.ndarray:
    return np.asarray(x.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("batch_size", [1, 3, 10, 64])
def test_answers_come_in_the_order_of_the_inputs(batch_size: int) -> None:
    split = split_of(10)
    found = answer(FakeSession(sums), split, batch_size=batch_size)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, sums(np.asarray(split.inputs)))


def test_a_file_answers(mlp: Path) -> None:
    assert answer(load(mlp), split_of(7), batch_size=4).shape == (7, 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 5, 9])
def test_the_first_answer_that_is_not_finite_is_named(bad: float, at: int) -> None:
    inputs = np.ones((10, 8), np.float32)
    inputs[at:, 3] = bad
    split = Split(inputs=list(inputs), targets=np.zeros(10))
    with pytest.raises(InferenceError, match=f"answer to input {at} is not a finite number"):
        answer(FakeSession(lambda x: x), split, batch_size=4)


@pytest.mark.parametrize("shape", [(1, 2), ()])
def test_an_input_without_an_answer_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InferenceError, match=r"one row per input, got shape .* for 4 inputs"):
        answer(FakeSession(lambda x: np.zeros(shape)), split_of(4))


def test_without_inputs_there_is_no_answer() -> None:
    with pytest.raises(InferenceError, match="no inputs"):
        answer(FakeSession(sums), split_of(0))


def test_a_fixed_batch_is_filled_up_and_cut(tmp_path: Path) -> None:
    split = split_of(10)
    fake = FakeSession(sums, fixed_batch=4)
    np.testing.assert_array_equal(answer(fake, split, batch_size=32), sums(np.asarray(split.inputs)))
    assert fake.batches == [4, 4, 4]
    fixed = load(mlp_file(tmp_path / "fixed.onnx", batch="4"))
    free = load(mlp_file(tmp_path / "free.onnx"))
    np.testing.assert_allclose(answer(fixed, split), answer(free, split), rtol=1e-6)


class Counting:
    """A `Progress` that counts."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int | None, int]] = []

    def track(self, items: Iterable[T], *, what: str, total: int | None = None) -> Iterator[T]:
        count = 0
        for count, item in enumerate(items, start=1):  # noqa: B007
            yield item
        self.seen.append((what, total, count))

    def note(self, text: str) -> None: ...


def test_progress_is_told_how_many_batches_there_are() -> None:
    progress = Counting()
    answer(FakeSession(sums), split_of(10), batch_size=4, progress=progress, what="asking")
    assert progress.seen == [("asking", 3, 3)]


def test_a_file_answers_the_same_whatever_the_batch(mlp: Path) -> None:
    found = same_for_batches(load(mlp), split_of(9).inputs)
    assert sorted(found.outputs) == [1, 2, 4, 8]
    assert found.max_abs_error < 1e-5
    assert found.changed_decisions(lambda x: x.argmax(axis=1)) == 0


def test_an_answer_that_depends_on_the_batch_is_seen() -> None:
    def leaky(x: np.ndarray) -> np.ndarray:
        return np.asarray(x[:, :2] - x[:, :2].mean(axis=0))  # as a BatchNorm left in training mode

    inputs = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]], np.float32)
    found = same_for_batches(FakeSession(leaky), list(inputs), sizes=(1, 3))
    assert found.max_abs_error == pytest.approx(1)
    # Alone each is (0, 0), class 0; together the second is of class 1.
    assert found.changed_decisions(lambda x: x.argmax(axis=1)) == 1


def test_a_fixed_batch_is_compared_with_nothing() -> None:
    found = same_for_batches(FakeSession(sums, fixed_batch=2), split_of(4).inputs)
    assert list(found.outputs) == [2]
    assert found.max_abs_error == 0


def test_differences_are_to_the_smallest_batch() -> None:
    outputs = {4: np.array([[1.0]]), 1: np.array([[2.0]]), 2: np.array([[2.5]])}
    assert BatchAnswers(outputs=outputs).max_abs_error == 1.0

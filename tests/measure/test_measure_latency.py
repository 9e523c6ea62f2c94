from __future__ import annotations

import gc
from itertools import pairwise
from math import comb
from pathlib import Path
from time import sleep

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from measure_models import HERE, FakeSession, split_of
from PIL import Image

from pastille.data.images import Images, decoding_for
from pastille.data.split import Split
from pastille.errors import InferenceError
from pastille.measure.latency import compare, median_interval, time_calls, time_preprocessing
from pastille.runtime import load

BATCH = {"input": np.ones((4, 8), np.float32)}


def same(x: np.ndarray) -> np.ndarray:
    return x


def sleepy(x: np.ndarray) -> np.ndarray:
    sleep(0.02)
    return x


def test_a_latency_carries_its_conditions(mlp: Path) -> None:
    found = time_calls(load(mlp), BATCH, conditions=HERE, budget_s=2)
    assert found.conditions == HERE
    assert (found.batch, found.warmup) == (4, 10)
    assert 500 <= found.samples <= 2000
    values = [x.value_ms for x in found.quantiles]
    assert [x.q for x in found.quantiles] == [0.5, 0.9, 0.95, 0.99]
    assert all(low <= high for low, high in pairwise(values))
    assert all(x.upper_ms is not None and x.upper_ms >= x.value_ms for x in found.quantiles)
    assert found.throughput_per_s == pytest.approx(4000 / found.mean_ms)


def test_no_p99_without_459_samples() -> None:
    found = time_calls(FakeSession(sleepy), BATCH, conditions=HERE, budget_s=0.3, warmup=1)
    assert 5 <= found.samples < 459
    assert found.ms(0.99) is None
    assert found.ms(0.5) is not None


def test_at_most_2000_calls_are_timed() -> None:
    fake = FakeSession(same)
    found = time_calls(fake, BATCH, conditions=HERE, budget_s=60, warmup=3)
    assert found.samples == 2000
    assert len(fake.batches) == 2003


def test_the_budget_ends_a_slow_file_after_five_calls() -> None:
    fake = FakeSession(sleepy)
    found = time_calls(fake, BATCH, conditions=HERE, budget_s=0.01, warmup=10)
    assert (found.samples, found.warmup) == (5, 1)
    assert found.mean_ms >= 20
    assert len(fake.batches) == 6


def test_garbage_is_not_collected_while_timing_even_if_a_call_fails() -> None:
    seen = []

    def fail(x: np.ndarray) -> np.ndarray:
        seen.append(gc.isenabled())
        raise InferenceError("broken")

    with pytest.raises(InferenceError, match="broken"):
        time_calls(FakeSession(fail), BATCH, conditions=HERE)
    assert seen == [False]
    assert gc.isenabled()


@pytest.mark.parametrize(("samples", "budget"), [(0, 1.0), (2001, 1.0), (10, 0.0), (10, -1.0)])
def test_bad_arguments_are_refused(samples: int, budget: float) -> None:
    with pytest.raises(ValueError, match=r"(min_samples|budget_s) must be"):
        time_calls(FakeSession(same), BATCH, conditions=HERE, min_samples=samples, budget_s=budget)


def test_a_slower_file_is_reported_as_slower(quick: Path, slow: Path) -> None:
    batch = {"input": np.ones((8, 96), np.float32)}
    found = compare(load(quick), load(slow), batch, conditions=HERE, budget_s=1.0)
    assert found.ratio < 0.5
    assert found.interval.high < 1
    assert found.interval.low <= found.ratio <= found.interval.high
    assert (found.batch, found.conditions) == (8, HERE)
    back = compare(load(slow), load(quick), batch, conditions=HERE, budget_s=1.0)
    assert back.interval.low > 1


def test_two_files_are_timed_in_alternation() -> None:
    order: list[str] = []

    def noting(name: str) -> FakeSession:
        def call(x: np.ndarray) -> np.ndarray:
            order.append(name)
            sleep(0.003)
            return x

        return FakeSession(call)

    found = compare(noting("a"), noting("b"), BATCH, conditions=HERE, budget_s=1e-3, confidence=0.9)
    assert found.pairs == 5  # the fewest that give a 90 % interval of a median
    blocks = "".join(order[-20:])  # each block: a call that is not counted, and one that is
    assert blocks == "aabb" + "bbaa" + "aabb" + "bbaa" + "aabb"
    assert found.interval.confidence == 0.9
    assert 0.5 < found.ratio < 2


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_confidence_is_a_fraction(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence must be in"):
        compare(FakeSession(same), FakeSession(same), BATCH, conditions=HERE, confidence=confidence)


@given(n=st.integers(1, 300), confidence=st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_interval_of_the_median_is_the_narrowest_that_covers(n: int, confidence: float) -> None:
    found = median_interval(np.arange(1.0, n + 1)[::-1], confidence=confidence)
    rank = int(found.low)  # the rank-th smallest
    assert found.high == n + 1 - rank

    def covers(k: int) -> float:
        return float(1 - 2 * sum(comb(n, i) for i in range(k)) / 2**n)

    assert covers(rank) >= confidence or rank == 1
    assert covers(rank + 1) < confidence or 2 * (rank + 1) > n


def test_preparing_is_timed_once_for_each_input() -> None:
    class Reads(list[np.ndarray]):
        seen: list[int] = []  # noqa: RUF012

        def __getitem__(self, i: int) -> np.ndarray:  # type: ignore[override]
            self.seen.append(i)
            return np.zeros(2)

    split = Split(inputs=Reads([np.zeros(2)] * 30), targets=np.zeros(30))
    found = time_preprocessing(split, conditions=HERE)
    assert Reads.seen == list(range(30))
    assert (found.samples, found.batch, found.warmup) == (30, 1, 0)
    assert (found.conditions.runtime, found.conditions.device) == ("pastille", HERE.device)
    Reads.seen.clear()
    assert time_preprocessing(split, conditions=HERE, max_samples=3).samples == 3
    assert Reads.seen == [0, 14, 29]


def test_preparing_images_is_not_answered_by_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    images = Images([tmp_path / "a.png"] * 6, decoding_for(4, 1))
    split = Split(inputs=images, targets=np.zeros(6))
    assert images[0].shape == (1, 4, 4)  # now in the cache
    (tmp_path / "a.png").unlink()
    assert images[0].shape == (1, 4, 4)
    with pytest.raises(Exception, match="missing"):
        time_preprocessing(split, conditions=HERE)


def test_an_empty_split_cannot_be_timed() -> None:
    with pytest.raises(ValueError, match="at least one input"):
        time_preprocessing(split_of(0), conditions=HERE)

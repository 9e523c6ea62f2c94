"""Several processes come to what one comes to: the same weights, the same metrics, the same words."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import several_worker as worker
from hypothesis import given
from hypothesis import strategies as st

from pastille.train.places import sizes

WORKER = Path(worker.__file__)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def launched(stack: contextlib.ExitStack, world: int, folder: Path) -> list[subprocess.Popen[bytes]]:
    """As a launcher does it."""
    shared = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    return [
        stack.enter_context(
            subprocess.Popen(
                [sys.executable, str(WORKER), str(folder)],
                env=shared | {"WORLD_SIZE": str(world), "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stderr=stack.enter_context((folder / f"log-{rank}of{world}.txt").open("w")),
            )
        )
        for rank in range(world)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one, two and three processes came to."""
    made = tmp_path_factory.mktemp("several")
    with contextlib.ExitStack() as stack:
        started = [process for world in (2, 3) for process in launched(stack, world, made)]
        worker.main(made)
        codes = [process.wait(timeout=400) for process in started]
    assert not any(codes), [log.read_text() for log in made.glob("log-*.txt")]
    return made


def weights(folder: Path, name: str, rank: int, world: int) -> dict[str, np.ndarray]:
    with np.load(folder / f"{name}-{rank}of{world}.npz") as found:
        return dict(found)


def told(folder: Path, rank: int, world: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"told-{rank}of{world}.json").read_text())
    return found


@pytest.mark.parametrize("name", worker.TRAININGS)
@pytest.mark.parametrize("world", [2, 3])
def test_the_same_weights_as_in_one_process(folder: Path, name: str, world: int) -> None:
    alone = weights(folder, name, 0, 1)
    for rank in range(world):
        among = weights(folder, name, rank, world)
        for key, value in alone.items():
            np.testing.assert_allclose(among[key], value, atol=2e-5, err_msg=f"{key} of process {rank}")


@pytest.mark.parametrize("name", worker.TRAININGS)
def test_training_changed_something(folder: Path, name: str) -> None:
    after, before = weights(folder, name, 0, 1), worker.Net().state_dict()
    assert np.abs(after["inner.weight"] - before["inner.weight"].numpy()).max() > 0.01
    np.testing.assert_array_equal(after["spare.weight"], before["spare.weight"].numpy())  # never used


@pytest.mark.parametrize("name", worker.TRAININGS)
@pytest.mark.parametrize("world", [2, 3])
def test_the_same_loss_and_metric_of_each_epoch(folder: Path, name: str, world: int) -> None:
    alone = told(folder, 0, 1)[name]
    for rank in range(world):
        among = told(folder, rank, world)[name]
        assert among["validation"] == alone["validation"]
        np.testing.assert_allclose(among["loss"], alone["loss"], rtol=1e-5)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_row_is_in_one_share(folder: Path, world: int) -> None:
    shares = [told(folder, rank, world)["shares"] for rank in range(world)]
    assert sorted(row for share in shares for row in share) == list(range(7))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("world", [1, 2, 3])
def test_answers_come_back_in_order(folder: Path, world: int) -> None:
    for rank in range(world):
        assert told(folder, rank, world)["gathered"] == [2.0 * row for row in range(7)]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_all_get_what_the_main_one_computed(folder: Path, world: int) -> None:
    assert [told(folder, rank, world)["agreed"] for rank in range(world)] == [["of", 0]] * world


def test_more_processes_than_cases_are_named_with_both_numbers(folder: Path) -> None:
    assert told(folder, 0, 1)["refused"] == {}
    for rank in range(3):
        said = told(folder, rank, 3)["refused"]
        assert said["batch_size"].startswith("there are 3 processes, which is more than batch_size (1)")
        assert said["validation"].startswith("there are 3 processes, which is more than the cases of valid")


@pytest.mark.parametrize("world", [1, 2, 3])
def test_no_process_sees_one_case_alone_in_the_last_batch(folder: Path, world: int) -> None:
    """A batch norm refuses a single case; the last batch holds two."""
    assert worker.N % worker.SIZE == 2
    assert all(np.isfinite(told(folder, rank, world)["normed"]) for rank in range(world))


@given(n=st.integers(1, 200), processes=st.integers(1, 9), least=st.integers(1, 3))
def test_shares_are_even_and_none_is_too_small(n: int, processes: int, least: int) -> None:
    each = sizes(n, processes, least=least)
    assert (len(each), sum(each)) == (processes, n)
    assert min(size for size in each if size) >= min(n, least)
    takers = [size for size in each if size]
    assert each == sorted(each, reverse=True)
    assert max(takers) - min(takers) <= 1
    if n >= least * processes:
        assert len(takers) == processes


@pytest.mark.parametrize("world", [2, 3])
def test_augmentation_draws_other_numbers_in_each_process(folder: Path, world: int) -> None:
    steps = zip(*(told(folder, rank, world)["drawn"] for rank in range(world)), strict=True)
    *full, last = steps
    assert all(len(set(numbers)) == world for numbers in full)
    assert len(last) == world


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_process_names_the_case_that_is_not_finite(folder: Path, world: int) -> None:
    said = {told(folder, rank, world)["diverged"] for rank in range(world)}
    assert len(said) == 1
    assert "the inputs of cases 7 hold NaN or infinity" in said.pop()

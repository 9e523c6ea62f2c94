"""Which process this is, by what a launcher puts into the environment."""

from __future__ import annotations

import pytest

from pastille.errors import DataError
from pastille.processes import Processes, advice, here, one_voice

NAMES = ("WORLD_SIZE", "RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "PMI_SIZE", "MASTER_ADDR")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, "ACCELERATE_USE_CPU", "ACCELERATE_USE_FSDP"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_launcher_there_is_one() -> None:
    assert here() == Processes(rank=0, world=1)
    assert here().is_main


@pytest.mark.parametrize(
    ("size", "rank"), [("WORLD_SIZE", "RANK"), ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")]
)
def test_a_launcher_says_which_this_is(monkeypatch: pytest.MonkeyPatch, size: str, rank: str) -> None:
    monkeypatch.setenv(size, "4")
    monkeypatch.setenv(rank, "3")
    assert here() == Processes(rank=3, world=4)
    assert not here().is_main


@pytest.mark.parametrize("size", ["1", "", "many"])
def test_one_process_of_a_launcher_is_alone(monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.setenv("RANK", "0")
    assert here() == Processes()


def test_alone_everything_is_a_plain_call() -> None:
    with pytest.raises(DataError, match="no cases"):
        here().agreed(_failing)
    here().wait()
    with one_voice(DataError("no cases")) as speaks:
        assert speaks


def _failing() -> None:
    raise DataError("no cases")


def test_a_launcher_that_starts_one_process_only_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert advice() == ""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert advice() == ""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert advice().startswith("one process: accelerate launch --cpu starts no others")


def test_sharding_that_is_not_done_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert advice() == ""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert "FSDP" in advice()

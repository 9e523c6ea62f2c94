"""A training that is killed and taken up again comes to the very weights of one that was not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from train_data import blobs, net, settings

import pastille.train.checkpoint
from pastille.errors import IntegrityError, OutputError
from pastille.progress import Silent
from pastille.pruning.sparse import weights_to_thin
from pastille.pruning.thinning import Thinning
from pastille.recipe import Train
from pastille.task.digest import state_digest
from pastille.train import Extras, Fitted, Objective, fit
from pastille.train.batches import Drawn
from pastille.train.checkpoint import FILE, Checkpoint, Standing, key_of
from pastille.train.fair import RobustLoss
from pastille.train.losses import case_losses_for, labels_loss

TRAIN, VALIDATION = blobs(60, 0), blobs(30, 1)
OF_EPOCH = 4  # batches of 16

CASES: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adamw": {"optimizer": "adamw", "schedule": "one_cycle", "class_weights": "balanced"},
    "average": {"ema": 0.9, "clip_norm": 0.5, "warmup": 0.2},
    "focal": {"loss": "focal", "momentum": 0.0, "schedule": "step"},
    "fair": {},
    "thinned": {},
    "projected": {"optimizer": "adamw"},
    "penalised": {},
}


def asked(case: str) -> Train:
    return settings(**{"epochs": 4, **CASES[case]})


def extras_of(case: str) -> Extras:
    """What keeps a state of its own from step to step."""
    if case == "fair":
        members = np.stack([np.arange(60) % 3 == 0, np.arange(60) % 3 != 0], axis=1)
        robust = RobustLoss(case_losses_for(TRAIN[1]), members, steps=4 * OF_EPOCH)
        return Extras(objective=lambda _: Objective(loss=robust), kept=(robust,))
    if case == "thinned":
        thinning = Thinning(thinned=weights_to_thin(net()), sparsity=0.5, pattern="global", score="movement")
        return Extras(
            before_step=thinning.before_step,
            after_step=thinning.after_step,
            counts_from=0.7,
            kept=(thinning,),
        )
    if case == "projected":
        return Extras(objective=projected)
    if case == "penalised":
        return Extras(
            penalty=lambda m, done: done * torch.stack([p.square().sum() for p in m.parameters()]).sum()
        )
    return Extras()


def projected(model: nn.Module) -> Objective:
    """The answers through a layer that is learned too, as hints of a teacher are."""
    torch.manual_seed(1)
    learned, labels = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), labels_loss(TRAIN[1], settings())

    def loss(batch: Drawn, outputs: Tensor) -> Tensor:
        return labels(outputs, batch.targets) + labels(learned(outputs), batch.targets)

    return Objective(loss=loss, learned=learned)


def noisy(x: Tensor, generator: torch.Generator) -> Tensor:
    return x + 0.1 * torch.randn(x.shape, generator=generator)


def trained(case: str, keep: Path | None = None, augment: Callable[..., Tensor] = noisy) -> Fitted:
    return fit(
        net(), TRAIN, VALIDATION, asked(case), seed=3, augment=augment, extras=extras_of(case), keep=keep
    )


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import pastille.train.checkpoint as checkpoint
checkpoint._SOON_S = checkpoint._LATEST_S = checkpoint._TIMES = 0.0  # after every step
import test_train_checkpoint as here
calls = []
def killing(x, generator):
    calls.append(len(x))
    if len(calls) == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
    return here.noisy(x, generator)
here.trained(sys.argv[2], Path(sys.argv[3]), killing)
"""


@pytest.mark.parametrize("case", ["sgd", "adamw"])
def test_killed_within_an_epoch(case: str, tmp_path: Path) -> None:
    """For real: SIGKILL in the middle of the third epoch; class weights, dropout and augmentation on."""
    at = 2 * OF_EPOCH + 3
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(Path(__file__).parent), case, str(tmp_path / "keep"), str(at)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "")
    assert (tmp_path / "keep" / FILE).is_file()
    calls: list[int] = []

    def counted(x: Tensor, generator: torch.Generator) -> Tensor:
        calls.append(len(x))
        return noisy(x, generator)

    found, whole = trained(case, tmp_path / "keep", counted), trained(case)
    assert len(calls) == 4 * OF_EPOCH - (at - 1)
    assert alike(found, whole)


def alike(one: Fitted, other: Fitted) -> bool:
    """Bit for bit, and told alike."""
    same = state_digest(one.model) == state_digest(other.model)
    return same and replace(one, model=other.model) == other


class StoppedError(Exception):
    """Stands for a kill, in this process."""


@pytest.mark.parametrize("at", [1, OF_EPOCH, OF_EPOCH + 1, 4 * OF_EPOCH - 1])
@pytest.mark.parametrize("case", CASES)
def test_taken_up_at_any_step(case: str, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pastille.train.checkpoint, "_SOON_S", 0.0)
    monkeypatch.setattr(pastille.train.checkpoint, "_TIMES", 0.0)
    monkeypatch.setattr(pastille.train.checkpoint, "_LATEST_S", 0.0)
    plan = extras_of(case)
    written: list[int] = []
    write = Checkpoint.write

    def writing(self: Checkpoint, standing: Standing) -> None:
        write(self, standing)
        written.append(standing.numbers["step"])
        if len(written) == at:
            raise StoppedError

    monkeypatch.setattr(Checkpoint, "write", writing)
    whole = trained(case)
    with pytest.raises(StoppedError):
        fit(net(), TRAIN, VALIDATION, asked(case), seed=3, augment=noisy, extras=plan, keep=tmp_path)
    found = trained(case, tmp_path)
    assert alike(found, whole)
    assert not tmp_path.exists() or not list(tmp_path.iterdir())


def standing(**numbers: Any) -> Standing:
    return Standing(tensors={"model": {"a.b": torch.arange(4.0)}, "best": {}}, numbers=numbers)


class TestFile:
    def test_it_holds_what_was_written_and_no_pickle(self, tmp_path: Path) -> None:
        checkpoint = Checkpoint(folder=tmp_path / "keep", key="k")
        numbers = {"best": -float("inf"), "loss": [0.1, 1 / 3], "stopped": "ended"}
        checkpoint.write(standing(**numbers))
        found = checkpoint.read()
        assert found is not None
        assert found.numbers == numbers
        assert torch.equal(found.tensors["model"]["a.b"], torch.arange(4.0))
        assert [path.name for path in (tmp_path / "keep").iterdir()] == [FILE]
        head = (tmp_path / "keep" / FILE).read_bytes()
        assert json.loads(head[8 : 8 + int.from_bytes(head[:8], "little")])["model/a.b"]["dtype"] == "F32"

    def test_that_of_another_training_is_ignored(self, tmp_path: Path) -> None:
        Checkpoint(folder=tmp_path, key="one").write(standing())
        assert Checkpoint(folder=tmp_path, key="other").read() is None
        assert Checkpoint(folder=tmp_path / "none", key="one").read() is None

    @pytest.mark.parametrize("where", [0, 4, 60, -1, -9])
    def test_damage_is_found(self, where: int, tmp_path: Path) -> None:
        checkpoint = Checkpoint(folder=tmp_path, key="k")
        checkpoint.write(standing(step=3))
        data = bytearray((tmp_path / FILE).read_bytes())
        data[where] ^= 0x55
        (tmp_path / FILE).write_bytes(data)
        try:
            found = checkpoint.read()
        except IntegrityError as error:
            assert "is damaged: " in str(error)
        else:
            assert found is None  # it was the key that was hit

    def test_half_a_file_is_found(self, tmp_path: Path) -> None:
        checkpoint = Checkpoint(folder=tmp_path, key="k")
        checkpoint.write(standing(step=3))
        for n in (0, 7, 100, -1):
            (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:n])
            with pytest.raises(IntegrityError, match="is damaged"):
                checkpoint.read()

    def test_it_is_written_once_a_second_after_epochs_and_once_a_minute_within(self, tmp_path: Path) -> None:
        now = [100.0]
        checkpoint = Checkpoint(folder=tmp_path, key="k", clock=lambda: now[0])
        for passed, ends, expected in (
            (0.5, True, False),
            (1.1, True, True),
            (59.0, False, False),
            (61.0, False, True),
        ):
            now[0] = 100.0 + passed
            assert checkpoint.due(ends_epoch=ends) is expected
        checkpoint.write(standing())
        assert not checkpoint.due(ends_epoch=True)

    def test_what_takes_long_to_write_is_written_less_often(self, tmp_path: Path) -> None:
        """A twentieth of the time at most, however short the epochs are."""
        now = [0.0]

        def clock() -> float:
            now[0] += 2.0  # each look at the clock: so long does writing take
            return now[0]

        checkpoint = Checkpoint(folder=tmp_path, key="k", clock=clock)
        assert checkpoint.due(ends_epoch=True)
        checkpoint.write(standing())
        written, due = now[0], False
        while not due:
            due = checkpoint.due(ends_epoch=True)
        assert now[0] - written == pytest.approx(40.0)

    def test_a_folder_that_cannot_be_written_is_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match="cannot write"):
            Checkpoint(folder=tmp_path / "file" / "keep", key="k").write(standing())


def test_keys_differ_wherever_the_training_would() -> None:
    splits = {"train": TRAIN[0], "validation": VALIDATION[0]}
    first = key_of(settings(), 0, net(), splits)
    assert first == key_of(settings(), 0, net(), splits)
    others = [
        key_of(settings(momentum=0.8), 0, net(), splits),
        key_of(settings(), 1, net(), splits),
        key_of(settings(), 0, net(seed=1), splits),
        key_of(settings(), 0, net(), {**splits, "train": VALIDATION[0]}),
        key_of(settings(), 0, net(), {**splits, "train": replace(TRAIN[0], targets=TRAIN[0].targets[::-1])}),
        key_of(settings(), 0, net(), splits, what="another"),
    ]
    assert len({first, *others}) == 7


class Noted(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_damaged_one_is_told_and_the_training_begins_anew(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no tensors")
    told = Noted()
    found = fit(net(), TRAIN, VALIDATION, asked("sgd"), seed=3, augment=noisy, keep=tmp_path, progress=told)
    assert alike(found, trained("sgd"))
    assert "is damaged: " in told.notes[0]
    assert told.notes[0].endswith("; it begins anew")


def test_a_training_that_had_run_out_of_patience_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after its last epoch was written: it has nothing left to do."""
    given = settings(epochs=9, patience=1, learning_rate=1e-9, momentum=0.0)
    whole = fit(net(), TRAIN, VALIDATION, given, seed=0)
    monkeypatch.setattr(pastille.train.checkpoint, "_SOON_S", 0.0)
    monkeypatch.setattr(pastille.train.checkpoint, "_TIMES", 0.0)
    monkeypatch.setattr(Checkpoint, "remove", lambda self: None)
    fit(net(), TRAIN, VALIDATION, given, seed=0, keep=tmp_path)
    found = fit(net(), TRAIN, VALIDATION, given, seed=0, keep=tmp_path)
    assert alike(found, whole)

"""Training in int8 that goes wrong is stopped and leaves nothing worse behind; what goes right is not."""

from __future__ import annotations

import copy
import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stages_task import Net, Notes, exported_artifact_of, task_of

from pastille.quantization import quantize_static
from pastille.quantization.qat import Prepared, finish, prepare
from pastille.recipe import Quantize, Train
from pastille.runtime import load
from pastille.stages.qat_training import Standing, Trained, divergence, train_in_int8
from pastille.stats.metrics import selection_metric, selection_value
from pastille.task import Task, example_batch
from pastille.task.digest import state_digest
from pastille.train import checkpoint, fit
from pastille.train.checkpoint import Checkpoint

HEALTHY = (0.01, 0.05, 0.2)
HUGE = (30.0, 1e4, 1e20, 1e38)
KINDS = pytest.mark.parametrize("regression", [False, True], ids=["classes", "regression"])


@functools.cache
def started(regression: bool, seed: int = 0) -> tuple[Task, Prepared, bytes]:
    """A task whose model was trained for a while, made ready, and the file that quantization gave."""
    torch.manual_seed(seed)
    task = task_of(Net(width=16, outputs=1 if regression else 3).eval(), regression=regression)
    pairs = [(task.splits.train, task.cases["train"]), (task.splits.validation, task.cases["validation"])]
    settings = Train(epochs=10, learning_rate=0.03, batch_size=16)
    task = task_of(fit(task.model, pairs[0], pairs[1], settings, seed=seed).model, regression=regression)
    inputs = np.asarray(task.splits.train.inputs)
    with tempfile.TemporaryDirectory() as folder:
        artifact, target = exported_artifact_of(task.model, task, Path(folder)), Path(folder) / "int8.onnx"
        quantize_static(artifact.file, target, lambda: iter([{"input": inputs}]), Quantize())
        return task, prepare(artifact.file, target, task.model), target.read_bytes()


def trained(task: Task, ready: Prepared, learning_rate: float, **changes: Any) -> Trained:
    given = {"epochs": 3, "batch_size": 16, **changes}
    augment, keep = given.pop("augment", None), given.pop("keep", None)
    settings = Train(learning_rate=10 * learning_rate, **given)  # a tenth is taken
    return train_in_int8(
        ready.simulation,
        settings,
        task,
        freeze_after=0.6,
        distill=None,
        augment=augment,
        progress=Notes(),
        keep=keep,
    )


def on_validation(task: Task, file: Path) -> float:
    split, cases = task.splits.validation, task.cases["validation"]
    outputs = load(file)({"input": np.asarray(split.inputs)})["output"]
    return selection_value(outputs, cases, metric=selection_metric(cases, balanced=False))


@KINDS
@pytest.mark.parametrize("learning_rate", HUGE)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_planted_divergence_is_stopped_at_once_and_quantization_stays(
    regression: bool, learning_rate: float, momentum: float, tmp_path: Path
) -> None:
    task, ready, file = started(regression)
    found = trained(task, ready, learning_rate, momentum=momentum)
    assert "training in int8 was stopped in epoch 1: " in found.stopped
    assert found.stopped.endswith("; what quantization gave before it is kept; lower learning_rate")
    assert (found.curve.best_epoch, found.curve.validation) == (0, ())
    finish(ready, found.model, task.model, tmp_path / "kept.onnx", example_batch(task.splits.train.inputs))
    (tmp_path / "before.onnx").write_bytes(file)
    inputs = {"input": np.asarray(task.splits.validation.inputs)}
    kept, before = (load(tmp_path / f"{name}.onnx")(inputs)["output"] for name in ("kept", "before"))
    assert np.array_equal(kept, before)


@KINDS
@pytest.mark.parametrize("seed", range(3))
def test_a_healthy_run_is_never_stopped(regression: bool, seed: int) -> None:
    task, ready, _ = started(regression, seed)
    for learning_rate in HEALTHY:
        found = trained(task, ready, learning_rate / 10, epochs=5)
        assert found.stopped == ""
        assert len(found.curve.validation) == 5


@KINDS
@pytest.mark.parametrize("learning_rate", [1e-6, 0.01, 0.1, 1.0, 30.0])
def test_what_is_kept_is_never_below_quantization_alone(
    regression: bool, learning_rate: float, tmp_path: Path
) -> None:
    task, ready, file = started(regression)
    found = trained(task, ready, learning_rate)
    finish(ready, found.model, task.model, tmp_path / "kept.onnx", example_batch(task.splits.train.inputs))
    (tmp_path / "before.onnx").write_bytes(file)
    kept, before = (on_validation(task, tmp_path / f"{name}.onnx") for name in ("kept", "before"))
    assert kept >= before - 1e-3
    assert max((kept, *found.curve.validation)) == pytest.approx(kept, abs=1e-3)


def test_a_divergence_after_a_good_epoch_keeps_that_epoch() -> None:
    task, ready, _ = started(False, 1)
    good = trained(task, ready, 0.02, epochs=1, schedule="constant")
    assert good.curve.best_epoch == 1
    calls: list[int] = []

    def harm(batch: torch.Tensor, _: torch.Generator) -> torch.Tensor:
        calls.append(len(batch))
        return batch if len(calls) <= 3 else batch * 1e30  # three batches make an epoch

    found = trained(task, ready, 0.02, schedule="constant", augment=harm)
    assert "stopped in epoch 2" in found.stopped
    assert "epoch 1 is kept" in found.stopped
    assert found.curve.best_epoch == 1
    for kept, expected in zip(found.model.learned, good.model.learned, strict=True):
        assert torch.equal(kept, expected)


def test_no_batch_is_wasted_on_a_loss_that_is_not_finite() -> None:
    task, ready, _ = started(False)
    calls: list[int] = []

    def counted(batch: torch.Tensor, _: torch.Generator) -> torch.Tensor:
        calls.append(len(batch))
        return batch

    found = trained(task, ready, 1e37, momentum=0.0, augment=counted)
    assert "stopped in epoch 1: the loss became" in found.stopped
    assert len(calls) == 2  # of the three of an epoch: the first step did it, the second batch shows it


class StoppedError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("at", [2, 4, 11])
@pytest.mark.parametrize("more", [{}, {"ema": 0.8}], ids=["weights", "average"])
def test_a_killed_training_goes_on_as_if_it_had_not_been(
    more: dict[str, Any], at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within an epoch too, while ranges follow and after they are fixed: weights and ranges, bit for bit."""
    task, ready, _ = started(False)
    written: list[int] = []
    write = Checkpoint.write

    def writing(self: Checkpoint, standing: Any) -> None:
        write(self, standing)
        written.append(standing.numbers["step"])
        if len(written) == at:
            raise StoppedError

    monkeypatch.setattr(checkpoint, "_SOON_S", 0.0)
    monkeypatch.setattr(checkpoint, "_TIMES", 0.0)
    monkeypatch.setattr(checkpoint, "_LATEST_S", 0.0)
    monkeypatch.setattr(Checkpoint, "write", writing)
    with pytest.raises(StoppedError):
        trained(task, ready, 0.01, epochs=4, keep=tmp_path, **more)
    found, whole = (trained(task, ready, 0.01, epochs=4, keep=keep, **more) for keep in (tmp_path, None))
    assert (written[-1], found.curve) == (11, whole.curve)
    assert state_digest(found.model) == state_digest(whole.model)


def test_the_simulation_that_is_given_stays_as_it_is() -> None:
    task, ready, _ = started(False)
    before = copy.deepcopy(ready.simulation.state_dict())
    trained(task, ready, 1.0)
    after = ready.simulation.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


BLIND = Standing(loss=1.0, score=0.5)
STRONG = Standing(loss=0.01, score=0.97)
WEAK = Standing(loss=0.95, score=0.02)  # R² near 0
BLIND_R2 = Standing(loss=1.0, score=0.0)
ERROR = Standing(loss=0.1, score=-0.3)  # the negative of an error
BLIND_ERROR = Standing(loss=1.0, score=-1.0)


@pytest.mark.parametrize(
    ("start", "blind", "now", "says"),
    [
        pytest.param(STRONG, BLIND, Standing(loss=0.05, score=0.9), "", id="five times a tiny loss"),
        pytest.param(STRONG, BLIND, Standing(loss=0.98, score=0.5), "the loss went", id="knows nothing now"),
        pytest.param(STRONG, BLIND, Standing(loss=0.3, score=0.55), "validation", id="both are worse"),
        pytest.param(STRONG, BLIND, Standing(loss=0.005, score=0.55), "", id="the loss fell"),
        pytest.param(STRONG, BLIND, Standing(loss=np.nan, score=0.9), "the loss became nan", id="nan"),
        pytest.param(STRONG, BLIND, Standing(loss=np.inf, score=0.9), "the loss became inf", id="inf"),
        pytest.param(STRONG, BLIND, Standing(loss=0.1, score=-np.inf), "an answer became", id="answer"),
        pytest.param(WEAK, BLIND_R2, Standing(loss=0.94, score=-0.01), "", id="a weak R2 by chance"),
        pytest.param(WEAK, BLIND_R2, Standing(loss=0.96, score=0.015), "", id="a weak R2 a little worse"),
        pytest.param(WEAK, BLIND_R2, Standing(loss=40.0, score=-30.0), "the loss went", id="a weak R2 gone"),
        pytest.param(ERROR, BLIND_ERROR, Standing(loss=0.12, score=-0.5), "", id="an error, twice as large"),
        pytest.param(ERROR, BLIND_ERROR, Standing(loss=0.5, score=-0.9), "validation", id="an error, large"),
        pytest.param(BLIND, STRONG, Standing(loss=1.2, score=0.1), "", id="a start that is worse than blind"),
    ],
)
def test_divergence_is_told_for_every_metric(
    start: Standing, blind: Standing, now: Standing, says: str
) -> None:
    found = divergence(now, start=start, blind=blind, metric="some_metric")
    assert found.startswith(says)
    assert bool(found) == bool(says)

"""Scans of models and files that are not plain: grouped and padded layers, cut and foreign files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scan_project import write_project
from stages_task import Net, task_of
from torch import Tensor, nn

from pastille.errors import PreconditionError, UsageError
from pastille.files import write_atomic
from pastille.pruning import remove, survey
from pastille.pruning.hooks import no_fast_path
from pastille.pruning.scores import group_scores
from pastille.recipe import read_recipe
from pastille.stages.contract import state_digest
from pastille.stages.scan_file import read_scan
from pastille.stages.scanning import ScanSettings, scan
from pastille.stages.scanning.bench import bench_of
from pastille.stages.scanning.changes import Change, pruning_changes
from pastille.stages.scanning.effects import effect, yardstick
from pastille.stages.scanning.journal import Findings, findings
from pastille.stages.scanning.scan import _stopped
from pastille.task import Task, example_batch, forward, load_task
from pastille.values import Cases, to_json
from pastille.values.scanned import Effect, Scan, Technique


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.c, self.head = nn.Conv2d(16, 8, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))).mean(dim=(2, 3)))
        return out


class Padded(nn.Module):
    """The shortcut of the first ResNets."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))


class OptionA(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv1 = nn.Conv2d(1, 8, 3, 1, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.conv2, self.short = nn.Conv2d(16, 16, 3, 1, 1), Padded()
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.conv2(F.relu(self.conv1(x))) + self.short(x))
        out: Tensor = self.head(x.mean(dim=(2, 3)))
        return out


@pytest.mark.parametrize("build", [Grouped, OptionA])
def test_what_is_asked_answers_as_the_pruned_model(build: type[nn.Module]) -> None:
    torch.manual_seed(0)
    task = task_of(model := build().eval())
    few = example_batch(task.splits.train.inputs)
    groups = survey(model, few)
    changes, _ = pruning_changes(groups, group_scores(model, groups, "l1"), [0.25, 0.5])
    assert len(changes) >= 6
    with torch.inference_mode(), no_fast_path():
        bench = bench_of(model, task, changes)
        batch = bench.batch(np.arange(6))
        for change in changes:
            removed = remove(model, few, {change.layer: torch.tensor(change.units)}).model
            with change.applied(bench.model):
                found = forward(bench.model, batch)
            torch.testing.assert_close(found, forward(removed, batch), rtol=1e-4, atol=1e-6)
    found_all = scan(model, task, ScanSettings(techniques=("pruning",), levels=(0.25,), cases=16))
    assert {e.layer for e in found_all.effects} == {change.layer for change in changes}
    assert not [name for name in dict(model.named_parameters()) if name.startswith("short")]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("resumed"))


def loaded(recipe: Path, *overrides: str) -> Task:
    return load_task(read_recipe(recipe, overrides), recipe.parent)


def few(task: Task, cases: int, journal: Path | None = None) -> Scan:
    settings = ScanSettings(techniques=("pruning",), levels=(0.5,), agreement=1.0, cases=cases)
    return replace(scan(task.model, task, settings, journal=journal), seconds=0.0)


def test_a_scan_of_other_patient_groups_asks_other_cases(recipe: Path, tmp_path: Path) -> None:
    journal = tmp_path / "scan.journal"
    few(loaded(recipe), 64, journal)
    other = loaded(recipe, 'requirements.fairness.by=["sex"]', "requirements.fairness.min_group=300")
    assert few(other, 64, journal) == few(other, 64)


def test_more_cases_are_asked_beside_those_of_a_journal(recipe: Path, tmp_path: Path) -> None:
    task, journal = loaded(recipe), tmp_path / "scan.journal"
    few(task, 100, journal)
    before = journal.read_bytes()
    more = few(task, 256, journal)
    assert {e.cases for e in more.effects} == {256}
    assert more == few(task, 256)
    assert journal.read_bytes().startswith(before)
    assert few(task, 256, journal) == more


@pytest.mark.parametrize(
    "line",
    [
        b'{"hello":1}\n',
        b"[1]\n",
        b'{"change":["pruning","x",0.5],"from":0,"losses":[1],"scores":[1,2]}\n',
        b'{"change":["pruning","x",[]],"from":0,"losses":[1],"scores":[1]}\n',
        b'{"change":["pruning","x",0.5],"from":9,"losses":[1],"scores":[1]}\n',
        b'{"change":["pruning","x",0.5],"from":3,"losses":[1],"scores":[1]}',
    ],
)
def test_a_journal_is_read_as_far_as_it_is_whole(line: bytes, tmp_path: Path) -> None:
    journal, key, asked = tmp_path / "scan.journal", ("pruning", "x", 0.5), {"model": "a"}
    with findings(journal) as kept:
        kept.take_up(asked)
        kept.add(key, 0, np.ones((2, 3)))
    whole = journal.read_bytes()
    journal.write_bytes(whole + line + line)
    with findings(journal) as kept:
        kept.take_up(asked)
        assert kept.of(key).shape == (2, 3)
    assert journal.read_bytes() == whole


@pytest.mark.parametrize("mine", [b"Monday: slept.\n", b'{"journal": "of mine"}\n', b"\xff\xfe"])
def test_a_file_of_the_users_is_not_taken_for_a_journal(mine: bytes, recipe: Path, tmp_path: Path) -> None:
    (journal := tmp_path / "notes.journal").write_bytes(mine)
    with pytest.raises(UsageError, match=r"notes.journal would be .* choose another --output"):
        few(loaded(recipe), 64, journal)
    assert journal.read_bytes() == mine


def test_the_level_that_ruins_is_the_last_that_was_tried() -> None:
    found = Findings()
    changes = [
        Change(technique="quantization", layer="a", level=bits, touched=(), applied=None)  # type: ignore[arg-type]
        for bits in (8, 6, 4, 2)
    ]
    for change in changes[:2]:
        found.add(change.key, 0, np.ones((2, 3)))
    assert _stopped(changes, found) == {
        "quantization of a": "not tried at 4, 2: at 6 nothing is left of the model"
    }


def noise(seed: int, *, worse: float = 0.0) -> Effect:
    """Of a change that costs nobody anything, but for one group in twelve."""
    rng = np.random.default_rng(seed)
    columns = {"age": rng.integers(0, 6, 800), "site": rng.integers(0, 6, 800)}
    groups = {f"{name}={i}": column == i for name, column in columns.items() for i in range(6)}
    cases = Cases(
        kind="binary", split="validation", targets=rng.integers(0, 2, 800), labels=("a", "b"), groups=columns
    )
    baseline = np.stack([rng.gamma(1, 0.3, 800), np.ones(800)])
    held = yardstick(baseline, cases, groups, confidence=0.95, seed=0)
    rows = held.sample.order[:112]
    rises = rng.normal(0, 0.3, 800) + worse * groups["age=2"]
    return effect(("pruning", "a", 0.5), np.stack([baseline[0, rows] + rises[rows], np.ones(112)]), held)


def test_the_worst_of_many_groups_is_no_harm_unless_it_is_certain() -> None:
    found = [noise(seed) for seed in range(200)]
    assert np.mean([max(e.loss, e.group_loss or 0.0) for e in found]) > 0.1  # the bias there would be
    assert abs(np.mean([e.harm for e in found])) < 0.02
    assert np.mean([e.is_unequal for e in found]) < 0.08
    unequal = [noise(seed, worse=1.0) for seed in range(40)]
    assert np.mean([e.is_unequal and e.group == "age=2" for e in unequal]) > 0.9
    assert np.mean([e.harm for e in unequal]) == pytest.approx(1.0, abs=0.15)


def test_one_subject_has_no_interval_and_the_file_reads_back(tmp_path: Path) -> None:
    task = task_of(model := Net().eval())
    alone = replace(task.cases["validation"], subjects=np.zeros(48, dtype=np.int64))
    task = replace(task, cases={**task.cases, "validation": alone})
    found = scan(model, task, ScanSettings(techniques=("pruning",), levels=(0.5,)))
    assert {(e.loss_low, e.loss_high) for e in found.effects} == {(None, None)}
    write_atomic(file := tmp_path / "scan.json", to_json(found))
    assert read_scan(file, model, "pruning") == found


def written(folder: Path, model: nn.Module, technique: Technique = "pruning", **changed: Any) -> Path:
    told: dict[str, Any] = {"level": 0.5, "loss": 0.1, "loss_low": 0.0, "loss_high": 0.2, "metric": 0.0}
    told |= {"technique": technique, "layer": "conv1", "cases": 48, **changed}
    found: dict[str, Any] = {
        "model_digest": state_digest(model),
        "data_digest": "",
        "metric": "accuracy",
        "effects": [told],
    }
    found |= {"baseline_metric": 1.0, "baseline_loss": 0.1, "confidence": 0.95, "seconds": 1.0}
    (file := folder / "scan.json").write_text(json.dumps({**found, "layers": {}, "skipped": {}}))
    return file


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"level": 0.0}, "sparsities lie between 0 and 1, but 'conv1' was tried at 0"),
        ({"level": 1.0}, "was tried at 1"),
        ({"level": -1.0}, "was tried at -1"),
        ({"technique": "quantization", "level": 0.5}, "bits are 2 to 8, but 'conv1' was tried in 0.5"),
        ({"loss": float("inf")}, "an effect on 'conv1' is not finite"),
        ({"loss": float("nan")}, "an effect on 'conv1' is not finite"),
        ({"loss": 1e308}, "an effect on 'conv1' is not finite"),
        ({"group": "sex=f", "group_loss": float("inf")}, "an effect on 'conv1' is not finite"),
        ({"loss": None}, "is not a scan"),
    ],
)
def test_what_no_scan_writes_is_refused_in_one_line(
    changed: Mapping[str, Any], said: str, tmp_path: Path
) -> None:
    model = Net().eval()
    file = written(tmp_path, model, **changed)
    with pytest.raises(PreconditionError, match=said) as raised:
        read_scan(file, model, "pruning")
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith("prune.scan: ")


def test_the_criterion_is_noted(recipe: Path) -> None:
    task = loaded(recipe)
    asked = ScanSettings(techniques=("pruning",), levels=(0.5,), cases=16, criterion="random")
    assert scan(task.model, task, asked).criterion == "random"
    asked = ScanSettings(techniques=("quantization",), bits=(8,), cases=16)
    assert scan(task.model, task, asked).criterion == ""

"""A student with a factory of its own goes through the stages after it, and is found again after a kill."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import yaml
from forked import Forked

import pastille
from pastille.pruning.architecture import PLAN
from pastille.recipe import read_recipe
from pastille.record import BundleWritten, Resumed, StageFinished, read_record

pytestmark = pytest.mark.e2e

STUDENT = """
import torch
from torch import nn
from torch.nn import functional as F

class Own(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.second, self.last = nn.Conv2d(width, width, 3, padding=1), nn.Linear(width, 3)

    def forward(self, x):
        return self.last(F.relu(self.second(F.relu(self.norm(self.first(x))))).mean((2, 3)))

def build(width=8):
    return Own(width)
"""

TRAINING = {"learning_rate": 0.05, "batch_size": 16}
DISTILL = {
    "student": [{"model": "own.py:build", "arguments": {"width": 12}}, {"width": 0.75}],
    **TRAINING,
    "epochs": 3,
    "accept_poor_teacher": True,
}
RUNS = """
import os, signal, sys
from pathlib import Path
import pastille
from pastille.recipe import read_recipe
from pastille.record import StageFinished
from pastille.runner import journal
from pastille.stages import walking
moment, base = sys.argv[1], Path(sys.argv[2])
write, keep = journal.write_record, walking.keep
def killing_write(record, path):
    write(record, path)
    if moment == "after distill" and record.last(StageFinished): os.kill(os.getpid(), signal.SIGKILL)
def killing_keep(*given, **named):
    keep(*given, **named)
    if moment == "after a step": os.kill(os.getpid(), signal.SIGKILL)
journal.write_record, walking.keep = killing_write, killing_keep
pastille.run(read_recipe(base / "recipe.yaml"), base, resume=moment != "after distill")
"""


@pytest.fixture
def base(project: Path) -> Path:
    recipe = yaml.safe_load((project / "recipe.yaml").read_text())
    prune = {"sparsity": 0.3, "steps": 2, "round_to": 1, "finetune": {"epochs": 2, **TRAINING}}
    recipe["plan"] = [{"distill": DISTILL}, {"prune": prune}, {"quantize": {"samples": 32}}]
    (project / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    (project / "own.py").write_text(STUDENT)
    return project


def test_killed_runs_end_as_one_that_was_not(base: Path) -> None:
    whole = pastille.run(read_recipe(base / "recipe.yaml"), base)
    assert [event.name for event in whole.record.all(StageFinished)] == ["distill", "prune", "quantize"]
    assert all(event.kept for event in whole.record.all(StageFinished))
    whole.directory.rename(base / "whole")
    for moment, code in {"after distill": -signal.SIGKILL, "after a step": -signal.SIGKILL, "": 0}.items():
        ended, _, err = Forked(RUNS, moment, str(base)).finished()
        assert ended == code, err[-2000:]
    (again,) = (base / "runs/tiny").iterdir()
    assert len(read_record(again / "run.json").all(Resumed)) == 2
    assert files_of(again) == files_of(base / "whole")
    student = read_record(again / "run.json").all(StageFinished)[0].details.students[-1]
    assert student.name.startswith("width 0.75")
    # What a run's files say is what layers the factory's model has, not whose it is.
    assert "own.py" not in (again / "stages/01-distill" / PLAN).read_text()


def files_of(run: Path) -> dict[str, bytes]:
    """What must not differ: the weights after each stage, the models and golden cases that ship."""
    written = read_record(run / "run.json").last(BundleWritten)
    assert written is not None
    kept = [
        *run.glob("stages/*/model.safetensors"),
        *run.glob("bundle/models/*"),
        *run.glob("bundle/golden/*"),
    ]
    assert len(kept) >= 5
    return {str(file.relative_to(run)): file.read_bytes() for file in kept} | {"": written.content.encode()}

"""A run with [distill, quantize]: killed in the middle of a training and between, and taken up."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from forked import Forked

from pastille.record import BundleWritten, Resumed, StageFinished, read_record

pytestmark = pytest.mark.e2e

# Kills its own process at the nth batch that a training draws; 0 never does.
KILLER = """
import os, signal, sys
from pastille.train import loop
place, real, count = int(sys.argv.pop(1)), loop.drawn, [0]
def drawn(*args, **kwargs):
    for batch in real(*args, **kwargs):
        count[0] += 1
        if count[0] == place: os.kill(os.getpid(), signal.SIGKILL)
        yield batch
loop.drawn = drawn
from pastille.cli import main
main()
"""
STUDENT = """
from torch import nn

def small(width=8):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Linear(16 * width, 3),
    )
"""
OWN = {"model": "student.py:small", "arguments": {"width": 12}}


def asked(project: Path, student: object) -> None:
    """Two students, one after the other, and int8."""
    (project / "student.py").write_text(STUDENT)
    recipe = yaml.safe_load((project / "recipe.yaml").read_text())
    distill = {"epochs": 3, "batch_size": 16, "learning_rate": 0.05, "student": student}
    recipe["plan"] = [
        {"distill": {**distill, "compare_to_scratch": True, "temperature": {"from": 4, "to": 1}}},
        {"quantize": {"samples": 64}},
    ]
    (project / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def run(project: Path, *options: str, place: int = 0) -> tuple[int, str]:
    code, _, err = Forked(KILLER, str(place), "run", str(project / "recipe.yaml"), "-q", *options).finished()
    return code, err


def only_run(project: Path) -> Path:
    (found,) = (project / "runs/tiny").iterdir()
    return found


def products(project: Path) -> dict[str, bytes]:
    files = sorted((only_run(project) / "bundle/models").iterdir())
    return {file.name: file.read_bytes() for file in files}


def test_killed_and_taken_up(new_project: Callable[[], Path]) -> None:
    whole, killed = new_project(), new_project()
    for project in (whole, killed):
        asked(project, [{"width": 0.75}, OWN])
    # What the others are compared with: an interpreter of its own, with other hashes.
    command = [sys.executable, "-m", "pastille", "run", str(whole / "recipe.yaml"), "-q"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    # 30 steps of each training: in the first one, in the last one, and in the training without a teacher.
    code = -signal.SIGKILL
    options: list[str] = []
    for place in (14, 25, 22, 0):
        code, err = run(killed, *options, place=place)
        options = ["--resume"]
        if code != -signal.SIGKILL:
            break
    assert code == 0, err
    record, reference = (read_record(only_run(p) / "run.json") for p in (killed, whole))
    assert len(record.all(Resumed)) >= 2
    assert products(killed) == products(whole)
    told, expected = (r.all(StageFinished)[0].details for r in (record, reference))
    assert told.students == expected.students
    assert told.curves == expected.curves
    assert told.students[-1].scratch is not None
    assert [e.name for e in record.all(StageFinished)] == ["distill", "quantize"]
    assert record.last(BundleWritten) is not None

"""A run in two processes: the same verdict and decisions as in one, one directory, and errors told once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

pytestmark = pytest.mark.e2e

MODEL = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
"""
DATA = """
import os
import numpy as np
import pastille

def splits():
    if os.environ.get("FAILING", "nobody") == os.environ.get("RANK"):
        raise OSError("this machine has no data")
    found = np.load(os.path.join(os.path.dirname(__file__), "data.npz"))
    return pastille.Splits(**{
        name: pastille.Split(inputs=found[name + "_x"], targets=found[name + "_y"])
        for name in ("train", "validation", "test")
    })
"""
RECIPE: dict[str, Any] = {
    "name": "several",
    "task": {
        "kind": "multiclass",
        "model": "model.py:build",
        "weights": "trained.safetensors",
        "labels": ["a", "b", "c"],
        "positive": ["c"],
    },
    "data": {"source": "data.py:splits"},
    "requirements": {"risk": "low"},
    "measure": {"seconds": 0.02, "batch_sizes": [1], "memory": False},
    "plan": [
        {"prune": {"sparsity": 0.5, "round_to": 4, "steps": 2, "finetune": {"epochs": 1}}},
        {"finetune": {"epochs": 1}},
        {"quantize": {"samples": 64}},
    ],
}
Start = Callable[..., subprocess.Popen[str]]
LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A model that decides by three of six numbers, and data that it decides rightly."""
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "data.py").write_text(DATA)
    (tmp_path / "recipe.yaml").write_text(json.dumps(RECIPE))
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for name, n in (("train", 130), ("validation", 90), ("test", 300)):
        targets = np.arange(n) % 3
        inputs = rng.normal(0, 0.4, size=(n, 6)) + 2 * np.eye(6)[targets]
        arrays |= {f"{name}_x": inputs.astype(np.float32), f"{name}_y": targets}
    np.savez(tmp_path / "data.npz", **arrays)
    torch.manual_seed(0)
    space: dict[str, Any] = {}
    exec(MODEL, space)
    model: nn.Module = space["build"]()
    x, y = torch.from_numpy(arrays["train_x"]), torch.from_numpy(arrays["train_y"])
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(300):
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    save_file(model.state_dict(), tmp_path / "trained.safetensors")
    return tmp_path


@pytest.fixture
def start(project: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a run in the project or elsewhere; what still goes on after the test is ended."""
    begun: list[subprocess.Popen[str]] = []

    def start(
        launcher: tuple[str, ...], *options: str, base: Path = project, **more: str
    ) -> subprocess.Popen[str]:
        module = ("-m", "pastille") if launcher else (sys.executable, "-m", "pastille")
        process = subprocess.Popen(
            [*launcher, *module, "run", str(base / "recipe.yaml"), *options],
            env=os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"} | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        begun.append(process)
        return process

    yield start
    for process in begun:
        process.terminate()  # a launcher then ends what it started
        process.communicate(timeout=60)


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=400)
    return process.returncode, out, err


def record(project: Path) -> list[dict[str, Any]]:
    (run,) = (project / "runs/several").iterdir()
    found: list[dict[str, Any]] = json.loads((run / "run.json").read_text())["events"]
    return found


def decisions(project: Path) -> list[tuple[Any, ...]]:
    """What was decided, without what is measured anew each time."""
    found: list[tuple[Any, ...]] = []
    for event in record(project):
        if event["event"] == "stage_finished":
            profile, details = event["profile"], event["details"]
            steps = [(s["number"], s["parameters"], s["rejected"]) for s in details["steps"]]
            kept = (event["kept"], event["verdict"]["status"], event["consequence"])
            found.append((event["name"], *kept, profile["parameters"], profile["precision"], steps))
        if event["event"] == "final_judged":
            found.append((event["candidate"], event["verdict"]["status"], event["candidate_metrics"]["n"]))
    return found


def test_the_same_run_in_two_processes(
    project: Path, start: Start, tmp_path_factory: pytest.TempPathFactory
) -> None:
    alone = tmp_path_factory.mktemp("alone")
    for file in project.iterdir():
        (alone / file.name).write_bytes(file.read_bytes())
    one, two = start((), "-q", base=alone), start(ACCELERATE)
    (first, out, _), (second, among, err) = finished(one), finished(two)
    assert (first, second) == (0, 0), err
    assert decisions(project) == decisions(alone)
    assert len(record(project)) == len(record(alone))
    verdict = [line for line in out.splitlines() if line.endswith("on test")]
    assert [line for line in among.splitlines() if line.endswith("on test")] == verdict  # printed once
    assert err.count("final gate:") == 1
    assert not [line for line in err.splitlines() if "Warning" in line or "Traceback" in line]


def test_killed_and_taken_up(project: Path, start: Start) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    both = [start((), "-q", **where, RANK=rank, LOCAL_RANK=rank) for rank in ("0", "1")]
    end = time.monotonic() + 200
    while not list(project.glob("runs/several/*/stages/01-prune/steps/01/step.json")):
        assert both[0].poll() is None, finished(both[0])
        assert time.monotonic() < end
        time.sleep(0.02)
    for process in both:
        process.kill()
        finished(process)
    code, _, err = finished(start(LAUNCH, "--resume"))
    assert code == 0, err
    assert "pruning step 1 of 2: finished before, taken up" in err
    assert [e["index"] for e in record(project) if e["event"] == "stage_finished"] == [1, 2, 3]


@pytest.mark.parametrize("failing", ["0", "1"])
def test_a_process_that_fails_ends_the_run_with_its_own_error(
    project: Path, start: Start, failing: str
) -> None:
    code, _, err = finished(start(LAUNCH, "-q", FAILING=failing))
    assert code != 0
    told = [line for line in err.splitlines() if line.startswith("error:")]
    assert len([line for line in told if "this machine has no data" in line]) == 1
    assert not list(project.glob("runs/several/*/bundle"))


def test_what_fails_in_all_processes_is_told_once(start: Start) -> None:
    batch = "plan.1.finetune.batch_size=1"
    code, _, err = finished(start(LAUNCH, "-q", "--set", batch))
    assert code != 0
    told = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(told) == 1
    assert "there are 2 processes, which is more than batch_size (1)" in told[0]

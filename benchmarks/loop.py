"""What the training loop costs beside the training: time of a step against a hand-written PyTorch loop.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/loop.py     # writes benchmarks/loop.csv

The hand-written loop is what a tutorial has: inputs in memory, a permutation for each epoch, SGD with
Nesterov momentum and weight decay, `CosineAnnealingLR` at each step, the loss summed by `item()`. Both train
the same model from the same weights on the same batches' sizes, in turns of so many steps; a step is timed
from the end of the one before it, so that drawing the batch counts. `ratio` is that of the two median steps
of a turn, in processor time, which bears a busy machine better than `ratio_wall`; above 1, Pastille takes
longer. Both are medians over all turns, `low` and `high` their quartiles.

    .venv/bin/python benchmarks/loop.py mlp --turns 3     # this one alone, printed
"""

from __future__ import annotations

import argparse
import copy
import csv
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pastille.data.split import Split
from pastille.devices import this_machine
from pastille.progress import Silent, T
from pastille.recipe import Train
from pastille.task.torchvision import import_torchvision
from pastille.train import fit
from pastille.values import Cases

HERE = Path(__file__).parent
CLASSES = 4


def mlp() -> nn.Module:
    """Some layers for tabular data."""
    widths = (32, 64, 64, CLASSES)
    layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def cnn() -> nn.Module:
    """Four convolutions with batch norms."""
    layers: list[nn.Module] = []
    for a, b in ((3, 16), (16, 32), (32, 32), (32, 64)):
        layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))


def resnet18() -> nn.Module:
    """torchvision's, of 32 pixels."""
    found: nn.Module = import_torchvision().models.resnet18(num_classes=CLASSES)
    return found


@dataclass(frozen=True, kw_only=True)
class Size:
    """One training.

    Attributes:
        make: The model.
        shape: Of an input.
        batch: Cases in a step.
        steps: In a turn.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int
    steps: int


SIZES = {
    "mlp": Size(make=mlp, shape=(32,), batch=32, steps=400),
    "cnn": Size(make=cnn, shape=(3, 32, 32), batch=16, steps=60),
    "resnet18": Size(make=resnet18, shape=(3, 32, 32), batch=16, steps=24),
}


@dataclass
class Clock(Silent):
    """Notes when each step is over, as the progress that `fit` shows."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def now(self) -> None:
        """One more step is over."""
        self.wall.append(perf_counter())
        self.cpu.append(process_time())

    def track(self, items: Iterable[T], *, what: str, total: int | None = None) -> Iterator[T]:
        """Pass batches on."""
        self.now()
        for item in items:
            yield item
            self.now()

    def steps(self) -> tuple[float, float]:
        """Median of a step, by processor and wall; the last one scores the model and is left out."""
        return tuple(float(np.median(np.diff(times)[1:-1])) for times in (self.cpu, self.wall))  # type: ignore[return-value]


def by_hand(model: nn.Module, x: torch.Tensor, y: torch.Tensor, settings: Train) -> tuple[float, float]:
    """As a tutorial does it."""
    model, clock = copy.deepcopy(model).train(), Clock()
    optimizer = torch.optim.SGD(
        model.parameters(),
        settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=True,
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(x) // settings.batch_size)
    total = 0.0
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    clock.now()
    for rows in order.split(settings.batch_size):  # type: ignore[no-untyped-call]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[rows]), y[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()
        total += loss.item() * len(rows)
        clock.now()
    return clock.steps()


def by_fit(model: nn.Module, train: Split, check: Split, settings: Train) -> tuple[float, float]:
    """As Pastille does it."""
    clock = Clock()
    pairs = [(split, cases(split, name)) for split, name in ((train, "train"), (check, "validation"))]
    fit(model, pairs[0], pairs[1], settings, seed=0, progress=clock)
    return clock.steps()


def cases(split: Split, name: str) -> Cases:
    """Of a split."""
    return Cases(kind="multiclass", split=name, targets=split.targets, labels=tuple("abcd"))  # type: ignore[arg-type]


def measured(name: str, turns: int) -> dict[str, object]:
    """One row of the table."""
    size, rng = SIZES[name], np.random.default_rng(0)
    torch.manual_seed(0)
    model, n = size.make(), size.steps * size.batch
    inputs, targets = rng.normal(size=(n, *size.shape)).astype(np.float32), rng.integers(0, CLASSES, n)
    train = Split(inputs=inputs, targets=targets)
    check = Split(inputs=inputs[:8], targets=np.arange(8) % CLASSES)
    settings = Train(epochs=1, batch_size=size.batch, learning_rate=1e-3)
    x, y = torch.from_numpy(inputs), torch.from_numpy(targets)
    ours, theirs = [], []
    for turn in range(turns + 1):
        for mine in (True, False) if turn % 2 else (False, True):
            if mine:
                ours.append(by_fit(model, train, check, settings))
            else:
                theirs.append(by_hand(model, x, y, settings))
    cpu, wall = (np.array(ours[1:]) / np.array(theirs[1:])).T  # the first turn warms up
    return {
        "training": name,
        "step_ms": round(1e3 * float(np.median([t for t, _ in theirs])), 3),
        "ratio": round(float(np.median(cpu)), 3),
        "low": round(float(np.quantile(cpu, 0.25)), 3),
        "high": round(float(np.quantile(cpu, 0.75)), 3),
        "ratio_wall": round(float(np.median(wall)), 3),
        "over_us": round(1e6 * float(np.median(np.array(ours[1:]) - np.array(theirs[1:]), axis=0)[0]), 1),
        "turns": turns,
        "steps": size.steps,
    }


def main() -> None:
    """Measure, and write the table or print it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=[])
    parser.add_argument("--turns", type=int, default=20)
    asked = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    machine = asdict(this_machine(runtime="torch", runtime_version=torch.__version__, threads=1))
    rows = [measured(name, asked.turns) | machine for name in asked.names or SIZES]
    for row in rows:
        print(row)
    if not asked.names:
        with (HERE / "loop.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()

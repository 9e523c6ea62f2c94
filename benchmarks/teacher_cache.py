"""What a teacher's kept answers save: time of an epoch of distillation with them, against asking it live.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/teacher_cache.py     # writes benchmarks/teacher_cache.csv

A ResNet-50 teaches a ResNet-18 (torchvision's, random weights, 10 classes) on images of several sizes, in
batches of 16, one thread; with `hints`, features of pairs of layers are taught as well, in half precision on
disk. Live and cached take turns of one short epoch; an epoch's steps are alike, so the ratio of its time is
that of the medians of their steps. A step is timed from the end of the one before, so that drawing the batch
and reading the cache count. `ratio` is live over cached in processor time, which bears a busy machine better
than `ratio_wall`: medians over all turns, `low` and `high` their quartiles. `fill_epochs` is what
computing the answers once costs, in epochs of the live training; `megabytes` what 10,000 cases take.

By multiply-accumulates alone the ratio of this pair is 1.75: one forward pass of the teacher (4.1 G at 224
pixels) beside three of the student's (1.8 G each: forward, and two backward).

    .venv/bin/python benchmarks/teacher_cache.py --only "64 px"     # this one alone, printed
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import torch
from torch import nn

from pastille.data.split import Split
from pastille.devices import this_machine
from pastille.distillation import Live, Teaching, taught
from pastille.distillation.cache import CacheKey, remembered, split_digest
from pastille.distillation.layers import proposed_pairs
from pastille.progress import Silent, T
from pastille.recipe import Distill, Hints, Train
from pastille.task.digest import state_digest
from pastille.task.forward import example_batch
from pastille.task.torchvision import import_torchvision
from pastille.train import Extras, fit
from pastille.train.loop import labels_alone
from pastille.values import Cases

HERE = Path(__file__).parent
CLASSES, BATCH = 10, 16


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison, as the CSV holds it."""

    pair: str
    pixels: int
    hints: str
    live_ms: float
    cached_ms: float
    ratio: float
    low: float
    high: float
    ratio_wall: float
    turns: int
    fill_epochs: float
    megabytes: float
    machine: str


class Timed(Silent):
    """Remembers processor and wall time of each step of a training; the first warms up."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []

    def track(self, items: Iterable[T], *, what: str, total: int | None = None) -> Iterator[T]:
        """Pass items on; a step ends when the next item is asked for."""
        before = (process_time(), perf_counter())
        for item in items:
            yield item
            now = (process_time(), perf_counter())
            self.steps.append((now[0] - before[0], now[1] - before[1]))
            before = now

    def median(self) -> np.ndarray:
        """Of processor and wall time, seconds."""
        return np.asarray(np.median(self.steps[1:], axis=0))


def images(n: int, pixels: int) -> tuple[Split, Cases]:
    """Noise: what images show does not matter here."""
    rng = np.random.default_rng(0)
    targets = np.arange(n) % CLASSES
    split = Split(inputs=rng.normal(size=(n, 3, pixels, pixels)).astype(np.float32), targets=targets)
    labels = tuple(map(str, range(CLASSES)))
    return split, Cases(kind="multiclass", split="train", targets=targets, labels=labels)


def epoch(
    student: nn.Module, data: tuple[Split, Cases], teaching: Teaching, asked: Distill, pairs: tuple
) -> np.ndarray:  # type: ignore[type-arg]
    """Median time of a step of one short epoch."""
    settings, timed = Train(epochs=1, batch_size=BATCH), Timed()
    few = (
        Split(inputs=data[0].inputs[:10], targets=data[0].targets[:10]),
        Cases(kind="multiclass", split="validation", targets=data[1].targets[:10], labels=data[1].labels),
    )
    objective = taught(labels_alone(data[1], settings).loss, teaching, asked, kind="multiclass", pairs=pairs)
    fit(student, data, few, settings, seed=0, extras=Extras(objective=objective), progress=timed)
    return timed.median()


def compared(pixels: int, hints: Hints | None, turns: int, batches: int) -> Row:
    """Both ways in turns."""
    models = import_torchvision().models
    torch.manual_seed(0)
    teacher, student = models.resnet50(num_classes=CLASSES).eval(), models.resnet18(num_classes=CLASSES)
    data = images(BATCH * batches, pixels)
    asked = Distill(hints=hints)
    pairs = proposed_pairs(student, teacher, example_batch(data[0].inputs), hints) if hints else ()
    live = Live([teacher], layers=[pair.teacher for pair in pairs])
    key = CacheKey(
        teachers=(state_digest(teacher),),
        weights=(1.0,),
        data=split_digest(data[0]),
        cases=data[0].n,
        layers=tuple(dict.fromkeys(pair.teacher for pair in pairs)),
    )
    with tempfile.TemporaryDirectory() as folder:
        start = process_time()
        cached = remembered(live, data[0], key, Path(folder))
        fill = process_time() - start
        found = np.array(
            [[epoch(student, data, t, asked, pairs) for t in (live, cached)] for _ in range(turns)]
        )
    ratios = found[:, 0] / found[:, 1]  # (turns, processor and wall)
    low, middle, high = np.quantile(ratios[:, 0], [0.25, 0.5, 0.75])
    live_s, cached_s = np.median(found[:, :, 0], axis=0)
    machine = this_machine(
        threads=torch.get_num_threads(), runtime="torch", runtime_version=torch.__version__
    )
    return Row(
        pair="ResNet-50 -> ResNet-18",
        pixels=pixels,
        hints=hints.loss if hints else "",
        live_ms=round(float(1000 * live_s), 1),
        cached_ms=round(float(1000 * cached_s), 1),
        ratio=round(float(middle), 3),
        low=round(float(low), 3),
        high=round(float(high), 3),
        ratio_wall=round(float(np.median(ratios[:, 1])), 3),
        turns=turns,
        fill_epochs=round(float(fill / (live_s * batches)), 2),
        megabytes=round(cached.size_bytes / data[0].n * 10_000 / 1e6, 1),
        machine=f"{machine.device}, {machine.threads} thread",
    )


def main() -> None:
    """Compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--batches", type=int, default=3, help="of a turn's epoch")
    parser.add_argument("--only", default="", help="part of a row's name, printed and not written")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    wanted = {
        "64 px": (64, None),
        "96 px": (96, None),
        "64 px with hints": (64, Hints(loss="attention")),
    }
    rows = []
    for name, (pixels, hints) in wanted.items():
        if asked.only in ("", name):
            rows.append(compared(pixels, hints, asked.turns, asked.batches))
            print(name, rows[-1], flush=True)
    if not asked.only:
        with (HERE / "teacher_cache.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(asdict(rows[0])))
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)


if __name__ == "__main__":
    main()

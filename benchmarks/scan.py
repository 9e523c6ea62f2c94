"""The sensitivity scan against the naive one: time, multiply-accumulates, and the order of the layers.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/scan.py [--size 64] [--validation 900] [--cases N]

A ResNet-50 is trained on handwritten digits of 8 × 8 pixels, enlarged; its validation split is then asked by
the naive scan (every layer × every level × a full pass over validation) and by `pastille scan`. Both make the
very same changes. Kendall's tau compares the layers' rises of the loss with those of the naive scan, level by
level, and over the mean of a layer's levels. A level that the scan left out, because a milder one already
leaves nothing of the model, counts as bad as the last one that it tried.

The naive scan takes an hour; what it found so far is kept in --work, and it goes on from there. CPU seconds
are of the process; wall seconds also count what else the machine did. Writes benchmarks/scan.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import kendalltau
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pastille.data.cases import cases
from pastille.data.split import Split, Splits
from pastille.devices import this_machine
from pastille.recipe import Recipe
from pastille.stages.scanning import ScanSettings, scan
from pastille.stages.scanning.changes import Change
from pastille.stages.scanning.scan import plan_of
from pastille.stages.scanning.scoring import scorer
from pastille.task import Task
from pastille.task.torchvision import import_torchvision
from pastille.values import TensorSpec
from pastille.values.scanned import Scan

Key = tuple[str, str, float]

TRAIN: Final = 800
EPOCHS: Final = 6
BATCH: Final = 64
OUT: Final = Path(__file__).with_suffix(".csv")


@dataclass(frozen=True)
class Cost:
    """Time that something took."""

    wall_s: float
    cpu_s: float


def main() -> None:
    """Train, scan both ways, and compare."""
    asked = _arguments()
    torch.set_num_threads(1)
    asked.work.mkdir(parents=True, exist_ok=True)
    task = digits_task(asked.size, asked.validation, asked.work)
    settings = ScanSettings(cases=asked.cases)
    found, ours = timed_scan(task, settings)
    with FlopCounterMode(display=False) as counter:
        scan(task.model, task, settings)
    losses, naive = naive_scan(task, settings, asked.work / f"naive-{asked.size}-{asked.validation}.jsonl")
    whole = macs_of_one(task) * len(losses) * task.splits.validation.n
    rows = list(_rows(found, losses, ours, naive, counter.get_total_flops() / 2, whole))
    _write(rows, asked, len(losses))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--validation", type=int, default=900)
    parser.add_argument("--cases", type=int, default=None, help="at most; left out: as the scan chooses")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "pastille-scan")
    return parser.parse_args()


def digits_task(size: int, validation: int, work: Path) -> Task:
    """Digits in three parts, and a ResNet-50 trained on the first; its weights are kept in ``work``."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images = torch.tensor(digits.images[order] / 16, dtype=torch.float32)[:, None]
    inputs = F.interpolate(images, size=(size, size), mode="bilinear").expand(-1, 3, -1, -1).numpy()
    targets = digits.target[order].astype(np.int64)
    ends = (0, TRAIN, TRAIN + validation, len(targets))
    train, middle, test = (Split(inputs=inputs[a:b], targets=targets[a:b]) for a, b in pairwise(ends))
    model, weights = build(), work / f"resnet50-{size}.pt"
    if weights.is_file():
        model.load_state_dict(torch.load(weights, weights_only=True))
    else:
        fitted(model, torch.from_numpy(np.ascontiguousarray(train.inputs)), torch.from_numpy(train.targets))
        torch.save(model.state_dict(), weights)
    recipe = Recipe.model_validate(
        {
            "name": "scan",
            "task": {"kind": "multiclass", "model": "m.py:f", "labels": [str(i) for i in range(10)]},
            "data": {"source": "d.py:f"},
        }
    )
    splits = Splits(train=train, validation=middle, test=test)
    return Task(
        recipe=recipe,
        build=build,
        model=model.eval(),
        splits=splits,
        cases={name: cases(part, name, recipe.task) for name, part in splits},
        inputs=(TensorSpec(name="input", shape=(3, size, size), dtype="float32"),),
        data_digest="digits",
    )


def build() -> nn.Module:
    """A ResNet-50 for ten classes, from seed 0."""
    torch.manual_seed(0)
    model: nn.Module = import_torchvision().models.resnet50(num_classes=10)
    return model


def fitted(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    """Train in place, by one cycle of AdamW, on images moved by up to a tenth."""
    steps, reach = EPOCHS * (TRAIN // 32), inputs.shape[-1] // 10
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    model.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(TRAIN).split(32):
            moved = torch.randint(-reach, reach + 1, (2,)).tolist()
            loss = F.cross_entropy(model(torch.roll(inputs[rows], moved, (2, 3))), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def timed_scan(task: Task, settings: ScanSettings) -> tuple[Scan, Cost]:
    """Ours."""
    wall, cpu = time.monotonic(), time.process_time()
    found = scan(task.model, task, settings)
    return found, Cost(time.monotonic() - wall, time.process_time() - cpu)


def naive_scan(task: Task, settings: ScanSettings, journal: Path) -> tuple[Mapping[Key, float], Cost]:
    """Every change, each on all of validation: mean rise of the loss, and what it took."""
    plan = plan_of(task.model, task, settings)
    lines = [json.loads(line) for line in journal.read_text().splitlines()] if journal.is_file() else []
    known = {tuple(line["key"]): line for line in lines}
    ask = scorer(task.cases["validation"])
    before, _ = _full_pass(task, ask)
    with journal.open("a") as file:
        for number, change in enumerate(plan.changes):
            if change.key not in known:
                known[change.key] = {"key": change.key, **_naive(task, change, ask, before)}
                file.write(json.dumps(known[change.key]) + "\n")
                file.flush()
                print(number, len(plan.changes), known[change.key], flush=True)
    wanted = [known[change.key] for change in plan.changes]
    cost = Cost(sum(line["wall"] for line in wanted), sum(line["cpu"] for line in wanted))
    return {change.key: known[change.key]["loss"] for change in plan.changes}, cost


def _naive(task: Task, change: Change, ask: Any, before: float) -> dict[str, float]:
    with change.applied(task.model):
        loss, cost = _full_pass(task, ask)
    return {"loss": loss - before, "wall": cost.wall_s, "cpu": cost.cpu_s}


def _full_pass(task: Task, ask: Any) -> tuple[float, Cost]:
    wall, cpu = time.monotonic(), time.process_time()
    inputs = torch.from_numpy(np.ascontiguousarray(task.splits.validation.inputs))
    with torch.inference_mode():
        losses = [
            ask(task.model(inputs[rows]), rows.numpy())[0] for rows in torch.arange(len(inputs)).split(BATCH)
        ]
    return float(np.concatenate(losses).mean()), Cost(time.monotonic() - wall, time.process_time() - cpu)


def macs_of_one(task: Task) -> float:
    """Multiply-accumulates of one input."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        task.model(torch.from_numpy(np.ascontiguousarray(task.splits.validation.inputs[:1])))
    return counter.get_total_flops() / 2


def compared(found: Scan, losses: Mapping[Key, float]) -> Iterator[tuple[str, float, float, int, float]]:
    """For each level, and for the mean over levels: tau, median naive rise, layers, mean cases asked."""
    effects = {(e.technique, e.layer, e.level): e for e in found.effects}
    for technique, mildest in (("pruning", 1), ("quantization", -1)):
        levels = sorted({key[2] for key in losses if key[0] == technique}, key=lambda x: x * mildest)
        layers = list(dict.fromkeys(key[1] for key in losses if key[0] == technique))
        table = np.full((len(layers), len(levels)), np.nan)
        for i, layer in enumerate(layers):
            for j, level in enumerate(levels):
                seen = effects.get((technique, layer, level))
                table[i, j] = table[i, j - 1] if seen is None else seen.loss
        naive = np.array([[losses[technique, layer, level] for level in levels] for layer in layers])
        for j, level in enumerate(levels):
            yield f"{technique} {level:g}", *_tau(table[:, j], naive[:, j]), _cases(effects, technique, level)
        yield f"{technique}, all levels", *_tau(table.mean(axis=1), naive.mean(axis=1)), float("nan")
    tried = [key for key in losses if key in effects]
    ours, naive = (np.array(x) for x in zip(*((effects[k].loss, losses[k]) for k in tried), strict=True))
    yield "all changes that were tried", *_tau(ours, naive), float("nan")


def _tau(ours: np.ndarray, naive: np.ndarray) -> tuple[float, float, int]:
    return float(kendalltau(ours, naive).statistic), float(np.median(np.abs(naive))), len(naive)


def _cases(effects: Mapping[Key, Any], technique: str, level: float) -> float:
    return float(np.mean([e.cases for e in effects.values() if (e.technique, e.level) == (technique, level)]))


def _rows(
    found: Scan, losses: Mapping[Key, float], ours: Cost, naive: Cost, macs: float, whole: float
) -> Iterator[dict[str, Any]]:
    costs = {
        "wall_ratio": round(ours.wall_s / naive.wall_s, 4),
        "cpu_ratio": round(ours.cpu_s / naive.cpu_s, 4),
        "macs_ratio": round(macs / whole, 4),
        "scan_cpu_s": round(ours.cpu_s, 1),
        "naive_cpu_s": round(naive.cpu_s, 1),
    }
    for what, tau, median, layers, cases_seen in compared(found, losses):
        yield {
            "compared": what,
            "layers": layers,
            "kendall_tau": round(tau, 3),
            "median_naive_rise": f"{median:.3g}",
            "mean_cases": "" if np.isnan(cases_seen) else round(cases_seen),
            **costs,
        }


def _write(rows: Sequence[Mapping[str, Any]], asked: argparse.Namespace, changes: int) -> None:
    machine = this_machine(threads=1, runtime="torch", runtime_version=torch.__version__)
    conditions = {
        "model": f"ResNet-50, {asked.size} px",
        "changes": changes,
        "validation": asked.validation,
        "most_cases": asked.cases or "default",
        "device": machine.device,
        "threads": 1,
        "torch": torch.__version__,
    }
    with OUT.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], *conditions], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            print(row)
            writer.writerow({**row, **conditions})


if __name__ == "__main__":
    main()

"""Budgets asked for and reached: ResNet-18 and MobileNetV2 at 64 × 64 pixels, in fp32 and in int8.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/pruning_budget.py [MODEL ...]

For each network and precision the p95 at batch 1 is asked to be 70, 50 and 35 % of that of the unpruned
file of the same precision. Nothing is fine-tuned, and weights are random: only times are at stake. What was
reached is measured twice, by the loop itself and afterwards anew, both in alternation with the unpruned float
file.
The first line of a precision includes the seconds of the latency table, which the other two take from it.
A budget that
no width reaches is said on the screen and left out.
Writes benchmarks/pruning_budget.csv with the conditions, a line as soon as it is known.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Final, Literal

import numpy as np
import torch

from pastille.data.cases import cases
from pastille.data.split import Split, Splits, batches
from pastille.errors import PreconditionError
from pastille.export import export_onnx
from pastille.measure.latency import compare
from pastille.progress import SILENT
from pastille.pruning import remove, survey
from pastille.pruning.scores import group_scores
from pastille.pruning.units import ChannelGroup
from pastille.recipe import Quantize, Recipe
from pastille.recipe.pruning import Budget
from pastille.runtime import load
from pastille.stages.budget import BudgetPlan, widths_for_budget
from pastille.stages.looking import conditions_of
from pastille.stages.trials import Means, means_here
from pastille.stages.widths import fast_widths
from pastille.task import Task, example_batch
from pastille.task.torchvision import import_torchvision
from pastille.values import TensorSpec

MODELS: Final = ("resnet18", "mobilenet_v2")
SHARES: Final = (0.7, 0.5, 0.35)
SIDE: Final = 64
SECONDS: Final = 3.0
FIGURES: Final = Path(__file__).with_suffix(".csv")
P95: Final = "max_latency.p95"

Precision = Literal["fp32", "int8"]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network with all that a search for its widths needs."""

    name: str
    task: Task
    groups: tuple[ChannelGroup, ...]
    scores: Mapping[str, torch.Tensor]
    baseline: Path
    folder: Path


def subject(name: str, folder: Path) -> Subject:
    """A network with random weights on made-up images."""
    torch.manual_seed(0)
    model = getattr(import_torchvision().models, name)(weights=None, num_classes=3).eval()
    asked: dict[str, Any] = {
        "name": "budget",
        "task": {"kind": "multiclass", "model": "model.py:build", "labels": ["a", "b", "c"]},
        "data": {"source": "data.py:splits"},
        "requirements": {"risk": "low"},
        "plan": [{"quantize": {}}],
        "measure": {"seconds": SECONDS},
    }
    recipe = Recipe.model_validate(asked)
    splits = Splits(train=_split(48, 0), validation=_split(16, 1), test=_split(16, 2))
    task = Task(
        recipe=recipe,
        build=lambda: model,
        model=model,
        splits=splits,
        cases={part: cases(split, part, recipe.task) for part, split in splits},
        inputs=(TensorSpec(name="input", shape=(3, SIDE, SIDE), dtype="float32"),),
        data_digest="",
    )
    batch = example_batch(splits.train.inputs)
    groups = survey(model, batch)
    export_onnx(model, batch, folder / "baseline.onnx")
    return Subject(
        name=name,
        task=task,
        groups=groups,
        scores=group_scores(model, groups, "l1"),
        baseline=folder / "baseline.onnx",
        folder=folder,
    )


def _split(n: int, seed: int) -> Split:
    inputs = np.random.default_rng(seed).normal(size=(n, 3, SIDE, SIDE)).astype(np.float32)
    return Split(inputs=inputs, targets=np.arange(n) % 3)


def lines(name: str) -> Iterator[dict[str, Any]]:
    """One line for each precision and budget."""
    with tempfile.TemporaryDirectory() as folder:
        of = subject(name, Path(folder))
        conditions = conditions_of(of.task)
        for precision in ("fp32", "int8"):
            fast = fast_widths(precision, threads=1, conditions=conditions, progress=SILENT)
            for share in SHARES:
                try:
                    yield line(of, precision, fast.multiple, share) | asdict(conditions)
                except PreconditionError as error:
                    print(f"{name}, {precision}, {share:.0%}: {error}", flush=True)


def line(of: Subject, precision: Precision, multiple: int, share: float) -> dict[str, Any]:
    """One budget: what was asked, what the loop reached, and what the same widths take when timed anew."""
    folder = of.folder / f"{precision}-{share}"
    folder.mkdir()
    means = _means(of, precision, folder)
    whole_ms = means.latency(means.make({}), [0.95])[0.95]
    begun = perf_counter()
    plan = search(of, precision, multiple, share * whole_ms)
    took = perf_counter() - begun
    file = means.make(plan.kept)
    return {
        "model": of.name,
        "precision": precision,
        "round_to": multiple,
        "asked_share": share,
        "whole_p95_ms": round(whole_ms, 4),
        "asked_p95_ms": round(plan.limits[P95], 4),
        "reached_p95_ms": round(plan.measured[P95], 4),
        "reached_of_asked": round(plan.measured[P95] / plan.limits[P95], 3),
        "anew_of_asked": round(means.latency(file, [0.95])[0.95] / plan.limits[P95], 3),
        "faster_than_whole": round(_ratio(of, means.make({}), file), 3),
        "first_prediction_off": round(plan.rounds[0].predicted[P95] / plan.rounds[0].measured[P95], 3),
        "rounds": len(plan.rounds),
        "within": plan.within,
        "macs_share": round(means.macs(file) / means.macs(means.make({})), 3),
        "seconds": round(took, 1),
    }


def search(of: Subject, precision: Precision, multiple: int, limit_ms: float) -> BudgetPlan:
    """The loop itself."""
    return widths_for_budget(
        of.task.model,
        of.task,
        of.groups,
        of.scores,
        Budget.model_validate({"max_latency": {"p95": limit_ms}, "precision": precision}),
        baseline=of.baseline,
        folder=of.folder,
        multiple=multiple,
        progress=SILENT,
        table=of.folder / f"{precision}.json",
    )


def _means(of: Subject, precision: Precision, folder: Path) -> Means:
    batch = example_batch(of.task.splits.train.inputs)
    return means_here(
        of.task,
        [group for group in of.groups if not group.whole],
        of.scores,
        partial(remove, of.task.model, batch),
        baseline=of.baseline,
        folder=folder,
        quantize=Quantize() if precision == "int8" else None,
        percentiles=[0.95],
    )


def _ratio(of: Subject, whole: Path, file: Path) -> float:
    """How many times faster than the unpruned file of the same precision."""
    (batch,) = batches(of.task.splits.validation.inputs, [0], 1)
    sessions = load(whole), load(file)
    return compare(*sessions, batch, conditions=conditions_of(of.task), budget_s=SECONDS).ratio


def write(found: Sequence[Mapping[str, Any]]) -> None:
    """All lines so far."""
    with FIGURES.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)


def main() -> None:
    """Every network that is named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    done: list[dict[str, Any]] = []
    for name in parser.parse_args().models:
        for found in lines(name):
            done.append(found)
            write(done)
            print({key: found[key] for key in list(found)[:15]}, flush=True)


if __name__ == "__main__":
    main()

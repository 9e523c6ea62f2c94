"""Training in int8 on real architectures: placement, speed and agreement of its files with those of PTQ.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/qat.py [MODEL ...]

Each network is trained from random weights on 192 made-up images of 64 × 64 pixels in three classes,
quantized after training (PTQ) and trained on in int8 (QAT). The two files are timed in alternation, and their
operators are counted after ONNX Runtime has optimized them. Where the QAT file decides otherwise than its
training on more than one of 1,000 images of validation, the stage says so: that stands under ``notes``.
Writes benchmarks/qat.csv with the conditions.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch

from pastille.data.split import batches
from pastille.devices import this_machine
from pastille.export import export_onnx
from pastille.measure.latency import compare
from pastille.progress import SILENT
from pastille.recipe import FinetuneStep, QuantizeStep, Recipe, parse_recipe
from pastille.runner.run import reproducible
from pastille.runtime import ONNXRUNTIME, load, optimized_operators
from pastille.stages import Artifact, StageResult, run_stage, stage_for
from pastille.stages.looking import answers_of
from pastille.stats.decisions import decide
from pastille.task import Task, example_batch, load_task

MODELS: Final = ("resnet18", "resnet50", "mobilenet_v2")
SECONDS: Final = 8.0
DATA: Final = """
import numpy as np
import pastille

def splits():
    def part(n, seed):
        rng, y = np.random.default_rng(seed), np.arange(n) % 3
        x = rng.normal(0, 0.7, (n, 3, 64, 64)).astype(np.float32)
        x[:, 0] += 0.8 * (y[:, None, None] - 1)
        x[:, 1] -= 0.4 * (y[:, None, None] - 1)
        return pastille.Split(inputs=x, targets=y)
    return pastille.Splits(train=part(192, 0), validation=part(300, 1), test=part(30, 2))
"""
SAMPLES: Final = {"samples": 64}
LEARNING: Final = {"batch_size": 32, "learning_rate": 0.02}
QAT: Final = {**SAMPLES, "method": "qat", "train": {"epochs": 2, **LEARNING}}


def asked(name: str) -> Recipe:
    """A recipe whose data stand beside it."""
    return parse_recipe(
        {
            "name": name,
            "task": {"kind": "multiclass", "model": f"torchvision:{name}", "labels": ["a", "b", "c"]},
            "data": {"source": "data.py:splits"},
            "requirements": {"risk": "low"},
        }
    )


def staged(step: FinetuneStep | QuantizeStep, artifact: Artifact, task: Task, folder: Path) -> StageResult:
    folder.mkdir()
    return run_stage(stage_for(step, folder), artifact, task, folder, SILENT)


def row(name: str, base: Path) -> dict[str, Any]:
    """Train, quantize both ways, and compare."""
    task = load_task(asked(name), base)
    batch = example_batch(task.splits.train.inputs)
    export_onnx(task.model, batch, base / "untrained.onnx")
    start = Artifact(module=task.model, file=base / "untrained.onnx")
    tuning = FinetuneStep.model_validate({"finetune": {"epochs": 12, **LEARNING}})
    trained = staged(tuning, start, task, base / "trained").module
    export_onnx(trained, batch, base / "float.onnx")
    artifact = Artifact(module=trained, file=base / "float.onnx")
    ptq, qat = (
        staged(QuantizeStep.model_validate({"quantize": settings}), artifact, task, base / way)
        for way, settings in (("ptq", {**SAMPLES, "recover": "none", "draws": 1}), ("qat", QAT))
    )
    assert ptq.quantized is not None
    assert qat.quantized is not None
    return {
        "model": name,
        **compared(ptq.quantized, qat.quantized, task),
        "notes": " ".join(qat.details.notes),
    }


def compared(ptq: Path, qat: Path, task: Task) -> Mapping[str, Any]:
    here = this_machine(threads=1, runtime=ONNXRUNTIME.name, runtime_version=ONNXRUNTIME.version)
    (one,) = batches(task.splits.validation.inputs, [0], 1)
    speed = compare(load(qat), load(ptq), one, conditions=here, budget_s=SECONDS)
    cases, found = (
        task.cases["validation"],
        {way: optimized_operators(file) for way, file in (("ptq", ptq), ("qat", qat))},
    )
    right = [float((decide(answers_of(file, task), cases) == cases.targets).mean()) for file in (ptq, qat)]
    return {
        "latency_qat_over_ptq": round(speed.ratio, 3),
        "low": round(speed.interval.low, 3),
        "high": round(speed.interval.high, 3),
        "placed_alike": found["ptq"] == found["qat"],
        "int8": " ".join(f"{n} {op}" for op, n in found["qat"].int8.items()),
        "float": " ".join(f"{n} {op}" for op, n in found["qat"].floating.items()),
        "accuracy_ptq": right[0],
        "accuracy_qat": right[1],
        **asdict(here),
    }


def rows(names: list[str]) -> Iterator[dict[str, Any]]:
    for name in names:
        with tempfile.TemporaryDirectory(prefix="pastille-") as folder, reproducible(0):
            (Path(folder) / "data.py").write_text(DATA)
            torch.manual_seed(0)
            found = row(name, Path(folder))
        print({k: found[k] for k in list(found)[:9]}, found["notes"], flush=True)
        yield found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    found = list(rows(parser.parse_args().models))
    with Path(__file__).with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(found[0]))
        writer.writeheader()
        writer.writerows(found)


if __name__ == "__main__":
    main()

"""What a teacher is worth: the same student on labels alone and taught, for images, ECG and text.

    .venv/bin/python benchmarks/distillation.py --data DIR --work WORK

DIR holds ham10000_128.zip, ptbxl_100hz.zip and med_abstracts.zip. For each task and each of three
seeds, ten of the few ECG, a teacher is trained on a split of its own; then the same student twice, from the
same weights, with the same number of steps: on labels alone, and beside the teacher by `pastille run`'s own
stage. Every file is judged on the test split in the runtime, as fp32 and as int8: the metric, its drop
against the teacher with an interval of 95 %, paired and by patient, the verdict of the medium tier, and the
speed at batch 1 on one thread, paired with the teacher's fp32 file. Rows of seed `all` are mean and standard
deviation over seeds; `gain` is the taught student's metric less the other's, paired by seed.

    skin       ResNet-18 of 64 pixels -> ResNet-10
    ecg        1-D ResNet of width 64 -> width 16
    abstracts  all-MiniLM-L6-v2, fine-tuned, 64 tokens -> 3 layers -> 2 layers; int8 is dynamic

Writes benchmarks/distillation.csv as rows come, aggregated figures alone. What is done stays in WORK and is
not done again: a run that was killed goes on where it was; after a change to the code the files must go.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
import torch
from distillation_models import PROBLEMS, Problem, task_of, unpacked
from torch import nn

from pastille import judge
from pastille.data.sampler import calibration_indices
from pastille.data.split import batches, collate
from pastille.devices import this_machine
from pastille.distillation.students import built_student
from pastille.export import export_onnx
from pastille.files import produce_atomic
from pastille.measure.evaluate import answer
from pastille.measure.latency import compare as compare_speed
from pastille.progress import SILENT
from pastille.quantization import quantize_static
from pastille.quantization.dynamic import quantize_dynamic
from pastille.recipe import DistillTraining, Quantize, Train
from pastille.runner.run import reproducible
from pastille.runtime import ONNXRUNTIME, load
from pastille.stages import Artifact
from pastille.stages.distilling import DistillStage
from pastille.stages.tuning import tuned
from pastille.stats.kinds import forms
from pastille.stats.paired import compare
from pastille.task import Task, example_batch

HERE: Final = Path(__file__).parent
KINDS: Final = ("teacher", "labels", "distilled")
CALIBRATION: Final = 256
BATCH: Final = 32
SECONDS: Final = 3.0  # of timing, for each file

Row = dict[str, object]


def taught(problem: Problem, task: Task, kind: str, folder: Path, *, quick: bool) -> nn.Module:
    """A student, trained in one of the two ways."""
    asked = problem.distilling(quick=quick)
    with reproducible(task.recipe.seed):
        if kind == "labels":
            return on_labels(problem, task, asked)
        artifact = Artifact(module=task.model, file=folder.parent / "teacher" / "fp32.onnx")
        stage = DistillStage(settings=asked, base=problem.base)
        stage.requires(artifact, task)
        return stage.apply(artifact, task, folder, SILENT).module


def on_labels(problem: Problem, task: Task, asked: DistillTraining) -> nn.Module:
    """The student as it is before it is taught, trained as long: once for each student on the way to it."""
    students = asked.students or []
    module = task.model
    for student in students:
        module = built_student(student, module, task, problem.base).module
    shared = {name: getattr(asked, name) for name in asked.model_fields_set & set(Train.model_fields)}
    settings = Train(**{**shared, "epochs": asked.epochs * len(students)})
    return tuned(module, task, settings, problem.base, SILENT, "labels alone").model


def exported(problem: Problem, task: Task, kind: str, folder: Path, *, quick: bool) -> dict[str, object]:
    """Write the fp32 file and its int8 file; what the training came to."""
    folder.mkdir(parents=True, exist_ok=True)
    began = time.process_time()
    module = task.model if kind == "teacher" else taught(problem, task, kind, folder, quick=quick)
    spent = time.process_time() - began
    export_onnx(module, example_batch(task.splits.train.inputs), folder / "fp32.onnx")
    quantized(problem, task, folder)
    return {"parameters": sum(p.numel() for p in module.parameters()), "training_cpu_s": round(spent, 1)}


def quantized(problem: Problem, task: Task, folder: Path) -> None:
    source, target = folder / "fp32.onnx", folder / "int8.onnx"
    if problem.int8 == "dynamic":
        quantize_dynamic(source, target, embeddings=True)
        return
    train = task.splits.train
    chosen = calibration_indices(train, CALIBRATION, seed=task.recipe.seed, kind=task.recipe.task.kind)
    quantize_static(source, target, lambda: batches(train.inputs, list(chosen), BATCH), Quantize())


def rows_of(problem: Problem, task: Task, kind: str, place: Path, *, quick: bool) -> list[Row]:
    """Both files of one model, on the test split."""
    about = exported(problem, task, kind, place / kind, quick=quick)
    return [
        {"task": problem.name, "seed": task.recipe.seed, "kind": kind, "precision": precision}
        | about
        | judged(problem, task, place / kind / f"{precision}.onnx", place / "teacher" / "fp32.onnx")
        for precision in ("fp32", "int8")
    ]


def judged(problem: Problem, task: Task, file: Path, teacher: Path) -> Row:
    """A file against the teacher's fp32 file."""
    cases, section, inputs = task.cases["test"], task.recipe.task, task.splits.test.inputs
    before, after = (answer(load(path), task.splits.test, batch_size=BATCH) for path in (teacher, file))
    pair = [forms(outputs, cases).overall[problem.metric] for outputs in (before, after)]
    found = compare(*pair, metric=problem.metric, subjects=cases.subjects, confidence=0.95)
    says = judge(
        before,
        after,
        cases.targets,
        kind=section.kind,
        labels=section.labels,
        positive=section.positive,
        given="logits",
        risk="medium",
        subjects=cases.subjects,
    )
    assert found.baseline is not None
    assert found.candidate is not None
    assert found.interval is not None
    conditions = this_machine(threads=1, runtime=ONNXRUNTIME.name, runtime_version=ONNXRUNTIME.version)
    speed = compare_speed(
        load(teacher), load(file), collate([inputs[0]]), conditions=conditions, budget_s=SECONDS
    )
    return {
        "metric": problem.metric,
        "cases": found.n,
        "value": round(found.candidate.value, 4),
        "of_teacher": round(found.candidate.value / found.baseline.value, 4),
        "drop_pp": round(100 * (found.baseline.value - found.candidate.value), 2),
        "low_pp": round(100 * found.interval.low, 2),
        "high_pp": round(100 * found.interval.high, 2),
        "verdict": says.status.value,
        "bytes": file.stat().st_size,
        "of_teacher_bytes": round(file.stat().st_size / teacher.stat().st_size, 4),
        "speedup": round(speed.ratio, 3),
        "speedup_low": round(speed.interval.low, 3),
        "speedup_high": round(speed.interval.high, 3),
    }


def judged_again(problem: Problem, task: Task, row: Row, place: Path) -> Row:
    """A row with its file judged and timed anew; nothing is trained."""
    file = place / str(row["kind"]) / f"{row['precision']}.onnx"
    return row | judged(problem, task, file, place / "teacher" / "fp32.onnx")


def over_seeds(found: Sequence[Row]) -> Iterator[Row]:
    """Mean and standard deviation of each file, and what the teacher brought."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in found:
        groups.setdefault((row["task"], row["kind"], row["precision"]), []).append(row)
    for (task, kind, precision), rows in groups.items():
        values = np.array([row["value"] for row in rows], float)
        shown: Row = {"task": task, "seed": "all", "kind": kind, "precision": precision}
        shown |= {"metric": rows[0]["metric"], "seeds": len(rows)}
        shown |= _spread("value", values)
        for name in ("of_teacher", "drop_pp", "of_teacher_bytes", "speedup"):
            shown[name] = round(float(np.mean([float(str(row[name])) for row in rows])), 4)
        other = groups.get((task, "labels", precision), [])
        if kind == "distilled" and len(other) == len(rows):
            shown |= _spread("gain_pp", 100 * (values - np.array([row["value"] for row in other], float)))
        yield shown


def _spread(name: str, values: np.ndarray) -> Row:
    sd = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return {name: round(float(values.mean()), 4), f"{name}_sd": round(sd, 4)}


def kept(place: Path, kind: str) -> list[Row]:
    """What was measured before; nothing if it was not."""
    file = place / f"{kind}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []


def measured(problem: Problem, asked: argparse.Namespace, seed: int) -> Iterator[list[Row]]:
    """Every row of one task and seed, a model at a time."""
    place: Path = asked.work / f"{problem.name}-{seed}"
    task: Task | None = None
    for kind in KINDS:
        found = kept(place, kind)
        if not found or asked.again:
            if task is None:
                data = unpacked(problem, asked.data, asked.work)
                task = task_of(problem, data, asked.work, seed=seed, quick=asked.quick)
            found = (
                [judged_again(problem, task, row, place) for row in found]
                if found
                else rows_of(problem, task, kind, place, quick=asked.quick)
            )
            text = json.dumps(found, indent=1)
            produce_atomic(place / f"{kind}.json", lambda draft, text=text: draft.write_text(text, "utf-8"))
        yield found


def write(found: Sequence[Row], path: Path) -> None:
    here = asdict(this_machine(threads=1, runtime=ONNXRUNTIME.name, runtime_version=ONNXRUNTIME.version))
    here |= {"pastille": version("pastille"), "torch": torch.__version__}
    rows = [*found, *over_seeds(found)]
    names = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*names, *here], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **here} for row in rows)


def show(row: Mapping[str, object]) -> None:
    spread = f" ± {row['value_sd']}" if "value_sd" in row else ""
    gain = f", gain {row['gain_pp']} ± {row['gain_pp_sd']} pp" if "gain_pp" in row else ""
    print(
        f"{row['task']:<10} seed {row['seed']!s:<4}{row['kind']:<10}{row['precision']}  {row['metric']} "
        f"{row['value']}{spread}, {row['of_teacher']} of the teacher's at {row['of_teacher_bytes']} of its "
        f"size, {row['speedup']} times as fast{gain} {row.get('verdict', '')}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the archives")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "pastille-distillation")
    parser.add_argument("--tasks", nargs="+", choices=PROBLEMS, default=tuple(PROBLEMS))
    parser.add_argument("--seeds", nargs="+", type=int, help="in place of each task's own")
    parser.add_argument("--quick", action="store_true", help="one epoch each, in a WORK of its own")
    parser.add_argument("--again", action="store_true", help="judge and time what is in WORK anew")
    parser.add_argument("--output", type=Path, default=HERE / "distillation.csv")
    asked = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "") or os.cpu_count() or 1))
    found: list[Row] = []
    for problem in (PROBLEMS[name] for name in asked.tasks):
        for seed in asked.seeds or problem.seeds:
            for rows in measured(problem, asked, seed):
                found += rows
                write(found, asked.output)
                for row in rows:
                    show(row)
    for row in over_seeds(found):
        show(row)


if __name__ == "__main__":
    main()

"""The whole chain on the skin model: ResNet-18, pruned, distilled, trained in int8, stage by stage.

    .venv/bin/python benchmarks/chain.py --data DIR --work WORK

DIR holds ham10000_128.zip. For each seed a ResNet-18 is trained on a split of its own, by lesion (the
teacher of `distillation.py`, from the same WORK), and `pastille run` carries out examples/skin/chain.yaml.
Each row is the file after a stage: its size, its speed at batch 1 on one thread, paired with the ResNet-18 in
fp32, and AUC and accuracy. The stages' rows are of validation, which their gates look at; the last, `test`,
is the verdict on the test split, at the medium tier.

Writes benchmarks/chain.csv as rows come, aggregated figures alone. What was killed goes on where it was.

    .venv/bin/python benchmarks/chain.py --data DIR --work WORK --ablate --seeds 2

carries out the finished plan once more without each of its stages, as `pastille ablate` does, on validation
alone; writes benchmarks/chain_ablation.csv.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Final

import torch
from distillation_models import SKIN, task_of, unpacked

from pastille import Recipe, read_recipe, run
from pastille.devices import this_machine
from pastille.record import BaselineProfiled, FinalJudged, Record, StageFinished, read_record
from pastille.runner.ablation import ablate
from pastille.runtime import ONNXRUNTIME
from pastille.values import Metrics, Profile, Verdict

HERE: Final = Path(__file__).parent
SEEDS: Final = (0, 1, 2)

Row = dict[str, object]


def recipe_of(asked: argparse.Namespace, seed: int) -> Recipe:
    """The example's, for data and weights that lie elsewhere."""
    data = unpacked(SKIN, asked.data, asked.work)
    task_of(SKIN, data, asked.work, seed=seed, quick=asked.quick)  # trains the teacher, if need be
    where = [text.format(data=data, seed=seed) for text in SKIN.recipe]
    weights = asked.work / f"{SKIN.name}-{seed}" / "teacher.safetensors"
    output = asked.work / "chain" / str(seed)
    overrides = [*where, f"task.weights={weights.resolve()}", f"output={output.resolve()}", f"seed={seed}"]
    return read_recipe(SKIN.base / "chain.yaml", overrides)


def quickly(recipe: Recipe) -> Recipe:
    """One epoch of everything: does it work?"""
    plan = recipe.model_dump(mode="json", exclude_unset=True)
    prune, distill, quantize = (next(iter(step.values())) for step in plan["plan"])
    prune["steps"] = prune["finetune"]["epochs"] = distill["epochs"] = quantize["train"]["epochs"] = 1
    return Recipe.model_validate(plan)


def record_of(asked: argparse.Namespace, seed: int) -> Record:
    """What happened; carried out here unless WORK has it."""
    recipe = recipe_of(asked, seed)
    done = sorted(Path(recipe.output).glob("*/*/report.html"))
    if done:
        return read_record(done[-1].parent / "run.json")
    found = run(quickly(recipe) if asked.quick else recipe, SKIN.base, resume=True)
    return found.record


def rows_of(record: Record, seed: int) -> Iterator[Row]:
    """The model as it was brought, each stage, and the verdict on the test split."""
    first: Profile | None = None
    for event in record.events:
        match event:
            case BaselineProfiled(profile=profile):
                first = profile
                yield {"seed": seed, "stage": "ResNet-18"} | measured(profile, profile)
            case StageFinished() if first is not None:
                row = {"seed": seed, "stage": event.name, "kept": event.kept}
                yield row | measured(event.profile, first) | said(event.verdict)
            case FinalJudged():
                row = {"seed": seed, "stage": "test", "split": "test"}
                yield row | scores(event.candidate_metrics, event.baseline_metrics) | said(event.verdict)


def measured(profile: Profile, first: Profile) -> Row:
    """Of one file, beside the file of the whole network."""
    speed = profile.speedup
    return {
        "split": profile.metrics.split,
        "precision": profile.precision,
        "parameters": profile.parameters,
        "bytes": profile.bytes_on_disk,
        "times_smaller": round(first.bytes_on_disk / profile.bytes_on_disk, 2),
        "median_ms": round(profile.latency[0].quantiles[0].value_ms, 3),
        "speedup": 1.0 if speed is None else round(speed.ratio, 2),
        "speedup_low": 1.0 if speed is None else round(speed.interval.low, 2),
        "speedup_high": 1.0 if speed is None else round(speed.interval.high, 2),
        **scores(profile.metrics, first.metrics),
    }


def scores(found: Metrics, first: Metrics) -> Row:
    """And how much lower than the whole network's, in points."""
    names = ("auroc", "accuracy", "sensitivity", "specificity")
    shown: Row = {name: round(found.overall[name].value, 4) for name in names}
    drops = {name: first.overall[name].value - found.overall[name].value for name in names}
    return shown | {f"{name}_drop_pp": round(100 * drop, 2) for name, drop in drops.items()}


def said(verdict: Verdict) -> Row:
    return {"verdict": verdict.status.value, "reason": verdict.reason}


def left_out(asked: argparse.Namespace, seed: int) -> Iterator[Row]:
    """The whole plan, and the plan without each of its stages."""
    for row in ablate(recipe_of(asked, seed), SKIN.base).rows:
        yield {
            "seed": seed,
            "without": row.stage or "nothing",
            "bytes": row.size_bytes,
            "median_ms": row.latency_ms,
            "speedup": None if row.speedup is None else round(row.speedup.ratio, 2),
            "metric": row.metric,
            "value": round(row.estimate.value, 4),
            "worse_pp": None if row.worse is None else round(100 * row.worse, 2),
            "worse_low_pp": None if row.interval is None else round(100 * row.interval.low, 2),
            "worse_high_pp": None if row.interval is None else round(100 * row.interval.high, 2),
            "verdict": row.status,
        }


def write(found: Sequence[Row], path: Path) -> None:
    here = asdict(this_machine(threads=1, runtime=ONNXRUNTIME.name, runtime_version=ONNXRUNTIME.version))
    here |= {"pastille": version("pastille"), "torch": torch.__version__}
    names = list(dict.fromkeys(key for row in found for key in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*names, *here], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **here} for row in found)


def show(row: Mapping[str, object]) -> None:
    cost = (
        ""
        if row["stage"] == "test"
        else (
            f"{row['bytes']} bytes ({row['times_smaller']} times smaller), {row['speedup']} times as fast, "
        )
    )
    print(
        f"seed {row['seed']} {row['stage']!s:<10} {cost}"
        f"AUC {row['auroc']} ({row['auroc_drop_pp']} pp lower), "
        f"accuracy {row['accuracy']} ({row['accuracy_drop_pp']} pp lower) {row.get('verdict', '')}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of ham10000_128.zip")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "pastille-distillation")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--quick", action="store_true", help="one epoch each, in a WORK of its own")
    parser.add_argument("--ablate", action="store_true", help="leave out each stage of the finished runs")
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    output = asked.output or HERE / ("chain_ablation.csv" if asked.ablate else "chain.csv")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "") or os.cpu_count() or 1))
    found: list[Row] = []
    for seed in asked.seeds:
        for row in left_out(asked, seed) if asked.ablate else rows_of(record_of(asked, seed), seed):
            found.append(row)
            print(row, flush=True) if asked.ablate else show(row)
        write(found, output)


if __name__ == "__main__":
    main()

"""What pruning costs and brings on a skin model: ResNet-18 on HAM10000, against a control trained alike.

    .venv/bin/python benchmarks/pruning_skin.py --data DIR

DIR holds ham10000_128.zip. For each of three seeds a ResNet-18 is trained from random weights on a split of
its own, by lesion. Then, with every criterion, half of the channels leave in three steps with fine-tuning
after each; the control is the network as it was, with the same fine-tuning. Fine-tuning alone can gain
points, so a drop is against the control: paired, of the AUC, with its interval of 95 % by lesion, on the test
split that neither training nor choice of an epoch saw. Rows of seed `all` take the test cases of all seeds.

Speed is paired in ONNX Runtime at batch 1, one thread: the pruned file against the unpruned, and the int8
file of the pruned network against the int8 file of the unpruned one.

Writes benchmarks/pruning_skin.csv, aggregated figures alone. Weights and files stay in --cache and are used
again: a run that was killed goes on where it was; after a change to the code the files must go.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
import torch
from accuracy_models import SKIN_FOLDER
from pruning_models import skin_task
from torch import nn

from pastille.data.sampler import calibration_indices
from pastille.data.split import collate
from pastille.devices import this_machine
from pastille.export import export_onnx
from pastille.measure.counts import macs
from pastille.measure.evaluate import answer
from pastille.measure.latency import compare as compare_speed
from pastille.progress import SILENT
from pastille.pruning import read_model, write_model
from pastille.quantization import quantize_static
from pastille.recipe import Prune, Quantize, Train
from pastille.runner.run import reproducible
from pastille.runtime import ONNXRUNTIME, load
from pastille.stages import Artifact
from pastille.stages.pruning import PruneStage
from pastille.stages.tuning import tuned
from pastille.stats.kinds import forms
from pastille.stats.paired import compare
from pastille.task import Task, example_batch
from pastille.values import Cases, Comparison

HERE: Final = Path(__file__).parent
SEEDS: Final = (0, 1, 2)
CRITERIA: Final = ("taylor", "fisher", "l1", "l2", "bn_scale", "fpgm", "activation", "lamp", "random")
MEANT: Final = ("taylor", "l1", "random")  # what is compared unless --criteria says otherwise
CONTROL: Final = "control"
STEPS: Final = 3
TUNING: Final = Train(epochs=1, learning_rate=0.01, class_weights="balanced", augment="augment.py:turned")
SPARSITY: Final = 0.5
CALIBRATION: Final = 256
BATCH: Final = 32


@dataclass(frozen=True, kw_only=True)
class Tested:
    """What the networks of one seed answered to its test split: method -> ``(N, 2)`` logits."""

    cases: Cases
    outputs: Mapping[str, np.ndarray]
    files: Mapping[str, Mapping[str, object]]


def settings(criterion: str) -> Prune:
    """Half of the channels, in three steps; an epoch after each, at half the learning rate of the last."""
    return Prune.model_validate(
        {
            "criterion": criterion,
            "sparsity": SPARSITY,
            "steps": STEPS,
            "round_to": 16,
            "finetune": TUNING.model_dump(exclude_unset=True),
        }
    )


def control(task: Task) -> nn.Module:
    """The network as it was, with the fine-tuning that the pruned ones have."""
    module = task.model
    for step in range(STEPS):
        rate = TUNING.learning_rate * settings("l1").slower ** step
        asked = TUNING.model_copy(update={"learning_rate": rate})
        module = tuned(module, task, asked, SKIN_FOLDER, SILENT, "control").model
    return module


def pruned(task: Task, criterion: str, file: Path, folder: Path) -> nn.Module:
    """As `pastille run` prunes it."""
    stage = PruneStage(settings=settings(criterion), base=SKIN_FOLDER)
    artifact = Artifact(module=task.model, file=file)
    stage.requires(artifact, task)
    return stage.apply(artifact, task, folder, SILENT).module


def made(task: Task, method: str, folder: Path) -> nn.Module:
    """The network of one method; made here if the cache does not hold it."""
    place = folder / method
    if not (place / "architecture.json").is_file():
        place.mkdir(parents=True, exist_ok=True)
        original = folder / "original.onnx"
        if not original.is_file():
            export_onnx(task.model, example_batch(task.splits.train.inputs), original)
        with reproducible(task.recipe.seed):
            module = control(task) if method == CONTROL else pruned(task, method, original, place)
        write_model(module, task.build(), place)
    return read_model(task.build, place)


def exported(task: Task, module: nn.Module, place: Path) -> tuple[Path, Path]:
    """The fp32 file and its int8 file."""
    file, small = place / "fp32.onnx", place / "int8.onnx"
    if not small.is_file():
        export_onnx(module, example_batch(task.splits.train.inputs), file)
        train = task.splits.train
        chosen = calibration_indices(train, CALIBRATION, seed=task.recipe.seed, kind=task.recipe.task.kind)
        samples = collate([train.inputs[int(row)] for row in chosen])["input"]
        quantize_static(file, small, lambda: _batches(samples), Quantize())
    return file, small


def _batches(samples: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, len(samples), BATCH):
        yield {"input": samples[start : start + BATCH]}


def tested(task: Task, methods: Sequence[str], folder: Path) -> Tested:
    """Every method of one seed, on the test split."""
    outputs: dict[str, np.ndarray] = {}
    files: dict[str, dict[str, object]] = {}
    base: tuple[Path, Path] | None = None
    for method in (CONTROL, *methods):
        print(f"seed {task.recipe.seed}: {method}", flush=True)
        pair = exported(task, made(task, method, folder), folder / method)
        base = base or pair
        for file, name in zip(pair, (method, f"{method}, int8"), strict=True):
            outputs[name] = answer(load(file), task.splits.test, batch_size=BATCH)
        files[method] = of_files(task, pair, base)
    return Tested(cases=task.cases["test"], outputs=outputs, files=files)


def of_files(task: Task, pair: tuple[Path, Path], base: tuple[Path, Path]) -> dict[str, object]:
    """Work, size and speed of a pruned network against the control's."""
    conditions = this_machine(threads=1, runtime=ONNXRUNTIME.name, runtime_version=ONNXRUNTIME.version)
    one = collate([task.splits.test.inputs[0]])
    found: dict[str, object] = {
        "macs": macs(pair[0]),
        "macs_ratio": round(macs(base[0]) / macs(pair[0]), 3),
        "bytes": pair[0].stat().st_size,
        "int8_bytes": pair[1].stat().st_size,
    }
    against = {"fp32": (base[0], pair[0]), "int8": (base[1], pair[1]), "int8_over_fp32": (base[0], pair[1])}
    for name, (before, after) in against.items():
        speed = compare_speed(load(before), load(after), one, conditions=conditions)
        found |= {f"{name}_speedup": round(speed.ratio, 3)}
        found |= {f"{name}_low": round(speed.interval.low, 3), f"{name}_high": round(speed.interval.high, 3)}
    return found


def pooled(parts: Sequence[Tested]) -> Tested:
    """Test splits of several seeds, judged as one; a lesion that recurs stays one."""
    joined = [np.concatenate([getattr(part.cases, key) for part in parts]) for key in ("targets", "subjects")]
    cases = replace(parts[0].cases, targets=joined[0], subjects=joined[1], groups={}, strata=None, ids=None)
    outputs = {name: np.concatenate([part.outputs[name] for part in parts]) for name in parts[0].outputs}
    return Tested(cases=cases, outputs=outputs, files=parts[0].files)


def drop(part: Tested, candidate: str, against: str) -> Comparison:
    """By how much the AUC is worse, paired, by lesion."""
    before, after = (forms(part.outputs[name], part.cases).overall["auroc"] for name in (against, candidate))
    return compare(before, after, metric="auroc", subjects=part.cases.subjects, confidence=0.95)


def rows(parts: Sequence[Tested], methods: Sequence[str]) -> Iterator[dict[str, object]]:
    """Each method against the control, and against each other, for each seed and over all."""
    whole = pooled(parts)
    against = [(method, CONTROL) for method in methods]
    against += [(f"{method}, int8", f"{CONTROL}, int8") for method in methods]
    against += [(methods[0], other) for other in methods[1:]]
    for pair in against:
        found = [drop(part, *pair) for part in parts]
        for part, each, seed in zip(parts, found, SEEDS, strict=False):
            yield {**_row(str(seed), each, pair), **part.files.get(pair[0], {})}
        drops = [100 * each.drop for each in found if each.drop is not None]
        spread = float(np.std(drops, ddof=1)) if len(drops) > 1 else 0.0
        mean = {"drop_mean_pp": round(float(np.mean(drops)), 3), "drop_sd_pp": round(spread, 3)}
        yield {**_row("all", drop(whole, *pair), pair), **mean}


def _row(seed: str, found: Comparison, pair: tuple[str, str]) -> dict[str, object]:
    low, high = (found.interval.low, found.interval.high) if found.interval is not None else (None, None)
    points = {"drop_pp": found.drop, "low_pp": low, "high_pp": high}
    return {
        "seed": seed,
        "method": pair[0],
        "against": pair[1],
        "cases": found.n,
        "auc_against": found.baseline and round(found.baseline.value, 4),
        "auc": found.candidate and round(found.candidate.value, 4),
        **{name: value is not None and round(100 * value, 3) for name, value in points.items()},
    }


def write(found: Sequence[Mapping[str, object]], path: Path) -> None:
    here = asdict(this_machine(threads=1, runtime=ONNXRUNTIME.name, runtime_version=ONNXRUNTIME.version))
    here |= {"pastille": version("pastille"), "torch": torch.__version__}
    names = list(dict.fromkeys(key for each in found for key in each))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*names, *here], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({**each, **here} for each in found)


def show(each: Mapping[str, object]) -> None:
    if each["seed"] == "all":
        print(
            f"{each['method']:<18} against {each['against']:<14} AUC {each['auc']:.4f}, drop "
            f"{each['drop_pp']:+.2f} pp ({each['low_pp']:+.2f} to {each['high_pp']:+.2f}), over seeds "
            f"{each['drop_mean_pp']:+.2f} ± {each['drop_sd_pp']:.2f}"
        )
    elif "macs_ratio" in each:
        print(
            f"{each['method']:<18} seed {each['seed']}: {each['macs_ratio']} times fewer MACs, fp32 "
            f"{each['fp32_speedup']} times as fast, int8 {each['int8_speedup']} times as fast as int8 alone, "
            f"{each['int8_over_fp32_speedup']} times as fast as the unpruned fp32 file"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of ham10000_128.zip")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "pastille-pruning")
    parser.add_argument("--criteria", nargs="+", choices=CRITERIA, default=MEANT)
    parser.add_argument("--output", type=Path, default=HERE / "pruning_skin.csv")
    asked = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "") or os.cpu_count() or 1))
    parts = []
    for seed in SEEDS:
        task = skin_task(asked.data, asked.cache, seed=seed)
        parts.append(tested(task, asked.criteria, asked.cache / f"pruned-{seed}"))
    found = list(rows(parts, asked.criteria))
    for each in found:
        show(each)
    write(found, asked.output)


if __name__ == "__main__":
    main()

"""What int8 costs in balanced accuracy: Pastille, ONNX Runtime's own quantizer and NNCF on the same networks.

    .venv/bin/python benchmarks/accuracy.py --data DIR --nncf nncf-venv/bin/python

DIR holds ham10000_128.zip (HAM10000, skin lesions) and ptbxl_100hz.zip (PTB-XL, electrocardiograms). For each
of three seeds a network is trained from random weights on a split of its own; every tool then gets the same
fp32 file and the same 256 calibration cases of the training split, and is judged on the test split in ONNX
Runtime. A drop is paired, its interval of 95 % is by lesion or patient; rows of seed `all` take the test
cases of all seeds together. A row says how a method fares against fp32, or against another method: a positive
drop is worse. competitors/quantize_nncf.py says how NNCF's environment is made.

Writes benchmarks/accuracy.csv, aggregated figures alone. Trained weights and int8 files stay in --cache and
are used again: a run that was killed goes on where it was; after a change to the code the files must go.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnx
import torch
from accuracy_models import PROBLEMS, Problem, trained_task, unpacked

from pastille.data.sampler import calibration_indices
from pastille.data.split import collate
from pastille.devices import this_machine
from pastille.export import export_onnx
from pastille.measure.evaluate import answer, same_for_batches
from pastille.measure.latency import compare as compare_speed
from pastille.progress import SILENT
from pastille.quantization import quantize_static
from pastille.quantization.conversion import float_model
from pastille.quantization.recovery import Choice, prepared, recovered
from pastille.quantization.recovery.auto import sqnr_db
from pastille.recipe import QatQuantize, Quantize
from pastille.runtime import ONNXRUNTIME, load
from pastille.stages import Artifact
from pastille.stages.qat import QatStage
from pastille.stats.kinds import forms
from pastille.stats.paired import compare
from pastille.task import Task, example_batch
from pastille.values import Cases, Comparison

HERE: Final = Path(__file__).parent
SEEDS: Final = (0, 1, 2)
CALIBRATION: Final = 256
BATCH: Final = 32
ALONE: Final = 256  # test cases that are asked in batches of one too

FP32, PTQ, RECOVERED, QAT = "fp32", "pastille ptq", "pastille ptq, recovered", "pastille qat"
EIGHT = "pastille ptq, 8-bit weights"  # 7 are the default, see pastille.quantization.quantize_static
DEFAULT, U8S8, NNCF = "onnxruntime default", "onnxruntime U8S8 per channel", "nncf"
OURS: Final = (PTQ, EIGHT, RECOVERED, QAT)
RIVALS: Final = (DEFAULT, U8S8, NNCF)
PAIRS: Final = (
    *((method, FP32) for method in (*OURS, *RIVALS)),
    (QAT, PTQ),
    *((method, rival) for method in OURS for rival in RIVALS),
)

Method = Callable[[Path, Path, np.ndarray, Task], None]


@dataclass(frozen=True, kw_only=True)
class Tested:
    """What the files of one training answered to its test split.

    Attributes:
        cases: The right answers.
        outputs: Method -> ``(N, 2)`` logits.
        files: Method -> columns of the table that are of its file.
    """

    cases: Cases
    outputs: Mapping[str, np.ndarray]
    files: Mapping[str, Mapping[str, object]]


def ours(source: Path, target: Path, samples: np.ndarray, _task: Task, *, bits: Literal[7, 8] = 7) -> None:
    quantize_static(source, target, lambda: _batches(samples), Quantize(weight_bits=bits))


def ours_recovered(source: Path, target: Path, samples: np.ndarray, _task: Task) -> None:
    graph = prepared(float_model(source))
    quantized, account = recovered(graph, lambda: _batches(samples), Choice())
    print(f"  recovered: {account.choice.words}, {account.gained_db:+.1f} dB")
    onnx.save(quantized, target)


def ours_trained(source: Path, target: Path, _samples: np.ndarray, task: Task, *, problem: Problem) -> None:
    stage = QatStage(settings=QatQuantize(method="qat", train=problem.qat), base=problem.base)
    result = stage.apply(Artifact(module=task.model, file=source), task, target.parent, SILENT)
    assert result.quantized is not None
    result.quantized.rename(target)


def runtime_static(source: Path, target: Path, samples: np.ndarray, _task: Task, **how: Any) -> None:
    from onnxruntime.quantization import CalibrationDataReader
    from onnxruntime.quantization import quantize_static as default

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter(samples)

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self.rows, None)
            return None if row is None else {"input": row[None]}

    default(str(source), str(target), Reader(), **how)


def runtime_u8s8(source: Path, target: Path, samples: np.ndarray, task: Task) -> None:
    from onnxruntime.quantization import QuantType

    how = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    runtime_static(source, target, samples, task, **how)


def nncf(source: Path, target: Path, samples: np.ndarray, _task: Task, *, python: Path) -> None:
    cases = target.with_suffix(".npz")
    np.savez(cases, input=samples)
    script = HERE / "competitors/quantize_nncf.py"
    subprocess.run([python, script, source, cases, target], check=True, stdout=subprocess.DEVNULL)


def methods(problem: Problem, python: Path | None) -> dict[str, Method]:
    """Every way that there is on this machine."""
    found: dict[str, Method] = {PTQ: ours, EIGHT: partial(ours, bits=8)}
    found |= {DEFAULT: runtime_static, U8S8: runtime_u8s8}
    if python is not None:
        found[NNCF] = partial(nncf, python=python)
    return {**found, QAT: partial(ours_trained, problem=problem), RECOVERED: ours_recovered}


def _batches(samples: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, len(samples), BATCH):
        yield {"input": samples[start : start + BATCH]}


def quantized(task: Task, ways: Mapping[str, Method], folder: Path) -> dict[str, Path]:
    """Export a trained network and quantize it in every way; files that are there already stay."""
    files = {FP32: folder / "fp32.onnx"}
    if not files[FP32].is_file():
        export_onnx(task.model, example_batch(task.splits.train.inputs), files[FP32])
    train, recipe = task.splits.train, task.recipe
    chosen = calibration_indices(train, CALIBRATION, seed=recipe.seed, kind=recipe.task.kind)
    samples = collate([train.inputs[int(row)] for row in chosen])["input"]
    for name, quantize in ways.items():
        target = folder / f"{name.replace(' ', '-').replace(',', '')}.onnx"
        try:
            if not target.is_file():
                draft = target.with_suffix(".part.onnx")
                quantize(files[FP32], draft, samples, task)
                draft.rename(target)
            files[name] = target
        except Exception as error:  # a competitor's failure is a result
            print(f"  {name} failed: {error}", file=sys.stderr)
    return files


def tested(task: Task, files: Mapping[str, Path]) -> Tested:
    """Ask every file the test split."""
    return Tested(
        cases=task.cases["test"],
        outputs={
            name: answer(load(file), task.splits.test, batch_size=BATCH) for name, file in files.items()
        },
        files={name: of_file(files[FP32], file, task) for name, file in files.items()},
    )


def of_file(source: Path, file: Path, task: Task) -> dict[str, object]:
    """Size, speed at batch 1, and decisions that depend on the size of the batch."""
    conditions = this_machine(threads=1, runtime=ONNXRUNTIME.name, runtime_version=ONNXRUNTIME.version)
    inputs = task.splits.test.inputs
    some = np.stack([inputs[i] for i in range(min(ALONE, len(inputs)))])
    found = compare_speed(load(source), load(file), {"input": some[:1]}, conditions=conditions)
    asked = same_for_batches(load(file), some, sizes=(1, BATCH))
    return {
        "bytes": file.stat().st_size,
        "speedup_over_fp32": round(found.ratio, 3),
        "speedup_low": round(found.interval.low, 3),
        "speedup_high": round(found.interval.high, 3),
        f"changed_by_batch_of_{ALONE}": asked.changed_decisions(lambda out: out.argmax(axis=1)),
    }


def pooled(parts: Sequence[Tested]) -> Tested:
    """Test splits of several trainings, judged as one; a subject that recurs stays one."""
    joined = [np.concatenate([getattr(part.cases, key) for part in parts]) for key in ("targets", "subjects")]
    cases = replace(parts[0].cases, targets=joined[0], subjects=joined[1], groups={}, strata=None, ids=None)
    names = [name for name in parts[0].outputs if all(name in part.outputs for part in parts)]
    outputs = {name: np.concatenate([part.outputs[name] for part in parts]) for name in names}
    return Tested(cases=cases, outputs=outputs, files=parts[0].files)


def drop(part: Tested, candidate: str, against: str) -> Comparison:
    """By how much balanced accuracy is worse, paired, by subject."""
    before, after = (
        forms(part.outputs[name], part.cases).overall["balanced_accuracy"] for name in (against, candidate)
    )
    return compare(before, after, metric="balanced_accuracy", subjects=part.cases.subjects, confidence=0.95)


def rows(problem: Problem, parts: Sequence[Tested]) -> Iterator[dict[str, object]]:
    """The table of one problem: each comparison for each seed, and over all of them."""
    whole = pooled(parts)
    for pair in PAIRS:
        if set(pair) <= set(whole.outputs):
            found = [drop(part, *pair) for part in parts]
            for seed, part, each in zip(SEEDS, parts, found, strict=True):
                yield {**row(problem, str(seed), part, each, pair), **part.files[pair[0]]}
            yield {**row(problem, "all", whole, drop(whole, *pair), pair), **over_seeds(found)}


def over_seeds(found: Sequence[Comparison]) -> dict[str, object]:
    drops = [100 * each.drop for each in found if each.drop is not None]
    spread = float(np.std(drops, ddof=1))
    return {"drop_mean_pp": round(float(np.mean(drops)), 3), "drop_sd_pp": round(spread, 3)}


def row(
    problem: Problem, seed: str, part: Tested, found: Comparison, pair: tuple[str, str]
) -> dict[str, object]:
    outputs = [part.outputs[name] for name in pair]
    after, before = (each.argmax(axis=1) for each in outputs)
    values = {
        "balanced_accuracy_against": found.baseline and found.baseline.value,
        "balanced_accuracy": found.candidate and found.candidate.value,
    }
    points = {"drop_pp": found.drop, "low_pp": None, "high_pp": None}
    if found.interval is not None:
        points |= {"low_pp": found.interval.low, "high_pp": found.interval.high}
    return {
        "model": problem.name,
        "seed": seed,
        "method": pair[0],
        "against": pair[1],
        "cases": found.n,
        "subjects": len(np.unique(np.asarray(part.cases.subjects))),
        **{name: value and round(value, 4) for name, value in values.items()},
        **{name: value and round(100 * value, 3) for name, value in points.items()},
        "decided_otherwise": int((before != after).sum()),
        "sqnr_db": round(sqnr_db({"": outputs[1]}, {"": outputs[0]}), 1) if pair[1] == FP32 else None,
    }


def judged(problem: Problem, cache: Path, python: Path | None) -> Iterator[Tested]:
    """For each seed, what every file of it answered."""
    for seed in SEEDS:
        parts = []
        for fold in range(problem.folds):
            task = trained_task(problem, cache, seed=seed, fold=fold)
            print(f"{problem.name}, seed {seed}, part {fold + 1} of {problem.folds}", flush=True)
            folder = cache / f"{problem.name}-{seed}-{fold}"
            folder.mkdir(exist_ok=True)
            parts.append(tested(task, quantized(task, methods(problem, python), folder)))
        yield pooled(parts)


def write(found: Sequence[Mapping[str, object]], path: Path, conditions: Mapping[str, object]) -> None:
    names = list(dict.fromkeys(key for each in found for key in each))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*names, *conditions], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({**each, **conditions} for each in found)


def show(each: Mapping[str, object]) -> None:
    if each["seed"] == "all":
        print(
            f"{each['model']:<5} {each['method']:<29} against {each['against']:<29} "
            f"{each['balanced_accuracy']:.4f}, drop {each['drop_pp']:+.2f} pp "
            f"({each['low_pp']:+.2f} to {each['high_pp']:+.2f}), over seeds {each['drop_mean_pp']:+.2f} "
            f"± {each['drop_sd_pp']:.2f}, {each['decided_otherwise']} of {each['cases']} decided otherwise"
        )


def conditions(python: Path | None) -> dict[str, object]:
    """What the figures hold for: machine and versions."""
    here = asdict(this_machine(threads=1, runtime=ONNXRUNTIME.name, runtime_version=ONNXRUNTIME.version))
    versions = {"pastille": version("pastille"), "torch": torch.__version__, "onnx": onnx.__version__}
    return {**here, **versions, "nncf": nncf_version(python) if python else "absent"}


def nncf_version(python: Path) -> str:
    asked = "from importlib.metadata import version; print(version('nncf'))"
    found = subprocess.run([python, "-c", asked], check=True, capture_output=True, text=True)
    return found.stdout.strip()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the two archives")
    parser.add_argument("--nncf", type=Path, help="Python of an environment with NNCF")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "pastille-accuracy")
    parser.add_argument("--output", type=Path, default=HERE / "accuracy.csv")
    parser.add_argument("--only", choices=[problem.name for problem in PROBLEMS])
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    torch.set_num_threads(1)
    asked.cache.mkdir(parents=True, exist_ok=True)
    if asked.nncf is None or not asked.nncf.is_file():
        print("NNCF is left out: --nncf names no Python that has it (see competitors/quantize_nncf.py)")
        asked.nncf = None
    found: list[dict[str, object]] = []
    for problem in PROBLEMS:
        if asked.only in (None, problem.name):
            unpacked(problem, asked.data, asked.cache)
            found += rows(problem, list(judged(problem, asked.cache, asked.nncf)))
    for each in found:
        show(each)
    write(found, asked.output, conditions(asked.nncf))


if __name__ == "__main__":
    main()

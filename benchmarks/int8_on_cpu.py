"""int8 against fp32 in ONNX Runtime: Pastille's static quantization beside what else makes int8 files.

    .venv/bin/python benchmarks/int8_on_cpu.py --nncf PYTHON --openvino PYTHON --fasterai PYTHON
                                                            # writes benchmarks/int8_on_cpu.csv
    .venv/bin/python benchmarks/int8_on_cpu.py u-net ecg    # these alone, printed

PYTHON is that of a competitor's own environment, which the scripts in `benchmarks/competitors` say how to
make; without one, its rows are left out and a line says so.

Random weights, batch-norm statistics of random inputs: only speed is compared. Every file is timed in
alternation with the fp32 file that it was made from, in ONNX Runtime with one thread; a ratio above 1 is
faster. `default` is `onnxruntime.quantization.quantize_static` with its documented defaults (signed
activations and weights), or `quantize_dynamic`; `U8S8` is the same tool after its own `quant_pre_process`,
with unsigned activations and weights per channel; `nncf` is `nncf.quantize` on the ONNX file; `fasterai` is
its static ONNX path, from the PyTorch model. What runs in OpenVINO is timed in a process of its own that
takes turns with ours, with a static batch, against the same fp32 file in ONNX Runtime: the fp32 file in the
precision that OpenVINO chooses, and what `nncf.quantize` makes of OpenVINO's model. That is no competitor in
the same runtime, but what one would gain or lose by changing it.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import networks
import numpy as np
import torch
from competing import Method, compare_elsewhere, fasterai, openvino, quantizer

from pastille.demos.digits.model import build as digits
from pastille.devices import this_machine
from pastille.export import export_onnx
from pastille.measure.latency import compare
from pastille.quantization import quantize_static
from pastille.quantization.dynamic import quantize_dynamic
from pastille.recipe import Quantize
from pastille.runtime import ONNXRUNTIME, load
from pastille.task.torchvision import import_torchvision
from pastille.values import Conditions, Interval

HERE = Path(__file__).parent
SECONDS = 4.0
NAMES = (
    *("digits-resnet", "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0"),
    *("densenet121", "vit_b_16", "bert-base", "ecg", "u-net", "lstm"),
)
LINEAR = ("vit_b_16", "bert-base", "lstm")  # where dynamic quantization has something to do
COMPETITORS = ("nncf", "openvino", "fasterai")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One network: the float file, and inputs to calibrate on and to ask."""

    name: str
    model: torch.nn.Module
    fp32: Path
    samples: np.ndarray  # (16, ...)


def models(names: Sequence[str]) -> Iterator[tuple[str, torch.nn.Module, tuple[int, ...]]]:
    """Name, module and input shape without the batch axis."""
    for name in names:
        torch.manual_seed(0)
        if name == "digits-resnet":
            model, shape = digits(), (1, 8, 8)
        else:
            model, shape = networks.architecture(name, _torchvision_model)
        yield name, networks.settled(model, shape), shape


def _torchvision_model(name: str, **how: Any) -> torch.nn.Module:
    found: torch.nn.Module = import_torchvision().models.get_model(name, **how)
    return found


def ours(source: Path, target: Path, samples: np.ndarray) -> None:
    quantize_static(source, target, lambda: ({"input": x[None]} for x in samples), Quantize())


def ours_dynamic(source: Path, target: Path, _samples: np.ndarray) -> None:
    quantize_dynamic(source, target)


def runtime_static(source: Path, target: Path, samples: np.ndarray, **how: Any) -> None:
    from onnxruntime.quantization import CalibrationDataReader
    from onnxruntime.quantization import quantize_static as default

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter(samples)

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self.rows, None)
            return None if row is None else {"input": row[None]}

    default(str(source), str(target), Reader(), **how)


def runtime_u8s8(source: Path, target: Path, samples: np.ndarray) -> None:
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(source, prepared)
    how = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    runtime_static(prepared, target, samples, **how)


def runtime_dynamic(source: Path, target: Path, _samples: np.ndarray) -> None:
    from onnxruntime.quantization import quantize_dynamic as default

    default(str(source), str(target))


METHODS: dict[str, Method] = {
    "pastille": ours,
    "onnxruntime default static": runtime_static,
    "onnxruntime U8S8": runtime_u8s8,
    "onnxruntime default dynamic": runtime_dynamic,
}


def methods(subject: Subject, pythons: dict[str, Path]) -> dict[str, Method]:
    """What makes files for ONNX Runtime; those of competitors that are here."""
    found = METHODS | ({"pastille dynamic": ours_dynamic} if subject.name in LINEAR else {})
    if "nncf" in pythons:
        found["nncf"] = quantizer(pythons["nncf"], "quantize_nncf")
    if "fasterai" in pythons and subject.name != "digits-resnet":  # whose module is not in `networks`
        found["fasterai"] = fasterai(pythons["fasterai"], subject.name, subject.model, subject.fp32.parent)
    return found


def subjects(folder: Path, names: Sequence[str]) -> Iterator[Subject]:
    for name, model, shape in models(names):
        fp32 = folder / f"{name}.onnx"
        export_onnx(model, {"input": torch.randn(2, *shape)}, fp32)
        samples = np.random.default_rng(0).normal(size=(16, *shape)).astype(np.float32)
        yield Subject(name=name, model=model, fp32=fp32, samples=samples)


def rows(folder: Path, names: Sequence[str], pythons: dict[str, Path]) -> Iterator[dict[str, object]]:
    for subject in subjects(folder, names):
        for name, time in timed(subject, pythons):
            try:
                yield time()
            except Exception as error:  # a competitor's failure is a result
                print(f"{subject.name}: {name} failed: {error}", file=sys.stderr)


def timed(
    subject: Subject, pythons: dict[str, Path]
) -> Iterator[tuple[str, Callable[[], dict[str, object]]]]:
    for name, method in methods(subject, pythons).items():
        yield name, partial(in_onnxruntime, subject, name, method)
    for name in ("openvino, fp32 file", "openvino, nncf") if "openvino" in pythons else ():
        yield name, partial(in_openvino, subject, name, pythons["openvino"])


def in_onnxruntime(subject: Subject, name: str, method: Method) -> dict[str, object]:
    conditions = this_machine(threads=1, runtime=ONNXRUNTIME.name, runtime_version=ONNXRUNTIME.version)
    target = subject.fp32.with_name(f"{subject.name}-{name.replace(' ', '-')}.onnx")
    method(subject.fp32, target, subject.samples)
    x = {"input": subject.samples[:1]}
    found = compare(load(subject.fp32), load(target), x, conditions=conditions, budget_s=SECONDS)
    return _row(subject, name, target, found.ratio, found.interval, found.pairs, conditions=conditions)


def in_openvino(subject: Subject, name: str, python: Path) -> dict[str, object]:
    target, x = subject.fp32, subject.samples[:1]
    if name == "openvino, nncf":
        target = subject.fp32.with_name(f"{subject.name}-openvino.xml")
        quantizer(python, "quantize_nncf_openvino")(subject.fp32, target, subject.samples)
    with openvino(python, target, x, threads=1) as other:
        found = compare_elsewhere(load(subject.fp32), other, {"input": x}, seconds=SECONDS)
        runtime = f"openvino ({other.precision} where not int8)"
        conditions = this_machine(threads=1, runtime=runtime, runtime_version=other.version)
    weights = target.with_suffix(".bin") if target.suffix == ".xml" else target
    return _row(subject, name, weights, *found, conditions=conditions)


def _row(
    subject: Subject,
    method: str,
    made: Path,
    ratio: float,
    interval: Interval,
    pairs: int,
    *,
    conditions: Conditions,
) -> dict[str, object]:
    return {
        "model": subject.name,
        "method": method,
        "batch": 1,
        "speedup_over_fp32": round(ratio, 3),
        "low": round(interval.low, 3),
        "high": round(interval.high, 3),
        "pairs": pairs,
        "bytes_fp32": subject.fp32.stat().st_size,
        "bytes_int8": made.stat().st_size,
        **asdict(conditions),
    }


def _arguments() -> tuple[list[str], dict[str, Path]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(NAMES)}; all by default")
    for name in COMPETITORS:
        parser.add_argument(f"--{name}", type=Path, metavar="PYTHON", help="of an environment that has it")
    given = vars(parser.parse_args())
    pythons = {name: given[name] for name in COMPETITORS if given[name] and given[name].exists()}
    for name in COMPETITORS:
        if name not in pythons:
            print(f"{name} is left out: --{name} names no Python that has it", file=sys.stderr)
    return given["models"], pythons


def main() -> None:
    """All models into the CSV; only those named, if any are, into its place on the screen."""
    chosen, pythons = _arguments()
    where = os.devnull if chosen else HERE / "int8_on_cpu.csv"
    with tempfile.TemporaryDirectory() as folder, Path(where).open("w", newline="") as file:
        writer: csv.DictWriter[str] | None = None
        for row in rows(Path(folder), chosen or NAMES, pythons):
            if writer is None:
                writer = csv.DictWriter(file, list(row), lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            print(f"{row['model']:<18} {row['method']:<28} batch {row['batch']}: {row['speedup_over_fp32']}×")


if __name__ == "__main__":
    main()

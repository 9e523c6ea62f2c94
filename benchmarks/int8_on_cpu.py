"""int8 against fp32 in ONNX Runtime: Pastille's static quantization beside ONNX Runtime's own defaults.

    .venv/bin/python benchmarks/int8_on_cpu.py            # writes benchmarks/int8_on_cpu.csv

Random weights, batch-norm statistics of random inputs: only speed is compared. Each file is timed in
alternation with the fp32 file it was made from; a ratio above 1 is faster. Files whose names say `default`
are made by `onnxruntime.quantization.quantize_static` with its documented defaults (signed activations
and weights) and by `quantize_dynamic`; `U8S8` is the same tool with unsigned activations and weights per
channel.

    .venv/bin/python benchmarks/int8_on_cpu.py u-net ecg    # these alone, printed
"""

from __future__ import annotations

import csv
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import networks
import numpy as np
import torch

from pastille.demos.digits.model import build as digits
from pastille.devices import this_machine
from pastille.export import export_onnx
from pastille.measure.latency import compare
from pastille.quantization import quantize_static
from pastille.recipe import Quantize
from pastille.runtime import ONNXRUNTIME, load
from pastille.task.factory import import_torchvision

HERE = Path(__file__).parent
BATCHES = (1,)
SECONDS = 4.0


NAMES = (
    *("digits-resnet", "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0"),
    *("densenet121", "vit_b_16", "bert-base", "ecg", "u-net", "lstm"),
)
OURS: dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, ...]]] = {
    "digits-resnet": (digits, (1, 8, 8)),
    "bert-base": (networks.encoder, (128, 768)),
    "ecg": (networks.SignalResNet, (12, 1000)),
    "u-net": (networks.UNet, (1, 128, 128)),
    "lstm": (networks.Recurrent, (250, 12)),
}


def models(names: Sequence[str]) -> Iterator[tuple[str, torch.nn.Module, tuple[int, ...]]]:
    """Name, module and input shape without the batch axis."""
    for name in names:
        torch.manual_seed(0)
        if name in OURS:
            make, shape = OURS[name]
            model = make()
        else:
            model, shape = import_torchvision().models.get_model(name, weights=None), (3, 224, 224)
        yield name, networks.settled(model, shape), shape


def ours(source: Path, target: Path, samples: np.ndarray) -> None:
    quantize_static(source, target, lambda: ({"input": x[None]} for x in samples), Quantize())


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

    how = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    runtime_static(source, target, samples, **how)


def runtime_dynamic(source: Path, target: Path, _samples: np.ndarray) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(str(source), str(target))


METHODS: dict[str, Callable[[Path, Path, np.ndarray], None]] = {
    "pastille": ours,
    "onnxruntime default static": runtime_static,
    "onnxruntime U8S8": runtime_u8s8,
    "onnxruntime default dynamic": runtime_dynamic,
}


def rows(folder: Path, names: Sequence[str]) -> Iterator[dict[str, object]]:
    conditions = this_machine(threads=1, runtime=ONNXRUNTIME.name, runtime_version=ONNXRUNTIME.version)
    for name, model, shape in models(names):
        fp32 = folder / f"{name}.onnx"
        export_onnx(model, {"input": torch.randn(2, *shape)}, fp32)
        samples = np.random.default_rng(0).normal(size=(16, *shape)).astype(np.float32)
        for method, quantize in METHODS.items():
            target = folder / f"{name}-{method.replace(' ', '-')}.onnx"
            try:
                quantize(fp32, target, samples)
                loaded = load(fp32), load(target)
                for batch in BATCHES:
                    x = {"input": samples[:batch]}
                    found = compare(*loaded, x, conditions=conditions, budget_s=SECONDS)
                    yield {
                        "model": name,
                        "method": method,
                        "batch": batch,
                        "speedup_over_fp32": round(found.ratio, 3),
                        "low": round(found.interval.low, 3),
                        "high": round(found.interval.high, 3),
                        "pairs": found.pairs,
                        "bytes_fp32": fp32.stat().st_size,
                        "bytes_int8": target.stat().st_size,
                        **asdict(conditions),
                    }
            except Exception as error:  # a competitor's failure is a result
                print(f"{name}: {method} failed: {error}", file=sys.stderr)


def main() -> None:
    """All models into the CSV; only those named, if any are, into its place on the screen."""
    chosen = sys.argv[1:]
    where = os.devnull if chosen else HERE / "int8_on_cpu.csv"
    with tempfile.TemporaryDirectory() as folder, Path(where).open("w", newline="") as file:
        writer: csv.DictWriter[str] | None = None
        for row in rows(Path(folder), chosen or NAMES):
            if writer is None:
                writer = csv.DictWriter(file, list(row), lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            print(f"{row['model']:<18} {row['method']:<28} batch {row['batch']}: {row['speedup_over_fp32']}×")


if __name__ == "__main__":
    main()

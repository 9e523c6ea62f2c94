"""int8 against fp32 in ONNX Runtime: Pastille's static quantization beside ONNX Runtime's own defaults.

    .venv/bin/python benchmarks/int8_on_cpu.py            # writes benchmarks/int8_on_cpu.csv

Random weights and inputs: only speed is compared. Each file is timed in alternation with the fp32
file it was made from; a ratio above 1 is faster. Files whose names say `default` are made by
`onnxruntime.quantization.quantize_static` with its documented defaults (signed activations and weights)
and by `quantize_dynamic`.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

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
BATCHES = (1, 8)
SECONDS = 8.0


def models() -> Iterator[tuple[str, torch.nn.Module, tuple[int, ...]]]:
    """Name, module and input shape without the batch axis."""
    zoo = import_torchvision().models
    torch.manual_seed(0)
    yield "digits-resnet", digits().eval(), (1, 8, 8)
    for name in ("resnet18", "mobilenet_v2", "efficientnet_b0"):
        yield name, zoo.get_model(name, weights=None).eval(), (3, 224, 224)


def ours(source: Path, target: Path, samples: np.ndarray) -> None:
    quantize_static(source, target, lambda: ({"input": x[None]} for x in samples), Quantize())


def runtime_default(source: Path, target: Path, samples: np.ndarray) -> None:
    from onnxruntime.quantization import CalibrationDataReader
    from onnxruntime.quantization import quantize_static as default

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter(samples)

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self.rows, None)
            return None if row is None else {"input": row[None]}

    default(str(source), str(target), Reader())


def runtime_dynamic(source: Path, target: Path, _samples: np.ndarray) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(str(source), str(target))


METHODS: dict[str, Callable[[Path, Path, np.ndarray], None]] = {
    "pastille": ours,
    "onnxruntime default static": runtime_default,
    "onnxruntime default dynamic": runtime_dynamic,
}


def rows(folder: Path) -> Iterator[dict[str, object]]:
    conditions = this_machine(threads=1, runtime=ONNXRUNTIME.name, runtime_version=ONNXRUNTIME.version)
    for name, model, shape in models():
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
    with tempfile.TemporaryDirectory() as folder, (HERE / "int8_on_cpu.csv").open("w", newline="") as file:
        writer: csv.DictWriter[str] | None = None
        for row in rows(Path(folder)):
            if writer is None:
                writer = csv.DictWriter(file, list(row), lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)
            print(f"{row['model']:<16} {row['method']:<28} batch {row['batch']}: {row['speedup_over_fp32']}×")


if __name__ == "__main__":
    main()

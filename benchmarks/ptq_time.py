"""Wall time of post-training quantization: a float ONNX file and 300 images to an int8 file.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/ptq_time.py     # writes benchmarks/ptq_time.csv

Both tools are given the same file and the same images, one by one, and as many threads as ONNX Runtime takes
by itself. Theirs is the documented way: `quant_pre_process`, then `quantize_static` with unsigned
activations, signed weights per channel and full ranges. They take turns, and the ratio is that of the two
wall times of a turn: above 1, Pastille takes longer. That of processor times bears a busy machine better.
Random weights: the time does not depend on them.

    .venv/bin/python benchmarks/ptq_time.py resnet18 --images 32 --turns 1    # these alone, printed
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from time import perf_counter, process_time

import int8_on_cpu
import numpy as np
import torch
from competing import Method

from pastille.devices import this_machine, usable_cores
from pastille.export import export_onnx
from pastille.runtime import ONNXRUNTIME

HERE = Path(__file__).parent
NAMES = ("resnet50",)


def seconds(quantize: Method, source: Path, target: Path, samples: np.ndarray) -> tuple[float, float]:
    """On the wall, and of all threads' processor time."""
    begun = perf_counter(), process_time()
    quantize(source, target, samples)
    return perf_counter() - begun[0], process_time() - begun[1]


def rows(folder: Path, names: list[str], images: int, turns: int) -> Iterator[dict[str, object]]:
    conditions = this_machine(
        threads=usable_cores(), runtime=ONNXRUNTIME.name, runtime_version=ONNXRUNTIME.version
    )
    for name, model, shape in int8_on_cpu.models(names):
        source = folder / f"{name}.onnx"
        export_onnx(model, {"input": torch.randn(2, *shape)}, source)
        samples = np.random.default_rng(0).normal(size=(images, *shape)).astype(np.float32)
        both = (int8_on_cpu.ours, int8_on_cpu.runtime_u8s8)
        for quantize in both:  # what is imported at the first call is not timed
            quantize(source, folder / "warm-up.onnx", samples[:1])
        for turn in range(turns):
            order = both if turn % 2 == 0 else both[::-1]
            took = {each: seconds(each, source, folder / "int8.onnx", samples) for each in order}
            ours_s, theirs_s = (took[each] for each in both)
            yield {
                "model": name,
                "images": images,
                "turn": turn,
                "pastille_s": round(ours_s[0], 2),
                "onnxruntime_s": round(theirs_s[0], 2),
                "ratio": round(ours_s[0] / theirs_s[0], 3),
                "ratio_of_cpu_time": round(ours_s[1] / theirs_s[1], 3),
                **asdict(conditions),
            }


def main() -> None:
    """ResNet-50 into the CSV; the models that are named, if any are, on the screen alone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--turns", type=int, default=4)
    given = parser.parse_args()
    where = os.devnull if given.models else HERE / "ptq_time.csv"
    with tempfile.TemporaryDirectory() as folder, Path(where).open("w", newline="") as file:
        writer: csv.DictWriter[str] | None = None
        for row in rows(Path(folder), given.models or list(NAMES), given.images, given.turns):
            if writer is None:
                writer = csv.DictWriter(file, list(row), lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            print(f"{row['model']}: {row['pastille_s']} s against {row['onnxruntime_s']} s, {row['ratio']}×")


if __name__ == "__main__":
    main()

"""What zeros are worth: bytes of a sparse ResNet-18 in several forms of storage, and its speed on this CPU.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/sparse.py --zstd PYTHON     # writes benchmarks/sparse.csv

PYTHON has `zstandard` (0.25.0), which Pastille does not need; left out, that column stays empty. Random
weights, those of least magnitude in each layer set to zero: neither size nor time depends on what the others
mean. int8 is quantized from the sparse file on 8 random images. Forms, in bytes of the whole file:

    raw            as ONNX holds it
    stored         as a bundle stores it: xz with a small dictionary, see `pastille.runtime.packed`
    zlib           the standard library's other one
    zstd19         at its slowest but the ones that need a gigabyte
    bitmask        a bit for each weight, and the values that are left
    onnx_sparse    ONNX's own sparse initializers: 8 bytes for each index

`ratio` is how many times as fast as the dense file of that precision, timed in turns; batch 1, one thread.

    .venv/bin/python benchmarks/sparse.py --only 0.8    # this one alone, printed
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from time import process_time

import int8_on_cpu
import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from pastille.devices import this_machine
from pastille.export import export_onnx
from pastille.files import sha256_file
from pastille.measure.latency import compare
from pastille.pruning.sparse import masked, weights_to_thin
from pastille.pruning.thinning import masks_of
from pastille.runtime import ONNXRUNTIME, load
from pastille.runtime.packed import pack, unpacked

HERE = Path(__file__).parent
ASKED = ("0.7", "0.8", "0.9", "2:4")
ZSTD = "import sys, zstandard; print(len(zstandard.compress(open(sys.argv[1], 'rb').read(), 19)))"


def thinned(model: nn.Module, asked: str) -> nn.Module:
    """A copy with the smallest weights of each layer set to zero."""
    new = deepcopy(model)
    by_four = asked == "2:4"
    which = weights_to_thin(new, by_four=by_four)
    scores = {name: new.get_parameter(name).detach().abs() for name in which.axes}
    share, pattern = (0.5, "2:4") if by_four else (float(asked), "layer")
    masked(new, masks_of(scores, which, share, pattern))  # type: ignore[arg-type]
    return new


def forms(path: Path, zstd: str | None, folder: Path) -> dict[str, float | str]:
    """Bytes of the whole file in each form of storage; CPU seconds of packing and of unpacking."""
    slowest = zstd_started(path, zstd)
    data = path.read_bytes()
    weights = [numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer]
    sparse = [w for w in weights if w.size > 1000 and (w == 0).mean() > 0.3]
    rest = len(data) - sum(w.nbytes for w in sparse)
    masks = b"".join(np.packbits(w != 0).tobytes() for w in sparse) + bytes(rest)
    values = b"".join(w[w != 0].tobytes() for w in sparse)
    stored, pack_s, unpack_s = packed_and_back(path, folder)
    return {
        "raw": len(data),
        "stored": stored,
        "zlib": len(zlib.compress(data)),
        "bitmask": len(masks) + len(values),
        "onnx_sparse": onnx_sparse(path),
        "zstd19": "" if slowest is None else int(slowest.communicate()[0]),
        "pack_cpu_s": round(pack_s, 2),
        "unpack_cpu_s": round(unpack_s, 2),
    }


def zstd_started(path: Path, python: str | None) -> subprocess.Popen[bytes] | None:
    command = [python or "", "-c", ZSTD, str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE) if python else None


def onnx_sparse(path: Path) -> int:
    """Bytes of the file with every sparse weight as a sparse initializer."""
    model = onnx.load(path)
    for tensor in list(model.graph.initializer):
        array = numpy_helper.to_array(tensor)
        if array.size <= 1000 or (array == 0).mean() <= 0.3:
            continue
        indices = np.flatnonzero(array).astype(np.int64)
        values = numpy_helper.from_array(array.reshape(-1)[indices], tensor.name)
        at = numpy_helper.from_array(indices, f"{tensor.name}_indices")
        model.graph.initializer.remove(tensor)
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, at, list(array.shape)))
    return len(model.SerializeToString())


def packed_and_back(path: Path, folder: Path) -> tuple[int, float, float]:
    """Bytes as a bundle stores it, and CPU seconds of packing and of unpacking."""
    target = folder / "packed.onnx.xz"
    begun = process_time()
    if not pack(path, target):
        return path.stat().st_size, 0.0, 0.0
    packed = process_time()
    with unpacked(target, size_bytes=path.stat().st_size, sha256=sha256_file(path)):
        return target.stat().st_size, packed - begun, process_time() - packed


def rows(folder: Path, asked: list[str], zstd: str | None, budget_s: float) -> Iterator[dict[str, object]]:
    ((_, model, shape),) = int8_on_cpu.models(["resnet18"])
    samples = np.random.default_rng(0).normal(size=(8, *shape)).astype(np.float32)
    conditions = this_machine(threads=1, runtime=ONNXRUNTIME.name, runtime_version=ONNXRUNTIME.version)
    for sparsity in ("0", *asked):
        fp32, int8 = folder / f"fp32-{sparsity[-1]}.onnx", folder / f"int8-{sparsity[-1]}.onnx"
        export_onnx(thinned(model, sparsity), {"input": torch.randn(2, *shape)}, fp32)
        int8_on_cpu.ours(fp32, int8, samples)
        for name, file, dense in (("fp32", fp32, "fp32-0.onnx"), ("int8", int8, "int8-0.onnx")):
            if sparsity == "0":
                continue
            one, other = load(folder / dense), load(file)
            speed = compare(one, other, {"input": samples[:1]}, conditions=conditions, budget_s=budget_s)
            yield {
                "model": "resnet18",
                "precision": name,
                "zeros": sparsity,
                **forms(file, zstd, folder),
                "ratio": round(speed.ratio, 3),
                "ratio_low": round(speed.interval.low, 3),
                "ratio_high": round(speed.interval.high, 3),
                "pairs": speed.pairs,
                **asdict(conditions),
            }


def main() -> None:
    """All into the CSV; those that are named, if any are, on the screen alone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=ASKED)
    parser.add_argument("--zstd", help="a Python that has zstandard")
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing for each file")
    given = parser.parse_args()
    where = os.devnull if given.only else HERE / "sparse.csv"
    with tempfile.TemporaryDirectory() as folder, Path(where).open("w", newline="") as file:
        writer: csv.DictWriter[str] | None = None
        for row in rows(Path(folder), given.only or list(ASKED), given.zstd, given.seconds):
            if writer is None:
                writer = csv.DictWriter(file, list(row), lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            print({key: row[key] for key in list(row)[:17]}, flush=True)


if __name__ == "__main__":
    main()

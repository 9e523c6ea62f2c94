"""Half of the channels of every architecture: what goes, how long it takes, whether the file still agrees.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/pruning_zoo.py     # writes benchmarks/pruning_zoo.csv

Random weights: neither what is removed nor the time depends on them. Widths are multiples of 8. Parameters
and MACs are counted in the exported ONNX file, of one input; the error is the largest difference between
ONNX Runtime's answers and PyTorch's. Seconds are from a shared machine.

    .venv/bin/python benchmarks/pruning_zoo.py lstm gru    # these alone, printed
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from time import perf_counter

import torch
from pruning_zoo_models import MODELS, Batch
from torch import nn

from pastille.export import check_parity, export_onnx
from pastille.measure.counts import macs, parameters
from pastille.pruning import prune
from pastille.task import forward

HERE = Path(__file__).parent


def settled(model: nn.Module, batch: Batch) -> nn.Module:
    """In eval mode, with answers: untrained batch norms let them vanish, as do heads that begin at zero."""
    for layer in (m for m in model.modules() if isinstance(m, nn.Linear) and not m.weight.any()):
        nn.init.trunc_normal_(layer.weight, std=0.02)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    if norms:
        with torch.no_grad():
            forward(model.train(), batch)
    return model.eval()


def row(name: str, folder: Path, heads: float | None) -> dict[str, object]:
    """Prune one network, export it before and after, and compare."""
    build, batch = MODELS[name]
    torch.manual_seed(0)
    model, files = settled(build(), batch), [folder / "before.onnx", folder / "after.onnx"]
    export_onnx(model, batch, files[0])
    begun = perf_counter()
    pruned = prune(model, batch, sparsity=0.5, heads=heads)
    done = perf_counter()
    export_onnx(pruned.model, batch, files[1])
    exported = perf_counter()
    error = check_parity(pruned.model, files[1], batch).max_abs_error
    largest = float(forward(pruned.model, batch).detach().abs().max())
    counts = [(parameters(file), macs(file)) for file in files]
    return {
        "model": name,
        "heads": heads or "",
        "layers_narrowed": len(pruned.widths),
        "layers_left": len(pruned.left_whole),
        "parameters_before": counts[0][0],
        "parameters_after": counts[1][0],
        "macs_before": counts[0][1],
        "macs_after": counts[1][1],
        "max_abs_error": f"{error:.1e}",
        "largest_answer": f"{largest:.1e}",
        "prune_s": round(done - begun, 2),
        "export_s": round(exported - done, 2),
        "reasons": "; ".join(sorted(set(pruned.left_whole.values()))),
    }


def rows(names: list[str]) -> Iterator[dict[str, object]]:
    """Of every network, and again with half of the heads where it has any."""
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            yield row(name, Path(folder), None)
            if name in {"vit_b_16", "swin_t", "deit_small", "bert_base", "distilbert", "hubert_base"}:
                yield row(name, Path(folder), 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*")
    names = parser.parse_args().models
    with (HERE / "pruning_zoo.csv").open("w", newline="") if not names else nullcontext(sys.stdout) as out:
        found = rows(names or list(MODELS))
        first = next(found)
        writer = csv.DictWriter(out, fieldnames=list(first), lineterminator="\n")
        writer.writeheader()
        for each in chain([first], found):
            writer.writerow(each)
            out.flush()


if __name__ == "__main__":
    main()

"""Does the same int8 file decide the same on other CPUs? A residual network and a transformer, emulated.

    scripts/aarch64-root /tmp/arm && export PASTILLE_AARCH64_ROOT=/tmp/arm     # else aarch64 is left out
    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/other_cpus.py   # writes benchmarks/other_cpus.csv

Both networks are trained on scikit-learn's digits under noise, so that many cases lie near the border between
two classes. Each file answers the same 300 cases, which neither training nor calibration saw, here and under
QEMU; the two sets of answers are held against each other. `8 bit` is the control: it saturates where the CPU
has no int8 dot product, and should differ on avx2. SQNR and accuracy are of the answers on this machine.
"""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from pastille.demos.digits.model import ResNet
from pastille.devices import this_machine
from pastille.elsewhere import CaseFile, replay_on
from pastille.export import export_onnx
from pastille.quantization import quantize_static
from pastille.quantization.recovery.auto import sqnr_db
from pastille.quantization.saturation import saturating_layers
from pastille.recipe import Quantize
from pastille.runtime import ONNXRUNTIME, load
from pastille.runtime.emulated import ARM_ROOT, Isa

HERE = Path(__file__).parent
CASES: Final = 300
NOISE: Final = 0.35  # of the images' range
EPOCHS: Final = 30
FILES: Final = {
    "default": Quantize(scheme="x86"),
    "auto": Quantize(scheme="x86", weight_bits="auto"),
    "8 bit": Quantize(scheme="x86", weight_bits=8),
    "arm": Quantize(scheme="arm"),
}


class Attention(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:  # (N, T, width)
        """The same shape."""
        n, t, width = x.shape
        parts = self.qkv(self.first(x)).reshape(n, t, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, width))
        result: Tensor = x + self.down(F.gelu(self.up(self.second(x))))
        return result


class Transformer(nn.Module):
    """Sixteen patches of 2 × 2 pixels, three blocks."""

    def __init__(self, width: int = 64, heads: int = 4, blocks: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.places = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.blocks = nn.Sequential(*(Attention(width, heads) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, 1, 8, 8)`` to logits ``(N, 10)``."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(dim=1))
        return logits


NETWORKS: Final[dict[str, tuple[Callable[[], nn.Module], float]]] = {
    "resnet": (lambda: ResNet(width=32), 3e-3),
    "transformer": (Transformer, 1e-3),
}


def data() -> tuple[np.ndarray, np.ndarray]:
    """Images ``(1797, 1, 8, 8)`` of mean 0 and their digits, in a fixed random order."""
    images, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    return (images[order].reshape(-1, 1, 8, 8) / 16 - 0.3).astype(np.float32), digits[order]


def noisy(images: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(scale=NOISE, size=images.shape)
    return np.asarray(images + noise, np.float32)


def trained(make: Callable[[], nn.Module], rate: float, images: np.ndarray, digits: np.ndarray) -> nn.Module:
    torch.manual_seed(0)
    model = make().train()
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    y = torch.from_numpy(digits)
    for epoch in range(EPOCHS):
        x = torch.from_numpy(noisy(images, 1 + epoch))
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        schedule.step()
    return model.eval()


def rows(folder: Path, isas: tuple[Isa, ...]) -> Iterator[dict[str, object]]:
    conditions = this_machine(threads=1, runtime=ONNXRUNTIME.name, runtime_version=ONNXRUNTIME.version)
    images, digits = data()
    fit, asked = images[CASES:], noisy(images[:CASES], 0)
    samples = noisy(fit[:256], 1000)
    for name, (make, rate) in NETWORKS.items():
        model, fp32 = trained(make, rate, fit, digits[CASES:]), folder / f"{name}.onnx"
        export_onnx(model, {"input": torch.from_numpy(asked[:4])}, fp32)
        wanted = load(fp32)({"input": asked})
        (exact,) = wanted.values()
        for file, settings in FILES.items():
            target = folder / f"{name}-{file.replace(' ', '-')}.onnx"
            quantize_static(fp32, target, lambda: ({"input": x[None]} for x in samples), settings)
            found = load(target)({"input": asked})
            (answers,) = found.values()
            for isa in isas:
                there = replay_on(isa, target, CaseFile(inputs={"input": asked}))
                yield {
                    "network": name,
                    "file": file,
                    "emulated": isa,
                    "cases": there.cases,
                    "equal_decisions": there.equal_decisions,
                    "identical_rows": there.identical,
                    "max_abs_difference": f"{there.max_abs_difference:.3g}",
                    "saturates_there": there.saturates,
                    "layers_that_can_saturate": len(saturating_layers(target)),
                    "sqnr_db": round(sqnr_db(wanted, found), 2),
                    "decides_as_fp32": int((answers.argmax(1) == exact.argmax(1)).sum()),
                    "accuracy_fp32": round(float((exact.argmax(1) == digits[:CASES]).mean()), 4),
                    "accuracy": round(float((answers.argmax(1) == digits[:CASES]).mean()), 4),
                    "runtime_version_there": there.runtime_version,
                    **asdict(conditions),
                }


def main() -> None:
    """Every file on every CPU, into the CSV."""
    isas: tuple[Isa, ...] = ("avx2", "sse4", *(("aarch64",) if os.environ.get(ARM_ROOT) else ()))  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as name:
        found = []
        for row in rows(Path(name), isas):
            found.append(row)
            print(*list(row.values())[:13], flush=True)
    with (HERE / "other_cpus.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(found[0]))
        writer.writeheader()
        writer.writerows(found)


if __name__ == "__main__":
    main()

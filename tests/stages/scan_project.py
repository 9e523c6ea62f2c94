"""A small trained task for scans, in memory and as a folder that the command line can be pointed at."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

MODEL = """
    import torch
    import torch.nn.functional as F
    from torch import nn


    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.conv1, self.norm1 = nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width)
            self.conv2, self.norm2 = nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width)

        def forward(self, x):
            y = F.relu(self.norm1(self.conv1(x)))
            return F.relu(x + self.norm2(self.conv2(y)))


    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(1, 16, 3, 1, 1)
            self.blocks = nn.Sequential(Block(16), Block(16), Block(16))
            self.wide = nn.Conv2d(16, 32, 3, 2, 1)
            self.head = nn.Linear(32, 10)

        def forward(self, x):
            x = self.blocks(F.relu(self.stem(x)))
            return self.head(F.relu(self.wide(x)).mean(dim=(2, 3)))


    def build():
        return Net()
"""

DATA = """
    import numpy as np
    from sklearn.datasets import load_digits
    from pastille import Split, Splits


    def splits():
        digits = load_digits()
        order = np.random.default_rng(0).permutation(len(digits.target))
        inputs = (digits.images[order] / 16).astype(np.float32)[:, None]
        targets = digits.target[order]
        sex = np.where(np.arange(len(targets)) % 5, "<f>", "m")
        ends = (0, 700, 1500, 1797)
        return Splits(**{
            name: Split(inputs=inputs[a:b], targets=targets[a:b], groups={"sex": sex[a:b]})
            for name, a, b in zip(("train", "validation", "test"), ends, ends[1:])
        })
"""

RECIPE = """
    name: scanned
    task:
      kind: multiclass
      model: model.py:build
      weights: weights.pt
      labels: ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
    data: {source: "data.py:splits"}
"""


def write_project(folder: Path) -> Path:
    """A recipe with a trained model; the path of the recipe."""
    for name, text in (("model.py", MODEL), ("data.py", DATA), ("recipe.yaml", RECIPE)):
        (folder / name).write_text(textwrap.dedent(text).lstrip())
    torch.save(_trained().state_dict(), folder / "weights.pt")
    return folder / "recipe.yaml"


def _trained() -> nn.Module:
    space: dict[str, type[nn.Module]] = {}
    exec(textwrap.dedent(MODEL), space)
    torch.manual_seed(0)
    model, digits = space["Net"](), load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))[:700]
    inputs = torch.tensor(digits.images[order] / 16, dtype=torch.float32)[:, None]
    targets = torch.tensor(digits.target[order])
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(6):
        for rows in torch.randperm(700).split(50):  # type: ignore[no-untyped-call]
            loss = F.cross_entropy(model(inputs[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model.eval()

"""Small data that the tests of `pastille.data` share."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pastille.data.split import Split, Splits
from pastille.recipe import TaskSection
from pastille.values import ImageDecoding

BINARY = TaskSection(kind="binary", model="m.py:f", labels=["benign", "malignant"])
THREE = TaskSection(kind="multiclass", model="m.py:f", labels=["cat", "dog", "fox"])
NUMBER = TaskSection(kind="regression", model="m.py:f")

RGB_8 = ImageDecoding(height=8, width=8, channels=3)
GREY_8 = ImageDecoding(height=8, width=8, channels=1)


def image_bytes(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """An image as a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(seed: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    """An RGB image unlike any of another seed; ``size`` is (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def write_images(folder: Path, names: Sequence[str], *, first_seed: int = 0) -> None:
    """Different images under these names."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names, start=first_seed):
        noise(seed).save(folder / name)


def split_of(targets: Sequence[float], *, seed: int = 0, **columns: Any) -> Split:
    """A split with three random features per case, unlike those of another seed."""
    inputs = np.random.default_rng(seed).normal(size=(len(targets), 3)).astype(np.float32)
    return Split(inputs=columns.pop("inputs", inputs), targets=np.array(targets), **columns)


def splits_of(**splits: Split) -> Splits:
    """Three sound splits of a binary task, those given replacing them."""
    names = ("train", "validation", "test")
    sound = {name: split_of([0, 1, 0, 1], seed=seed) for seed, name in enumerate(names)}
    chosen = {**sound, **splits}
    return Splits(train=chosen["train"], validation=chosen["validation"], test=chosen["test"])

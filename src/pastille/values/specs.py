"""What goes into a model, and what prepares it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output of a model; the batch axis is left out."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # numpy name: "float32", "int64"


@dataclass(frozen=True, kw_only=True)
class ImageDecoding:
    """How an image file becomes an array (C, H, W), float32 in [0, 1]."""

    height: int
    width: int
    channels: Literal[1, 3]
    resize: Literal["bilinear"] = "bilinear"


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """``(x - mean) / std`` per channel, over axis 0 of an input."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What turns a raw input into what the model is fed; the server does the same."""

    image: ImageDecoding | None = None
    normalization: Normalization | None = None

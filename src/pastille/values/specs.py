"""What goes into a model, and what prepares it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
class SignalDecoding:
    """How a recording becomes arrays (C, T), float32, in a unit: whole windows, one after the other."""

    channels: tuple[str, ...]  # by name, in the order of the array
    samples: int  # T of one window
    rate_hz: float  # a recording at another rate is refused: nothing is resampled
    unit: str = "mV"  # of the array, and of a CSV file


@dataclass(frozen=True, kw_only=True)
class NumberColumn:
    """A number of a row: ``(x - mean) / std``, one feature."""

    name: str
    mean: float = 0.0
    std: float = 1.0
    scale: Literal["linear", "log1p"] = "linear"  # "log1p": log(1 + x) comes before mean and std
    codes: Mapping[str, float] = field(default_factory=dict)  # text -> the number that it stands for
    missing: float | None = None  # what stands for a missing number, as recorded; None: it must be there


@dataclass(frozen=True, kw_only=True)
class CodeRange:
    """Codes that stand for one value: a prefix, or a whole number before the first dot in [low, high)."""

    value: str
    prefix: str | None = None
    low: int = 0
    high: int = 0


@dataclass(frozen=True, kw_only=True)
class CategoryColumn:
    """A category of a row: one feature for each value, 1 where it is that value and else 0."""

    name: str
    values: tuple[str, ...]
    ranges: tuple[CodeRange, ...] = ()  # the first that fits a code gives its value
    others: Literal["refuse", "zeros"] = "refuse"  # "zeros": another value, or none, has no feature set


@dataclass(frozen=True, kw_only=True)
class TableEncoding:
    """How a row of a table becomes a vector (F,), float32: the features of each column in turn."""

    columns: tuple[NumberColumn | CategoryColumn, ...]


@dataclass(frozen=True, kw_only=True)
class TextEncoding:
    """How a text becomes token ids (T,), int64, cut and padded on the right to one length."""

    sha256: str  # of the tokenizer's file
    length: int  # T
    tokenizer: str = (
        "tokenizer.json"  # under preprocessing/ of a bundle; the format of Hugging Face tokenizers
    )
    pad_id: int = 0
    ids: str = "input_ids"  # name of the model's input
    mask: str | None = "attention_mask"  # 1 for tokens, 0 for padding; None: the model has no such input
    types: str | None = None  # which of two texts: all 0


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """``(x - mean) / std`` per channel, over axis 0 of an input."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What turns a raw input into what the model is fed; the server does the same.

    At most one of image, signal, table and text; the normalization comes last.
    """

    image: ImageDecoding | None = None
    signal: SignalDecoding | None = None
    table: TableEncoding | None = None
    text: TextEncoding | None = None
    normalization: Normalization | None = None

    @property
    def raw(self) -> ImageDecoding | SignalDecoding | TableEncoding | TextEncoding | None:
        """What a raw input is decoded by; None where it is an array already."""
        return self.image or self.signal or self.table or self.text

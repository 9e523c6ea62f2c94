"""Numbers with units, as people write them in a recipe: ``1 %``, ``25 MB``, ``50 ms``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema

_SHARE = {"": 1.0, "%": 0.01}
_BYTES = {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_COUNT = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_MILLISECONDS = {"": 1.0, "ms": 1.0, "s": 1e3, "us": 1e-3, "µs": 1e-3}


def parse_quantity(value: object, units: Mapping[str, float], example: str) -> float:
    """Read a number with an optional unit.

    Args:
        value: A number, or a string such as ``"1 %"``.
        units: Lower-case unit -> factor; the empty unit is a bare number.
        example: Shown in the error.

    Raises:
        ValueError: It is neither a number nor a number with one of ``units``.

    Example:
        >>> parse_quantity("25 MB", _BYTES, "25 MB")
        25000000.0
    """
    match = re.fullmatch(r"\s*([+-]?\d+(?:\.\d*)?(?:e[+-]?\d+)?)\s*([a-zµ%]*)\s*", str(value).lower())
    if isinstance(value, bool) or not match or match[2] not in units:
        raise ValueError(f"must be a quantity such as {example!r}, got {value!r}")
    # Rounded: 0.1 % is meant as 0.001, not as 0.1 * 0.01.
    return float(f"{float(match[1]) * units[match[2]]:.12g}")


def parse_share(value: object) -> float:
    """A share as it is written in a recipe.

    Raises:
        ValueError: It is no number with or without a per cent sign.

    Example:
        >>> parse_share("2 %"), parse_share(0.02)
        (0.02, 0.02)
    """
    return parse_quantity(value, _SHARE, "1 %")


def _quantity(units: Mapping[str, float], example: str) -> tuple[BeforeValidator, WithJsonSchema]:
    read = BeforeValidator(lambda value: parse_quantity(value, units, example))
    schema = {"anyOf": [{"type": "number"}, {"type": "string", "examples": [example]}]}
    return read, WithJsonSchema(schema, mode="validation")


Share = Annotated[float, *_quantity(_SHARE, "1 %"), Field(ge=0, le=1)]
Bytes = Annotated[float, *_quantity(_BYTES, "25 MB"), Field(gt=0)]
Milliseconds = Annotated[float, *_quantity(_MILLISECONDS, "50 ms"), Field(gt=0)]
Count = Annotated[float, *_quantity(_COUNT, "300 M"), Field(gt=0)]

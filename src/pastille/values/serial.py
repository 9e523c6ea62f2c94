"""Every value, as JSON and back."""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")


@cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter  # 0.1 s: only when something is read or written

    return TypeAdapter(cast("Any", kind))


def to_json(value: object, *, indent: int | None = 2) -> bytes:
    """Write a value as JSON.

    Args:
        value: A frozen dataclass made of numbers, strings, mappings and other such values.
        indent: Spaces per level; None writes one line.

    Returns:
        UTF-8 JSON. Floats are written so that they read back bit-equal; NaN becomes ``null``.

    Example:
        >>> from pastille.values import Interval
        >>> to_json(Interval(low=0.0, high=0.5, confidence=0.95), indent=None)
        b'{"low":0.0,"high":0.5,"confidence":0.95}'
    """
    return _adapter(cast("Hashable", type(value))).dump_json(value, indent=indent)


def from_json(kind: type[T], data: bytes | str) -> T:
    """Read a value that `to_json` wrote.

    Raises:
        pydantic.ValidationError: The JSON does not describe a ``kind`` (a ``ValueError``).

    Example:
        >>> from pastille.values import Interval
        >>> from_json(Interval, '{"low": 0, "high": 0.5, "confidence": 0.95}').high
        0.5
    """
    value: T = _adapter(cast("Hashable", kind)).validate_json(data)
    return value

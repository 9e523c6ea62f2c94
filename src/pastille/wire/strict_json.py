"""JSON as strangers send it: bounded, and refused where two readers could understand it differently."""

from __future__ import annotations

import json
from json import JSONDecoder, JSONEncoder
from typing import Any

from pastille.wire.errors import malformed, too_large

_MOST_CONTAINERS = 1 << 20  # an empty list takes 56 bytes of memory and 3 of the body
_MOST_KEYS = 1 << 16


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise malformed("a JSON object names one key twice")
    return found


def _constant(_name: str) -> Any:
    raise malformed("JSON knows no NaN and no Infinity; a value must be a finite number")


_DECODER = JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant)
_ENCODER = JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False)


def read_object(data: bytes | memoryview, limit: int, *, values: int | None = None) -> dict[str, Any]:
    """Parse one JSON object; see `read_json`.

    Raises:
        WireError: As `read_json`, or it is no object.

    Example:
        >>> read_object(b'{"a": [1]}', 100)
        {'a': [1]}
    """
    value = read_json(data, limit, values=values)
    if not isinstance(value, dict):
        raise malformed("the body must be a JSON object")
    return value


def read_json(data: bytes | memoryview, limit: int, *, values: int | None = None) -> Any:
    """Parse any JSON.

    Parsing holds the interpreter for up to 1 s per 16 MB, and takes up to 16 times the memory: so what cannot
    be right is refused by counting characters, which takes a hundredth of that.

    Args:
        data: UTF-8.
        limit: Bytes that it may have.
        values: That its lists may hold together; None sets no bound.

    Raises:
        WireError: It is too large, not JSON, nested too deeply, or names a key twice.

    Example:
        >>> read_json(b"[1, 2.5]", 100)
        [1, 2.5]
        >>> read_json(b'{"a": NaN}', 100)
        Traceback (most recent call last):
        pastille.wire.errors.WireError: JSON knows no NaN and no Infinity; a value must be a finite number
    """
    if len(data) > limit:
        raise too_large(f"JSON must have at most {limit} bytes, got {len(data)}; send tensors as binary data")
    raw = bytes(data)
    _check_counts(raw, values)
    try:
        return _DECODER.decode(raw.decode())
    except json.JSONDecodeError as error:
        raise malformed(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except UnicodeDecodeError:
        raise malformed("JSON must be UTF-8") from None
    except RecursionError:
        raise malformed("JSON is nested too deeply") from None
    except ValueError:  # a whole number of more than 4,300 digits
        raise malformed("a number in the JSON has too many digits") from None


def _check_counts(raw: bytes, values: int | None) -> None:
    """Texts count as well, which is why the bounds are generous."""
    if raw.count(b"[") + raw.count(b"{") > _MOST_CONTAINERS:
        raise too_large(f"JSON must have at most {_MOST_CONTAINERS} lists and objects; send flat data")
    if raw.count(b":") > _MOST_KEYS:
        raise too_large(f"JSON must have at most {_MOST_KEYS} keys")
    if values is not None and raw.count(b",") > values:
        raise too_large("the JSON holds more values than the model takes")


def write_json(value: object) -> bytes:
    """Write JSON without a space too many.

    Raises:
        ValueError: A number in it is not finite.

    Example:
        >>> write_json({"a": [1, 2.5]})
        b'{"a":[1,2.5]}'
    """
    return _ENCODER.encode(value).encode()

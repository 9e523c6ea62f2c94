"""``multipart/form-data`` as a browser sends it, of a body that is already bounded (RFC 7578)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message

from pastille.serve.errors import Refused

MAX_PARTS = 64
MAX_HEADER_BYTES = 4096  # of one part
MAX_BOUNDARY = 70  # characters, RFC 2046
MAX_PARAMETERS = 1024  # characters of one header; the standard library takes time by their square


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """One field of a form."""

    name: str
    file: str | None  # its name; None for a plain field
    media_type: str
    data: bytes


def parts_of(body: bytes, content_type: str) -> tuple[Part, ...]:
    r"""The fields of a form; `MAX_PARTS` and `MAX_HEADER_BYTES` bound what they take.

    Args:
        body: Whole.
        content_type: Of the request, with its boundary.

    Raises:
        Refused: ``malformed``, or ``too_large`` for more parts than are read.

    Example:
        >>> body = b'--b\r\nContent-Disposition: form-data; name="age"\r\n\r\n61\r\n--b--\r\n'
        >>> [(part.name, part.data) for part in parts_of(body, "multipart/form-data; boundary=b")]
        [('age', b'61')]
    """
    boundary = _parameter(content_type, "boundary")
    if not boundary or len(boundary) > MAX_BOUNDARY or not boundary.isascii():
        raise Refused("malformed", "multipart/form-data must name a boundary of at most 70 characters")
    return tuple(map(_part, _pieces(body, b"--" + boundary.encode())))


def _pieces(body: bytes, mark: bytes) -> Iterator[bytes]:
    """What stands between two boundaries, found one by one: a flood of them is left at the first too many."""
    at = 0 if body.startswith(mark) else body.find(b"\r\n" + mark) + 2
    if at == 1:
        raise Refused("malformed", "multipart/form-data must hold its boundary")
    for _ in range(MAX_PARTS + 1):
        begin = at + len(mark)
        if body.startswith(b"--", begin):
            return
        end = body.find(b"\r\n" + mark, begin)
        if not body.startswith(b"\r\n", begin) or end < 0:
            raise Refused("malformed", "multipart/form-data must be whole")
        yield body[begin + 2 : end]
        at = end + 2
    raise Refused("too_large", f"multipart/form-data may have at most {MAX_PARTS} parts")


def _part(piece: bytes) -> Part:
    head, found, _ = piece[: MAX_HEADER_BYTES + 4].partition(b"\r\n\r\n")
    if not found:
        raise Refused("malformed", f"a part must have headers of at most {MAX_HEADER_BYTES} bytes")
    fields = dict(_field(line) for line in head.decode("utf-8", "replace").split("\r\n"))
    disposition = fields.get("content-disposition", "")
    name = _parameter(disposition, "name")
    if name is None:
        raise Refused("malformed", "a part must have a name")
    return Part(
        name=name,
        file=_parameter(disposition, "filename"),
        media_type=fields.get("content-type", "").partition(";")[0].strip().lower(),
        data=piece[len(head) + 4 :],
    )


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip().lower(), value.strip()


def _parameter(value: str, name: str) -> str | None:
    """A parameter of a header, unquoted: ``form-data; name="x"`` has ``name``."""
    if len(value) > MAX_PARAMETERS:
        return None
    message = Message()
    message["Content-Type"] = f"x/x; {value.partition(';')[2]}"
    found = message.get_param(name)
    return found if isinstance(found, str) else None

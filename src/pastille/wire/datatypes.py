"""The protocol's names of element types, and numpy's."""

from __future__ import annotations

import numpy as np

from pastille.wire.errors import malformed

# Little-endian whatever the machine: that is how they travel.
DTYPES: dict[str, np.dtype[np.generic]] = {
    "BOOL": np.dtype("?"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
_NAMES = {(dtype.kind, dtype.itemsize): name for name, dtype in DTYPES.items()}
_KNOWN_ELSEWHERE = {"BYTES": "text", "BF16": "brain floats"}  # of the protocol, but of no model here


def datatype_of(dtype: np.dtype[np.generic] | str) -> str:
    """The protocol's name of a numpy type.

    Raises:
        WireError: It has none.

    Example:
        >>> datatype_of("float32"), datatype_of(np.dtype(bool))
        ('FP32', 'BOOL')
    """
    found = np.dtype(dtype)
    if (found.kind, found.itemsize) not in _NAMES:
        raise malformed(f"a tensor must be of one of the types {', '.join(DTYPES)}, got {found}")
    return _NAMES[found.kind, found.itemsize]


def dtype_of(datatype: object) -> np.dtype[np.generic]:
    """The numpy type of the protocol's name.

    Raises:
        WireError: There is no such type, or no model here takes it.

    Example:
        >>> dtype_of("INT64")
        dtype('int64')
    """
    found = DTYPES.get(datatype) if isinstance(datatype, str) else None
    if found is None:
        if isinstance(datatype, str) and datatype in _KNOWN_ELSEWHERE:
            what = _KNOWN_ELSEWHERE[datatype]
            raise malformed(f"datatype {datatype} ({what}) is taken by no model here; {_allowed()}")
        raise malformed(f"datatype is unknown; {_allowed()}")
    return found


def _allowed() -> str:
    return f"choose one of {', '.join(DTYPES)}"

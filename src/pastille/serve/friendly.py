"""``POST /predict``: a file, a row or a text in, and an answer in the words of the task out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pastille.bundle import Manifest
from pastille.bundle.load import checked_inputs
from pastille.bundle.manifest import PREPROCESSING
from pastille.data.prepare import KINDS, Prepared, normalize_rows, prepare, prepare_record
from pastille.errors import DataError, IntegrityError, UsageError
from pastille.serve.errors import Refused
from pastille.serve.friendly_answer import predict_body
from pastille.serve.friendly_form import form
from pastille.serve.multipart import Part, parts_of
from pastille.serve.settings import Limits
from pastille.values import (
    ImageDecoding,
    Preprocessing,
    SignalDecoding,
    TableEncoding,
    TextEncoding,
)
from pastille.wire import WireError, read_json

__all__ = ["Prepared", "form", "is_quick", "predict_body", "read_predict"]

QUICK_BYTES = 16 << 10
_NUMBERS = frozenset({bool, int, float})
_MOST_OTHERS = 1 << 18  # values of a JSON body that are no numbers of a tensor

_JSON, _FORM = "application/json", "multipart/form-data"
# What command-line tools send when nobody said what it is.
_UNSAID = frozenset({"", "application/octet-stream", "application/x-www-form-urlencoded"})
_TAKEN: Mapping[type, tuple[str, ...]] = {
    ImageDecoding: ("image/", "application/dicom"),
    SignalDecoding: ("text/", "application/vnd.ms-excel", "application/zip", "application/x-zip-compressed"),
    TableEncoding: (),
    TextEncoding: ("text/plain",),
    type(None): (),
}


def read_predict(
    body: bytes | bytearray, content_type: str | None, manifest: Manifest, folder: Path, limits: Limits
) -> Prepared:
    """Turn what a client sent into what the model is fed.

    Args:
        body: Whole, inflated, within ``limits``.
        content_type: As sent; what it is, is seen from the body where nothing useful was said.
        manifest: Of the bundle; its preprocessing is applied.
        folder: Of the bundle.
        limits: Of one request.

    Returns:
        Inputs with their batch axis, finite, in the model's types; and warnings.

    Raises:
        Refused: ``malformed``, ``not_finite``, ``too_large`` or ``media_type``; ``fault`` where the bundle's
            own tokenizer cannot be read.
    """
    if not body:
        raise Refused("malformed", "the body is empty; GET /predict says what to send")
    try:
        found = _read(bytes(body), content_type or "", manifest, folder / PREPROCESSING, limits)
        inputs = _checked(found.inputs, manifest, limits)
    except DataError as error:
        raise Refused("malformed", str(error)) from None
    except UsageError as error:  # a package of an extra is missing here
        raise Refused("media_type", str(error)) from None
    except IntegrityError:  # names a path
        raise Refused("fault", "a file of this model's preprocessing is not as it was written") from None
    return Prepared(inputs=inputs, warnings=found.warnings)


def is_quick(body: bytes | bytearray, manifest: Manifest) -> bool:
    """Whether `read_predict` takes less than a hop to a thread: rows and arrays do.

    Three kilobytes of PNG may be 25 million pixels, and the first text opens a tokenizer.
    """
    raw = manifest.preprocessing.raw if manifest.preprocessing else None
    return len(body) <= QUICK_BYTES and isinstance(raw, TableEncoding | None)


def _read(body: bytes, content_type: str, manifest: Manifest, folder: Path, limits: Limits) -> Prepared:
    preprocessing = manifest.preprocessing or Preprocessing()
    media = content_type.partition(";")[0].strip().lower()
    if media == _FORM:
        return _form(parts_of(body, content_type), manifest, preprocessing, folder, limits)
    how = preprocessing.raw
    if media == _JSON or (media in _UNSAID and isinstance(how, TableEncoding | None)):
        return _json(body, manifest, preprocessing, folder, limits)
    if media not in _UNSAID and not media.startswith(_TAKEN[type(how)]):
        raise Refused(
            "media_type", f"this model takes {KINDS[type(how)]}, not {media[:60]!r}; see GET /predict"
        )
    raw = _text(body) if isinstance(how, TextEncoding) else body
    return prepare(raw, preprocessing, manifest.inputs, folder=folder)


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise DataError("the text must be UTF-8") from None


def _json(
    body: bytes, manifest: Manifest, preprocessing: Preprocessing, folder: Path, limits: Limits
) -> Prepared:
    numbers = limits.rows * sum(math.prod(spec.shape) for spec in manifest.inputs)
    value = parsed(body, limits.json_bytes, values=numbers + _MOST_OTHERS)
    match preprocessing.raw, value:
        case TableEncoding() as how, dict() if set(value) != {"inputs"} or any(
            c.name == "inputs" for c in how.columns
        ):
            return prepare(value, preprocessing, manifest.inputs, folder=folder)
        case TableEncoding(), list() if value and all(isinstance(row, dict) for row in value):
            return _rows(value, manifest, preprocessing, folder, limits)
        case TextEncoding(), {"text": str(text), **rest} if not rest:
            return prepare(text, preprocessing, manifest.inputs, folder=folder)
        case how, {"inputs": given, **rest} if not rest:
            return _arrays(given, manifest, preprocessing)
        case how, _:
            asked = "" if how is None else f"{KINDS[type(how)]}, or "
            raise DataError(f'JSON must be {asked}{{"inputs": …}} with arrays of numbers')


def parsed(body: bytes, limit: int, *, values: int) -> object:
    """JSON of a client, as strict and bounded as that of the protocol: a column named twice is no row.

    Raises:
        Refused: ``malformed`` or ``too_large``.

    Example:
        >>> parsed(b'{"age": 61}', 100, values=1)
        {'age': 61}
    """
    try:
        return read_json(body, limit, values=values)
    except WireError as error:
        raise Refused(error.cause, str(error)) from None


def _rows(
    rows: Sequence[Mapping[str, object]],
    manifest: Manifest,
    preprocessing: Preprocessing,
    folder: Path,
    limits: Limits,
) -> Prepared:
    if len(rows) > limits.rows:
        raise Refused("too_large", f"a request may have at most {limits.rows} rows")
    each = [prepare(row, preprocessing, manifest.inputs, folder=folder) for row in rows]
    inputs = {s.name: np.concatenate([one.inputs[s.name] for one in each]) for s in manifest.inputs}
    return Prepared(inputs=inputs, warnings=tuple(dict.fromkeys(w for one in each for w in one.warnings)))


def _arrays(given: object, manifest: Manifest, preprocessing: Preprocessing) -> Prepared:
    """Arrays as they are before the normalization, which comes last whatever was decoded."""
    arrays = given if isinstance(given, dict) else {manifest.inputs[0].name: given}
    types = {spec.name: spec.dtype for spec in manifest.inputs}
    if set(arrays) != set(types):  # their names may be anything: they appear in no error
        raise DataError(f"inputs must be {', '.join(types)}, and nothing else")
    cast = {name: _array(x, types[name]) for name, x in arrays.items()}
    checked = checked_inputs(cast, manifest.inputs)
    scale = preprocessing.normalization
    return Prepared(inputs={name: normalize_rows(x, scale) for name, x in checked.items()})


def _array(given: object, dtype: str) -> np.ndarray:
    """JSON has one kind of number: 1 and 1.0 are both fine where floats are asked for."""
    try:
        # Of one long text among many numbers numpy would make as many long texts: types are looked at first.
        if not _NUMBERS.issuperset(map(type, np.array(given, dtype=object).reshape(-1))):
            raise ValueError
        array = np.asarray(given)
    except ValueError:
        raise DataError("inputs must be arrays of numbers, all rows of one length") from None
    floats = np.dtype(dtype).kind == "f" and array.dtype.kind in "iuf"
    return array.astype(dtype) if floats else array


def _form(
    parts: Sequence[Part], manifest: Manifest, preprocessing: Preprocessing, folder: Path, limits: Limits
) -> Prepared:
    """A browser's form: one file, the two of a WFDB record, or plain fields that are a row or a text."""
    files = [part for part in parts if part.file is not None]
    how = preprocessing.raw
    if isinstance(how, SignalDecoding) and len(files) > 1:
        named = {part.file or "": part.data for part in files}
        return prepare_record(named, preprocessing, manifest.inputs)
    if len(files) == 1:
        return _read(files[0].data, files[0].media_type, manifest, folder, limits)
    if files or not parts:
        raise DataError("a form must hold one file, or the .hea and .dat file of a WFDB record")
    fields = {part.name: _text(part.data) for part in parts}
    if isinstance(how, TextEncoding) and list(fields) == ["text"]:
        return prepare(fields["text"], preprocessing, manifest.inputs, folder=folder)
    return prepare(fields, preprocessing, manifest.inputs, folder=folder)


def _checked(
    inputs: Mapping[str, np.ndarray], manifest: Manifest, limits: Limits
) -> Mapping[str, np.ndarray]:
    first = next(iter(inputs.values()))
    if len(first) > limits.rows:
        raise Refused("too_large", f"a request may have at most {limits.rows} cases, got {len(first)}")
    if sum(x.size for x in inputs.values()) > limits.elements:
        raise Refused("too_large", f"a request may have at most {limits.elements} values")
    for spec in manifest.inputs:
        if not np.isfinite(inputs[spec.name]).all():
            raise Refused("not_finite", f"input {spec.name!r} must be finite once it is prepared")
    return inputs

"""Golden cases: a few inputs, and what each variant answered to them where it was validated.

Replayed wherever the bundle goes, they show whether the same file still gives the same decisions:
on another CPU, in another version of the runtime, and whatever the batch size.

``golden/cases.npz`` is an uncompressed npz without dates, so equal cases give equal bytes. It is read
without NumPy's loader: nothing is unpickled, and nothing is allocated beyond the size of the file.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pastille.bundle.manifest import OutputScale
from pastille.errors import InferenceError, IntegrityError
from pastille.runtime import Session
from pastille.stats.decisions import decisions
from pastille.stats.scale import to_logits
from pastille.values import Kind

MAX_GOLDEN_BYTES = 256 << 20

FP32_TOLERANCE = 1e-4  # of the largest golden output
DECIDING: tuple[Kind, ...] = ("binary", "multiclass", "multilabel", "segmentation")
MASK_SHARE = 0.999  # of a mask's pixels: those where an object ends may flip by rounding
ROUNDED: tuple[str, ...] = ("int8", "int4")  # precisions whose activations are rounded
INT8_STEPS = 8  # of 1/255 of the range of the golden outputs: another CPU may round differently

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the zip format's oldest date


@dataclass(frozen=True, kw_only=True, eq=False)
class Golden:
    """A few cases with their answers.

    Attributes:
        inputs: Input name -> ``(N, ...)``.
        outputs: Variant name -> ``(N, ...)``, the model's raw output.

    Raises:
        ValueError: There is no case, the arrays differ in length, or an output is not finite.
    """

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        lengths = {len(array) for array in (*self.inputs.values(), *self.outputs.values())}
        if len(lengths) != 1 or 0 in lengths or not self.inputs:
            raise ValueError(f"golden arrays must have one row per case, got lengths {sorted(lengths)}")
        for name, array in self.members().items():
            if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
                raise ValueError(f"golden array {name!r} must hold finite numbers")

    @property
    def cases(self) -> int:
        """How many there are."""
        return len(next(iter(self.inputs.values())))

    def members(self) -> dict[str, np.ndarray]:
        """Name in the file -> array: ``input.NAME`` and ``output.VARIANT``, in that order."""
        inputs = {f"input.{name}": array for name, array in sorted(self.inputs.items())}
        return inputs | {f"output.{name}": array for name, array in sorted(self.outputs.items())}


@dataclass(frozen=True, kw_only=True)
class Replay:
    """How one variant answered the golden cases here, against where it was validated."""

    variant: str
    cases: int
    equal_decisions: int  # cases decided as validated, both alone and in one batch
    max_abs_difference: float  # of the raw outputs; infinite if one is not a number
    tolerance: float  # in units of the raw outputs
    passes: bool


def answer_cases(inputs: Mapping[str, np.ndarray], sessions: Mapping[str, Session], *, output: str) -> Golden:
    """Make golden cases by asking every variant on this machine.

    Args:
        inputs: Input name -> ``(N, ...)``: real ones from validation, or synthetic ones where real
            inputs may not leave the building.
        sessions: Variant name -> the loaded model.
        output: Name of the output that decides.

    Raises:
        InferenceError: A variant cannot be run.
        ValueError: An answer is not finite.
    """
    return Golden(
        inputs=dict(inputs), outputs={v: np.asarray(s(inputs)[output]) for v, s in sessions.items()}
    )


def golden_bytes(golden: Golden) -> bytes:
    """The npz of golden cases; equal cases give equal bytes.

    Example:
        >>> golden = Golden(inputs={"input": np.zeros((2, 3))}, outputs={"fp32": np.ones((2, 1))})
        >>> sorted(np.load(io.BytesIO(golden_bytes(golden))))
        ['input.input', 'output.fp32']
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in golden.members().items():
            info = zipfile.ZipInfo(f"{name}.npy", date_time=_EPOCH)
            info.create_system = 3  # the same bytes on every system
            archive.writestr(info, _npy_bytes(array))
    return buffer.getvalue()


def _npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    np.lib.format.write_array(buffer, little, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def read_golden(path: Path, *, inputs: Sequence[str], variants: Sequence[str]) -> Golden:
    """Read golden cases from a file that is not trusted.

    Args:
        path: The npz.
        inputs: Names of the inputs that it must hold, and no others.
        variants: Names of the variants whose outputs it must hold, and no others.

    Raises:
        IntegrityError: It is missing, larger than 256 MiB, compressed, holds anything else than
            those arrays of finite numbers, or is not an npz at all.
    """
    expected = [f"input.{name}" for name in inputs] + [f"output.{name}" for name in variants]
    try:
        if path.stat().st_size > MAX_GOLDEN_BYTES:
            raise ValueError(f"it must be at most {MAX_GOLDEN_BYTES} bytes, but is larger")
        with zipfile.ZipFile(path) as archive:
            _check_members(archive.infolist(), expected)
            arrays = {name: _array(archive.read(f"{name}.npy")) for name in expected}
        return Golden(
            inputs={name: arrays[f"input.{name}"] for name in inputs},
            outputs={name: arrays[f"output.{name}"] for name in variants},
        )
    except Exception as error:  # a malformed zip or header can raise almost anything
        problem = " ".join(str(error).split())[:200] or type(error).__name__
        raise IntegrityError(
            f"{path} does not hold the golden cases of this bundle: {problem}; "
            "fetch the bundle again or write it anew"
        ) from None


def _check_members(members: Sequence[zipfile.ZipInfo], expected: Sequence[str]) -> None:
    found = [member.filename for member in members]
    if sorted(found) != sorted(f"{name}.npy" for name in expected):
        raise ValueError(f"it must hold the arrays {sorted(expected)}, got {sorted(found)}")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise ValueError(f"{member.filename} must not be compressed")
    if sum(member.file_size for member in members) > MAX_GOLDEN_BYTES:
        raise ValueError(f"its arrays must have at most {MAX_GOLDEN_BYTES} bytes together")


def _array(data: bytes) -> np.ndarray:
    stream = io.BytesIO(data)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("its arrays must be in version 1.0 of the npy format")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.kind not in "biuf" or fortran or min(shape, default=0) < 0:
        raise ValueError(f"its arrays must hold plain numbers in C order, got {dtype}")
    # A view of what was read: a header that claims terabytes does not fit it, and allocates nothing.
    return np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape)


def replay(
    session: Session,
    golden: Golden,
    variant: str,
    *,
    kind: Kind,
    output: str,
    precision: str,
    scale: OutputScale = "logits",
    threshold: float = 0.5,
    positive: int = 1,
) -> Replay:
    """Ask a variant its golden cases again, all in one batch and one at a time.

    Decisions must be those of the machine that validated it, in both ways of asking: every label of a
    case, and of a mask 99.9 % of its pixels. Raw outputs must be near: within 1e-4 of the largest one for
    fp32, within eight steps of 1/255 of their range for int8 and int4, whose rounding depends on the CPU.
    Tasks that have no decisions apart from their values count a case as decided alike if its values are near.

    Args:
        session: The variant, loaded.
        golden: The cases; see `read_golden`.
        variant: Which of the golden outputs to hold against.
        kind: Of the task.
        output: Name of the output that decides.
        precision: ``"fp32"`` or ``"int8"``.
        scale: What the model answers with.
        threshold: Of a binary or multilabel task.
        positive: Of a binary task: the label that ``threshold`` speaks of, 0 or 1.

    Raises:
        InferenceError: The variant cannot be run, or lacks that output.
    """
    expected = golden.outputs[variant].astype(np.float64)  # (N, ...)
    tolerance = tolerance_of(expected, precision)
    answers = [_ask(session, golden, output, batch) for batch in (golden.cases, 1)]
    for answered in answers:
        if answered.shape != expected.shape:
            raise InferenceError(f"answers with shape {answered.shape} instead of {expected.shape}")
    share = MASK_SHARE if kind == "segmentation" else 1.0
    near = np.all([_near_share(a, expected, tolerance) >= share for a in answers], axis=0)  # (N,)
    alike = near
    if kind in DECIDING:

        def decide(raw: np.ndarray) -> np.ndarray:
            return decisions(kind, to_logits(kind, raw, scale), threshold=threshold, positive=positive)

        want = decide(expected)
        equal = [_finite(a) & (equal_share(decide(_filled(a, expected)), want) >= share) for a in answers]
        alike = np.all(equal, axis=0)
    return Replay(
        variant=variant,
        cases=golden.cases,
        equal_decisions=int(alike.sum()),
        max_abs_difference=max(_largest_difference(answered, expected) for answered in answers),
        tolerance=tolerance,
        passes=bool(alike.all() and near.all()),
    )


def tolerance_of(expected: np.ndarray, precision: str) -> float:
    """How far raw outputs may lie from the golden ones, in their own units.

    Example:
        >>> round(tolerance_of(np.array([0.0, 25.5]), "int8"), 9)
        0.8
    """
    if precision in ROUNDED:
        spread = max(float(expected.max()), 0.0) - min(float(expected.min()), 0.0)
        return max(INT8_STEPS * spread / 255, FP32_TOLERANCE)
    return FP32_TOLERANCE * (float(np.abs(expected).max()) or 1.0)


def _ask(session: Session, golden: Golden, output: str, batch: int) -> np.ndarray:
    parts = []
    for start in range(0, golden.cases, batch):
        answered = session({name: x[start : start + batch] for name, x in golden.inputs.items()})
        if output not in answered:
            raise InferenceError(f"has no output {output!r}, but {sorted(answered)}")
        parts.append(np.asarray(answered[output], np.float64))
    return np.concatenate(parts)


def _by_case(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1)


def equal_share(decided: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Share of the decisions of each case that are equal, ``(N,)``: one per case, label or pixel."""
    share: np.ndarray = _by_case(decided == expected).mean(axis=1)
    return share


def _near_share(answered: np.ndarray, expected: np.ndarray, tolerance: float) -> np.ndarray:
    """Share of the numbers of each case that are near, ``(N,)``; what is not a number never is."""
    share: np.ndarray = _by_case(np.abs(answered - expected) <= tolerance).mean(axis=1)
    return share


def _largest_difference(answered: np.ndarray, expected: np.ndarray) -> float:
    """Infinite where an answer is not a number."""
    difference = np.abs(answered - expected)
    return float(np.where(np.isfinite(difference), difference, np.inf).max())


def _finite(answered: np.ndarray) -> np.ndarray:
    finite: np.ndarray = np.isfinite(_by_case(answered)).all(axis=1)
    return finite


def _filled(answered: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """What is not a number replaced, so that the rest can be decided."""
    return np.where(np.isfinite(answered), answered, expected)

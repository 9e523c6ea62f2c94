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
from functools import partial
from pathlib import Path

import numpy as np

from pastille.errors import InferenceError, IntegrityError
from pastille.runtime import Session
from pastille.stats.decisions import decisions, probabilities
from pastille.values import Kind

MAX_GOLDEN_BYTES = 256 << 20
DEFAULT_CASES = 16

FP32_TOLERANCE = 1e-4  # of the largest golden output
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


def choose_cases(
    outputs: Sequence[np.ndarray],
    *,
    kind: Kind,
    threshold: float = 0.5,
    positive: int = 1,
    count: int = DEFAULT_CASES,
) -> np.ndarray:
    """Choose which cases become golden: typical ones, taken in turn from every decision.

    A case that lies on the edge between two classes may flip when another CPU rounds differently, and
    would then condemn a sound file; so cases come from the middle of their class, where a real fault
    shows and rounding does not. Only cases that all variants decide alike are taken.

    Args:
        outputs: Raw outputs of each variant, ``(N, ...)`` each; the first sets what is typical.
        kind: Of the task.
        threshold: Of a binary task.
        positive: Of a binary task: the label that ``threshold`` speaks of, 0 or 1.
        count: How many to choose.

    Returns:
        Sorted indices, shape ``(min(count, N'),)``, where N' cases are decided alike.

    Raises:
        ValueError: No case is decided alike by all variants.

    Example:
        >>> logits = np.array([[0.1, 0.0], [3.0, 0.0], [9.0, 0.0], [0.0, 2.0]])
        >>> choose_cases([logits], kind="multiclass", count=2)
        array([1, 3])
    """
    if kind == "regression":
        order = np.argsort(outputs[0].reshape(len(outputs[0]), -1)[:, 0], kind="stable")
        return np.sort(order[np.unique(np.linspace(0, len(order) - 1, count).round().astype(int))])
    decided = [decisions(kind, x, threshold=threshold, positive=positive) for x in outputs]
    alike = np.all([d == decided[0] for d in decided], axis=0)  # (N,)
    if not alike.any():
        raise ValueError("outputs must be decided alike in at least one case, got none")
    margin = _margins(probabilities(kind, outputs[0]), threshold=threshold, positive=positive)  # (N,)
    classes = [np.flatnonzero(alike & (decided[0] == c)) for c in np.unique(decided[0][alike])]
    return np.sort(_in_turn([_typical_first(cases, margin) for cases in classes])[:count])


def _margins(probability: np.ndarray, *, threshold: float, positive: int) -> np.ndarray:
    """How far each case is from another decision, ``(N,)``, in units of probability."""
    if probability.ndim == 1:  # binary: of the second label
        return np.abs(probability - (threshold if positive == 1 else 1 - threshold))
    ordered = np.sort(probability, axis=1)  # (N, K)
    margin: np.ndarray = ordered[:, -1] - ordered[:, -2]
    return margin


def _typical_first(cases: np.ndarray, margin: np.ndarray) -> list[int]:
    distance = np.abs(margin[cases] - np.median(margin[cases]))
    return [int(i) for i in cases[np.argsort(distance, kind="stable")]]


def _in_turn(ranked: Sequence[Sequence[int]]) -> list[int]:
    longest = max(len(cases) for cases in ranked)
    return [cases[turn] for turn in range(longest) for cases in ranked if turn < len(cases)]


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
    threshold: float = 0.5,
    positive: int = 1,
) -> Replay:
    """Ask a variant its golden cases again, all in one batch and one at a time.

    Decisions must be those of the machine that validated it, in both ways of asking. Raw outputs must
    be near: within 1e-4 of the largest one for fp32, within eight steps of 1/255 of their range for
    int8, whose rounding depends on the CPU. Regression has no decisions apart from its values, so
    there a case counts as decided alike if its value is near.

    Args:
        session: The variant, loaded.
        golden: The cases; see `read_golden`.
        variant: Which of the golden outputs to hold against.
        kind: Of the task.
        output: Name of the output that decides.
        precision: ``"fp32"`` or ``"int8"``.
        threshold: Of a binary task.
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
    difference = np.max([_distances(answered, expected) for answered in answers], axis=0)  # (N,)
    near = difference <= tolerance
    alike = near
    if kind != "regression":
        decide = partial(decisions, kind, threshold=threshold, positive=positive)
        alike = np.all([_finite(a) & (decide(np.nan_to_num(a)) == decide(expected)) for a in answers], axis=0)
    return Replay(
        variant=variant,
        cases=golden.cases,
        equal_decisions=int(alike.sum()),
        max_abs_difference=float(difference.max()),
        tolerance=tolerance,
        passes=bool(alike.all() and near.all()),
    )


def tolerance_of(expected: np.ndarray, precision: str) -> float:
    """How far raw outputs may lie from the golden ones, in their own units.

    Example:
        >>> round(tolerance_of(np.array([0.0, 25.5]), "int8"), 9)
        0.8
    """
    if precision == "int8":
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


def _distances(answered: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Largest difference of each case, shape ``(N,)``; infinite where an answer is not a number."""
    difference = np.abs(answered - expected).reshape(len(expected), -1).max(axis=1)
    return np.where(np.isfinite(difference), difference, np.inf)


def _finite(answered: np.ndarray) -> np.ndarray:
    finite: np.ndarray = np.isfinite(answered).reshape(len(answered), -1).all(axis=1)
    return finite

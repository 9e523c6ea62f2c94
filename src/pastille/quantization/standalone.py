"""An ONNX file and some inputs in, a smaller file and an account of it out: no PyTorch code is needed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import onnx
from onnx import numpy_helper

from pastille.data.sampler import MIN_CALIBRATION, calibration_indices
from pastille.data.split import Split, batches, named
from pastille.errors import CalibrationError, DataError, InferenceError, PreconditionError, UsageError
from pastille.files import produce_atomic
from pastille.progress import SILENT, Progress
from pastille.quantization.conversion import float_model
from pastille.quantization.converting import Converting, conversion_words, converted, is_solved
from pastille.quantization.coverage import Coverage, coverage, ranges_of
from pastille.quantization.deviation import Deviation, deviation, far_out, too_far
from pastille.quantization.layers import left_out
from pastille.quantization.ranges import observer
from pastille.quantization.recovery import Choice, Recovery, choice_of, prepared, quantized_by, recovered
from pastille.quantization.recovery.auto import answers, float_side
from pastille.recipe import Quantize, WeightQuantize
from pastille.runtime import UNKNOWN_DIM, Operators, Session, check_self_contained, load, optimized_operators
from pastille.values import Kind

CONTROL_FLOW: Final = frozenset({"If", "Loop", "Scan"})

Batch = dict[str, np.ndarray]

_WEIGHTED: Final = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "BatchNormalization", "Gather"}
)

_BATCH = 32
_CHECKED = 256  # held-out cases at most
_LEAST_CHECKED = 4


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """What `quantize_file` made.

    Attributes:
        method: As in a recipe.
        made_by: How the file was made, in words.
        calibrated: Cases that it was made with; 0 where it needed none.
        choice: How ranges and weights were found; None where the method has no ranges.
        recovery: What was tried; None where nothing was searched.
        left: Layers that stayed as they were -> why, where the method names them.
        notes: What its user must know, a sentence each.
        warnings: Why it had better not be used as it is: answers that changed, a case that is far out.
        bytes_before: Size of the float file.
        bytes_after: Size of the new file.
        operators: What ONNX Runtime runs in int8 here, and what not.
        deviation: From the float file.
        coverage: Whose values are clipped; None without strata and groups.
    """

    method: str
    made_by: str
    calibrated: int
    choice: Choice | None = None
    recovery: Recovery | None = None
    left: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    bytes_before: int
    bytes_after: int
    operators: Operators
    deviation: Deviation
    coverage: Coverage | None = None


def quantize_file(
    source: Path,
    target: Path,
    cases: Split,
    settings: Quantize | Converting,
    *,
    kind: Kind = "custom",
    seed: int = 0,
    progress: Progress = SILENT,
) -> Quantized:
    """Write a bare ONNX file in fewer bits with the inputs at hand.

    Three quarters of the cases at most calibrate, balanced over label and stratum; the others tell how far
    the new file's answers lie from the float file's. There are no labels to judge by, so recovery keeps
    what brings the answers nearest to the float ones.

    Args:
        source: A float ONNX file.
        target: Written whole or not at all; self-contained.
        cases: Inputs, and strata and groups where they are known; at least 20.
        settings: Which method, and how.
        kind: Of the task, which says how ``cases.targets`` are balanced; ``custom`` has none.
        seed: Of the sample.
        progress: Shows each step.

    Raises:
        IntegrityError: The file is missing, not an ONNX model, or keeps weights in another file.
        PreconditionError: It is quantized already, holds control flow or unknown domains, or has nothing
            to run in int8.
        DataError: The inputs do not fit the file.
        CalibrationError: They are too few, or they or the activations are not finite.
        UsageError: ``target`` is ``source``.
        OutputError: The file cannot be written.
    """
    if source.resolve() == target.resolve():
        raise UsageError(f"the new file must not replace the float file {source}; give another --output")
    model = readable(source)
    session = loaded(source)
    check_inputs(session, cases, source.name)
    if not any(output.dtype == "float32" for output in session.outputs):
        raise PreconditionError(
            f"{source.name} has no float output to compare by; export it without what decides, such as ArgMax"
        )
    samples = settings.samples if isinstance(settings, Quantize | WeightQuantize) else 0
    rows, rest = _parted(cases, samples, kind, seed)
    fit, held = (_read(cases, part, session.fixed_batch, progress) for part in (rows, rest))
    far = far_out([*fit, *held], [*rows[: _count(fit)], *rest])
    if isinstance(settings, Quantize):
        made = _in_int8(source, target, prepared(model), cases, settings, (fit, held, rest), progress)
    else:
        made = _converted(source, target, settings, (fit, held), progress)
    return replace(made, warnings=(*too_far(made.deviation, settings), *far))


def _converted(
    source: Path,
    target: Path,
    settings: Converting,
    parts: tuple[list[Batch], list[Batch]],
    progress: Progress,
) -> Quantized:
    fit, held = parts
    calibration = (lambda: fit) if is_solved(settings) else None
    with TemporaryDirectory(prefix="pastille-") as folder:
        draft = Path(folder) / target.name
        for _ in progress.track(range(1), what=f"converting to {settings.method}"):
            done = converted(source, draft, settings, calibration)
        found = deviation(
            answers(onnx.load(source), lambda: held),
            answers(onnx.load(draft), lambda: held, what=f"the {settings.method} file"),
        )
        produce_atomic(target, lambda place: shutil.copyfile(draft, place))
    return Quantized(
        method=settings.method,
        made_by=conversion_words(done),
        calibrated=_count(fit) if is_solved(settings) else 0,
        left=done.left,
        notes=done.notes,
        bytes_before=source.stat().st_size,
        bytes_after=target.stat().st_size,
        operators=optimized_operators(target),
        deviation=found,
    )


def _in_int8(
    source: Path,
    target: Path,
    graph: Any,
    cases: Split,
    settings: Quantize,
    parts: tuple[list[Batch], list[Batch], np.ndarray],
    progress: Progress,
) -> Quantized:
    fit, held, rest = parts
    choice, account = choice_of(settings), None
    if settings.recover == "auto":
        quantized, account = recovered(graph, lambda: fit, choice, progress=progress)
        choice = account.choice
    else:
        quantized = quantized_by(graph, lambda: fit, choice)
    data = quantized.SerializeToString(deterministic=True)

    def produce(draft: Path) -> None:
        draft.write_bytes(data)
        if settings.scheme != "tensorrt":  # of such a file, the kernels of this machine say nothing
            _require_int8(draft, source.name)

    produce_atomic(target, produce)
    return Quantized(
        method=settings.method,
        made_by=choice.words,
        calibrated=_count(fit),
        choice=choice,
        recovery=account,
        notes=tuple(note for note in (left_out(graph),) if note),
        bytes_before=source.stat().st_size,
        bytes_after=len(data),
        operators=optimized_operators(target),
        deviation=deviation(answers(graph, lambda: held), answers(quantized, lambda: held)),
        coverage=_coverage(float_side(graph, lambda: fit, choice), quantized, cases, rest, held),
    )


def readable(source: Path) -> Any:
    """A float ONNX file that static quantization can start from, in opset 18 or later.

    Args:
        source: The file; an older opset is raised.

    Raises:
        IntegrityError: It is missing, not an ONNX model, or keeps weights in another file.
        PreconditionError: It is quantized already, uses unknown domains or control flow, normalizes by
            the statistics of a batch, is not in single precision, holds weights that are not finite, or
            its opset cannot be raised.
    """
    check_self_contained(source)
    old = onnx.load(source, load_external_data=False)
    flow = next((node for node in old.graph.node if node.op_type in CONTROL_FLOW), None)
    if flow is not None:
        raise PreconditionError(
            f"{source.name} holds the dynamic control flow {flow.op_type!r} ({flow.name or 'unnamed'}): "
            "its ranges depend on the case; export the branch that is used alone"
        )
    norm = next((node for node in old.graph.node if _is_training(node)), None)
    if norm is not None:
        raise PreconditionError(
            f"{source.name} holds batch normalization in training mode ({norm.name or 'unnamed'}): an answer "
            "depends on the rest of its batch; export the model in evaluation mode, after model.eval()"
        )
    half = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
    other = next((t for t in old.graph.initializer if t.data_type in half), None)
    if other is not None:
        kind = onnx.TensorProto.DataType.Name(other.data_type).lower()
        raise PreconditionError(
            f"{source.name} must hold weights in single precision, but {other.name!r} is {kind}; "
            "start from the float32 file"
        )
    _refuse_broken(old.graph, source.name)
    return float_model(source)


def loaded(source: Path) -> Session:
    """A file that its user brought, ready to be called.

    Args:
        source: The file.

    Raises:
        IntegrityError: It is missing, not an ONNX model, or keeps weights in another file.
        PreconditionError: ONNX Runtime does not take it.
    """
    try:
        return load(source)
    except InferenceError as error:
        raise PreconditionError(
            f"{error}; export the model again, with an opset from 18 on that this ONNX Runtime knows"
        ) from error


def _refuse_broken(graph: Any, name: str) -> None:
    """Weights that are not finite; infinity may stand elsewhere, as in the mask of an attention."""
    read = {key for node in graph.node if node.op_type in _WEIGHTED for key in node.input}
    for tensor in (t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT):
        values = numpy_helper.to_array(tensor)
        nan = bool(np.isnan(values).any())
        if nan or (tensor.name in read and not np.isfinite(values).all()):
            raise PreconditionError(
                f"{name}: weight {tensor.name!r} holds {'NaN' if nan else 'infinity'}: the file is broken; "
                "export it again from a model that answers with numbers"
            )


def _is_training(node: Any) -> bool:
    mode = any(a.name == "training_mode" and a.i for a in node.attribute)
    return node.op_type == "BatchNormalization" and mode


def check_inputs(session: Session, cases: Split, name: str) -> None:
    """Make sure that the first case has what a file takes.

    Raises:
        DataError: A name, a type or a shape does not fit.
        CalibrationError: There are no cases.
    """
    if not cases.n:
        raise CalibrationError("calibration needs samples, but the data holds none")
    first = named(cases.inputs[0])
    wanted = {spec.name: spec for spec in session.inputs}
    if set(first) != set(wanted):
        raise DataError(
            f"the data must hold the inputs of {name}, {', '.join(sorted(wanted))}, "
            f"got {', '.join(sorted(first))}"
        )
    for key, array in first.items():
        spec = wanted[key]
        if array.dtype.name != spec.dtype:
            raise DataError(f"input {key!r} must be {spec.dtype}, got {array.dtype}")
        fits = len(array.shape) == len(spec.shape) and all(
            want in (UNKNOWN_DIM, got) for want, got in zip(spec.shape, array.shape, strict=True)
        )
        if not fits:
            shown = ["any" if size == UNKNOWN_DIM else size for size in spec.shape]
            raise DataError(
                f"input {key!r} must have shape ({', '.join(map(str, shown))}), got {array.shape}"
            )


def _parted(cases: Split, samples: int, kind: Kind, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that calibrate, and rows that check."""
    least = MIN_CALIBRATION + _LEAST_CHECKED
    if cases.n < least:
        raise CalibrationError(
            f"the data must hold at least {least} cases, {MIN_CALIBRATION} to calibrate and {_LEAST_CHECKED} "
            f"to check, got {cases.n}; 100 to 1000 are usual"
        )
    # What checks is drawn first: balancing would leave none of a small stratum for it.
    order = np.random.default_rng(seed).permutation(cases.n)
    apart = max(_LEAST_CHECKED, min(_CHECKED, cases.n // 4))
    rest, free = np.sort(order[:apart]), np.sort(order[apart:])
    strata = None if cases.strata is None else cases.strata[free]
    pool = Split(inputs=free, targets=cases.targets[free], strata=strata)
    return free[calibration_indices(pool, max(MIN_CALIBRATION, samples), seed=seed, kind=kind)], rest


def _read(cases: Split, rows: np.ndarray, fixed: int | None, progress: Progress) -> list[Batch]:
    """The cases in memory; in whole batches where a file takes no others."""
    size = fixed or _BATCH
    if fixed and len(rows) < fixed:
        raise CalibrationError(
            f"the file takes batches of {fixed} only, but there are {len(rows)} cases for one; bring more, "
            "or export it with a dynamic batch axis"
        )
    used = rows[: len(rows) // fixed * fixed] if fixed else rows
    read = batches(cases.inputs, used.tolist(), size)
    found = list(progress.track(read, what="reading", total=-(-len(used) // size)))
    for number, batch in enumerate(found):
        for name, array in batch.items():
            _require_finite(name, array, used[number * size :])
    if all((batch[name] == array[:1]).all() for name, array in found[0].items() for batch in found):
        raise CalibrationError(
            f"cases must differ, but all {len(used)} hold the same numbers: ranges would fit nothing else; "
            "bring inputs as the model will see them"
        )
    return found


def _require_finite(name: str, array: np.ndarray, rows: np.ndarray) -> None:
    finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if not finite.all():
        raise CalibrationError(
            f"input {name!r} of case {rows[int(finite.argmin())]} must be finite, but holds NaN or infinity"
        )


def _count(read: list[Batch]) -> int:
    return sum(len(next(iter(batch.values()))) for batch in read)


def _require_int8(file: Path, name: str) -> None:
    if not optimized_operators(file).int8:
        raise PreconditionError(
            f"nothing in {name} would run in int8: there is no operator with an int8 kernel, apart from one "
            "that answers, which stays float; take another --method"
        )


def _coverage(
    graph: Any, quantized: Any, cases: Split, rows: np.ndarray, held: list[Batch]
) -> Coverage | None:
    if cases.strata is None and not cases.groups:
        return None
    rows = rows[: _count(held)]
    return coverage(
        observer(graph),
        ranges_of(quantized),
        lambda: held,
        strata=None if cases.strata is None else cases.strata[rows],
        groups={name: column[rows] for name, column in cases.groups.items()},
    )

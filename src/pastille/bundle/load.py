"""Open a bundle and ask it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pastille.bundle.golden import DECIDING
from pastille.bundle.manifest import MANIFEST, Manifest, Variant, VariantName, read_manifest
from pastille.bundle.verify import check_replay, golden_of, open_variant
from pastille.bundle.verify import verify as verify_files
from pastille.errors import DataError, InferenceError, IntegrityError
from pastille.runtime import Session
from pastille.stats.decisions import decisions, probabilities
from pastille.stats.scale import to_logits
from pastille.values import TensorSpec


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """What a bundle says to one batch.

    Attributes:
        outputs: The model's raw output, ``(N, ...)``: all there is of a regression or custom task.
        probabilities: ``(N, K)``, of each label or class; ``(N,)`` of the second label for binary;
            ``(N, K, H, W)`` or ``(N, H, W)`` likewise for segmentation. None where there are none.
        decisions: Binary and multiclass: one label per case. Multilabel: the labels that each case has.
            Otherwise empty.
        masks: Segmentation: ``(N, H, W)`` int64, indices of labels; else None.
        variant: Which model answered.
    """

    outputs: np.ndarray
    probabilities: np.ndarray | None
    decisions: tuple[str, ...] | tuple[tuple[str, ...], ...]
    masks: np.ndarray | None = None
    variant: VariantName


@dataclass(frozen=True, kw_only=True, eq=False)
class Bundle:
    """An opened bundle. Safe to ask from several threads."""

    directory: Path
    manifest: Manifest = field(repr=False)
    session: Session = field(repr=False)
    variant: VariantName  # that answers
    reason: str  # why this one, in a sentence

    def predict(self, inputs: Mapping[str, np.ndarray] | np.ndarray) -> Answer:
        """Answer one batch.

        Args:
            inputs: ``{input name: (N, ...)}``, or ``(N, ...)`` where the model has one input; prepared
                as `Manifest.preprocessing` says.

        Raises:
            DataError: An input is missing, unknown, of another shape or type, or not finite. (An int8
                model would answer NaN with a confident number.)
            InferenceError: The model failed, or its answer is not finite.
        """
        batch = checked_inputs(inputs, self.manifest.inputs)
        outputs = self.session(batch)[self.manifest.output.name]
        if not np.isfinite(outputs).all():
            raise InferenceError(f"{self.variant} of bundle {self.manifest.name} gave NaN or infinity")
        return answer_of(outputs, self.manifest, self.variant)


def load_bundle(path: str | Path, *, verify: bool = True, threads: int = 1) -> Bundle:
    """Open a bundle with the variant that it selects, or with fp32 where that one fails here.

    The selected variant must load and answer its golden cases as it was validated. Where it does not, fp32
    takes its place, and `Bundle.reason` says so. A bundle that was tampered with is never opened.

    Args:
        path: The bundle's folder.
        verify: False trusts the files and skips hashes and golden cases: only right after `verify`.
        threads: That the runtime may use.

    Raises:
        IntegrityError: A file of the bundle is not as it was written, or fp32 fails here as well.

    Example:
        >>> bundle = load_bundle("runs/digits/bundle")        # doctest: +SKIP
        >>> bundle.predict(images).decisions                   # doctest: +SKIP
        ('three', 'eight')
    """
    directory = Path(path)
    if verify:
        manifest = verify_files(directory, replay=False).manifest
    else:
        manifest = read_manifest(directory / MANIFEST)
    selected, fp32 = manifest.variant(manifest.selected), manifest.variant("fp32")
    try:
        session = _ready(directory, manifest, selected, replay=verify, threads=threads)
        return _bundle(directory, manifest, selected, session, manifest.selection_reason)
    except IntegrityError as error:
        if selected == fp32:
            raise
        why = f"{selected.name} was selected but fails on this machine, so fp32 answers: {error}"
    session = _ready(directory, manifest, fp32, replay=verify, threads=threads)
    return _bundle(directory, manifest, fp32, session, why)


def _ready(directory: Path, manifest: Manifest, variant: Variant, *, replay: bool, threads: int) -> Session:
    session = open_variant(directory, manifest, variant, threads=threads)
    if replay:
        check_replay(directory, manifest, variant, session, golden_of(directory, manifest))
    return session


def _bundle(directory: Path, manifest: Manifest, variant: Variant, session: Session, reason: str) -> Bundle:
    return Bundle(
        directory=directory, manifest=manifest, session=session, variant=variant.name, reason=reason
    )


def answer_of(outputs: np.ndarray, manifest: Manifest, variant: VariantName) -> Answer:
    """What raw outputs say, by the labels, scale and threshold of a bundle.

    Args:
        outputs: ``(N, ...)``, as the model gave them, finite.
        manifest: Of the bundle.
        variant: Which of its models gave them.

    Raises:
        ValueError: They do not fit the bundle's kind of task, or are not finite.
    """
    if manifest.kind not in DECIDING:
        return Answer(outputs=outputs, probabilities=None, decisions=(), variant=variant)
    logits = to_logits(manifest.kind, outputs, manifest.outputs)
    decided = decisions(
        manifest.kind,
        logits,
        threshold=manifest.threshold_of(manifest.variant(variant)),
        positive=manifest.positive_class,
    )  # (N,) | (N, L) | (N, H, W)
    return Answer(
        outputs=outputs,
        probabilities=probabilities(manifest.kind, logits),
        decisions=_named(decided, manifest.labels),
        masks=decided if manifest.kind == "segmentation" else None,
        variant=variant,
    )


def _named(decided: np.ndarray, labels: tuple[str, ...]) -> tuple[str, ...] | tuple[tuple[str, ...], ...]:
    match decided.ndim:
        case 1:
            return tuple(labels[i] for i in decided.tolist())
        case 2:
            return tuple(tuple(labels[i] for i in np.flatnonzero(row)) for row in decided)
        case _:
            return ()  # masks speak for themselves


def checked_inputs(
    inputs: Mapping[str, np.ndarray] | np.ndarray, specs: tuple[TensorSpec, ...]
) -> dict[str, np.ndarray]:
    """Hold one batch against what the model takes.

    Args:
        inputs: ``{name: (N, ...)}``, or the array of the only input.
        specs: What the model takes.

    Returns:
        ``{name: (N, ...)}`` in the model's types.

    Raises:
        DataError: An input is missing, unknown, empty, of another shape or type, or not finite.

    Example:
        >>> spec = TensorSpec(name="x", shape=(2,), dtype="float32")
        >>> checked_inputs(np.array([[1, 2]]), (spec,))["x"].dtype
        dtype('float32')
        >>> checked_inputs(np.array([[1, np.nan]]), (spec,))
        Traceback (most recent call last):
        pastille.errors.DataError: input 'x' must be finite, but 1 of its 2 values are NaN or infinite
    """
    given = dict(inputs) if isinstance(inputs, Mapping) else {specs[0].name: inputs}
    names = [spec.name for spec in specs]
    if set(given) != set(names):
        raise DataError(f"inputs must be {', '.join(names)}, got {', '.join(map(str, given)) or 'none'}")
    batch = {spec.name: _checked(given[spec.name], spec) for spec in specs}
    lengths = {name: len(array) for name, array in batch.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"inputs must have one batch size, got {lengths}")
    return batch


def _checked(value: object, spec: TensorSpec) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths
        raise DataError(f"input {spec.name!r} must be one array of numbers") from None
    if array.dtype.kind not in "biuf" or not np.can_cast(array.dtype, spec.dtype, "same_kind"):
        raise DataError(f"input {spec.name!r} must be {spec.dtype}, got {array.dtype}")
    if array.shape[1:] != spec.shape or array.ndim == 0 or len(array) == 0:
        expected = ", ".join(["N", *map(str, spec.shape)])
        raise DataError(f"input {spec.name!r} must have shape ({expected}) with N ≥ 1, got {array.shape}")
    with np.errstate(over="ignore"):  # too large for the type becomes infinite, and is refused below
        cast = array.astype(spec.dtype)
    bad = int((~np.isfinite(cast)).sum())
    if bad:
        raise DataError(
            f"input {spec.name!r} must be finite, but {bad} of its {cast.size} values are NaN or infinite"
        )
    return cast

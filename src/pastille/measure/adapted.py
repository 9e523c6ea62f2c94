"""A file as the judges see it: fed by the data's names, answering with logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pastille.errors import UsageError
from pastille.recipe import TaskSection
from pastille.runtime import UNKNOWN_DIM, Session, load
from pastille.stats.decisions import output_problem
from pastille.stats.scale import looks_like_probabilities, to_logits
from pastille.values import TensorSpec

_TELLING = 8  # fewer numbers that lie between 0 and 1 may do so by chance


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """A `pastille.runtime.Session` around another."""

    session: Session
    inputs: tuple[TensorSpec, ...]  # by the data's names
    names: Mapping[str, str]  # the data's name of an input -> the file's
    section: TaskSection
    file: str
    factor: float = 1.0

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Those of the file; the first one holds the answers."""
        return self.session.outputs

    @property
    def fixed_batch(self) -> int | None:
        """That of the file."""
        return self.session.fixed_batch

    @property
    def threads(self) -> int:
        """Those of the session."""
        return self.session.threads

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answer one batch, as logits where the task has classes.

        Raises:
            InferenceError: The call failed.
            UsageError: The answers do not fit the task.
        """
        answers = self.session({self.names[name]: array for name, array in inputs.items()})
        name = self.outputs[0].name
        return {**answers, name: self._as_logits(np.asarray(answers[name]))}

    def _as_logits(self, found: np.ndarray) -> np.ndarray:
        kind = self.section.kind
        problem = output_problem(kind, len(self.section.labels), found.shape)
        if problem:
            raise UsageError(f"{self.file}: its output does not fit the task: {problem}")
        if kind in ("regression", "custom") or not np.isfinite(found).all():
            return found  # NaN is refused by whoever asked, naming the input
        try:
            return to_logits(kind, found, self.section.outputs) * self.factor
        except ValueError as error:
            raise UsageError(f"{self.file}: task.outputs is {self.section.outputs}, but {error}") from None


def open_adapted(
    path: Path, specs: tuple[TensorSpec, ...], section: TaskSection, *, threads: int, factor: float = 1.0
) -> Session:
    """Load a file that the data fits; a single input may go by any name.

    Args:
        path: The ONNX file.
        specs: What the data gives, without the batch axis.
        section: What the answers mean.
        threads: That the runtime may use.
        factor: Multiplies the logits: the temperature of a calibrated file with a threshold of its own,
            so that the task's threshold decides as its own does.

    Raises:
        UsageError: It takes other inputs than the data has.
        IntegrityError: It is no self-contained ONNX file.
    """
    session = load(path, threads=threads)
    names = _matched(session.inputs, specs, path.name)
    return Adapted(session=session, inputs=specs, names=names, section=section, file=path.name, factor=factor)


def _matched(asked: tuple[TensorSpec, ...], given: tuple[TensorSpec, ...], file: str) -> Mapping[str, str]:
    known = {spec.name: spec for spec in asked}
    only = len(asked) == len(given) == 1
    if not only and set(known) != {spec.name for spec in given}:
        raise UsageError(
            f"{file}: its inputs are {sorted(known)}, but the data has "
            f"{sorted(spec.name for spec in given)}; rename them in one of the two"
        )
    pairs = {spec.name: asked[0] if only else known[spec.name] for spec in given}
    for spec in given:
        wanted = pairs[spec.name]
        if wanted.dtype != spec.dtype or not _fits(wanted.shape, spec.shape):
            raise UsageError(
                f"{file}: input {wanted.name!r} is {wanted.dtype} {_shape(wanted.shape)}, but the data has "
                f"{spec.dtype} {_shape(spec.shape)}; change what data gives"
            )
    return {name: spec.name for name, spec in pairs.items()}


def _fits(asked: tuple[int, ...], given: tuple[int, ...]) -> bool:
    return len(asked) == len(given) and all(a in (UNKNOWN_DIM, g) for a, g in zip(asked, given, strict=True))


def _shape(shape: tuple[int, ...]) -> str:
    return f"({', '.join('?' if size == UNKNOWN_DIM else str(size) for size in shape)})"


def refuse_unsaid_probabilities(found: np.ndarray, section: TaskSection, *, file: str) -> None:
    """Stop where answers that nobody called logits look like probabilities: they would be decided wrongly.

    Args:
        found: Every answer to a split, as the file gave it.
        section: The task; one that says ``outputs: logits`` is believed.
        file: Of the model, for the message.

    Raises:
        UsageError: All answers lie between 0 and 1, and differ.
    """
    telling = found.size >= _TELLING and float(np.ptp(found)) > 0
    unsaid = "outputs" not in section.model_fields_set
    if unsaid and telling and looks_like_probabilities(section.kind, found):
        raise UsageError(
            f"{file} seems to give probabilities: all its answers lie between 0 and 1, which as logits would "
            "be decided wrongly; set task.outputs: probabilities (or logits, if they are)"
        )

"""Which of the ways to win accuracy back pay: tried from cheap to dear on calibration data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import onnx

from pastille.errors import CalibrationError, PastilleError
from pastille.progress import SILENT, Progress
from pastille.quantization.layers import kept_float
from pastille.quantization.ranges import Batches, Estimator, estimated, observer
from pastille.quantization.recovery.bias_correction import bias_corrected
from pastille.quantization.recovery.equalization import equalized
from pastille.quantization.recovery.graph import named
from pastille.quantization.recovery.rounding import rounded
from pastille.quantization.recovery.smoothquant import STRENGTH, smoothed
from pastille.quantization.rewrites import rewritten
from pastille.quantization.rewrites.batch_norm import folded
from pastille.quantization.static import unsaturated, with_ranges
from pastille.recipe import Quantize, Scheme, StaticRanges, Technique
from pastille.runtime.faults import reason

TECHNIQUES: Final[tuple[Technique, ...]] = ("equalization", "smoothquant", "rounding", "bias_correction")

ENOUGH_DB: Final = 40.0  # 1 % of the signal's amplitude: no decision hangs on what is left
_LEAST_GAIN_DB: Final = 0.25
_HELD_OUT: Final = 4  # every fourth case


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How a float graph becomes an int8 one.

    Attributes:
        techniques: Applied in the order of `TECHNIQUES`, whatever the order here.
        calibration: Estimator of activation ranges.
        percentile: Of the estimator of that name.
        strength: Of smoothquant.
        bits: Of the weights, as in `with_ranges`.
        scheme: Of whose kernels, as in `with_ranges`.
        keep_float: Layers that stay float, as in `kept_float`.
    """

    techniques: frozenset[Technique] = frozenset()
    calibration: Estimator = "minmax"
    percentile: float = 99.99
    strength: float = STRENGTH
    bits: Literal[7, 8, "auto"] = 7
    scheme: Scheme = "auto"
    keep_float: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """E.g. ``"minmax ranges, equalization, rounding"``."""
        return ", ".join([f"{self.calibration} ranges", *(t for t in TECHNIQUES if t in self.techniques)])


def choice_of(settings: StaticRanges) -> Choice:
    """A recipe's settings as one way to quantize; with ``recover: auto`` what a search starts from."""
    named = settings.recover if isinstance(settings, Quantize) else "none"
    return Choice(
        techniques=frozenset() if isinstance(named, str) else frozenset(named),
        calibration=settings.calibration,
        percentile=settings.percentile,
        bits=settings.weight_bits,
        scheme=settings.scheme,
        keep_float=tuple(settings.keep_float),
    )


_Way = Callable[[Choice], Choice]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One thing that was tried: what the int8 graph was then made by, and how near it came to float."""

    what: str  # e.g. "equalization"
    sqnr_db: float  # on cases that it was not made with; larger is better
    kept: bool


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """What `recovered` tried and kept.

    Attributes:
        choice: What was kept.
        trials: In order; the first is the plain int8 graph.
        held_out: Cases that the trials were compared on.
    """

    choice: Choice
    trials: tuple[Trial, ...]
    held_out: int

    @property
    def gained_db(self) -> float:
        """How much nearer to float than without any recovery."""
        return max(t.sqnr_db for t in self.trials if t.kept) - self.trials[0].sqnr_db


def prepared(model: Any) -> Any:
    """The float graph that recovery works on: every node named, shapes inferred.

    Args:
        model: A float ``onnx.ModelProto``; not modified.
    """
    return onnx.shape_inference.infer_shapes(named(model))


def quantized_by(model: Any, batches: Batches, choice: Choice) -> Any:
    """Quantize a graph in one way.

    Args:
        model: From `prepared`; not modified.
        batches: Calibration batches.
        choice: The way.

    Returns:
        An ``onnx.ModelProto`` with Q/DQ pairs.

    Raises:
        CalibrationError: There are no batches, or the activations are not finite.
    """
    model = float_side(model, batches, choice)
    kept = kept_float(model, choice.keep_float)  # before the samples are read: a typo should not take minutes
    ranges = estimated(observer(model), batches, choice.calibration, q=choice.percentile)
    quantized = with_ranges(model, ranges, bits=choice.bits, keep_float=kept, scheme=choice.scheme)
    if "rounding" in choice.techniques:
        # Neighbours that were rounded up together may saturate again.
        quantized = unsaturated(
            rounded(model, quantized, batches), {}, bits=choice.bits, scheme=choice.scheme
        )
    if "bias_correction" in choice.techniques:
        quantized = bias_corrected(model, quantized, batches)
    return quantized


def float_side(model: Any, batches: Batches, choice: Choice) -> Any:
    """The float graph that ranges are measured on: equalized or smoothed if asked, then rewritten.

    Args:
        model: From `prepared`; not modified.
        batches: Calibration batches.
        choice: The way.
    """
    if "equalization" in choice.techniques:
        model = equalized(prepared(folded(model)))  # or batch norms of rows would stand between its layers
    if "smoothquant" in choice.techniques:
        model = smoothed(model, observer(model), batches, strength=choice.strength)
    return prepared(rewritten(model))  # only now: seams are seen in what the exporter writes


def recovered(
    model: Any, batches: Batches, start: Choice, *, progress: Progress = SILENT
) -> tuple[Any, Recovery]:
    """Try each way from cheap to dear, and keep what brings the outputs nearer to float.

    Three quarters of the cases make the graph, the last quarter judges it. It stops once the error is
    negligible, so a model that quantizes well costs no more than plain quantization and one look.

    Args:
        model: From `prepared`; not modified.
        batches: Calibration batches, at least 4 cases.
        start: What is tried first.
        progress: Shows each trial.

    Returns:
        The int8 graph made from all cases by what was kept, and the account. The same each time.

    Raises:
        CalibrationError: There are too few cases, or the activations are not finite.
    """
    fit, held = split(model, batches)
    wanted = answers(model, held)
    trials: list[Trial] = []
    best = start
    for what, asked in progress.track(_ways(), what="recovering accuracy"):
        if trials and max(t.sqnr_db for t in trials if t.kept) >= ENOUGH_DB:
            break
        choice = asked(best)
        if trials and choice == best:
            continue
        found = sqnr_db(wanted, answers(quantized_by(model, fit, choice), held))
        before = max((t.sqnr_db for t in trials if t.kept), default=-np.inf)
        kept = not trials or found > before + _LEAST_GAIN_DB
        trials.append(Trial(what=what, sqnr_db=found, kept=kept))
        progress.note(f"{what}: {found:.1f} dB{', kept' if kept else ''}")
        best = choice if kept else best
    account = Recovery(choice=best, trials=tuple(trials), held_out=len(next(iter(wanted.values()))))
    return quantized_by(model, batches, best), account


def _ways() -> Sequence[tuple[str, _Way]]:
    """What is tried, from cheap to dear: each a change to what was kept so far."""
    return (
        ("plain", lambda choice: choice),
        ("equalization", _with("equalization")),
        *((f"smoothquant {s}", _with("smoothquant", strength=s)) for s in (STRENGTH, 0.75)),
        *((f"{name} ranges", _with(calibration=name)) for name in ("mse", "percentile", "entropy")),
        ("bias_correction", _with("bias_correction")),
        ("rounding", _with("rounding")),
    )


def _with(*techniques: Technique, **changes: Any) -> _Way:
    return lambda choice: replace(choice, techniques=choice.techniques | set(techniques), **changes)


def split(model: Any, batches: Batches) -> tuple[Batches, Batches]:
    """Every fourth case apart; every fourth batch where the graph takes batches of one size only.

    Args:
        model: An ``onnx.ModelProto``.
        batches: Calibration batches.

    Returns:
        Those that fit, and those held out.
    """
    dims = model.graph.input[0].type.tensor_type.shape.dim
    whole = bool(dims) and dims[0].HasField("dim_value")

    def part(held: bool) -> Iterable[Mapping[str, np.ndarray]]:
        first = 0
        for number, batch in enumerate(batches()):
            rows = np.arange(first, first := first + len(next(iter(batch.values()))))
            chosen = (np.full(len(rows), number) if whole else rows) % _HELD_OUT == _HELD_OUT - 1
            if (chosen == held).any():
                yield {name: array[chosen == held] for name, array in batch.items()}

    return lambda: part(False), lambda: part(True)


def answers(model: Any, batches: Batches, *, what: str = "the model") -> dict[str, np.ndarray]:
    """What a graph answers to some cases.

    Args:
        model: An ``onnx.ModelProto``.
        batches: The cases.
        what: It is called in an error.

    Returns:
        Output name -> ``(N, ...)``, floats only.

    Raises:
        CalibrationError: There are no cases, it cannot run on them, or an answer is not finite.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4  # what fails is raised below, and need not be printed as well
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [o.name for o in session.get_outputs() if o.type == "tensor(float)"]
        parts = [session.run(names, dict(batch)) for batch in batches()]
    except PastilleError:
        raise
    except Exception as error:  # ONNX Runtime's errors share no other base
        raise CalibrationError(f"calibration: {what} cannot run on a batch: {reason(error)}") from error
    if not parts:
        raise CalibrationError("calibration: there are no cases to compare on; bring at least 20")
    found = {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}
    wrong = next((name for name, array in found.items() if not np.isfinite(array).all()), None)
    if wrong is not None:
        raise CalibrationError(
            f"calibration: output {wrong!r} of {what} takes NaN or infinity; check the samples, and the "
            "range that its numbers can hold"
        )
    return found


def sqnr_db(wanted: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> float:
    """How far the error of some outputs lies below what they vary by, in decibels.

    Args:
        wanted: Output name -> ``(N, ...)``.
        found: The same from another graph.

    Returns:
        20 dB: the error's amplitude is a tenth of the signal's. The mean over outputs; at most 200.

    Example:
        >>> y = np.array([[-1.0], [1.0]])
        >>> round(sqnr_db({"y": y}, {"y": 1.1 * y}))
        20
    """
    shares = [_noise_share(wanted[name], found[name]) for name in wanted]
    return float(-10 * np.log10(max(float(np.mean(shares)), 1e-20)))


def _noise_share(wanted: np.ndarray, found: np.ndarray) -> float:
    signal = np.square(wanted - wanted.mean(axis=0), dtype=np.float64).sum()
    signal = signal or np.square(wanted, dtype=np.float64).sum() or 1.0
    return float(np.square(found - wanted, dtype=np.float64).sum()) / float(signal)

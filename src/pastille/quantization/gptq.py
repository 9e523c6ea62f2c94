"""GPTQ: rounding a weight column by column, each error made good by the columns still to come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx

from pastille.errors import CalibrationError
from pastille.quantization.blocks import Blocks, Grid, in_blocks, least_error
from pastille.quantization.ranges import Batches
from pastille.references import one_line

_COLUMNS: Final = 128  # corrected at once, so that the large matrix is touched rarely
_MAX_DAMPING: Final = 1e3


def gptq(
    weight: np.ndarray,
    hessian: np.ndarray,
    block_size: int,
    *,
    bits: int,
    symmetric: bool,
    damping: float = 0.01,
) -> Blocks:
    """Round a weight so that the layer's outputs, not its weights, change least.

    Columns go in the order of their inputs' energy, so that what matters most is rounded while most can
    still make it good; every block keeps its own grid, chosen beforehand with errors weighted by energy.
    What is zero stays so: of a sparse layer it was set to zero on purpose.

    Args:
        weight: ``(K, N)``.
        hessian: Mean of ``x x^T`` over the layer's inputs, ``(K, K)``, from `second_moments`.
        block_size: Weights of one output that share a scale.
        bits: 4 or 8.
        symmetric: As in `blocks.full_range`.
        damping: Share of the mean energy that is added to each input's; more where the calibration
            inputs span too little.

    Returns:
        The quantized weight.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(256, 4)) @ rng.normal(size=(4, 32))  # inputs that go together
        >>> weight = rng.normal(size=(32, 8)).astype(np.float32)
        >>> from pastille.quantization.blocks import dequantized, round_to_nearest
        >>> def error(blocks):
        ...     return np.square(x @ (dequantized(blocks, 32) - weight)).mean()
        >>> aware = gptq(weight, x.T @ x / 256, 32, bits=4, symmetric=True)
        >>> bool(error(aware) < error(round_to_nearest(weight, 32, bits=4, symmetric=True)) / 10)
        True

    References:
        Frantar et al., "GPTQ", ICLR 2023, arXiv:2210.17323.
    """
    k, n = weight.shape
    blocks = in_blocks(weight, block_size)
    energy = np.zeros(blocks.shape[1] * block_size, np.float32)
    energy[:k] = np.diag(hessian)
    importance = energy.reshape(blocks.shape[1:]) + np.float32(1e-6 * max(float(energy.mean()), 1e-12))
    grid = least_error(blocks, bits=bits, symmetric=symmetric, importance=importance)
    order = np.argsort(-energy[:k], kind="stable")
    factor = _inverse_factor(hessian[np.ix_(order, order)], damping)
    steps = _rounded_in_turn(weight[order], factor, grid, order // block_size)
    values = np.repeat(grid.zero[..., None], block_size, axis=2).reshape(n, -1)
    values[:, order] = steps.T
    return Blocks(grid=grid, values=values.reshape(blocks.shape).astype(np.uint8))


def _inverse_factor(hessian: np.ndarray, damping: float) -> np.ndarray:
    """Upper Cholesky factor of the inverse of a damped Hessian, ``(K, K)`` float32."""
    from scipy.linalg import LinAlgError, cholesky, lapack

    hessian = hessian.astype(np.float64)
    mean = float(np.diag(hessian).mean()) or 1.0
    eye = np.eye(len(hessian))
    while True:
        try:
            inverse, failed = lapack.dpotri(cholesky(hessian + damping * mean * eye, lower=True), lower=True)
            if failed:
                raise LinAlgError("singular")
            inverse = np.tril(inverse) + np.tril(inverse, -1).T
            return np.asarray(cholesky(inverse), np.float32)
        except LinAlgError:
            damping *= 10
            if not damping < _MAX_DAMPING:
                raise


def _rounded_in_turn(weight: np.ndarray, factor: np.ndarray, grid: Grid, block: np.ndarray) -> np.ndarray:
    """Steps ``(K, N)`` of a weight whose row i belongs to block ``block[i]``."""
    left, steps = weight.astype(np.float32), np.empty_like(weight)
    top = 2**grid.bits - 1
    for start in range(0, len(left), _COLUMNS):
        rows = slice(start, min(start + _COLUMNS, len(left)))
        errors = np.empty_like(left[rows])
        for i in range(rows.start, rows.stop):
            scale, zero = grid.scale[:, block[i]], grid.zero[:, block[i]]
            nearest = np.clip(np.rint(left[i] / scale) + zero, 0, top)
            steps[i] = np.where(weight[i] == 0, zero, nearest)
            error = (left[i] - (steps[i] - zero) * scale) / factor[i, i]
            left[i + 1 : rows.stop] -= np.outer(factor[i, i + 1 : rows.stop], error)
            errors[i - start] = error
        left[rows.stop :] -= factor[rows, rows.stop :].T @ errors
    return steps


def second_moments(
    model: Any, tensors: Sequence[str], calibration: Batches, *, mask: str | None = None
) -> dict[str, np.ndarray]:
    """Mean of ``x x^T`` over the rows of some tensors.

    Args:
        model: An ``onnx.ModelProto``; not modified.
        tensors: Float tensors ``(..., K)`` of its main graph.
        calibration: Gives the batches ``{name: (N, ...)}``.
        mask: An input ``(N, T)`` whose zeros mark padding: such rows of tensors ``(N, T, K)`` are left out.

    Returns:
        Tensor name -> ``(K, K)`` float32.

    Raises:
        CalibrationError: There are no batches, the model cannot run on one, no input is called ``mask``,
            or a tensor is not finite.
    """
    names = sorted(set(tensors))
    session = _exposing(model, names)
    sums: dict[str, np.ndarray] = {}
    rows = dict.fromkeys(names, 0)
    for batch in calibration():
        try:
            arrays = session.run(names, dict(batch))
        except Exception as error:  # ONNX Runtime's errors share no other base
            raise CalibrationError(
                f"calibration: the model cannot run on a batch: {one_line(error)}"
            ) from error
        for name, array in zip(names, arrays, strict=True):
            x = _rows(array, _mask(batch, mask))
            rows[name] += len(x)
            sums[name] = sums.get(name, np.float32(0)) + x.T @ x
    if not sums or not all(rows.values()):
        raise CalibrationError("calibration needs at least one batch of samples, got none")
    for name, total in sums.items():
        if not np.isfinite(total).all():
            raise CalibrationError(
                f"calibration: tensor {name!r} takes NaN or infinity, or overflows; check the samples"
            )
    return {name: total / np.float32(rows[name]) for name, total in sums.items()}


def _mask(batch: Mapping[str, np.ndarray], name: str | None) -> np.ndarray | None:
    if name is not None and name not in batch:
        raise CalibrationError(f"mask: the model has no input {name!r}; it has: {', '.join(batch)}")
    return None if name is None else batch[name] != 0


def _rows(array: np.ndarray, real: np.ndarray | None) -> np.ndarray:
    """A tensor ``(..., K)`` as ``(rows, K)``, without those of padding where it has the mask's axes."""
    if real is not None and array.ndim > 2 and array.shape[: real.ndim] == real.shape:
        array = array[real]
    return array.reshape(-1, array.shape[-1])


def _exposing(model: Any, names: Sequence[str]) -> Any:
    """A session of ONNX Runtime that answers with some inner tensors."""
    import onnxruntime as ort

    seen = onnx.ModelProto()
    seen.CopyFrom(model)
    del seen.graph.output[:]
    seen.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(seen.SerializeToString(), options, providers=["CPUExecutionProvider"])

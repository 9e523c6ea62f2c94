"""Weights in 16 bits: half the size; the computation stays float32 unless asked otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pastille.errors import PreconditionError
from pastille.quantization.conversion import Conversion, float_model, refuse_overwriting, write_loadable
from pastille.runtime import optimized_operators

Kind = Literal["fp16", "bf16"]

MIN_VALUES: Final = 64  # of a weight: below, the cast costs more than it saves
_TYPES: Final = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
_FP16_MAX: Final = float(np.finfo(np.float16).max)
_STORAGE_NOTE: Final = (
    "only the weights are stored in {kind}; ONNX Runtime turns them into float32 once, at load: half the "
    "file, the same speed and memory as fp32"
)


def convert_half(source: Path, target: Path, *, kind: Kind = "fp16", compute: bool = False) -> Conversion:
    """Write the weights of a float ONNX file in 16 bits.

    Inputs and outputs stay float32.

    Args:
        source: A float ONNX file, self-contained; an opset before 18 is raised.
        target: Written whole or not at all, once ONNX Runtime has taken it; self-contained.
        kind: fp16 has 10 bits of fraction and ends at 65504; bf16 has 7 and the range of float32.
        compute: Also compute in fp16, for targets that have kernels for it. ONNX Runtime's CPU provider
            lacks most on x86 and casts to float32 and back around each operator; the notes say how often.

    Raises:
        PreconditionError: There is no weight to convert, the file is quantized already, has an unknown
            domain or an opset that cannot be raised; or ``compute`` is asked of bf16, for which there are no
            CPU kernels.
        IntegrityError: ``source`` is not a self-contained ONNX model.
        OutputError: The file cannot be written.
        UsageError: ``target`` is ``source``.
        ValueError: ``kind`` is unknown.

    References:
        Micikevicius et al., "Mixed Precision Training", ICLR 2018, arXiv:1710.03740.
        Kalamkar et al., "A Study of BFLOAT16", 2019, arXiv:1905.12322.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be fp16 or bf16, got {kind!r}")
    if compute and kind == "bf16":
        raise PreconditionError(
            "compute: ONNX Runtime's CPU provider has no bf16 kernels; use kind fp16, or store bf16 only"
        )
    refuse_overwriting(source, target)
    model = float_model(source)
    stored = _stored(model.graph)
    left = {t.name: why for t in stored if (why := _unfit(t, kind))}
    chosen = [t for t in stored if t.name not in left]
    if not chosen:
        raise PreconditionError(
            f"{source.name} has no float32 weight of {MIN_VALUES} values or more to convert"
            + (": it holds its weights in 16 bits already" if _holds_half(model.graph) else "")
        )
    new = _computing_half(model, sorted(left)) if compute else _storing(model, chosen, kind)
    size = write_loadable(new, target)
    what = f"{kind}, computed with in fp16" if compute else f"stored in {kind}"
    return Conversion(
        changed={t.name: what for t in chosen},
        left=left,
        bytes_before=source.stat().st_size,
        bytes_after=size,
        notes=(_casts_note(target) if compute else _STORAGE_NOTE.format(kind=kind),),
    )


def _stored(graph: Any) -> list[Any]:
    floats = [t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    return [t for t in floats if np.prod(t.dims) >= MIN_VALUES]


def _holds_half(graph: Any) -> bool:
    return any(t.data_type in _TYPES.values() for t in graph.initializer)


def _unfit(tensor: Any, kind: Kind) -> str:
    """Why a weight keeps 32 bits; "" where it need not."""
    values = numpy_helper.to_array(tensor)
    if not np.isfinite(values).all():
        return "it holds NaN or infinity"
    largest = float(np.abs(values).max())
    if kind == "fp16" and largest > _FP16_MAX:
        return f"it reaches {largest:.3g}, beyond fp16's {_FP16_MAX:.0f}"
    return ""


def _storing(model: Any, chosen: Sequence[Any], kind: Kind) -> Any:
    """Every weight under another name in 16 bits, and a Cast that makes the float32 one from it."""
    new = onnx.ModelProto()
    new.CopyFrom(model)
    names = {t.name for t in chosen}
    kept = [t for t in model.graph.initializer if t.name not in names]
    casts = [
        helper.make_node(
            "Cast", [f"{t.name}_{kind}"], [t.name], name=f"{t.name}_cast", to=onnx.TensorProto.FLOAT
        )
        for t in chosen
    ]
    del new.graph.initializer[:], new.graph.node[:]
    new.graph.initializer.extend([*kept, *(_halved(t, kind) for t in chosen)])
    new.graph.node.extend([*casts, *model.graph.node])
    return new


def _halved(tensor: Any, kind: Kind) -> Any:
    values = numpy_helper.to_array(tensor)
    bits = values.astype(np.float16).view(np.uint16) if kind == "fp16" else _bfloat16(values)
    return helper.make_tensor(
        f"{tensor.name}_{kind}", _TYPES[kind], list(tensor.dims), bits.astype("<u2").tobytes(), raw=True
    )


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """The upper 16 bits of float32, rounded to nearest, ties to even, as uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # Rounding up the largest numbers would give infinity.
    finite = np.where((rounded & 0x7FFF) >= 0x7F80, rounded - 1, rounded)
    return finite.astype(np.uint16)


def _computing_half(model: Any, blocked: Sequence[str]) -> Any:
    """The whole graph in fp16 between casts at its inputs and outputs."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    inferred = onnx.shape_inference.infer_shapes(model)
    unfit = set(blocked)
    readers = [node.name for node in inferred.graph.node if unfit.intersection(node.input)]
    return convert_float_to_float16(
        inferred, keep_io_types=True, disable_shape_infer=True, node_block_list=readers
    )


def _casts_note(path: Path) -> str:
    operators = optimized_operators(path)
    casts, others = operators.floating.get("Cast", 0), sum(operators.floating.values())
    return (
        f"ONNX Runtime's CPU provider executes {casts} {'cast' if casts == 1 else 'casts'} among {others} "
        f"{'operator' if others == 1 else 'operators'} of this file: it has "
        "no fp16 kernels for what lies between them, and computes that in float32"
    )

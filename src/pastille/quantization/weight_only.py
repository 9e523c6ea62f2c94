"""Weights of linear layers in 4 or 8 bits, block by block; everything else stays float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
from onnx import helper, numpy_helper

from pastille.quantization.blocks import BITS, BLOCK_SIZES, Blocks, packed, round_to_nearest
from pastille.quantization.conversion import CONTRIB, Conversion, Part, applied, convert, float_model
from pastille.quantization.embeddings import int8_embeddings
from pastille.quantization.gptq import gptq, second_moments
from pastille.quantization.layers import left_out
from pastille.quantization.linear import Found, Linear, linear_layers, replacements
from pastille.quantization.ranges import Batches

Method = Literal["rtn", "gptq"]
Activations = Literal["int8", "float"]
_ACCURACY_LEVEL: Final = {"float": 1, "int8": 4}


def quantize_weights(
    source: Path,
    target: Path,
    *,
    bits: int = 4,
    block_size: int = 32,
    method: Method = "rtn",
    symmetric: bool = False,
    activations: Activations = "int8",
    embeddings: bool = False,
    keep_float: Sequence[str] = (),
    calibration: Batches | None = None,
    mask: str | None = None,
) -> Conversion:
    """Write the linear layers of a float ONNX file as MatMulNBits.

    Each block of weights of one output has a scale of its own. With ``activations="int8"`` the kernel
    rounds each block of each row of its input to 8 bits too, which is faster; unlike dynamic
    quantization, no answer then depends on what else is in the batch.

    Args:
        source: A float ONNX file, self-contained; an opset before 18 is raised.
        target: Written whole or not at all, once ONNX Runtime has taken it; self-contained.
        bits: 4 or 8.
        block_size: Weights that share a scale: 16, 32, 64, 128 or 256; the last of K are padded to a block.
        method: Round to nearest, or GPTQ, which needs ``calibration``.
        symmetric: Without zero points: a little smaller and less accurate.
        activations: What the kernel computes with.
        embeddings: Also write tables of embeddings in 8 bits, one scale per row.
        keep_float: Layers to leave: names of nodes, of their weights or outputs, ``"first"``, ``"last"``.
        calibration: Gives the calibration batches ``{name: (N, ...)}`` afresh each time.
        mask: For GPTQ, the input ``(N, T)`` whose zeros mark padding, which then does not count.

    Raises:
        CalibrationError: GPTQ has no batches, or ones that the model cannot run on.
        PreconditionError: The file has no linear layer to convert, is quantized already, has an unknown
            domain or an opset that cannot be raised; ``keep_float`` names no layer; ONNX Runtime does not
            take the result.
        IntegrityError: ``source`` is not a self-contained ONNX model.
        OutputError: The file cannot be written.
        UsageError: ``target`` is ``source``.
        ValueError: An option is out of its range, or GPTQ is asked for without ``calibration``.

    References:
        Frantar et al., "GPTQ", ICLR 2023, arXiv:2210.17323.
        com.microsoft.MatMulNBits: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
    """
    _check_options(bits, block_size, method, activations, calibration)
    model = float_model(source)
    found = linear_layers(model, keep_float=keep_float)
    grid = _Grid(bits=bits, block_size=block_size, symmetric=symmetric)
    weights = (
        _rounded(found.layers, grid)
        if calibration is None or not found.layers  # what there is to say of none, `convert` says
        else _solved(found.layers, grid, model, calibration, mask)
    )
    how = f"MatMulNBits, {bits} bits, blocks of {block_size}, {method}"
    layers = blockwise(found, weights, symmetric=symmetric, activations=activations, how=how)
    parts = [layers, *([int8_embeddings(applied(model, [layers]))] if embeddings else [])]
    notes = _padded(found.layers, block_size) + tuple(filter(None, [left_out(model, "weights")]))
    return convert(model, parts, source, target, what="linear layer with a constant weight", notes=notes)


def _check_options(
    bits: int, block_size: int, method: str, activations: str, calibration: Batches | None
) -> None:
    if bits not in BITS:
        raise ValueError(f"bits must be 4 or 8, got {bits}")
    if block_size not in BLOCK_SIZES:
        raise ValueError(f"block_size must be one of {', '.join(map(str, BLOCK_SIZES))}, got {block_size}")
    if method not in get_args(Method):
        raise ValueError(f"method must be rtn or gptq, got {method!r}")
    if activations not in get_args(Activations):
        raise ValueError(f"activations must be int8 or float, got {activations!r}")
    if (method == "gptq") != (calibration is not None):
        raise ValueError(f"calibration must be given with method gptq and only with it, method is {method!r}")


@dataclass(frozen=True, kw_only=True)
class _Grid:
    bits: int
    block_size: int
    symmetric: bool


def _rounded(layers: Sequence[Linear], grid: _Grid) -> Mapping[str, Blocks]:
    """Every weight once, by key, rounded to nearest."""
    return {
        key: round_to_nearest(weight, grid.block_size, bits=grid.bits, symmetric=grid.symmetric)
        for key, weight in {layer.key: layer.weight for layer in layers}.items()
    }


def _solved(
    layers: Sequence[Linear], grid: _Grid, model: Any, calibration: Batches, mask: str | None
) -> Mapping[str, Blocks]:
    """Every weight once, by key, by GPTQ over the inputs of all layers that share it."""
    moments = second_moments(model, [layer.data for layer in layers], calibration, mask=mask)
    readers = {layer.key: [x.data for x in layers if x.key == layer.key] for layer in layers}
    return {
        key: gptq(
            weight,
            np.mean([moments[name] for name in readers[key]], axis=0),
            grid.block_size,
            bits=grid.bits,
            symmetric=grid.symmetric,
        )
        for key, weight in {layer.key: layer.weight for layer in layers}.items()
    }


def blockwise(
    found: Found, weights: Mapping[str, Blocks], *, symmetric: bool, activations: Activations, how: str
) -> Part:
    """Linear layers as MatMulNBits.

    Args:
        found: The layers.
        weights: Key of a layer -> its quantized weight.
        symmetric: All zero points are 2^(bits - 1), which the kernel takes for granted.
        activations: What the kernel computes with.
        how: For the report.
    """
    made = {
        layer.name: _matmul_nbits(layer, weights[layer.key], symmetric, activations) for layer in found.layers
    }
    return Part(
        nodes=replacements(found.layers, {name: [node] for name, (node, _) in made.items()}),
        tensors=[tensor for _, its in made.values() for tensor in its],
        changed=dict.fromkeys(made, how),
        left=found.left,
    )


def _matmul_nbits(
    layer: Linear, blocks: Blocks, symmetric: bool, activations: Activations
) -> tuple[Any, list[Any]]:
    """The node that computes a layer from its quantized weight, and its initializers."""
    bits, (k, n) = blocks.grid.bits, layer.weight.shape
    arrays = {f"{layer.key}_q{bits}": packed(blocks.values, bits), f"{layer.key}_scale": blocks.grid.scale}
    if not symmetric:
        arrays[f"{layer.key}_zero"] = packed(blocks.grid.zero.astype(np.uint8), bits)
    inputs = [layer.data, *arrays]
    if layer.bias is not None:
        inputs += [""] * (5 - len(inputs)) + [f"{layer.name}_bias"]
        arrays[f"{layer.name}_bias"] = layer.bias
    node = helper.make_node(
        "MatMulNBits",
        inputs,
        [layer.output],
        name=layer.name,
        domain=CONTRIB,
        K=k,
        N=n,
        bits=bits,
        block_size=blocks.values.shape[-1],
        accuracy_level=_ACCURACY_LEVEL[activations],
    )
    return node, [numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in arrays.items()]


def _padded(layers: Sequence[Linear], block_size: int) -> tuple[str, ...]:
    odd = [layer.name for layer in layers if len(layer.weight) % block_size]
    return (f"padded to whole blocks of {block_size}: {', '.join(odd)}",) if odd else ()

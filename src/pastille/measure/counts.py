"""Multiply-accumulates and parameters of an ONNX file, read from its graph."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np

from pastille.errors import UsageError
from pastille.runtime import UNKNOWN_DIM, check_self_contained, load

Shape = tuple[int, ...]

# Operator -> which inputs are multiplied, for the plain and the quantized forms.
_CONVOLUTIONS: Final = {"Conv": (0, 1), "ConvInteger": (0, 1), "QLinearConv": (0, 3), "DeformConv": (0, 1)}
_PRODUCTS: Final = {"MatMul": (0, 1), "MatMulInteger": (0, 1), "QLinearMatMul": (0, 3)}
_AFFINE: Final = {"Gemm": (0, 1), "QGemm": (0, 3)}
_RECURRENT: Final = {"LSTM": (0, 1, 2), "GRU": (0, 1, 2), "RNN": (0, 1, 2)}
FACTORS: Final = {
    **_CONVOLUTIONS,
    **_PRODUCTS,
    **_AFFINE,
    **_RECURRENT,
    "Attention": (0, 1),
    "ConvTranspose": (0, 1),
    "Einsum": (0, 1),
}

# Operator -> inputs that are no parameters: scales, zero points, running statistics.
_NO_PARAMETERS: Final = {
    "BatchNormalization": (3, 4),
    "ConvInteger": (2, 3),
    "DequantizeLinear": (1, 2),
    "MatMulInteger": (2, 3),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "QuantizeLinear": (1, 2),
}
_INT32_PARAMETERS: Final = {"DequantizeLinear": 0, "QLinearConv": 8}  # quantized biases


def macs(path: Path) -> int:
    """Multiply-accumulates of one input: convolutions, matrix products, recurrent layers, attention.

    Quantized forms count like plain ones. What is no product of matrices (activations, pooling,
    normalization) is left out, as is customary; so are the bodies of If, Loop and Scan. Sizes are not
    inferred but seen: the file answers one input of zeros, and shows the shapes in between.

    Args:
        path: The ONNX file.

    Returns:
        For a batch of one; a file with a fixed batch is counted for that, and divided by it.

    Raises:
        IntegrityError: It is missing, not an ONNX model, or keeps weights in another file.
        InferenceError: It does not run on zeros.
        UsageError: An input has an open size beside the batch, or the `onnx` package is not installed.
    """
    return counted(read_graph(path))[1]


def counted(model: Any) -> tuple[list[tuple[Any, int]], int]:
    """Each operator of an ``onnx.ModelProto`` that multiplies, with its share; and all of it, as `macs`."""
    nodes = [node for node in model.graph.node if node.op_type in FACTORS]
    wanted = {name for node in nodes for name in (*factor_names(node), node.output[0])}
    shapes, batch = _shapes(model, wanted)
    found = [(node, _node_macs(node, shapes)) for node in nodes]
    return [(node, n // batch) for node, n in found], sum(n for _, n in found) // batch


def parameters(path: Path) -> int:
    """Trained numbers that a file holds: weights and biases, whether float or quantized.

    Scales, zero points, running statistics, scalars and integers that describe shapes do not count.

    Args:
        path: The ONNX file.

    Raises:
        IntegrityError: It is missing, not an ONNX model, or keeps weights in another file.
        UsageError: The `onnx` package is not installed.
    """
    return sum(prod(tensor.dims) for _, tensor in trained(read_graph(path).graph))


def trained(graph: Any) -> Iterator[tuple[str, Any]]:
    """Name and ``onnx.TensorProto`` of a graph's weights and biases, as `parameters` counts them."""
    excluded = {
        node.input[at]
        for node in graph.node
        for at in _NO_PARAMETERS.get(node.op_type, ())
        if at < len(node.input)
    }
    biases = {
        node.input[at]
        for node in graph.node
        if (at := _INT32_PARAMETERS.get(node.op_type, -1)) in range(len(node.input))
    }
    for name, tensor in _tensors(graph):
        if name not in excluded and _is_parameter(tensor, bias=name in biases):
            yield name, tensor


def read_graph(path: Path) -> Any:
    """An ``onnx.ModelProto`` without local functions; raises as `macs`."""
    onnx = _onnx()
    check_self_contained(path)
    try:
        model = onnx.load(path)
        return onnx.inliner.inline_local_functions(model) if model.functions else model
    except Exception as error:  # protobuf's and the checker's errors share no other base
        raise UsageError(f"{path.name} cannot be read: {' '.join(str(error).split())[:300]}") from error


def _onnx() -> Any:
    try:
        import onnx
        import onnx.inliner
    except ImportError:
        raise UsageError(
            "counting MACs and parameters needs the onnx package: pip install 'pastille[compress]'"
        ) from None
    return onnx


def _tensors(graph: Any) -> Iterator[tuple[str, Any]]:
    """Initializers and the values of Constant nodes, by name."""
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in graph.node:
        if node.op_type == "Constant":
            yield from ((node.output[0], a.t) for a in node.attribute if a.name == "value")


def _is_parameter(tensor: Any, *, bias: bool) -> bool:
    types = _onnx().TensorProto
    floating = {types.FLOAT, types.FLOAT16, types.BFLOAT16, types.DOUBLE}
    quantized = {types.INT8, types.UINT8, types.INT4, types.UINT4}
    if tensor.data_type == types.INT32:
        return bias
    return tensor.data_type in floating | quantized and len(tensor.dims) > 0


def factor_names(node: Any) -> list[str]:
    """The tensors that an operator multiplies."""
    return [node.input[at] for at in FACTORS[node.op_type] if at < len(node.input)]


def _shapes(model: Any, wanted: set[str]) -> tuple[Mapping[str, Shape], int]:
    """Shapes of the tensors named, seen by running the model on zeros, and the batch size of that."""
    onnx = _onnx()
    known: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    inner = {name for node in model.graph.node for name in node.output} & wanted
    inner -= {value.name for value in model.graph.output}
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(inner))
    with tempfile.TemporaryDirectory(prefix="pastille-") as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(shown, path)
        session = load(path)
        batch = session.fixed_batch or 1
        zeros = {spec.name: _zeros(batch, spec.shape, spec) for spec in session.inputs}
        known |= {name: np.shape(output) for name, output in session(zeros).items()}
    return known | {name: x.shape for name, x in zeros.items()}, batch


def _zeros(batch: int, shape: Shape, spec: Any) -> np.ndarray:
    if UNKNOWN_DIM in shape:
        raise UsageError(
            f"MACs cannot be counted: input {spec.name!r} has an open size beside the batch, {shape}; "
            "export with all other sizes fixed"
        )
    return np.zeros((batch, *shape), spec.dtype)


def _node_macs(node: Any, shapes: Mapping[str, Shape]) -> int:
    op = node.op_type
    result = shapes[node.output[0]]
    data, weight, *more = [shapes[name] for name in factor_names(node)]
    if op in _CONVOLUTIONS:  # weight (O, I / groups, *kernel)
        return prod(result) * prod(weight[1:])
    if op == "ConvTranspose":  # data (N, I, *size), weight (I, O / groups, *kernel)
        return prod(data) * prod(weight[1:])
    if op in _PRODUCTS:  # data (..., M, K)
        return prod(result) * data[-1]
    if op in _AFFINE:  # data (M, K), or (K, M) if transposed
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return prod(result) * data[0 if transposed else 1]
    if op in _RECURRENT:  # data (T, N, I), weight (D, gates * H, I), more[0] (D, gates * H, H)
        return prod(data[:2]) * (prod(weight) + prod(more[0]))
    if op == "Attention":  # every query meets every key (..., S, E), then every value
        return (prod(data) + prod(result)) * weight[-2]
    return _einsum_macs(node, data, weight)


def _einsum_macs(node: Any, left: Shape, right: Shape) -> int:
    equation = next(a.s.decode() for a in node.attribute if a.name == "equation").replace(" ", "")
    labels = "".join(equation.partition("->")[0].split(","))
    if len(labels) != len(left) + len(right):
        raise UsageError(f"MACs of Einsum {equation!r} (node {node.name!r}) cannot be counted")
    return prod(dict(zip(labels, left + right, strict=True)).values())

"""Linear layers of an ONNX graph: MatMul or Gemm with a constant weight, and the bias that follows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from pastille.errors import PreconditionError
from pastille.quantization.conversion import constant_values, node_name
from pastille.quantization.layers import scope_of
from pastille.quantization.nodes import bodies


@dataclass(frozen=True, kw_only=True)
class Linear:
    """One layer, ``output = data @ weight + bias``.

    Attributes:
        name: Of its MatMul or Gemm.
        nodes: First outputs of the nodes that compute it, an Add of the bias included.
        data: The tensor that it reads, ``(..., K)``.
        output: The tensor that it makes, ``(..., N)``.
        weight_name: Of the tensor in the file.
        key: The same for layers that share a weight.
        weight: ``(K, N)`` float32.
        bias: ``(N,)`` float32, or None.
    """

    name: str
    nodes: tuple[str, ...]
    data: str
    output: str
    weight_name: str
    key: str
    weight: np.ndarray
    bias: np.ndarray | None


@dataclass(frozen=True, kw_only=True)
class Found:
    """The linear layers of a graph in its order, and what is left float, with the reason."""

    layers: tuple[Linear, ...]
    left: Mapping[str, str]


_ASKED = "asked to stay float"
_INSIDE = "linear layers inside a branch or loop stay float"


def linear_layers(model: Any, *, keep_float: Sequence[str] = (), others: Sequence[str] = ()) -> Found:
    """Find the linear layers of the main graph.

    Args:
        model: An ``onnx.ModelProto``.
        keep_float: Layers to leave: names of modules, nodes, weights or outputs (* matches any), ``"first"``,
            ``"last"``.
        others: Names of layers of another kind, which ``keep_float`` may hold too.

    Raises:
        PreconditionError: A name in ``keep_float`` is no layer's; the closest are shown.
    """
    matrices = [node for node in model.graph.node if node.op_type in {"MatMul", "Gemm"} and not node.domain]
    constants = constant_values(model, {name for node in model.graph.node for name in _operands(node)})
    reasons = {node.output[0]: _unfit(node, constants) for node in matrices}
    readers = _readers(model.graph)
    layers = [
        _linear(node, constants, readers.get(node.output[0], []))
        for node in matrices
        if not reasons[node.output[0]]
    ]
    unfit = {node_name(node): why for node in matrices if (why := reasons[node.output[0]])}
    kept = _kept(layers, keep_float, float_anyway={*unfit, *others})
    branching = {node_name(node) for node in model.graph.node if _has_matrices(node)}
    return Found(
        layers=tuple(layer for layer in layers if layer.name not in kept),
        left={**unfit, **dict.fromkeys(branching, _INSIDE), **dict.fromkeys(kept, _ASKED)},
    )


def _has_matrices(node: Any) -> bool:
    return any(
        n.op_type in {"MatMul", "Gemm"} or _has_matrices(n) for body in bodies(node) for n in body.node
    )


def _operands(node: Any) -> Sequence[str]:
    """What may be a weight or a bias."""
    first = {"MatMul": 0, "Gemm": 1, "Add": 0}.get(node.op_type)
    return [] if first is None else list(node.input)[first:]


def _unfit(node: Any, constants: Mapping[str, np.ndarray]) -> str:
    """Why a product cannot be quantized by its weight; "" where it can."""
    weight = constants.get(node.input[1])
    if weight is None:
        constant = node.input[0] in constants
        return "its weight is the left operand" if constant else "both operands are computed, as in attention"
    if weight.dtype != np.float32:
        return f"its weight is {weight.dtype}, not float32"
    if weight.ndim != 2:
        return f"its weight has {weight.ndim} axes, not 2"
    if not np.isfinite(weight).all():
        return "its weight holds NaN or infinity"
    return _unfit_gemm(node, constants) if node.op_type == "Gemm" else ""


def _unfit_gemm(node: Any, constants: Mapping[str, np.ndarray]) -> str:
    a = _attributes(node)
    if a.get("transA", 0) or a.get("alpha", 1.0) != 1 or a.get("beta", 1.0) != 1:
        return "a Gemm that transposes its data or scales (transA, alpha, beta) is no linear layer"
    if len(node.input) > 2 and node.input[2]:
        bias = constants.get(node.input[2])
        if bias is None or bias.size != _oriented(node, constants).shape[1]:
            return "its bias is not one constant per output"
    return ""


def _attributes(node: Any) -> dict[str, float]:
    return {a.name: a.f if a.type == a.FLOAT else a.i for a in node.attribute}


def _oriented(node: Any, constants: Mapping[str, np.ndarray]) -> np.ndarray:
    weight = constants[node.input[1]]
    return weight.T if _attributes(node).get("transB", 0) else weight


def _readers(graph: Any) -> dict[str, list[Any]]:
    """Who reads each tensor; a graph's output, or the body of a branch, counts as a reader that is no Add."""
    readers: dict[str, list[Any]] = {o.name: [None] for o in graph.output}
    for node in graph.node:
        for name in (*node.input, *_captured(node)):
            readers.setdefault(name, []).append(node)
    return readers


def _captured(node: Any) -> Iterator[str]:
    for body in bodies(node):
        yield from (o.name for o in body.output)
        for inner in body.node:
            yield from (*inner.input, *_captured(inner))


def _linear(node: Any, constants: Mapping[str, np.ndarray], readers: Sequence[Any]) -> Linear:
    weight = np.ascontiguousarray(_oriented(node, constants))
    biased = node.op_type == "Gemm" and len(node.input) > 2 and node.input[2]
    bias = constants[node.input[2]].reshape(-1) if biased else None
    output = node.output[0]
    nodes: tuple[str, ...] = (output,)
    follows = readers[0] if bias is None and len(readers) == 1 else None
    if follows is not None and follows.op_type == "Add":
        other = next((name for name in follows.input if name != output), "")
        value = constants.get(other)
        if value is not None and value.shape == weight.shape[1:]:
            bias, nodes, output = value, (*nodes, follows.output[0]), follows.output[0]
    return Linear(
        name=node_name(node),
        nodes=nodes,
        data=node.input[0],
        output=output,
        weight_name=node.input[1],
        key=node.input[1] + ("_transposed" if _attributes(node).get("transB", 0) else ""),
        weight=weight,
        bias=bias,
    )


def _kept(layers: Sequence[Linear], names: Iterable[str], *, float_anyway: set[str]) -> set[str]:
    ends = {"first": layers[:1], "last": layers[-1:]}
    kept: set[str] = set()
    for name in names:
        if name in float_anyway:
            continue
        chosen = ends.get(name) or [layer for layer in layers if _is_called(layer, name)]
        if not chosen:
            raise _unknown(name, [*(x.name for x in layers), *float_anyway, *(x.weight_name for x in layers)])
        kept |= {layer.name for layer in chosen}
    return kept


def _is_called(layer: Linear, name: str) -> bool:
    """By its node, weight or output, or by its module in PyTorch or one around that; * matches any."""
    module = layer.weight_name.removeprefix("model.").rpartition(".")[0]
    known = {layer.name, layer.weight_name, layer.output, *layer.nodes, module, scope_of(layer.name)}
    return any(fnmatchcase(each, name) or fnmatchcase(each, f"{name}.*") for each in known if each)


def _unknown(name: str, known: Sequence[str]) -> PreconditionError:
    close = difflib.get_close_matches(name, known, n=3)
    there = f"closest: {', '.join(close)}" if close else f"there are: {', '.join(known[:8]) or 'none'}"
    return PreconditionError(f"keep_float: there is no layer {name!r}; {there}")


def replacements(layers: Iterable[Linear], made: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """What `conversion.replaced` asks for: new nodes in place of each layer's first, nothing for the rest.

    Args:
        layers: Those that were converted.
        made: Name of a layer -> its new nodes.
    """
    return {
        output: made[layer.name] if i == 0 else [] for layer in layers for i, output in enumerate(layer.nodes)
    }

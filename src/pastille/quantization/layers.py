"""The layers of a float graph by the names that their modules have in PyTorch."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from pastille.errors import PreconditionError

_WEIGHTED: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_ELEMENTWISE: Final = frozenset(
    {
        *("Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu"),
        *("Softplus", "Gelu", "Erf", "Add", "Sub", "Mul", "Div", "Identity", "Neg", "Mish"),
    }
)
_MOVERS: Final = frozenset({"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"})
_SHOWN: Final = 3  # names that an error offers
_MANY: Final = 8  # layers in one section


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What is quantized or left in float as one.

    Attributes:
        name: Of its module in PyTorch; of its node where it has no weights that a module gave a name.
        nodes: Names of its product and of the element-wise nodes that read nothing but it.
        weights: How many numbers it stores; 0 for a product of two activations.
    """

    name: str
    nodes: tuple[str, ...]
    weights: int


def layers(model: Any) -> tuple[Layer, ...]:
    """The convolutions and matrix products of a graph, each with the activation after it.

    A module that is called twice is one layer.

    Args:
        model: A float ``onnx.ModelProto`` whose nodes are named, best after ``rewritten``.

    Returns:
        In the graph's order.
    """
    graph = model.graph
    sizes = {t.name: _count(t.dims) for t in graph.initializer}
    found: dict[str, list[Any]] = {}
    for node in graph.node:
        if node.op_type in _WEIGHTED and not _is_gate(node, sizes):
            found.setdefault(_module(node, sizes), []).append(node)
    return tuple(_layer(name, nodes, graph, sizes) for name, nodes in found.items())


def _count(dims: Iterable[int]) -> int:
    product = 1
    for size in dims:
        product *= size
    return product


def _module(node: Any, constants: Iterable[str]) -> str:
    """E.g. ``features.0.0`` of a node that reads ``model.features.0.0.weight``."""
    dotted = (str(name) for name in node.input if name in constants and "." in name)
    return next((n.removeprefix("model.").rpartition(".")[0] or n for n in dotted), str(node.name))


def _is_gate(node: Any, sizes: dict[str, int]) -> bool:
    """Whether it is a hard sigmoid that a rewrite made a convolution of: an activation, not a layer."""
    return node.op_type == "Conv" and node.name.endswith("_affine_depthwise") and node.input[1] in sizes


def _layer(name: str, products: list[Any], graph: Any, sizes: dict[str, int]) -> Layer:
    nodes = [n for product in products for n in (product, *_tail(product, graph, sizes))]
    read = {name for node in products for name in node.input if name in sizes}
    return Layer(
        name=name,
        nodes=tuple(dict.fromkeys(node.name for node in nodes)),
        weights=sum(sizes[name] for name in read),
    )


def _tail(product: Any, graph: Any, sizes: dict[str, int]) -> list[Any]:
    """The element-wise nodes that compute on what this one made alone, in order."""
    made, tail = set(product.output), list[Any]()
    for node in graph.node:
        data = [name for name in node.input if name and name not in sizes]
        kind = node.op_type in _ELEMENTWISE | _MOVERS or _is_gate(node, sizes)
        if kind and data and made.issuperset(data):
            made.update(node.output)
            tail.append(node)
    while tail and tail[-1].op_type in _MOVERS:  # bytes are moved faster than floats
        tail.pop()
    return tail


def kept_float(model: Any, asked: Sequence[str]) -> frozenset[str]:
    """The nodes that a recipe's ``keep_float`` speaks of.

    Args:
        model: A float ``onnx.ModelProto`` whose nodes are named.
        asked: Names of layers or of modules that hold some, where ``*`` matches anything; ``first`` and
            ``last`` are the first and the last layer with weights.

    Returns:
        Names of nodes, for `pastille.quantization.static.with_ranges`.

    Raises:
        PreconditionError: The model has no such layer; the closest ones are named.
    """
    known = layers(model)
    kept = frozenset(node for name in asked for layer in _matching(known, name) for node in layer.nodes)
    if kept and all(kept.issuperset(layer.nodes) for layer in known):
        raise PreconditionError(
            "quantize.keep_float names every layer, so that nothing is left to quantize; name fewer, or "
            "leave quantize out"
        )
    return kept


def _matching(known: Sequence[Layer], pattern: str) -> list[Layer]:
    weighted = [layer for layer in known if layer.weights]
    ends = {"first": weighted[:1], "last": weighted[-1:]}.get(pattern, [])
    found = [layer for layer in known if _fits(layer.name, pattern)]
    if not ends and not found:
        raise _unknown(pattern, [layer.name for layer in known])
    return [*ends, *found]


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _unknown(pattern: str, names: Sequence[str]) -> PreconditionError:
    close = difflib.get_close_matches(pattern, names, n=_SHOWN)
    words = f"closest: {', '.join(close)}" if close else f"it has {', '.join(names[:_SHOWN]) or 'none'}"
    more = f" and {len(names) - _SHOWN} more" if not close and len(names) > _SHOWN else ""
    return PreconditionError(
        f"quantize.keep_float: the model has no layer {pattern!r}; {words}{more}. "
        "Name a layer or a module, use * as a wildcard, or say first or last"
    )


def sections(model: Any) -> tuple[tuple[str, ...], ...]:
    """The graph cut wherever a single activation passes, but never between a layer and its activation.

    Where too many activations pass side by side to cut at all, as beside the skips of a U-Net, every layer
    begins a section. A section of neighbours in float pays for conversions at its two ends only.

    Args:
        model: A float ``onnx.ModelProto`` with inferred types, whose nodes are named.

    Returns:
        Names of nodes; together all of the graph's, in its order.
    """
    graph = model.graph
    known = layers(model)
    owner = {node: layer.name for layer in known for node in layer.nodes}
    parts: list[list[str]] = [[]]
    for node, passing, following in zip(
        graph.node, _passing(graph), [*graph.node[1:], graph.node[-1]], strict=True
    ):
        parts[-1].append(node.name)
        within = owner.get(node.name, "") == owner.get(following.name)
        if passing <= 1 and not within:
            parts.append([])
    heads = frozenset(layer.nodes[0] for layer in known)
    return tuple(tuple(piece) for part in parts if part for piece in _pieces(part, heads))


def _passing(graph: Any) -> list[int]:
    """After each node, how many tensors that a layer had a part in are still to be read."""
    constants = {t.name for t in graph.initializer}
    last = {name: at for at, node in enumerate(graph.node) for name in node.input}
    last.update({output.name: len(graph.node) for output in graph.output})
    deep: set[str] = set()
    counts = []
    for at, node in enumerate(graph.node):
        product = node.op_type in _WEIGHTED and not constants.issuperset(node.input)
        if product or deep.intersection(node.input):
            deep.update(node.output)
        deep = {name for name in deep if last.get(name, -1) > at}
        counts.append(len(deep))
    return counts


def _pieces(part: Sequence[str], heads: frozenset[str]) -> Iterator[list[str]]:
    """The part itself, or from layer to layer where it holds many."""
    if sum(name in heads for name in part) <= _MANY:
        yield list(part)
        return
    piece: list[str] = []
    for name in part:
        if name in heads and heads.intersection(piece):
            yield piece
            piece = []
        piece.append(name)
    yield piece

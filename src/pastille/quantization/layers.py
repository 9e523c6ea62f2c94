"""The layers of a float graph by the names that their modules have in PyTorch."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Final, Literal

from onnx import TensorProto

from pastille.errors import PreconditionError

_WEIGHTED: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_ELEMENTWISE: Final = frozenset(
    {
        *("Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu"),
        *("Softplus", "Gelu", "Erf", "Add", "Sub", "Mul", "Div", "Identity", "Neg", "Mish"),
    }
)
_MOVERS: Final = frozenset({"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"})
Way = Literal["static", "dynamic", "weights"]
_CONVOLUTION: Final = ("convolution", "ptq")
_NO_KERNEL: Final = "bf16 or fp16, which stores them in half"
# What each way to 8 bits leaves float: operator -> what to call it, and the method that is for it.
_LEFT: Final[Mapping[Way, Mapping[str, tuple[str, str]]]] = MappingProxyType(
    {
        "static": {"LSTM": ("LSTM", "dynamic")},
        "dynamic": {"Conv": _CONVOLUTION, "ConvTranspose": _CONVOLUTION},
        "weights": {"Conv": _CONVOLUTION, "ConvTranspose": _CONVOLUTION, "LSTM": ("LSTM", "dynamic")},
    }
)
_NEVER: Final = MappingProxyType({kind: (kind, _NO_KERNEL) for kind in ("GRU", "RNN")})
_REWRITTEN: Final = re.compile(r"_(?:wide|padded|phases|folded)_for_")  # follows the name of a weight
_MODULE: Final = re.compile(r"[^/:]+")  # e.g. not in ``onnx::Conv_128``, which says nothing
_SHOWN: Final = 3  # names that an error offers
_FLOATS: Final = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE})
_MOST: Final = 0.5  # of the weights
_WEIGHTS: Final = 4  # inputs up to here are data, weights and biases; a recurrent layer has states behind
_MANY: Final = 8  # layers in one section


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What is quantized or left in float as one.

    Attributes:
        name: Of its module in PyTorch; of its node where neither weights nor node tell the module.
        products: Names of its convolutions or matrix products.
        nodes: Names of its product and of the element-wise nodes that read nothing but it.
        weights: How many numbers it stores; 0 for a product of two activations.
    """

    name: str
    products: tuple[str, ...]
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


def _module(node: Any, constants: Container[str]) -> str:
    """E.g. ``features.0.0`` of a node that reads ``model.features.0.0.weight``."""
    held = [str(name) for name in node.input if name in constants]
    known = (_MODULE.match(_REWRITTEN.split(name)[0]) for name in held)
    dotted = (found.group() for found in known if found and "." in found.group())
    scope = scope_of(node.name) if held else ""
    return next((n.removeprefix("model.").rpartition(".")[0] or n for n in dotted), scope or str(node.name))


def scope_of(name: str) -> str:
    """The module that the name of a node tells; "" where it tells none.

    So the TorchScript exporter names nodes; the weights that it folds a batch norm into, it numbers.

    Args:
        name: Of a node.

    Example:
        >>> scope_of("/blocks/blocks.0/b/b.1/Conv")
        'blocks.0.b.1'
    """
    if not name.startswith("/"):
        return ""
    pairs = pairwise(name[1:].split("/"))
    path = ".".join(part for part, following in pairs if not following.startswith(f"{part}."))
    return path.removeprefix("model.")


def _is_gate(node: Any, sizes: dict[str, int]) -> bool:
    """Whether it is a hard sigmoid that a rewrite made a convolution of: an activation, not a layer."""
    return node.op_type == "Conv" and node.name.endswith("_affine_depthwise") and node.input[1] in sizes


def _layer(name: str, products: list[Any], graph: Any, sizes: dict[str, int]) -> Layer:
    nodes = [n for product in products for n in (product, *_tail(product, graph, sizes))]
    read = {name for node in products for name in node.input if name in sizes}
    return Layer(
        name=name,
        products=tuple(product.name for product in products),
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


def left_out(model: Any, way: Way = "static") -> str:
    """Whether a way to quantize misses most of a model.

    Args:
        model: A float ``onnx.ModelProto``.
        way: ``static`` ranges, ``dynamic`` ones, or ``weights`` of linear layers alone.

    Returns:
        A sentence where layers of one kind that it leaves float hold more than half of the weights, and
        the method that is for them; else "".

    Example:
        >>> import numpy as np
        >>> from onnx import helper, numpy_helper
        >>> weights = [numpy_helper.from_array(np.ones((1, 8, 4), np.float32), n) for n in ("w", "r")]
        >>> nodes = [helper.make_node("LSTM", ["x", "w", "r"], ["y"])]
        >>> left_out(helper.make_model(helper.make_graph(nodes, "g", [], [], weights)))
        '1 LSTM holds 100% of the weights, which static quantization leaves float: use method: dynamic'
    """
    known = {**_LEFT[way], **_NEVER}
    held: dict[tuple[str, str], set[str]] = {}
    counts = Counter[tuple[str, str]]()
    for node in model.graph.node:
        if not node.domain and node.op_type in known:
            held.setdefault(known[node.op_type], set()).update(_stored(node, model.graph))
            counts[known[node.op_type]] += 1
    sizes = {t.name: _count(t.dims) for t in model.graph.initializer if t.data_type in _FLOATS}
    total = max(sum(sizes.values()), 1)
    shares = {kind: sum(sizes.get(name, 0) for name in names) / total for kind, names in held.items()}
    kind, share = max(shares.items(), key=lambda found: found[1], default=(("", ""), 0.0))
    return _left_words(way, kind, counts[kind], share) if share > _MOST else ""


def _stored(node: Any, graph: Any) -> set[str]:
    """The stored tensors that a node's weights are, or are put together from."""
    makers = {name: n for n in graph.node for name in n.output if name}
    stored = {t.name for t in graph.initializer}
    pending, seen = list(node.input[1:_WEIGHTS]), set[str]()
    while pending:
        if (name := pending.pop()) not in seen:
            seen.add(name)
            pending += makers[name].input if name in makers else []
    return seen & stored


def _left_words(way: Way, kind: tuple[str, str], count: int, share: float) -> str:
    what = "weight quantization" if way == "weights" else f"{way} quantization"
    layers = f"{count} {kind[0]} holds" if count == 1 else f"{count} {kind[0]}s hold"
    return f"{layers} {share:.0%} of the weights, which {what} leaves float: use method: {kind[1]}"


def kept_float(model: Any, asked: Sequence[str]) -> frozenset[str]:
    """The nodes that a recipe's ``keep_float`` speaks of.

    Args:
        model: A float ``onnx.ModelProto`` whose nodes are named.
        asked: Names of layers, of modules that hold some, or of their products' nodes, where ``*`` matches
            anything; ``first`` and ``last`` are the first and the last layer with weights.

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
    found = [x for x in known if any(_fits(name, pattern) for name in (x.name, *x.products))]
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


def by_layer(model: Any, of_modules: Mapping[str, float], *, what: str) -> dict[str, float]:
    """What is known of modules, as far as they are layers of a graph.

    Args:
        model: A float ``onnx.ModelProto`` whose nodes are named.
        of_modules: Name in PyTorch -> what is known.
        what: Key of the recipe that it comes from.

    Returns:
        Name of a layer -> what is known of it, in the graph's order.

    Raises:
        PreconditionError: The graph has none of these modules.
    """
    names = [layer.name for layer in layers(model)]
    found = {name: of_modules[name] for name in names if name in of_modules}
    if not found:
        has, knows = (", ".join([*some][:_SHOWN]) or "none" for some in (names, of_modules))
        raise PreconditionError(
            f"{what}: no layer of the file has the name of one that was scanned (the file has {has}; the "
            f"scan has {knows}); leave scan out"
        )
    return found


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

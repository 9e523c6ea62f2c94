"""Which layer of the user's module the parameters and multiply-accumulates of a file belong to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, Final

from pastille.measure.counts import FACTORS, counted, factor_names, read_graph, trained
from pastille.values import LayerCost

MOST = 200  # layers of one file: what a record keeps
_PREFIX = "model."  # the export calls the user's module so
_PASSED: Final = frozenset({"DequantizeLinear", "QuantizeLinear", "Transpose", "Cast", "Identity", "Reshape"})
_AFFINE: Final = frozenset({"Gemm", "QGemm"})  # add their bias themselves
_STEPS = 4  # between a product and the bias that names it: rounded, and read back


def macs_by_layer(path: Path) -> Mapping[str, int]:
    """Multiply-accumulates of one input for each layer, as `pastille.measure.counts.macs` counts them.

    Args:
        path: The ONNX file, float or quantized.

    Returns:
        Module -> count, in the order of the file. A product belongs to the module whose weight it takes, or
        whose bias is added to it; what has no such name (attention's own products) is under ``""``.

    Raises:
        IntegrityError: It is missing, not an ONNX model, or keeps weights in another file.
        UsageError: Its MACs cannot be counted, or the `onnx` package is not installed.
    """
    return _macs(read_graph(path))


def parameters_by_layer(path: Path) -> Mapping[str, int]:
    """Trained numbers of each layer, as `pastille.measure.counts.parameters` counts them.

    Args:
        path: The ONNX file, float or quantized.

    Returns:
        Module -> count, in the order of the file; ``""`` for those of no module by name.

    Raises:
        IntegrityError: It is missing, not an ONNX model, or keeps weights in another file.
        UsageError: The `onnx` package is not installed.
    """
    return _parameters(read_graph(path).graph)


def layer_costs(path: Path, *, most: int = MOST) -> tuple[LayerCost, ...]:
    """Both, for each layer, in the order of the file.

    Args:
        path: The ONNX file.
        most: Layers that are listed; the smallest of more are put together under ``""``.

    Raises:
        IntegrityError: It is missing, not an ONNX model, or keeps weights in another file.
        UsageError: Its MACs cannot be counted, or the `onnx` package is not installed.
    """
    model = read_graph(path)
    macs, parameters = _macs(model), _parameters(model.graph)
    named = [name for name in {**macs, **parameters} if name]
    dearest = sorted(named, key=lambda name: -(macs.get(name, 0) + parameters.get(name, 0)))[:most]
    kept = set(dearest)
    shown = [name for name in named if name in kept]
    rest = LayerCost(
        name="",
        macs=sum(n for name, n in macs.items() if name not in kept),
        parameters=sum(n for name, n in parameters.items() if name not in kept),
    )
    listed = [LayerCost(name=n, macs=macs.get(n, 0), parameters=parameters.get(n, 0)) for n in shown]
    return (*listed, *([rest] if rest.macs or rest.parameters else []))


def _macs(model: Any) -> Mapping[str, int]:
    names = _Names(model.graph)
    found: Counter[str] = Counter()
    for node, macs in counted(model)[0]:
        found[names.of(node)] += macs
    return found


def _parameters(graph: Any) -> Mapping[str, int]:
    names = _Names(graph)
    owners = {name: names.of(node) for node in graph.node for name in names.constants(node)}
    found: Counter[str] = Counter()
    for name, tensor in trained(graph):
        found[_module(name) or owners.get(name, "")] += prod(tensor.dims)
    return found


def _module(tensor: str) -> str:
    """The module that a constant is named after; empty where it has a name of the exporter's own."""
    return tensor.removeprefix(_PREFIX).rpartition(".")[0]


class _Names:
    """Finds the module that an operator belongs to, through what quantization puts between."""

    def __init__(self, graph: Any) -> None:
        self._constants = {tensor.name for tensor in graph.initializer}
        self._makers = {name: node for node in graph.node for name in node.output}
        self._readers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def of(self, node: Any) -> str:
        weights = (_module(name) for name in self.constants(node))
        return next(filter(None, weights), "") or self._by_bias(node)

    def constants(self, node: Any) -> Iterator[str]:
        """The weights that an operator multiplies."""
        if node.op_type in FACTORS:
            yield from filter(None, map(self._source, factor_names(node)[1:]))

    def _source(self, name: str) -> str:
        while name not in self._constants:
            maker = self._makers.get(name)
            if maker is None or maker.op_type not in _PASSED:
                return ""
            name = maker.input[0]
        return name

    def _by_bias(self, node: Any) -> str:
        """Weights of linear layers, which the exporter turns, lose their names by it; biases keep theirs."""
        if node.op_type in _AFFINE:
            return self._module_of_bias(node)
        for _ in range(_STEPS):
            readers = self._readers.get(node.output[0], [])
            node = readers[0] if len(readers) == 1 else None
            if node is not None and node.op_type == "Add":
                return self._module_of_bias(node)
            if node is None or node.op_type not in _PASSED:
                return ""
        return ""

    def _module_of_bias(self, node: Any) -> str:
        # A constant that several operators add stands for equal biases of several layers.
        sources = (source for name in node.input if (source := self._source(name)))
        return next((_module(s) for s in sources if len(self._readers.get(s, ())) == 1 and _module(s)), "")

"""Where a graph computes SiLU, which the exporter writes as two nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Silu:
    """``x · sigmoid(x)``, as two nodes."""

    sigmoid: Any
    product: Any


def silus(graph: Any) -> Iterator[Silu]:
    """Every SiLU of a graph.

    As QLinearSigmoid and QLinearMul it takes half as long again as dequantizing, one vectorized float
    kernel and quantizing, since tables are looked up one number at a time.

    Args:
        graph: An ``onnx.GraphProto``.

    References:
        Elfwing et al., 2018, arXiv:1702.03118 (SiLU).
    """
    makers = {name: node for node in graph.node for name in node.output}
    reads = Counter(name for node in graph.node for name in node.input)
    reads.update(output.name for output in graph.output)
    for product in graph.node:
        factors = list(product.input) if product.op_type == "Mul" else []
        for gate, source in zip(factors, reversed(factors), strict=True):
            sigmoid = makers.get(gate)
            if sigmoid is not None and sigmoid.op_type == "Sigmoid" and sigmoid.input[0] == source:
                if reads[gate] == 1:
                    yield Silu(sigmoid=sigmoid, product=product)
                break

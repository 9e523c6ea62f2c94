"""A batch norm of rows becomes part of the product beside it, and of nothing else."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

from pastille.quantization.recovery import prepared
from pastille.quantization.recovery.auto import Choice, quantized_by
from pastille.quantization.rewrites import rewritten
from pastille.quantization.rewrites.batch_norm import folded

FLOAT, DOUBLE = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE
WIDTH = 6


class Rows:
    """A graph of rows, put together node by node."""

    def __init__(self, dtype: Any = np.float32) -> None:
        self.rng, self.dtype = np.random.default_rng(0), np.dtype(dtype)
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self.last = "x"

    def tensor(self, *shape: int, positive: bool = False) -> str:
        values = self.rng.normal(size=shape)
        values = np.abs(values) + 0.1 if positive else values
        self.tensors.append(numpy_helper.from_array(values.astype(self.dtype), f"t{len(self.tensors)}"))
        return f"t{len(self.tensors) - 1}"

    def add(self, op: str, *inputs: str, **attributes: Any) -> Rows:
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(make_node(op, [self.last, *inputs], [name], name=f"node_{name}", **attributes))
        self.last = name
        return self

    def norm(self, **attributes: Any) -> Rows:
        scale, shift, mean = (self.tensor(WIDTH) for _ in range(3))
        spread = self.tensor(WIDTH, positive=True)
        return self.add("BatchNormalization", scale, shift, mean, spread, **attributes)

    def gemm(self, **attributes: Any) -> Rows:
        return self.add("Gemm", self.tensor(WIDTH, WIDTH), self.tensor(WIDTH), **attributes)

    def product(self) -> Rows:
        return self.add("MatMul", self.tensor(WIDTH, WIDTH))

    def model(self, *outputs: str) -> Any:
        kind = DOUBLE if self.dtype == np.float64 else FLOAT
        graph = make_graph(
            self.nodes,
            "g",
            [make_tensor_value_info("x", kind, ["N", WIDTH])],
            [make_tensor_value_info(name, kind, None) for name in (self.last, *outputs)],
            self.tensors,
        )
        return make_model(graph, opset_imports=[make_opsetid("", 18)], ir_version=10)


def run(model: Any, x: np.ndarray) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, {"x": x})
    return found


def operators(model: Any) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def require_equal(before: Any, after: Any, dtype: Any = np.float32) -> None:
    x = np.random.default_rng(1).normal(size=(40, WIDTH)).astype(dtype)
    for expected, found in zip(run(before, x), run(after, x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(np.abs(expected).max()))


FORMS = {
    "before": Rows().add("Relu").norm().gemm(),
    "before, transposed": Rows().add("Relu").norm(epsilon=0.1).gemm(transB=1),
    "before, no bias": Rows().add("Relu").norm().product(),
    "after": Rows().gemm().norm().add("Relu"),
    "after, transposed": Rows().gemm(transB=1).norm(epsilon=0.1).add("Relu"),
    "after, no bias": Rows().product().norm().add("Relu"),
    "between two products": Rows().gemm().norm().gemm(transB=1),
    "two in a row": Rows().gemm().norm().add("Relu").norm().norm().gemm(),
    "around a relu": Rows().gemm().norm().add("Relu").norm().gemm().add("Relu").norm().gemm(),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_product_takes_over_the_batch_norm_beside_it(name: str) -> None:
    model = FORMS[name].model()
    new = folded(prepared(model))
    assert "BatchNormalization" not in operators(new)
    assert sum(operators(new)[op] for op in ("Gemm", "MatMul")) == sum(
        operators(model)[op] for op in ("Gemm", "MatMul")
    )
    require_equal(model, new)
    assert folded(new) is new


def test_rewriting_folds_into_the_product_before_and_twice_changes_nothing() -> None:
    """Into the product behind it would cost accuracy, unless equalization spreads the scales again."""
    model = Rows().gemm().norm().add("Relu").norm().gemm().model()
    new = rewritten(model)
    assert operators(new) == {"Gemm": 2, "Relu": 1, "BatchNormalization": 1}
    require_equal(model, new)
    assert rewritten(new) == new


def shared(rows: Rows) -> Any:
    """The batch norm's output is read a second time, and so is what it reads."""
    normed = rows.gemm().add("Relu").norm().last
    return rows.gemm().add("Add", normed).model()


def refused() -> dict[str, Any]:
    before, behind = Rows().gemm(), Rows().add("Relu").norm()
    made, normed = before.last, behind.last
    computed = Rows()
    computed.nodes.append(make_node("Neg", [computed.tensor(WIDTH)], ["scale"]))
    others = [computed.tensor(WIDTH, positive=True) for _ in range(3)]
    return {
        "read twice": shared(Rows()),
        "the batch norm is an output": behind.gemm().model(normed),
        "the product is an output": before.norm().add("Relu").model(made),
        "in training": Rows().gemm().norm(training_mode=1).model(),
        "scaled product": Rows().norm().gemm(alpha=0.5).model(),
        "transposed data": Rows().norm().add("Gemm", "x", transA=1).model(),
        "nothing beside it": Rows().add("Relu").norm().add("Relu").model(),
        "computed scale": computed.add("Gemm", computed.tensor(WIDTH, WIDTH))
        .add("BatchNormalization", "scale", *others)
        .model(),
    }


@pytest.mark.parametrize("name", refused())
def test_what_cannot_be_folded_stays(name: str) -> None:
    model = prepared(refused()[name])
    assert folded(model) is model
    assert operators(rewritten(model))["BatchNormalization"] == 1


def test_a_graph_in_doubles_stays() -> None:
    """Weights are stored in float32: that would round what the file has exactly."""
    model = prepared(Rows(np.float64).gemm().norm().add("Relu").norm().gemm().model())
    assert folded(model) is model
    require_equal(model, rewritten(model), np.float64)


def sqnr_db(model: Any, choice: Choice, x: np.ndarray) -> float:
    wanted = run(model, x)[0]
    found = run(quantized_by(prepared(model), lambda: [{"x": x}], choice), x)[0]
    return float(10 * np.log10((wanted**2).sum() / ((found - wanted) ** 2).sum()))


def test_channels_of_unlike_sizes_are_equalized_through_a_batch_norm() -> None:
    """Six channels over five decades, which the batch norm makes alike again."""
    rows = Rows().gemm().add("Relu").norm().gemm().add("Relu").gemm()
    model, sizes = rows.model(), np.logspace(-3, 2, WIDTH).astype(np.float32)
    changes = {"t0": sizes, "t1": sizes, "t4": sizes, "t5": sizes**2}
    for tensor in model.graph.initializer:
        if tensor.name in changes:
            value = numpy_helper.to_array(tensor) * changes[tensor.name]
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
        if tensor.name == "t5":  # of a size that leaves epsilon without weight
            tensor.CopyFrom(numpy_helper.from_array(np.maximum(value, 1e-3 * sizes**2), "t5"))
    x = np.random.default_rng(2).normal(size=(400, WIDTH)).astype(np.float32)
    plain, equalized = (Choice(techniques=frozenset(t)) for t in ((), ("equalization",)))
    assert sqnr_db(model, plain, x) < 20
    assert sqnr_db(model, replace(plain, techniques=equalized.techniques), x) > 30

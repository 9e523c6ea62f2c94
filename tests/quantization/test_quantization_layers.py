from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from quantization_nets import Function, answer, built, conv_bn, in_batches, to_tensors
from torch import nn

from pastille.errors import PreconditionError
from pastille.export import export_onnx
from pastille.quantization.layers import kept_float, layers, sections
from pastille.quantization.ranges import minmax, observer
from pastille.quantization.recovery import prepared
from pastille.quantization.rewrites import rewritten
from pastille.quantization.static import with_ranges


def exported(model: nn.Module, data: dict[str, np.ndarray]) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "float.onnx"
        export_onnx(model.eval(), to_tensors(data), file)
        return prepared(rewritten(onnx.load(file)))


@functools.cache
def graph(name: str) -> Any:
    return exported(*built(name))


@functools.cache
def blocks() -> tuple[Any, dict[str, np.ndarray]]:
    """A stem, two blocks of which each has two layers beside a skip, and a head."""

    def calls(net: Any, x: Any) -> Any:
        x = net.stem(x)
        for block in net.blocks:
            x = x + block(x)
        return net.head(x.mean(dim=(2, 3)))

    torch.manual_seed(0)
    inner = nn.ModuleList(
        nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1), nn.SiLU(), nn.Conv2d(16, 16, 1)) for _ in range(2)
    )
    net = Function(calls, stem=conv_bn(3, 16), blocks=inner, head=nn.Linear(16, 4))
    data = {"input": np.random.default_rng(0).normal(size=(16, 3, 8, 8)).astype(np.float32)}
    return exported(net, data), data


def names(model: Any) -> list[str]:
    return [layer.name for layer in layers(model)]


@pytest.mark.parametrize("net", ["residual", "squeeze-excite", "1-D", "mlp", "transposed"])
def test_layers_are_named_as_their_modules(net: str) -> None:
    model, _ = built(net)
    kinds = nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d | nn.Linear
    expected = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    assert names(graph(net)) == expected


def test_names_outlive_the_rewrites_of_weights() -> None:
    """72 channels are widened to 80, and three colours to four: both make new weights."""
    net = nn.Sequential(nn.Conv2d(3, 72, 3), nn.ReLU(), nn.Conv2d(72, 72, 3, groups=72), nn.Conv2d(72, 8, 1))
    data = {"input": np.zeros((4, 3, 66, 66), np.float32)}
    model = exported(net, data)
    assert {t.dims[0] for t in model.graph.initializer} >= {80}
    assert names(model) == ["0", "2", "3"]


def test_products_of_activations_are_layers_without_weights() -> None:
    found = layers(graph("transformer"))
    assert [layer.name for layer in found if layer.weights] == ["qkv", "out", "up", "down", "head"]
    assert len([layer for layer in found if not layer.weights]) == 2


def test_a_layer_counts_the_numbers_that_it_stores() -> None:
    found = {layer.name: layer.weights for layer in layers(graph("mlp"))}
    assert found == {"0": 8 * 16 + 16, "2": 16 * 4 + 4}


def test_a_module_that_is_called_twice_is_one_layer() -> None:
    net = Function(
        lambda net, x: net.b(F.relu(net.a(F.relu(net.a(x))))), a=nn.Linear(8, 8), b=nn.Linear(8, 4)
    )
    model = exported(net, {"input": np.zeros((4, 8), np.float32)})
    kinds = {node.name: node.op_type for node in model.graph.node}
    found = {layer.name: [kinds[node] for node in layer.nodes] for layer in layers(model)}
    assert found == {"a": ["Gemm", "Relu", "Gemm", "Relu"], "b": ["Gemm"]}


def test_an_activation_belongs_to_the_layer_before_it() -> None:
    model, _ = blocks()
    kinds = {node.name: node.op_type for node in model.graph.node}
    found = {layer.name: [kinds[node] for node in layer.nodes] for layer in layers(model)}
    assert found["stem.0"] == ["Conv", "Relu"]
    assert found["blocks.0.0"] == ["Conv", "Sigmoid", "Mul"]
    assert found["blocks.0.2"] == ["Conv"]  # the addition is the skip's too


def test_no_conversion_stands_between_a_float_layer_and_its_activation() -> None:
    model, data = blocks()
    ranges = minmax(observer(model), in_batches(data))
    quantized = with_ranges(model, ranges, bits=7, keep_float=kept_float(model, ["blocks.1.0"]))
    conv = next(node for node in quantized.graph.node if node.name == kept_product(model, "blocks.1.0"))
    readers = [node.op_type for node in quantized.graph.node if conv.output[0] in node.input]
    assert readers == ["QuickGelu"]
    assert not any("quantized" in name.lower() for name in conv.input[1:])


def kept_product(model: Any, name: str) -> str:
    return next(layer.nodes[0] for layer in layers(model) if layer.name == name)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (["head"], ["head"]),
        (["first"], ["stem.0"]),
        (["last", "first"], ["stem.0", "head"]),
        (["blocks.*.0"], ["blocks.0.0", "blocks.1.0"]),
        (["blocks.1"], ["blocks.1.0", "blocks.1.2"]),
        (["*"], ["stem.0", "blocks.0.0", "blocks.0.2", "blocks.1.0", "blocks.1.2", "head"]),
        ([], []),
    ],
)
def test_layers_are_asked_for_by_name_wildcard_or_place(asked: list[str], found: list[str]) -> None:
    model, _ = blocks()
    kept = kept_float(model, asked)
    assert [layer.name for layer in layers(model) if kept.issuperset(layer.nodes)] == found


def test_a_name_that_matches_nothing_offers_the_closest() -> None:
    model, _ = blocks()
    with pytest.raises(PreconditionError, match=r"no layer 'blocks\.2\.0'; closest: .*blocks\.[01]\.0"):
        kept_float(model, ["head", "blocks.2.0"])
    with pytest.raises(PreconditionError, match=r"it has stem\.0, blocks\.0\.0, blocks\.0\.2 and 3 more"):
        kept_float(model, ["zzzzzzzz"])


@pytest.mark.parametrize("net", ["residual", "squeeze-excite", "transformer", "mlp"])
def test_sections_hold_every_node_once_and_in_order(net: str) -> None:
    model = graph(net)
    assert [name for part in sections(model) for name in part] == [node.name for node in model.graph.node]


def test_a_block_with_a_skip_is_one_section() -> None:
    model, _ = blocks()
    owner = {node: layer.name for layer in layers(model) for node in layer.nodes}
    found = [list(dict.fromkeys(owner[n] for n in part if n in owner)) for part in sections(model)]
    assert [part for part in found if part] == [
        ["stem.0"],
        ["blocks.0.0", "blocks.0.2"],
        ["blocks.1.0", "blocks.1.2"],
        ["head"],
    ]


def test_a_skip_over_everything_is_cut_at_the_layers() -> None:
    def calls(net: Any, x: Any) -> Any:
        first = x = net.stem(x)
        for layer in net.layers:
            x = F.relu(layer(x))
        return net.head(x + first)

    inner = nn.ModuleList(nn.Linear(8, 8) for _ in range(12))
    net = Function(calls, stem=nn.Linear(8, 8), layers=inner, head=nn.Linear(8, 4))
    model = exported(net, {"input": np.zeros((4, 8), np.float32)})
    heads = {layer.nodes[0] for layer in layers(model)}
    assert max(len(heads.intersection(part)) for part in sections(model)) == 1


def test_a_layer_is_never_cut() -> None:
    model, _ = blocks()
    parts = sections(model)
    for layer in layers(model):
        assert any(set(layer.nodes) <= set(part) for part in parts)


def test_a_graph_from_elsewhere_goes_by_its_nodes(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    weights = [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")]
    ends = [value("x", 1, ["n", 4])], [value("y", 1, ["n", 4])]
    model = helper.make_model(helper.make_graph(nodes, "g", *ends, weights))
    assert names(model) == ["product"]
    assert kept_float(model, ["first"]) == {"product"}


def test_everything_in_float_answers_as_float(tmp_path: Path) -> None:
    model, data = blocks()
    ranges = minmax(observer(model), in_batches(data))
    every = frozenset(node.name for node in model.graph.node)
    for kept, name in ((every, "kept.onnx"), (None, "float.onnx")):
        onnx.save(
            model if kept is None else with_ranges(model, ranges, bits=7, keep_float=kept), tmp_path / name
        )
    np.testing.assert_allclose(
        answer(tmp_path / "kept.onnx", data), answer(tmp_path / "float.onnx", data), rtol=1e-4, atol=1e-5
    )

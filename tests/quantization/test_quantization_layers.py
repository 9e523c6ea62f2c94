from __future__ import annotations

import functools
import tempfile
import warnings
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
from pastille.quantization.layers import kept_float, layers, left_out, sections
from pastille.quantization.linear import linear_layers
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
        (["*0", "*2"], ["stem.0", "blocks.0.0", "blocks.0.2", "blocks.1.0", "blocks.1.2"]),
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
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
        helper.make_node("MatMul", ["h", "w"], ["y"], name="other"),
    ]
    weights = [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")]
    ends = [value("x", 1, ["n", 4])], [value("y", 1, ["n", 4])]
    model = helper.make_model(helper.make_graph(nodes, "g", *ends, weights))
    assert names(model) == ["product", "other"]
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


def torchscript(net: nn.Module, *shape: int) -> Any:
    """As the older exporter writes it: batch norms folded into weights that have numbers for names."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = Path(folder) / "float.onnx"
        torch.onnx.export(net.eval(), (torch.zeros(2, *shape),), file, dynamo=False, opset_version=17)
        return onnx.load(file)


def folded_blocks() -> Any:
    def calls(net: Any, x: Any) -> Any:
        x = net.stem(x)
        for block in net.blocks:
            x = x + block(x)
        return net.head(x.mean(dim=(2, 3)))

    blocks = nn.ModuleList(Function(lambda net, x: net.b(x), b=conv_bn(24, 24)) for _ in range(2))
    head = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4))
    return torchscript(Function(calls, stem=conv_bn(3, 24), blocks=blocks, head=head), 3, 66, 66)


@pytest.mark.parametrize("again", [False, True], ids=["rewritten", "rewritten twice"])
def test_nodes_tell_the_modules_of_weights_that_have_numbers_for_names(again: bool) -> None:
    """The input's channels are padded and 24 channels widened to 32, so all weights have new names too."""
    model = folded_blocks()
    assert [n.input[1][:6] for n in model.graph.node if n.op_type == "Conv"] == ["onnx::"] * 3
    model = prepared(rewritten(rewritten(model) if again else model))
    expected = ["stem.0", "blocks.0.b.0", "blocks.1.b.0", "head.0", "head.2"]
    assert names(model) == expected


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("stem.*", ["stem.0"]),
        ("blocks", ["blocks.0.b.0", "blocks.1.b.0"]),
        ("*.b.0", ["blocks.0.b.0", "blocks.1.b.0"]),
        ("/stem/stem.0/Conv", ["stem.0"]),
        ("/head/*", ["head.0", "head.2"]),
    ],
)
def test_modules_and_nodes_of_a_bare_file_are_both_known(asked: str, found: list[str]) -> None:
    model = prepared(rewritten(folded_blocks()))
    kept = kept_float(model, [asked])
    assert [layer.name for layer in layers(model) if kept.issuperset(layer.nodes)] == found


def test_linear_layers_of_tokens_go_by_their_modules_too() -> None:
    """The exporter transposes their weights, and gives them numbers for names."""
    model = torchscript(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), 5, 8)
    assert [n.input[1][:6] for n in model.graph.node if n.op_type == "MatMul"] == ["onnx::"] * 2
    assert names(prepared(rewritten(model))) == ["0", "2"]
    assert [layer.name for layer in linear_layers(model, keep_float=["0"]).layers] == ["/2/MatMul"]


def test_an_error_offers_no_name_that_a_rewrite_made() -> None:
    """Batch norm, pooling, transposed convolution and tokens all become other nodes."""

    def calls(net: Any, x: Any) -> Any:
        x = net.up(net.pool(net.norm(torch.relu(net.stem(x)))))
        return net.head(x.flatten(2).transpose(1, 2))

    parts = {"stem": nn.Conv2d(3, 16, 3), "norm": nn.BatchNorm2d(16), "pool": nn.AvgPool2d(2)}
    for value in parts["norm"].state_dict().values():  # as trained; equal ones the exporter stores once
        value.add_(torch.rand(value.shape) if value.is_floating_point() else 1)
    net = Function(calls, **parts, up=nn.ConvTranspose2d(16, 8, 2, 2), head=nn.Linear(8, 4))
    found = names(prepared(rewritten(torchscript(net, 3, 66, 66))))
    assert found == ["stem", "norm", "pool", "up", "head"]


def weights_of(kind: Any, width: int) -> Any:
    def calls(net: Any, x: Any) -> Any:
        return net.head(net.rnn(net.conv(x).transpose(1, 2))[0][:, -1])

    conv, head = nn.Conv1d(3, width, 5), nn.Linear(8, 3)
    return Function(calls, conv=conv, rnn=kind(width, 8, num_layers=2, batch_first=True), head=head)


@pytest.mark.parametrize("old", [False, True], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (
            nn.LSTM,
            "2 LSTMs hold {}% of the weights, which static quantization leaves float: use method: dynamic",
        ),
        (
            nn.GRU,
            "2 GRUs hold {}% of the weights, which static quantization leaves float: use method: bf16 or",
        ),
    ],
)
def test_a_model_that_is_mostly_recurrent_is_told_where_to_go(kind: Any, said: str, old: bool) -> None:
    net = weights_of(kind, 16)
    recurrent = sum(p.numel() for p in net.get_submodule("rnn").parameters())
    share = recurrent / sum(p.numel() for p in net.parameters())
    model = torchscript(net, 3, 20) if old else exported(net, {"input": np.zeros((4, 3, 20), np.float32)})
    assert left_out(model).startswith(said.format(round(100 * share)))
    assert left_out(model, "weights").startswith(said.split("static")[0].format(round(100 * share)))
    assert not left_out(model, "dynamic") if kind is nn.LSTM else "GRUs" in left_out(model, "dynamic")


def test_convolutions_are_sent_to_static_quantization() -> None:
    model = graph("residual")
    assert not left_out(model)
    for way, words in (("dynamic", "dynamic quantization"), ("weights", "weight quantization")):
        said = left_out(model, way)  # type: ignore[arg-type]
        assert "convolutions hold" in said
        assert said.endswith(f"% of the weights, which {words} leaves float: use method: ptq")
    assert not left_out(graph("mlp"), "dynamic")

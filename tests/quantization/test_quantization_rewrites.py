"""Every rewrite leaves the answers as they were, reaches what it is for, and refuses what it cannot do."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from quantization_nets import Batch, Function, answer, built, conv_bn, in_batches, quantized, to_tensors
from torch import Tensor, nn

from pastille.export import export_onnx
from pastille.quantization.rewrites import rewritten
from pastille.quantization.rewrites.silu import silus
from pastille.runtime import optimized_operators

FLOAT = onnx.TensorProto.FLOAT


def single(op: str, shape: tuple[int, ...], *tensors: np.ndarray, **attributes: Any) -> Any:
    """A model of one node, whose first input is data and whose others are constants."""
    names = [f"t{i}" for i in range(len(tensors))]
    graph = make_graph(
        [make_node(op, ["input", *names], ["output"], name="only", **attributes)],
        "g",
        [make_tensor_value_info("input", FLOAT, ["N", *shape])],
        [make_tensor_value_info("output", FLOAT, None)],
        [numpy_helper.from_array(t, n) for t, n in zip(tensors, names, strict=True)],
    )
    return make_model(graph, opset_imports=[make_opsetid("", 20)], ir_version=10)


def run(model: Any, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
    return found


def operators(model: Any) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def exported(net: nn.Module, data: Batch, folder: Path) -> Any:
    export_onnx(net.eval(), to_tensors(data), folder / "float.onnx")
    return onnx.load(folder / "float.onnx")


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def require_equal(before: Any, after: Any, x: np.ndarray) -> None:
    expected, found = run(before, x), run(after, x)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(float(np.abs(expected).max()), 1e-3))


@st.composite
def transposed(draw: st.DrawFn) -> tuple[Any, np.ndarray]:
    """A ConvTranspose of one or two axes, of any kernel, stride, padding and dilation that ONNX allows."""
    rank = draw(st.integers(1, 2))
    axis = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 2), st.integers(3, 5))
    axes = [draw(axis) for _ in range(rank)]
    pads = [[draw(st.integers(0, (k - 1) * d)) for k, _, d, _ in axes] for _ in range(2)]
    extra = [draw(st.integers(0, s - 1)) for _, s, *_ in axes]
    sizes = [n for *_, n in axes]
    out = [
        (n - 1) * s + (k - 1) * d + 1 + e - p - q
        for (k, s, d, n), e, p, q in zip(axes, extra, *pads, strict=True)
    ]
    if min(out) < 1:
        pads = [[0] * rank] * 2
    weight = normal(3, 2, *(k for k, *_ in axes), seed=draw(st.integers(0, 99)))
    tensors = (weight, normal(2)) if draw(st.booleans()) else (weight,)
    model = single(
        "ConvTranspose",
        (3, *sizes),
        *tensors,
        strides=[s for _, s, *_ in axes],
        dilations=[d for *_, d, _ in axes],
        pads=[*pads[0], *pads[1]],
        output_padding=extra,
    )
    return model, normal(2, 3, *sizes, seed=1)


@settings(deadline=None, max_examples=120)
@given(transposed())
def test_a_transposed_convolution_is_a_convolution_and_a_shuffle(case: tuple[Any, np.ndarray]) -> None:
    model, x = case
    new = rewritten(model)
    require_equal(model, new, x)
    assert "ConvTranspose" not in operators(new) or negative_padding(model)


def negative_padding(model: Any) -> bool:
    """More is cut off at the end than the last input reaches: refused."""
    given = {a.name: list(a.ints) for a in model.graph.node[0].attribute}
    rank = len(given["strides"])
    kernels = numpy_helper.to_array(model.graph.initializer[0]).shape[2:]
    spans = [(k - 1) * d + 1 for k, d in zip(kernels, given["dilations"], strict=True)]
    ends = [p - e for p, e in zip(given["pads"][rank:], given["output_padding"], strict=True)]
    return any(end > span - stride for end, span, stride in zip(ends, spans, given["strides"], strict=True))


def test_where_kernel_is_stride_it_is_a_1x1_convolution() -> None:
    new = rewritten(single("ConvTranspose", (16, 4, 6), normal(16, 16, 2, 2), strides=[2, 2]))
    (conv,) = (node for node in new.graph.node if node.op_type == "Conv")
    weights = {t.name: t.dims for t in new.graph.initializer}
    assert list(weights[conv.input[1]]) == [64, 16, 1, 1]
    assert "Slice" not in operators(new)


@pytest.mark.parametrize(
    "how",
    [{"group": 3}, {"auto_pad": "SAME_UPPER"}, {"output_shape": [8, 8]}],
    ids=["groups", "automatic padding", "given shape"],
)
def test_a_transposed_convolution_that_it_cannot_do_stays(how: dict[str, Any]) -> None:
    model = single("ConvTranspose", (3, 4, 4), normal(3, 2, 2, 2), strides=[2, 2], **how)
    assert operators(rewritten(model)) == {"ConvTranspose": 1}


@pytest.mark.parametrize("shape", [(5, 7), (16, 4, 6)], ids=["1-D", "2-D"])
def test_a_batch_norm_is_a_depthwise_convolution(shape: tuple[int, ...]) -> None:
    width = shape[0]
    parts = [normal(width), normal(width, seed=1), normal(width, seed=2), np.abs(normal(width, seed=3))]
    model = single("BatchNormalization", shape, *parts, epsilon=1e-3)
    new = rewritten(model)
    assert operators(new) == {"Conv": 1}
    require_equal(model, new, normal(2, *shape))


def test_a_batch_norm_of_rows_that_no_product_makes_or_in_training_stays() -> None:
    parts = [np.ones(4, np.float32)] * 4
    for model in (
        single("BatchNormalization", (4,), *parts),
        single("BatchNormalization", (4, 5), *parts, training_mode=1),
    ):
        assert operators(rewritten(model)) == {"BatchNormalization": 1}


@pytest.mark.parametrize(
    "how",
    [
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "count_include_pad": 1},
        {"kernel_shape": [2, 2], "dilations": [2, 1]},
    ],
    ids=["plain", "padded", "dilated"],
)
def test_average_pooling_is_a_depthwise_convolution(how: dict[str, Any]) -> None:
    model = single("AveragePool", (5, 8, 9), **how)
    assert operators(rewritten(model)) == {"Conv": 1}
    require_equal(model, rewritten(model), normal(2, 5, 8, 9))


@pytest.mark.parametrize(
    "how",
    [{"pads": [1, 1, 1, 1]}, {"ceil_mode": 1, "strides": [2, 2]}, {"auto_pad": "SAME_LOWER"}],
    ids=["padding left out", "ceil", "automatic"],
)
def test_average_pooling_with_uneven_weights_stays(how: dict[str, Any]) -> None:
    model = single("AveragePool", (5, 8, 9), kernel_shape=[3, 3], **how)
    assert operators(rewritten(model)) == {"AveragePool": 1}


def test_hard_sigmoid_and_hard_swish_become_convolutions() -> None:
    x = 4 * normal(2, 16, 5, 5)
    sigmoid, swish = single("HardSigmoid", (16, 5, 5), alpha=0.3, beta=0.4), single("HardSwish", (16, 5, 5))
    assert operators(rewritten(sigmoid)) == {"Conv": 1, "Clip": 1}
    assert operators(rewritten(swish)) == {"Conv": 1, "Clip": 1, "Mul": 1}
    for model in (sigmoid, swish):
        require_equal(model, rewritten(model), x)


def test_rows_keep_their_activations() -> None:
    for op in ("HardSigmoid", "HardSwish"):
        assert operators(rewritten(single(op, (16,)))) == {op: 1}


@pytest.mark.parametrize("width", [1, 3, 4, 5])
def test_the_first_convolution_reads_whole_words(width: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = {"input": normal(4, width, 64, 64)}
    model = exported(nn.Sequential(nn.Conv2d(width, 16, 3), nn.Conv2d(16, 4, 3)), data, tmp_path)
    new = rewritten(model)
    assert operators(new) == ({"Conv": 2} if width == 4 else {"Conv": 2, "Pad": 1})
    require_equal(model, new, data["input"])


@pytest.mark.parametrize("size", [8, 64], ids=["small", "answering in float"])
def test_a_convolution_that_padding_does_not_pay_for_is_left_alone(size: int, tmp_path: Path) -> None:
    layers = [nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 3)] if size == 8 else [nn.Conv2d(3, 16, 3)]
    model = exported(nn.Sequential(*layers), {"input": normal(4, 3, size, size)}, tmp_path)
    assert operators(rewritten(model)) == {"Conv": len(layers)}


def inverted_residual(inner: int, outer: int = 16) -> nn.Module:
    """Expansion, depthwise convolution, squeeze and excitation, projection, addition."""

    def calls(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        y = F.hardswish(net.depth(F.hardswish(net.wide(x))))
        gate = F.hardsigmoid(net.up(F.relu(net.down(y.mean(dim=(2, 3), keepdim=True)))))
        return net.head((x + net.narrow(y * gate)).mean(dim=(2, 3)))  # type: ignore[no-any-return]

    return Function(
        calls,
        stem=conv_bn(3, outer),
        wide=nn.Conv2d(outer, inner, 1),
        depth=nn.Conv2d(inner, inner, 5, 2 if outer < 0 else 1, 2, groups=inner),
        down=nn.Conv2d(inner, 5, 1),
        up=nn.Conv2d(5, inner, 1),
        narrow=nn.Conv2d(inner, outer, 1),
        head=nn.Linear(outer, 4),
    )


def images(n: int = 32) -> Batch:
    return {"input": normal(n, 3, 8, 8)}


@pytest.mark.parametrize(("inner", "expected"), [(24, 32), (72, 80), (20, 32), (32, 32)])
def test_a_depthwise_convolution_is_widened_to_whole_vectors(
    inner: int, expected: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = exported(inverted_residual(inner), images(), tmp_path)
    new = rewritten(model)
    groups = {onnx.helper.get_node_attr_value(n, "group") for n in new.graph.node if n.op_type == "Conv"}
    assert groups == {1, expected}
    require_equal(model, new, images()["input"])


def test_what_others_read_is_not_widened(tmp_path: Path) -> None:
    """The head flattens the channels of the last convolution, and the gate's constants are per channel."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, groups=12), nn.Flatten(), nn.Linear(432, 2))
    model = exported(net, images(), tmp_path)
    new = rewritten(model)
    assert all(t.dims[0] in (12, 2) for t in new.graph.initializer if len(t.dims) == 4)
    require_equal(model, new, images()["input"])


def test_grouped_convolutions_between_are_not_widened(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 18, 3, groups=6), nn.ReLU(), nn.Conv2d(18, 4, 1))
    model = exported(net, images(), tmp_path)
    new = rewritten(model)
    require_equal(model, new, images()["input"])
    convolutions = [node for node in new.graph.node if node.op_type == "Conv"]
    dims = {t.name: tuple(t.dims) for t in new.graph.initializer}
    assert [dims[node.input[1]][0] for node in convolutions] == [12, 18, 4]


def test_a_pruned_networks_odd_widths_are_evened(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(conv_bn(3, 17), nn.MaxPool2d(2), conv_bn(17, 21), nn.Conv2d(21, 4, 1))
    model = exported(net, images(), tmp_path)
    new = rewritten(model)
    convolutions = [node for node in new.graph.node if node.op_type == "Conv"]
    dims = {t.name: tuple(t.dims[:2]) for t in new.graph.initializer}
    assert [dims[node.input[1]] for node in convolutions] == [(32, 3), (32, 32), (4, 32)]
    require_equal(model, new, images()["input"])


def test_a_dense_block_copies_each_feature_once(tmp_path: Path) -> None:
    torch.manual_seed(0)

    def calls(net: Any, x: Tensor) -> Tensor:
        features = [net.stem(x)]
        for layer in net.layers:
            features.append(layer(torch.cat(features, dim=1)))
        return net.head(torch.cat(features, dim=1).mean(dim=(2, 3)))  # type: ignore[no-any-return]

    blocks = nn.ModuleList(
        nn.Sequential(nn.BatchNorm2d(16 + 8 * i), nn.ReLU(), nn.Conv2d(16 + 8 * i, 8, 3, 1, 1))
        for i in range(4)
    )
    net = Function(calls, stem=nn.Conv2d(3, 16, 1), layers=blocks, head=nn.Linear(48, 3))
    model = exported(net, images(), tmp_path)
    new = rewritten(model)
    joins = [len(node.input) for node in new.graph.node if node.op_type == "Concat"]
    assert joins == [2, 2, 2, 2]
    assert "BatchNormalization" not in operators(new)
    require_equal(model, new, images()["input"])


@pytest.mark.parametrize("name", ["residual", "depthwise", "squeeze-excite", "concat", "1-D", "transposed"])
def test_whole_networks_answer_alike_and_rewriting_twice_changes_nothing(name: str, tmp_path: Path) -> None:
    net, data = built(name)
    model = exported(net, data, tmp_path)
    before = model.SerializeToString(deterministic=True)
    once = rewritten(model)
    assert model.SerializeToString(deterministic=True) == before, "the argument is left alone"
    require_equal(model, once, data["input"])
    assert operators(rewritten(once)) == operators(once)
    onnx.checker.check_model(once, full_check=True)


def u_net() -> nn.Module:
    """Batch norm after the activation, and transposed convolutions."""

    def block(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 1, 1), nn.ReLU(), nn.BatchNorm2d(outputs))

    def calls(net: Any, x: Tensor) -> Tensor:
        first = net.down(x)
        x = net.up(net.bottom(F.max_pool2d(first, 2)))
        return net.head(F.relu(net.merge(torch.cat([first, x], dim=1))))  # type: ignore[no-any-return]

    return Function(
        calls,
        down=block(3, 16),
        bottom=block(16, 32),
        up=nn.ConvTranspose2d(32, 16, 2, 2),
        merge=block(32, 16),
        head=nn.Conv2d(16, 1, 1),
    )


def test_a_u_net_runs_in_int8(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, target = quantized(u_net().eval(), images(), tmp_path)
    found = optimized_operators(target)
    assert not {"ConvTranspose", "BatchNormalization", "Concat"} & set(found.floating)
    assert found.int8["QLinearConv"] >= 7
    expected, answered = answer(source, images()), answer(target, images())
    assert np.corrcoef(expected.ravel(), answered.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("inner", [24, 32])
def test_squeeze_and_excitation_runs_in_int8(inner: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, target = quantized(inverted_residual(inner).eval(), images(), tmp_path)
    assert not optimized_operators(target).floating
    assert np.corrcoef(answer(source, images()).ravel(), answer(target, images()).ravel())[0, 1] > 0.99


def test_silu_is_one_float_kernel_between_int8_ones(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.SiLU(), nn.Conv2d(16, 16, 3), nn.SiLU(), nn.Conv2d(16, 4, 3))
    source, target = quantized(net.eval(), images(), tmp_path)
    found = optimized_operators(target)
    assert found.floating["QuickGelu"] == 2
    assert {"Sigmoid", "Mul"}.isdisjoint(found.floating)
    assert np.corrcoef(answer(source, images()).ravel(), answer(target, images()).ravel())[0, 1] > 0.99


@pytest.mark.parametrize("name", ["transformer", "masked attention"])
def test_a_transformers_bias_is_added_in_the_product_and_its_softmax_stays_float(
    name: str, tmp_path: Path
) -> None:
    net, data = built(name)
    source, target = quantized(net, data, tmp_path)
    found = optimized_operators(target)
    assert found.int8["QGemm"] >= 1
    assert "QLinearSoftmax" not in found.int8
    assert np.corrcoef(answer(source, data).ravel(), answer(target, data).ravel())[0, 1] > 0.99


@pytest.mark.parametrize("tokens_first", [False, True])
def test_a_linear_layer_of_tokens_is_one_product(tokens_first: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)

    def calls(net: Any, x: Tensor) -> Tensor:
        x = net.first(x.transpose(0, 1) if tokens_first else x)
        return net.last(F.gelu(x.transpose(0, 1) if tokens_first else x))  # type: ignore[no-any-return]

    data = {"input": normal(8, 6, 16)}
    model = exported(Function(calls, first=nn.Linear(16, 8), last=nn.Linear(8, 4)), data, tmp_path)
    new = rewritten(model)
    assert operators(new)["Gemm"] == 2
    assert "MatMul" not in operators(new)
    require_equal(model, new, data["input"])


def test_a_gate_that_others_read_is_no_silu(tmp_path: Path) -> None:
    torch.manual_seed(0)

    def calls(net: Any, x: Tensor) -> Tensor:
        x = net.first(x)
        gate = torch.sigmoid(x)
        return net.last(x * gate + gate)  # type: ignore[no-any-return]

    net = Function(calls, first=nn.Conv2d(3, 16, 1), last=nn.Conv2d(16, 4, 1))
    assert not list(silus(exported(net, images(), tmp_path).graph))


def test_calibration_sees_what_is_rewritten_in_any_batches(tmp_path: Path) -> None:
    torch.manual_seed(0)
    _, target = quantized(u_net().eval(), images(), tmp_path)
    assert len(list(in_batches(images())())) == 2
    assert answer(target, {"input": images()["input"][:1]}).shape == (1, 1, 8, 8)

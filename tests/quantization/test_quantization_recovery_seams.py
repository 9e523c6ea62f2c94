"""Rescaled graphs answer the same to the bit, and only where they may be rescaled."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser
from quantization_nets import built, to_tensors
from recovery_nets import calibration, of, planted

from pastille.export import export_onnx
from pastille.quantization.ranges import observer
from pastille.quantization.recovery import prepared
from pastille.quantization.recovery.auto import answers
from pastille.quantization.recovery.equalization import equalized
from pastille.quantization.recovery.graph import named
from pastille.quantization.recovery.seams import powers_of_two, rescaled, seams
from pastille.quantization.recovery.smoothquant import channel_maxima, smoothed, smoothing


def weights(model: Any) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


def exact(a: Any, b: Any, data: Any) -> None:
    """Unoptimised, so that no fusion reorders a sum."""
    left, right = (dict(observer(model)(data)) for model in (a, b))
    for output in a.graph.output:
        np.testing.assert_array_equal(left[output.name], right[output.name])


@pytest.mark.parametrize("kind", ["wild scales", "outliers"])
def test_equalized_and_smoothed_graphs_answer_the_same_to_the_bit(kind: str) -> None:
    model, fit, test, _ = planted(kind)
    data = {"input": test["input"][:64]}
    smooth = smoothed(model, observer(model), calibration(fit))
    for new in (equalized(model), smooth, equalized(smooth)):
        exact(model, new, data)
    assert any((weights(model)[k] != v).any() for k, v in weights(smooth).items() if k in weights(model))


@pytest.mark.parametrize(
    "name", ["residual", "depthwise", "squeeze-excite", "concat", "transformer", "tied", "reused output"]
)
def test_any_seam_of_any_network_may_be_rescaled_to_the_bit(name: str, tmp_path: Any) -> None:
    net, data = built(name)
    export_onnx(net, to_tensors(data), tmp_path / "m.onnx")
    model = prepared(onnx.load(tmp_path / "m.onnx"))
    found = seams(model)
    rng = np.random.default_rng(0)
    scales = [(seam, powers_of_two(2.0 ** rng.integers(-3, 4, seam.channels))) for seam in found]
    exact(model, rescaled(model, scales), data)


@pytest.mark.parametrize(
    ("name", "count"),
    [("depthwise", 2), ("mlp", 1), ("transformer", 2), ("residual", 1), ("several outputs", 1)],
)
def test_seams_are_found_where_they_are(name: str, count: int, tmp_path: Any) -> None:
    net, data = built(name)
    export_onnx(net, to_tensors(data), tmp_path / "m.onnx")
    assert len(seams(prepared(onnx.load(tmp_path / "m.onnx")))) == count


def test_the_seams_of_the_planted_networks() -> None:
    cnn = seams(planted("wild scales")[0])
    assert [(s.channels, s.repeat) for s in cnn] == [(16, 1), (16, 1), (32, 4), (32, 1)]
    mixer = seams(planted("outliers")[0])
    assert [(s.normalized, len(s.below)) for s in mixer] == [(True, 3), (True, 1), (False, 1)]


HEAD = '<ir_version: 10, opset_import: ["" : 18]> g (float[n, 2] x) => (float[n, 2] y) '
HEAD += (
    "<float[2, 2] a = {1.0, 2.0, 3.0, 4.0}, float[2, 2] b = {1.0, 2.0, 3.0, 5.0}, float[2] c = {3.0, 0.5}>"
)


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("h = MatMul(x, a)  r = Relu(h)  y = MatMul(r, b)", 1),
        ("h = MatMul(x, a)  r = LeakyRelu(h)  y = Gemm(r, b, c)", 1),
        ("h = MatMul(x, a)  i = Add(h, c)  r = Relu(i)  y = MatMul(r, b)", 1),
        ("h = MatMul(x, a)  i = Sub(x, h)  j = Mul(i, c)  y = MatMul(j, b)", 1),
        ("h = MatMul(x, a)  r = Sigmoid(h)  y = MatMul(r, b)", 0),
        ("h = MatMul(x, a)  r = Relu(h)  z = MatMul(r, b)  y = Add(z, r)", 0),
        ("h = MatMul(x, a)  r = Relu(h)  z = MatMul(r, b)  y = Add(z, h)", 0),
        ("h = MatMul(x, a)  r = Relu(h)  y = MatMul(r, a)", 0),  # shared weights
        ("h = MatMul(x, a)  r = Relu(h)  y = MatMul(b, r)", 0),
        ("r = Relu(x)  y = MatMul(r, b)", 0),
    ],
)
def test_where_a_seam_may_be(body: str, count: int) -> None:
    model = onnx.shape_inference.infer_shapes(named(parser.parse_model(HEAD + "{ " + body + " }")))
    found = seams(model)
    assert len(found) == count
    new = rescaled(model, [(seam, np.array([0.25, 8.0])) for seam in found])
    data = {"x": np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32)}
    if body.count("MatMul(b, r)") == 0:
        exact(model, new, data)


def test_equalization_makes_ranges_equal() -> None:
    model, fit, _, _ = planted("wild scales")
    (seam, *_) = seams(model)
    spread = [
        np.ptp(np.log2(channel_maxima(observer(m), calibration(fit), [seam])[seam.tensor] + 1e-9))
        for m in (model, equalized(model))
    ]
    assert spread[1] < spread[0] - 4


def test_smoothing_is_the_papers_formula() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.uniform(0.1, 50, 9), rng.uniform(0.1, 2, 9)
    for strength in (0.0, 0.5, 0.8, 1.0):
        wanted = x**strength / w ** (1 - strength)
        ratio = smoothing(x, w, strength) / (wanted / np.exp(np.log(wanted).mean()))
        assert (ratio >= 2**-0.5001).all()
        assert (ratio <= 2**0.5001).all()


def test_dead_channels_stay() -> None:
    assert smoothing(np.array([0.0, 4.0]), np.ones(2), 0.5).tolist() == [1.0, 1.0]
    assert smoothing(np.zeros(2), np.zeros(2), 0.5).tolist() == [1.0, 1.0]


def test_channel_maxima_are_numpys() -> None:
    model, fit, _, _ = planted("wild scales")
    seam = seams(model)[2]  # flattened: 4 entries for a channel
    found = channel_maxima(observer(model), calibration(fit), [seam])[seam.tensor]
    tensor = dict(observer(model)(fit))[seam.tensor]
    np.testing.assert_allclose(found, np.abs(tensor).reshape(256, 32, 4).max(axis=(0, 2)))


@pytest.mark.parametrize("strength", [-0.1, 1.1])
def test_strength_is_a_share(strength: float) -> None:
    model, fit, _, _ = planted("outliers")
    with pytest.raises(ValueError, match=r"strength must be in \[0, 1\]"):
        smoothed(model, observer(model), of(fit["input"]), strength=strength)


def test_names_are_given_and_kept() -> None:
    model = parser.parse_model(HEAD + "{ h = Relu(x)  i = Relu(h)  y = Relu(i) }")
    model.graph.node[1].name = "mine"
    names = [node.name for node in named(model).graph.node]
    assert len(set(names)) == 3
    assert names[1] == "mine"
    assert answers(named(model), lambda: [{"x": np.zeros((2, 2), np.float32)}])["y"].shape == (2, 2)

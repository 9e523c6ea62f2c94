"""A quantized file as a module: it rounds as the file does, is trained, and is written back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from quantization_nets import (
    Batch,
    Function,
    answer,
    built,
    constants,
    conv_bn,
    quantized,
    to_tensors,
    two_inputs,
)
from torch import Tensor, nn

from pastille.errors import PreconditionError
from pastille.export import export_onnx
from pastille.quantization.fake import Activation, constant_grid, fake_weight, weight_scales
from pastille.quantization.origins import origins, places
from pastille.quantization.qat import Prepared, finish, measure_ranges, prepare
from pastille.quantization.qdq_writing import written
from pastille.quantization.rewrites import rewritten
from pastille.runtime import optimized_operators
from pastille.task.forward import forward

TRAINABLE = (
    *("residual", "depthwise", "mlp", "squeeze-excite", "concat", "transformer", "masked attention"),
    *("embedding", "tied", "1-D", "transposed", "regression", "dead", "ends in clip", "ends in sigmoid"),
    *("ends in batch norm", "ends in scale", "several outputs", "reused output"),
)


def prepared(model: nn.Module, data: Batch, folder: Path, **settings: Any) -> tuple[Prepared, Path]:
    source, target = quantized(model, data, folder)
    return prepare(source, target, model, **settings), target


def simulated(ready: Prepared, data: Batch) -> np.ndarray:
    with torch.no_grad():
        out = forward(ready.simulation.eval(), to_tensors(data, n=64))
    return out.numpy()


def disturbed_(ready: Prepared, scale: float = 0.05) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in ready.simulation.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(scale * parameter.abs().mean() * noise)


@pytest.mark.parametrize("name", TRAINABLE)
def test_simulation_and_file_answer_alike_before_and_after_the_weights_change(
    name: str, tmp_path: Path
) -> None:
    model, data = built(name)
    ready, target = prepared(model, data, tmp_path)
    exact = answer(tmp_path / "float.onnx", data)
    # Rounding at a tie may go either way: a small part of what rounding itself costs.
    spread = float(exact.std()) + 1e-6
    assert np.abs(simulated(ready, data) - answer(target, data)).mean() < 0.02 * spread

    disturbed_(ready)
    new = finish(ready, ready.simulation, model, tmp_path / "trained.onnx", to_tensors(data))
    found = answer(tmp_path / "trained.onnx", data)
    assert np.abs(simulated(ready, data) - found).mean() < 0.02 * spread
    # The module's new weights are those behind the file.
    export_onnx(new, to_tensors(data), tmp_path / "new.onnx")
    assert np.abs(answer(tmp_path / "new.onnx", data) - found).mean() < 0.2 * spread
    assert np.abs(found - answer(target, data)).max() > 0


@pytest.mark.parametrize("name", ["residual", "depthwise", "squeeze-excite", "transformer"])
def test_the_written_file_has_the_same_kernels(name: str, tmp_path: Path) -> None:
    model, data = built(name)
    ready, target = prepared(model, data, tmp_path)
    disturbed_(ready)
    finish(ready, ready.simulation, model, tmp_path / "trained.onnx", to_tensors(data))
    assert optimized_operators(tmp_path / "trained.onnx") == optimized_operators(target)
    before, after = (onnx.load(path).graph for path in (target, tmp_path / "trained.onnx"))
    assert list(before.node) == list(after.node)


def test_writing_without_training_changes_no_answer(tmp_path: Path) -> None:
    model, data = built("residual")
    ready, target = prepared(model, data, tmp_path)
    (tmp_path / "again.onnx").write_bytes(written(ready.quantized, ready.simulation).SerializeToString())
    assert np.array_equal(answer(tmp_path / "again.onnx", data), answer(target, data))


def test_every_parameter_of_convolutions_and_linear_layers_is_learned(tmp_path: Path) -> None:
    model, data = built("residual")
    names = set(prepared(model, data, tmp_path)[0].simulation.parameter_names)
    weights = {name for name, p in model.named_parameters() if p.ndim > 1}
    assert weights <= names
    # A folded bias is learned as the batch norm's.
    assert {"stem.1.bias", "norm.bias", "last.1.bias", "head.bias"} <= names


def test_gradients_pass_straight_through(tmp_path: Path) -> None:
    model, data = built("residual")
    ready, _ = prepared(model, data, tmp_path)
    batch = to_tensors(data, n=16)
    forward(ready.simulation, batch).square().sum().backward()  # type: ignore[no-untyped-call]
    forward(model, batch).square().sum().backward()  # type: ignore[no-untyped-call]
    exact = dict(model.named_parameters())
    for name, parameter in zip(ready.simulation.parameter_names, ready.simulation.learned, strict=True):
        ours, theirs = parameter.grad, exact[name].grad
        assert ours is not None
        assert theirs is not None
        assert float(F.cosine_similarity(ours.reshape(-1), theirs.reshape(-1), dim=0)) > 0.97, name


def test_ranges_follow_what_activations_do_and_then_stay(tmp_path: Path) -> None:
    model, data = built("mlp")
    ready, _ = prepared(model, data, tmp_path)
    net, batch = ready.simulation, to_tensors(data, n=64)
    measure_ranges(net, [batch])
    before = [float(r.grid()[0]) for r in net.roundings if isinstance(r, Activation)]
    net.set_ranges("follow")
    with torch.no_grad():
        for parameter in net.learned[:2]:
            parameter *= 1.5  # the hidden activations grow by as much
        for _ in range(200):
            forward(net, batch)
        net.set_ranges("fixed")
        after = [float(r.grid()[0]) for r in net.roundings if isinstance(r, Activation)]
        forward(net, {name: 9 * x for name, x in batch.items()})
    assert after[0] == before[0]  # of the input
    assert after[1] == pytest.approx(1.5 * before[1], rel=0.03)
    assert after == [float(r.grid()[0]) for r in net.roundings if isinstance(r, Activation)]


def test_a_range_never_leaves_what_the_relu_or_clip_before_it_lets_through() -> None:
    held = Activation((0.0, 6.0), (0, 255), symmetric=False, bounds=(0.0, 6.0), moves=True)
    for mode, scale in (("measure", 1.0), ("follow", 3.0)):
        held.mode = mode  # type: ignore[assignment]
        for _ in range(100):
            held(scale * torch.linspace(-4, 4, 9))
    step, zero = held.grid()
    assert int(zero) == 0
    assert 0 < float(step) <= 6 / 255 + 1e-7


@pytest.mark.parametrize(("span", "expected"), [((-1.0, 1.55), (0.01, 100)), ((0.0, 0.0), (1.0, 0))])
def test_the_grid_of_a_range(span: tuple[float, float], expected: tuple[float, int]) -> None:
    held = Activation(span, (0, 255), symmetric=False, bounds=(-np.inf, np.inf), moves=True)
    assert [float(v) for v in held.grid()] == pytest.approx(expected)


def test_the_grid_of_a_symmetric_range_has_its_zero_in_the_middle() -> None:
    held = Activation((-1.0, 2.54), (-127, 127), symmetric=True, bounds=(-np.inf, np.inf), moves=True)
    assert [float(v) for v in held.grid()] == pytest.approx([0.02, 0])


def test_an_empty_channel_has_steps_that_its_bias_fits() -> None:
    scales = weight_scales(torch.tensor([[64.0], [0.0], [1e-9]]), 0, 64)
    assert torch.equal(scales, torch.tensor([1.0, 2.0**-12, 2.0**-12]))
    assert torch.equal(weight_scales(torch.zeros(2, 3), 0, 64), torch.ones(2))


def test_a_constant_keeps_zero_exact() -> None:
    step, zero = constant_grid(torch.tensor([1.0, 2.55]), (0, 255))
    assert [float(step), float(zero)] == pytest.approx([0.01, 0])


def test_fewer_bits_leave_fewer_steps(tmp_path: Path) -> None:
    model, data = built("mlp")
    ready, _ = prepared(model, data, tmp_path, weight_bits=3)
    finish(ready, ready.simulation, model, tmp_path / "trained.onnx", to_tensors(data))
    held = constants(tmp_path / "trained.onnx")
    assert np.unique(held["model.0.weight_quantized"]).tolist() == list(range(-4, 5))
    weight = torch.tensor([[1.0, 0.3, -0.9]])
    assert torch.equal(fake_weight(weight, 0, 4), torch.tensor([[1.0, 0.25, -1.0]]))


def test_several_inputs_are_given_by_name(tmp_path: Path) -> None:
    model, data = two_inputs()
    ready, target = prepared(model, data, tmp_path)
    assert np.abs(simulated(ready, data) - answer(target, data)).mean() < 0.02


def test_frozen_parameters_stay(tmp_path: Path) -> None:
    model, data = built("mlp")
    first = model.get_submodule("0")
    first.requires_grad_(False)
    ready, _ = prepared(model, data, tmp_path)
    assert ready.simulation.parameter_names == ("2.weight", "2.bias")


def test_a_model_that_is_frozen_altogether_is_refused(tmp_path: Path) -> None:
    model, data = built("mlp")
    with pytest.raises(PreconditionError, match=r"requires a gradient.*use method: ptq"):
        prepared(model.requires_grad_(False), data, tmp_path)


def test_a_model_without_a_layer_that_runs_in_int8_is_refused(tmp_path: Path) -> None:
    model, data = built("one relu")
    with pytest.raises(PreconditionError, match="nothing to train"):
        prepared(model, data, tmp_path)


def test_an_operator_that_cannot_be_trained_through_is_named(tmp_path: Path) -> None:
    def calls(net: Any, x: Tensor) -> Tensor:
        return net.head(torch.cumsum(net.a(x), dim=1))  # type: ignore[no-any-return]

    model = Function(calls, a=nn.Linear(8, 8), head=nn.Linear(8, 4)).eval()
    with pytest.raises(PreconditionError, match=r"operator CumSum; leave quantize out, or use method: ptq"):
        prepared(model, built("mlp")[1], tmp_path)


def test_parameters_that_the_export_merges_are_not_learned(tmp_path: Path) -> None:
    """Two layer norms of equal weights are one constant in the file: it cannot stand for both afterwards."""
    model, data = built("transformer")
    names = prepared(model, data, tmp_path)[0].simulation.parameter_names
    assert not {"first.weight", "second.weight"} & set(names)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    model, data = built("tied")
    ready, _ = prepared(model, data, tmp_path)
    makes = [o for o in ready.simulation.origins.values() if o.parameter == "table.weight"]
    assert makes
    disturbed_(ready)
    new = finish(ready, ready.simulation, model, tmp_path / "trained.onnx", to_tensors(data))
    assert new.get_submodule("head").weight is new.get_submodule("table").weight


def test_elements_that_a_rewriting_moves_are_found() -> None:
    weight = np.arange(1.0, 7.0, dtype=np.float32).reshape(2, 3)
    graph = onnx.helper.make_graph([], "g", [], [], [numpy_helper.from_array(weight, "w")])

    def rewrite(model: Any) -> Any:
        (held,) = model.graph.initializer
        value = numpy_helper.to_array(held)
        moved = numpy_helper.from_array(np.pad(value[::-1].T, [(0, 1), (0, 0)]), "moved")
        squared = numpy_helper.from_array(value * value, "computed")
        return onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [moved, squared]))

    found = places(onnx.helper.make_model(graph), rewrite)
    assert list(found) == ["moved"]
    name, index = found["moved"]
    assert name == "w"
    assert index.tolist() == [[3, 0], [4, 1], [5, 2], [-1, -1]]


def test_an_origin_makes_the_constant_that_the_export_made(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(conv_bn(3, 5), conv_bn(5, 7), nn.Flatten(), nn.Linear(7 * 64, 3)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
    data = {"input": np.random.default_rng(0).normal(size=(64, 3, 8, 8)).astype(np.float32)}
    export_onnx(model, to_tensors(data), tmp_path / "float.onnx")
    exported = onnx.load(tmp_path / "float.onnx")
    held = {t.name: numpy_helper.to_array(t) for t in rewritten(exported).graph.initializer}
    parameters = dict(model.named_parameters())
    found = {n: o for n, o in origins(exported, rewritten, model).items() if n in held}
    assert len(found) == 6
    for name, origin in found.items():
        made = origin.constant(parameters[origin.parameter].detach())
        np.testing.assert_allclose(made.numpy(), held[name], rtol=1e-4, atol=1e-6)

"""Training in int8 through layers of every kind: it goes through all of them, or names what it cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from quantization_nets import IMAGE, ROW, SEQUENCE, Batch, Function, answer, conv_bn, quantized, to_tensors
from torch import Tensor, nn

from pastille.errors import PreconditionError
from pastille.quantization.fake import Activation, fake_bias
from pastille.quantization.qat import Prepared, finish, prepare
from pastille.runtime import optimized_operators
from pastille.task.forward import forward

Build = Callable[[], nn.Module]


def linear_bn(inputs: int, outputs: int, kernel: int, **how: Any) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **how)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Bottleneck(nn.Module):
    """As in a ResNet-50."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = linear_bn(inputs, 8, 1), linear_bn(8, 8, 3, stride=stride)
        self.third = linear_bn(8, outputs, 1)
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.skip = linear_bn(inputs, outputs, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.third(F.relu(self.second(F.relu(self.first(x)))))
        return F.relu(inner + self.skip(x))


class Inverted(nn.Module):
    """As in a MobileNetV2."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        wide = 2 * inputs
        self.inner = nn.Sequential(
            *(linear_bn(inputs, wide, 1), nn.ReLU6()),
            *(linear_bn(wide, wide, 3, stride=stride, groups=wide), nn.ReLU6(), linear_bn(wide, outputs, 1)),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        return x + out if self.residual else out


def head(width: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4)


def resnet() -> nn.Module:
    blocks = [Bottleneck(16, 16, 1), Bottleneck(16, 32, 2), Bottleneck(32, 32, 1)]
    return nn.Sequential(conv_bn(3, 16), nn.MaxPool2d(3, 2, 1), *blocks, *head(32))


def mobilenet() -> nn.Module:
    blocks = [Inverted(8, 8, 1), Inverted(8, 16, 2), Inverted(16, 16, 1)]
    last = (linear_bn(16, 32, 1), nn.ReLU6())
    return nn.Sequential(linear_bn(3, 8, 3, stride=2), nn.ReLU6(), *blocks, *last, *head(32))


def pooled(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, *head(8))


def encoder() -> nn.Module:
    inner = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return Function(lambda net, x: net.head(net.inner(x).mean(1)), inner=inner, head=nn.Linear(16, 4))


def recurrent(kind: Callable[..., nn.Module]) -> nn.Module:
    calls = lambda net, x: net.head(net.inner(x)[0][:, -1])  # noqa: E731
    return Function(calls, inner=kind(16, 8, batch_first=True), head=nn.Linear(8, 4))


def shared() -> nn.Module:
    """One convolution, and one batch norm, twice."""

    def calls(net: Any, x: Tensor) -> Tensor:
        x = F.relu(net.stem(x))
        for gain in (1.0, 3.0):
            x = F.relu(net.norm(net.conv(gain * x)))
        return net.head(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]

    conv = nn.Conv2d(8, 8, 3, 1, 1, bias=False)
    return Function(calls, stem=nn.Conv2d(3, 8, 1), conv=conv, norm=nn.BatchNorm2d(8), head=nn.Linear(8, 4))


TRAINED: dict[str, tuple[Build, tuple[int, ...]]] = {
    "transformer layer": (encoder, SEQUENCE),
    "silu": (lambda: pooled(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU()), IMAGE),
    "group norm": (lambda: pooled(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.PReLU()), IMAGE),
    "transposed with norm": (
        lambda: pooled(conv_bn(3, 8), nn.ConvTranspose2d(8, 8, 3, 2, 1, 1), nn.BatchNorm2d(8), nn.ReLU()),
        IMAGE,
    ),
    "norm of the batch": (
        lambda: pooled(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU()),
        IMAGE,
    ),
    "plain recurrent": (lambda: recurrent(nn.RNN), SEQUENCE),
    "shared": (shared, IMAGE),
    "nested": (lambda: nn.DataParallel(nn.Sequential(pooled(conv_bn(3, 8)))), IMAGE),
}


def made(build: Build, shape: tuple[int, ...], n: int = 64) -> tuple[nn.Module, Batch]:
    """A network whose batch norms look trained, and inputs."""
    torch.manual_seed(0)
    model = build().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
    return model, {"input": np.random.default_rng(0).normal(size=(n, *shape)).astype(np.float32)}


def trained_(ready: Prepared, data: Batch, steps: int = 3) -> dict[str, float]:
    """Steps of training on labels; the largest gradient of each parameter."""
    optimizer = torch.optim.SGD(ready.simulation.parameters(), lr=0.1)
    targets = torch.arange(64) % 4
    for _ in range(steps):
        optimizer.zero_grad()
        outputs = forward(ready.simulation, to_tensors(data, 64))
        F.cross_entropy(outputs, targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    learned = zip(ready.simulation.parameter_names, ready.simulation.learned, strict=True)
    return {name: float(p.grad.abs().max()) for name, p in learned if p.grad is not None}


def trained_file(model: nn.Module, data: Batch, folder: Path) -> Path:
    """A file that was trained, decides as its training did, and has the kernels that it had before."""
    source, target = quantized(model, data, folder)
    ready, file = prepare(source, target, model), folder / "trained.onnx"
    assert ready.left == ()
    gradients = trained_(ready, data)
    assert set(gradients) == set(ready.simulation.parameter_names)
    assert all(np.isfinite(g) and g > 0 for g in gradients.values())
    finish(ready, ready.simulation.eval(), model, file, to_tensors(data))
    with torch.no_grad():
        simulated = forward(ready.simulation, to_tensors(data, 64)).numpy()
    found = answer(file, data)
    assert np.abs(simulated - found).max() < 0.02 * found.std()
    assert (simulated.argmax(1) == found.argmax(1)).all()
    assert np.abs(found - answer(target, data)).max() > 0.02 * found.std()  # it has learned
    assert optimized_operators(file) == optimized_operators(target)
    return file


@pytest.mark.parametrize("name", TRAINED)
def test_it_trains_and_the_file_is_what_was_trained(name: str, tmp_path: Path) -> None:
    trained_file(*made(*TRAINED[name]), tmp_path)


@pytest.mark.parametrize(
    ("build", "convolutions", "adds"), [(resnet, 11, 3), (mobilenet, 11, 2)], ids=["resnet", "mobilenet"]
)
def test_every_convolution_linear_layer_and_addition_runs_in_int8(
    build: Build, convolutions: int, adds: int, tmp_path: Path
) -> None:
    model, data = made(build, IMAGE)
    found = optimized_operators(trained_file(model, data, tmp_path))
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == convolutions
    counts = {name: found.int8.get(name, 0) for name in ("QLinearConv", "QGemm", "QLinearAdd")}
    assert counts == {"QLinearConv": convolutions, "QGemm": 1, "QLinearAdd": adds}
    assert not found.floating


@pytest.mark.parametrize(
    ("build", "shape", "named"),
    [
        (lambda: recurrent(nn.LSTM), SEQUENCE, "LSTM"),
        (lambda: recurrent(nn.GRU), SEQUENCE, "GRU"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.PixelShuffle(2)), IMAGE, "DepthToSpace"),
    ],
    ids=["lstm", "gru", "pixel shuffle"],
)
def test_what_it_cannot_go_through_is_named(
    build: Build, shape: tuple[int, ...], named: str, tmp_path: Path
) -> None:
    model, data = made(build, shape)
    source, target = quantized(model, data, tmp_path)
    with pytest.raises(PreconditionError) as caught:
        prepare(source, target, model)
    assert str(caught.value) == (
        f"quantize: training in int8 cannot go through operator {named}; leave quantize out, or use "
        "method: ptq or dynamic where the risk tier permits it"
    )


def test_a_weight_that_the_file_has_no_copy_of_is_told(tmp_path: Path) -> None:
    """A normed weight is computed from two parameters, and only the result is in the file."""
    inner = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    model, data = made(lambda: nn.Sequential(inner, nn.ReLU(), nn.Linear(8, 4)), ROW)
    ready = prepare(*quantized(model, data, tmp_path), model)
    assert ready.left == tuple(f"0.parametrizations.weight.original{i}" for i in (0, 1))


def test_a_module_that_is_half_in_training_is_trained_as_it_answers(tmp_path: Path) -> None:
    """Its file was exported as it answers; the module comes back as it was given."""
    model, data = made(lambda: pooled(conv_bn(3, 8), nn.Dropout(0.5)), IMAGE)
    source, target = quantized(model, data, tmp_path)
    model[0].train()  # type: ignore[index]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ready = prepare(source, target, model)
    trained_(ready, data, steps=1)
    finish(ready, ready.simulation, model, tmp_path / "trained.onnx", to_tensors(data))
    assert model[0].training  # type: ignore[index]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_bias_is_rounded_to_steps_of_its_products() -> None:
    bias = torch.tensor([0.26, -1.0], requires_grad=True)
    found = fake_bias(bias, torch.tensor([0.1, 0.3]))
    np.testing.assert_allclose(found.detach().numpy(), [0.3, -0.9], rtol=1e-6)
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert bias.grad is not None
    assert bias.grad.tolist() == [1.0, 1.0]


def activation(low: float, high: float) -> Activation:
    return Activation((low, high), (0, 255), symmetric=False, bounds=(-np.inf, np.inf), moves=True)


def ends(held: Activation) -> list[float]:
    step, zero = (float(v) for v in held.grid())
    return [-step * zero, step * (255 - zero)]


@pytest.mark.parametrize("batches", [3, 1000])
def test_a_range_that_is_measured_again_has_no_lag(batches: int) -> None:
    held = activation(-1.0, 2.0)
    held.begin("measure", 1)
    held(torch.tensor([-0.5, 1.0]))
    held.begin("follow", batches)
    held(torch.tensor([-5.0, 10.0]))
    assert ends(held)[1] < 15
    held.begin("again", 1)
    held(torch.tensor([-5.0, 10.0]))
    held.begin("fixed", 1)
    assert ends(held) == pytest.approx([-10.0, 20.0], rel=0.02)


def test_an_end_at_zero_can_move_and_a_rare_extreme_stays() -> None:
    held = activation(0.0, 8.0)  # calibration saw no negative number, and an 8 that batches rarely hold
    held.begin("measure", 1)
    held(torch.tensor([0.0, 1.0]))
    held.begin("again", 1)
    held(torch.tensor([-2.0, 2.0]))
    assert ends(held) == pytest.approx([-2.0, 9.0], rel=0.02)

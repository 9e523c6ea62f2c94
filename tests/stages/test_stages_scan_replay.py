"""Changing one layer: the same as doing it for good, and the same from a point on as as a whole."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pastille.pruning import remove, survey
from pastille.pruning.scores import group_scores
from pastille.stages.scanning.changes import (
    measured_spans,
    pruning_changes,
    quantization_changes,
    unread,
)
from pastille.stages.scanning.replay import Replay, unfit_points
from pastille.stages.scanning.trace import trace
from pastille.task.forward import forward


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1)
        self.norm, self.relu = nn.BatchNorm2d(width), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm(self.conv1(x)))  # one module, called twice
        y = self.conv2(y)
        y += x
        out: Tensor = self.relu(y)
        return out


class Skips(nn.Module):
    """A stem of functions, residual blocks, and a skip connection over all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(1, 8, 3, 1, 1), nn.Sequential(*(Residual(8) for _ in range(3)))
        self.merge, self.head = nn.Conv2d(16, 8, 1), nn.Linear(8 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.stem(x))
        x = F.relu(self.merge(torch.cat([self.blocks(first), first], dim=1)))
        out: Tensor = self.head(F.adaptive_avg_pool2d(x, 4).flatten(1))
        return out


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.embed, self.head = nn.Linear(8, 16), nn.Linear(16, 3)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(self.embed(x)).mean(dim=1))
        return out


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.cell, self.head = nn.Linear(8, 8), nn.GRU(8, 12, batch_first=True), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.cell(torch.tanh(self.before(x)))[0][:, -1])
        return out


class Overwrites(nn.Module):
    """Its activation changes what another module answered, and its own answer is not looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 3, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        self.relu(y)
        out: Tensor = self.conv2(y).mean(dim=(2, 3))
        return out


Net = tuple[Callable[[], nn.Module], tuple[int, ...]]
IMAGE, SEQUENCE = (1, 16, 16), (5, 8)
CONVOLUTIONAL: dict[str, Net] = {
    "chain": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 12, 3),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 8, 3),
            nn.Flatten(),
            nn.Linear(1152, 3),
        ),
        IMAGE,
    ),
    "skips": (Skips, IMAGE),
}
NETS: dict[str, Net] = {
    **CONVOLUTIONAL,
    "encoder": (Encoder, SEQUENCE),
    "recurrent": (Recurrent, SEQUENCE),
}


def made(net: Net, *, rows: int = 6) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = net[0]().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.get_buffer("running_mean"), -0.2, 0.2)
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 1.5)
    return model, {"input": torch.randn(rows, *net[1])}


@pytest.mark.parametrize("name", CONVOLUTIONAL)
@pytest.mark.parametrize("level", [0.25, 0.5, 0.75])
def test_not_reading_channels_is_removing_them(name: str, level: float) -> None:
    model, batch = made(CONVOLUTIONAL[name])
    groups = survey(model, batch)
    changes, skipped = pruning_changes(groups, group_scores(model, groups, "l1"), [level])
    assert changes
    assert set(skipped) == {group.name for group in groups if group.whole}
    scores = group_scores(model, groups, "l1")
    for change in changes:
        (group,) = (g for g in groups if g.name == change.layer)
        gone = scores[group.name].argsort(stable=True)[: round(level * group.num_channels)].sort().values
        pruned = remove(model, batch, {group.name: gone}).model
        with change.applied(model):
            torch.testing.assert_close(forward(model, batch), forward(pruned, batch), rtol=1e-4, atol=1e-5)


def test_a_change_leaves_no_trace() -> None:
    model, batch = made(NETS["skips"])
    before = copy.deepcopy(model.state_dict())
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    for change in every_change(model, batch):
        with pytest.raises(RuntimeError, match="stop"), change.applied(model):
            raise RuntimeError("stop")
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


def every_change(model: nn.Module, batch: dict[str, Tensor]) -> list:  # type: ignore[type-arg]
    changes = quantization_changes(model, measured_spans(model, [batch]))
    if any(isinstance(m, nn.Conv2d) for m in model.modules()):
        groups = survey(model, batch)
        changes = pruning_changes(groups, group_scores(model, groups, "l1"), [0.5])[0] + changes
    return changes


@pytest.mark.parametrize("name", NETS)
def test_a_change_from_a_point_on_answers_bit_for_bit_like_the_whole_model(name: str) -> None:
    model, batch = made(NETS[name])
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.inference_mode():
            seen = trace(model, {"input": batch["input"][:2]})
            changes = every_change(model, batch)
            starts = [min(seen.uses[x] for x in c.touched if x in seen.uses) for c in changes]
            assert unfit_points(model, seen, {"input": batch["input"][:2]}, starts)[0] == set()
            replay, skipped, different = Replay(model, seen, batch), 0, 0
            plain = forward(model, batch)
            for start, change in sorted(zip(starts, changes, strict=True), key=lambda pair: pair[0]):
                replay.advance(start)
                skipped += len(replay.kept)
                with change.applied(model):
                    whole = forward(model, batch)
                    assert torch.equal(replay.answer(), whole), change
                different += not torch.equal(whole, plain)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert skipped >= len(changes)
    assert different == len(changes)


def test_what_lies_before_the_point_is_not_computed() -> None:
    model, batch = made(NETS["skips"])
    calls: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            original = module._conv_forward
            module._conv_forward = lambda *a, n=name, f=original: (calls.append(n), f(*a))[1]  # type: ignore[method-assign, func-returns-value]
    with torch.inference_mode():
        seen = trace(model, batch)
        replay = Replay(model, seen, batch)
        replay.advance(seen.uses["blocks.2.conv1.weight"])
        calls.clear()
        replay.answer()
    assert calls == ["blocks.2.conv1", "blocks.2.conv2", "merge"]


def test_only_answers_that_are_read_are_held() -> None:
    model, batch = made(NETS["chain"])
    with torch.inference_mode():
        replay = Replay(model, seen := trace(model, batch), batch)
        replay.advance(seen.uses["3.weight"])
    assert set(replay.kept) == {0, 1, 2}
    assert replay.held_bytes < 1.01 * 6 * 12 * 14 * 14 * 4  # that of the activation alone


def test_a_model_that_writes_into_answers_is_run_as_a_whole() -> None:
    model, batch = made((Overwrites, IMAGE))
    with torch.inference_mode():
        seen = trace(model, batch)
        points = {seen.uses["conv1.weight"], seen.uses["conv2.weight"]}
        assert unfit_points(model, seen, batch, points)[0] == {seen.uses["conv2.weight"]}


def test_one_layer_is_rounded_as_by_hand() -> None:
    model, batch = made(NETS["chain"])
    with torch.inference_mode():
        (change,) = (c for c in every_change(model, batch) if (c.layer, c.level) == ("3", 4))
        with change.applied(model):
            found = forward(model, batch)
        conv, inner = model.get_submodule("3"), model.get_submodule("2")
        assert isinstance(conv, nn.Conv2d)
        x = batch["input"]
        for i in range(3):
            x = model.get_submodule(str(i))(x)
        assert inner is not conv
        step = conv.weight.abs().amax(dim=(1, 2, 3), keepdim=True) / 7
        weight = (conv.weight / step).round().clamp(-7, 7) * step
        y = _int8(F.conv2d(_int8(x, x), weight, conv.bias), conv(x))
        expected = model.get_submodule("5")(y.flatten(1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def _int8(x: Tensor, measured: Tensor) -> Tensor:
    low, high = min(0.0, float(measured.min())), max(0.0, float(measured.max()))
    step = (high - low) / 255
    zero = round(-low / step)
    return ((x / step).round() + zero).clamp(0, 255).sub(zero) * step


def test_zeros_are_put_where_they_belong() -> None:
    model, batch = made(NETS["skips"])
    (group,) = (g for g in survey(model, batch) if g.name == "blocks.0.conv1")
    with unread(model, group.cut(torch.tensor([1, 5])).reads):
        weight = model.get_parameter("blocks.0.conv2.weight")
        assert not weight[:, [1, 5]].any()
        assert weight[:, [0, 2, 3, 4, 6, 7]].all()

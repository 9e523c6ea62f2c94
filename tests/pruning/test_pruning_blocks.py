"""Depth: which blocks can be left out, how much each changes, and that leaving one out does only that."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_nets import ATTENTION_NETS, Encoded, images, lively, tokens
from torch import Tensor, nn

from pastille.errors import PreconditionError
from pastille.export import check_parity, export_onnx
from pastille.pruning import read_model, write_model
from pastille.pruning.blocks import (
    FIRST,
    REPEATED,
    Block,
    block_influences,
    block_magnitudes,
    least_blocks,
    residual_blocks,
    without_blocks,
)
from pastille.pruning.replacements import Skip
from pastille.pruning.whole import PROTECTED
from pastille.task import forward


def torchvision_model(name: str) -> nn.Module:
    from pastille.task.torchvision import import_torchvision

    built: nn.Module = getattr(import_torchvision().models, name)(num_classes=3)
    return built


def convnext() -> nn.Module:
    import timm

    built: nn.Module = timm.create_model(
        "convnext_atto", num_classes=3, depths=(2, 1, 3, 1), dims=(8, 16, 24, 32)
    )
    return built


# Name -> factory, inputs, the blocks that can be left out, the ones that are the first of their stack.
NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], dict[str, Tensor]], list[str], list[str]]] = {
    "resnet": (
        partial(torchvision_model, "resnet18"),
        images,
        [f"layer{i}.1" for i in (1, 2, 3, 4)],
        ["layer1.0"],
    ),
    "mobilenet": (
        partial(torchvision_model, "mobilenet_v2"),
        images,
        [f"features.{i}" for i in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)],
        [],
    ),
    "convnext": (
        convnext,
        images,
        ["stages.0.blocks.1", "stages.2.blocks.1", "stages.2.blocks.2"],
        [f"stages.{i}.blocks.0" for i in range(4)],
    ),
    "vit": (
        ATTENTION_NETS["torchvision vit"].build,
        images,
        ["encoder.layers.encoder_layer_1"],
        ["encoder.layers.encoder_layer_0"],
    ),
    "swin": (
        ATTENTION_NETS["torchvision swin 1"].build,
        images,
        ["features.1.1"],
        ["features.1.0", "features.3.0"],
    ),
    "bert": (
        ATTENTION_NETS["bert"].build,
        ATTENTION_NETS["bert"].batch,
        ["model.bert.encoder.layer.1"],
        ["model.bert.encoder.layer.0"],
    ),
    "hubert": (
        ATTENTION_NETS["hubert"].build,
        ATTENTION_NETS["hubert"].batch,
        ["model.hubert.encoder.layers.1"],
        ["model.hubert.encoder.layers.0"],
    ),
    "llama": (
        ATTENTION_NETS["llama, keys shared by two heads"].build,
        ATTENTION_NETS["llama, keys shared by two heads"].batch,
        ["model.model.layers.1"],
        ["model.model.layers.0"],
    ),
    "pytorch": (Encoded, tokens, ["encoder.layers.1", "encoder.layers.2"], ["encoder.layers.0"]),
}
SAVED = ("resnet", "convnext", "vit", "bert")
every = pytest.mark.parametrize("name", NETS)


def passed_by(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """The oracle: the block is computed, and what it was given is passed on instead."""
    given = args[0] if args else kwargs["hidden_states"]
    return (given, *out[1:]) if isinstance(out, tuple) else given


def answers_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return forward(model, batch)


@every
def test_blocks_are_found_and_left_out_and_nothing_else_is(name: str) -> None:
    build, inputs, free, first = NETS[name]
    model, batch = lively(build), inputs()
    before = copy.deepcopy(model.state_dict())
    blocks = residual_blocks(model, batch)
    assert [b.name for b in blocks if not b.whole] == free
    assert [(b.name, b.whole) for b in blocks if b.whole] == [(n, FIRST) for n in first]
    new = without_blocks(model, batch, free)
    assert {n for n, m in new.named_modules() if isinstance(m, Skip)} == set(free)
    assert all(torch.equal(x, before[n]) for n, x in model.state_dict().items())
    whole = answers_of(model, batch)
    for block in free:
        model.get_submodule(block).register_forward_hook(passed_by, with_kwargs=True)
    expected = answers_of(model, batch)
    assert torch.allclose(answers_of(new, batch), expected, atol=1e-6)
    assert not torch.allclose(whole, expected, atol=1e-4)  # what was left out did matter
    assert sum(p.numel() for p in new.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", SAVED)
def test_a_shallower_model_is_exported_and_rebuilt(name: str, tmp_path: Path) -> None:
    build, inputs, free, _ = NETS[name]
    batch = inputs()
    new = without_blocks(lively(build), batch, free)
    export_onnx(new, batch, tmp_path / "model.onnx")
    scale = float(answers_of(new, batch).abs().max())
    assert check_parity(new, tmp_path / "model.onnx", batch).max_abs_error <= 1e-4 * scale
    write_model(new, build(), tmp_path)
    assert torch.equal(answers_of(read_model(build, tmp_path), batch), answers_of(new, batch))


FRESH = """
import sys
from pathlib import Path

import torch
from test_pruning_blocks import NETS, SAVED

from pastille.pruning import read_model
from pastille.task import forward

for name in SAVED:
    build, inputs, *_ = NETS[name]
    with torch.no_grad():
        print(forward(read_model(build, Path(sys.argv[1]) / name), inputs()).flatten().tolist())
"""


def test_shallower_models_answer_the_same_bits_in_a_fresh_process(tmp_path: Path) -> None:
    expected = []
    for name in SAVED:
        build, inputs, free, _ = NETS[name]
        new = without_blocks(lively(build), inputs(), free)
        write_model(new, build(), tmp_path / name)
        expected.append(str(answers_of(new, inputs()).flatten().tolist()))
    command = [sys.executable, "-c", FRESH, str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == expected


class Add(nn.Module):
    """Adds a fixed multiple of what is orthogonal to the input, so that its influence is known."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.turn = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.turn.weight.copy_(torch.tensor([[0.0, -slope], [slope, 0.0]]))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.turn(x)
        return out


def turns(*slopes: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), *[nn.Sequential(Add(s)) for s in slopes]).eval()


def test_influence_is_one_minus_the_cosine_of_the_angle_that_a_block_turns_by() -> None:
    slopes = (0.1, 1.0, 3.0)
    model = turns(*slopes)
    batches = [{"input": torch.randn(2, 5, 2)}, {"input": torch.randn(1, 5, 2)}]
    blocks = [Block(name=f"{i}.0", returns=0, whole="") for i in (1, 2, 3)]
    found = block_influences(model, batches, blocks)
    for block, slope in zip(blocks, slopes, strict=True):
        assert found[block.name] == pytest.approx(1 - 1 / (1 + slope**2) ** 0.5, abs=1e-6)
    assert block_magnitudes(model, blocks) == pytest.approx(
        {f"{i + 1}.0": s / 2 for i, s in enumerate(slopes)}
    )
    assert least_blocks(blocks, found, 0.7) == ("1.0", "2.0")
    assert least_blocks(blocks, found, 0.0) == ()
    with pytest.raises(ValueError, match=r"share of blocks must be within \[0, 1\)"):
        least_blocks(blocks, found, 1.0)


@pytest.mark.parametrize(("count", "share", "gone"), [(50, 0.58, 29), (6, 1 / 6, 1), (10, 0.299, 2)])
def test_a_share_that_is_a_whole_number_of_blocks_is_that_number(count: int, share: float, gone: int) -> None:
    blocks = [Block(name=str(i), returns=0, whole="") for i in range(count)]
    assert len(least_blocks(blocks, {str(i): float(i) for i in range(count)}, share)) == gone


def test_influences_need_a_batch_and_see_every_sample() -> None:
    model, batch = lively(NETS["resnet"][0]), images()
    blocks = residual_blocks(model, batch)
    found = block_influences(model, [batch], blocks)
    assert found.keys() == {b.name for b in blocks}
    assert all(0 < value < 2 for value in found.values())
    parts = [{"input": x} for x in batch["input"].chunk(4)]
    assert block_influences(model, parts, blocks) == pytest.approx(found, abs=1e-5)
    with pytest.raises(ValueError, match="needs a batch"):
        block_influences(model, [], blocks)


def test_what_is_no_residual_block_is_not_found() -> None:
    def gated() -> nn.Module:
        class Gate(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.squeeze = nn.Sequential(nn.Linear(16, 16), nn.Sigmoid())

            def forward(self, x: Tensor) -> Tensor:
                out: Tensor = x * self.squeeze(x)
                return out

        return Gate()

    class Halves(nn.Module):
        """As in ShuffleNet: one half passes, the other does not."""

        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Sequential(nn.Linear(8, 8), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            left, right = x.chunk(2, dim=-1)
            return torch.cat([left, self.branch(right)], dim=-1)

    plain = nn.Sequential(nn.Linear(16, 16), nn.ReLU())
    model = nn.Sequential(nn.Linear(16, 16), plain, gated(), Halves(), nn.Linear(16, 3))
    assert residual_blocks(model, tokens()) == ()
    with pytest.raises(PreconditionError, match="no residual block '1'; closest: none"):
        without_blocks(model, tokens(), ["1"])


def test_a_block_that_is_called_twice_stays() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stack = nn.ModuleList([nn.Linear(2, 2), nn.Sequential(Add(1.0))])

        def forward(self, x: Tensor) -> Tensor:
            x = self.stack[0](x)
            answer: Tensor = self.stack[1](self.stack[1](x))
            return answer

    blocks = residual_blocks(Loop(), {"input": torch.ones(1, 3, 2)})
    assert {b.whole for b in blocks} <= {REPEATED, FIRST}
    assert blocks


def test_wishes_that_cannot_be_met_say_what_can() -> None:
    model, batch = lively(Encoded), tokens()
    with pytest.raises(
        PreconditionError, match=r"no residual block 'encoder.layers.7'; closest: encoder\.layers"
    ):
        without_blocks(model, batch, ["encoder.layers.7"])
    with pytest.raises(
        PreconditionError, match=r"encoder\.layers\.0 must stay: it is the first of its stack"
    ):
        without_blocks(model, batch, ["encoder.layers.0"])
    with pytest.raises(
        PreconditionError, match=r"encoder\.layers\.2 must stay: it is protected by the recipe"
    ):
        without_blocks(model, batch, ["encoder.layers.2"], protect=["encoder.layers.2"])
    blocks = residual_blocks(model, batch, protect=["encoder"])
    assert {b.whole for b in blocks} == {PROTECTED}


def test_code_that_looks_into_a_block_is_named() -> None:
    class Looks(Encoded):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = super().forward(x) * self.encoder.layers[2].linear1.out_features
            return out

    with pytest.raises(PreconditionError, match=r"does not run without encoder.layers.2 \(.*linear1"):
        without_blocks(lively(Looks), tokens(), ["encoder.layers.2"])


def test_frozen_parameters_stay_frozen() -> None:
    model = lively(Encoded)
    model.get_submodule("encoder.layers.1").requires_grad_(False)
    new = without_blocks(model, tokens(), ["encoder.layers.2"])
    frozen = {n for n, p in new.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, p in model.named_parameters() if not p.requires_grad}

"""Steps arrive at the widths that were asked for, also where a shortcut was replaced before the first one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pastille.pruning import prune, survey
from pastille.pruning.removal import layer_widths
from pastille.pruning.structured import NothingToRemove

BATCH = {"input": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}


class ZeroPadding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, x.shape[1] // 2, x.shape[1] // 2))


class Block(nn.Module):
    """Of the first ResNets; its shortcut is called before its convolutions, or after them."""

    def __init__(self, inputs: int, outputs: int, *, early: bool) -> None:
        super().__init__()
        step, self.early = outputs // inputs, early
        self.conv1, self.conv2 = nn.Conv2d(inputs, outputs, 3, step, 1), nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.shortcut: nn.Module = ZeroPadding() if step > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        early = self.shortcut(x) if self.early else None
        y = self.conv2(F.relu(self.conv1(x)))
        return F.relu(y + (self.shortcut(x) if early is None else early))


def resnet(*, early: bool) -> nn.Module:
    torch.manual_seed(0)
    blocks = [Block(a, b, early=early) for a, b in ((32, 32), (32, 64), (64, 64))]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5)]
    return nn.Sequential(nn.Conv2d(3, 32, 3, 1, 1), *blocks, *head).eval()


@pytest.mark.parametrize("early", [True, False])
def test_steps_remove_as_much_as_was_asked_of_the_first_model(early: bool) -> None:
    """A layer that was put in has no width in the user's model: its partners say what there was."""
    model = resnet(early=early)
    original = layer_widths(model)
    assert "2.shortcut" not in original
    for sparsity in (0.25, 0.5):
        model = prune(model, BATCH, sparsity=sparsity, original_widths=original).model
        widths = layer_widths(model)
        assert widths["2.shortcut"] == widths["2.conv2"]
        assert {widths[name] / width for name, width in original.items() if name != "6"} == {1 - sparsity}
    with pytest.raises(NothingToRemove):
        prune(model, BATCH, sparsity=0.5, original_widths=original)


@pytest.mark.parametrize("early", [True, False])
def test_an_overall_share_is_one_of_the_first_model_too(early: bool) -> None:
    model = resnet(early=early)
    original = layer_widths(model)
    total = sum(group.num_channels for group in survey(model, BATCH) if not group.whole)
    for sparsity in (0.25, 0.5):
        asked = {"sparsity": sparsity, "allocation": "global", "round_to": 1}
        model = prune(model, BATCH, original_widths=original, **asked).model  # type: ignore[arg-type]
        left = sum(group.num_channels for group in survey(model, BATCH) if not group.whole)
        assert left == (1 - sparsity) * total


@pytest.mark.parametrize("early", [True, False])
def test_groups_are_called_the_same_at_every_step(early: bool) -> None:
    model = resnet(early=early)
    names = [group.name for group in survey(model, BATCH)]
    step = prune(model, BATCH, sparsity=0.25).model
    assert [group.name for group in survey(step, BATCH)] == names

"""Arguments of `pastille.prune` that cannot be: one sentence each; and its result, saved and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pastille
from pastille.errors import PreconditionError

BATCH = {"input": torch.zeros(2, 1, 8, 8)}


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)).eval()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sparsity": "abc"}, "sparsity must be a number such as 0.5, got 'abc'"),
        ({"sparsity": True}, "sparsity must be a number"),
        ({"sparsity": 0.5, "round_to": "auto"}, "round_to must be a whole number"),
        ({"sparsity": 0.5, "protect": "stem"}, r"protect must be a list of names, e.g. \['stem'\]"),
        (
            {"sparsity": 0.5, "criterion": "activation", "data": [(torch.zeros(2, 1, 8, 8), torch.zeros(2))]},
            "data must give batches of",
        ),
    ],
)
def test_wrong_types_are_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        pastille.prune(build(), BATCH, **wrong)


def test_heads_of_a_network_without_attention() -> None:
    with pytest.raises(PreconditionError, match="no attention layer; leave heads out"):
        pastille.prune(build(), BATCH, sparsity=0.5, heads=0.5)


def test_a_pruned_model_is_saved_and_read_by_public_names(tmp_path: Path) -> None:
    pruned = pastille.prune(build(), BATCH, sparsity=0.5).model
    pastille.write_model(pruned, build(), tmp_path)
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(pastille.read_model(build, tmp_path)(x), pruned(x))

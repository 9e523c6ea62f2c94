"""What is said when nothing can be removed, or a layer of no known kind stays: why, and what would help."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from pruning_nets import NETS, trained_looking
from torch import Tensor, nn

from pastille.pruning import prune
from pastille.pruning.structured import NothingToRemove
from pastille.task.huggingface import Logits
from pastille.task.torchvision import import_torchvision

TOKENS = {
    "input_ids": torch.randint(1, 50, (4, 7), generator=torch.Generator().manual_seed(0)),
    "attention_mask": torch.ones(4, 7, dtype=torch.int64),
}


def refusal(model: nn.Module, batch: Mapping[str, Tensor], **asked: Any) -> str:
    with pytest.raises(NothingToRemove) as caught:
        prune(model.eval(), batch, **asked)
    return str(caught.value)


OUTPUT, SHARED = "makes the model's output", "its weights are shared with another layer, or computed"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"sparsity": 0.01},
            f"at sparsity 0.01 and round_to 8 ({OUTPUT}; no narrower multiple of 8); possible: sparsity from "
            "0.125; lower round_to, raise sparsity or leave prune out",
        ),
        (
            {"sparsity": 0.01, "round_to": 1},
            f"at sparsity 0.01 and round_to 1 (less is asked than one of its channels; {OUTPUT}); possible: "
            "sparsity from 0.016; raise sparsity or leave prune out",
        ),
        (
            {"sparsity": 0.5, "protect": ["*"]},
            f"at sparsity 0.5 and round_to 8 ({OUTPUT}; protected by the recipe); protect less or leave "
            "prune out",
        ),
    ],
)
def test_advice_fits_what_was_asked(asked: dict[str, Any], said: str) -> None:
    net = NETS["residual"]
    assert refusal(trained_looking(net), net.batch(), **asked) == f"prune: nothing can be removed {said}"


def test_no_advice_is_given_where_none_helps() -> None:
    tied = nn.Sequential(nn.Embedding(9, 32), nn.ReLU(), nn.Linear(32, 9, bias=False))
    tied[2].weight = tied[0].weight
    said = refusal(tied, {"input": torch.randint(0, 9, (2, 5))}, sparsity=0.5)
    assert said.endswith(f"({SHARED}; {OUTPUT}); leave prune out of the plan")


def transformer(kind: str, **settings: Any) -> nn.Module:
    import_torchvision()
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind.partition('For')[0].removesuffix('LMHeadModel')}Config")(
        vocab_size=50, pad_token_id=0, bos_token_id=1, eos_token_id=2, **settings
    )
    return Logits(getattr(transformers, kind)(config)).eval()


@pytest.mark.parametrize("kind", ["GPT2ForSequenceClassification", "GPT2LMHeadModel"])
def test_layers_of_gpt_2_stay_and_are_named(kind: str) -> None:
    model = transformer(kind, n_embd=32, n_layer=2, n_head=4, n_positions=16, num_labels=5)
    said = refusal(model, TOKENS, sparsity=0.5)
    assert "it runs through Conv1D, whose code multiplies by hand" in said
    assert said.endswith("); leave prune out of the plan")


def test_layers_around_a_layer_of_the_codes_own_are_pruned() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(32, 16))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    torch.manual_seed(0)
    layers = [nn.Linear(4, 32), nn.ReLU(), Own(), nn.ReLU(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3)]
    pruned = prune(nn.Sequential(*layers).eval(), {"input": torch.randn(2, 4)}, sparsity=0.5)
    assert pruned.widths == {"4": (32, 16)}
    why = "it runs through Own, whose code multiplies by hand"
    assert pruned.left_whole == {"0": why, "2": why, "6": OUTPUT}


def test_a_tied_decoder_stays_and_the_rest_of_a_language_model_is_pruned() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = transformer("BertForMaskedLM", **sizes)
    hidden = {f"model.bert.encoder.layer.{i}.intermediate.dense" for i in range(2)}
    pruned = prune(model, TOKENS, sparsity=0.5)
    assert pruned.widths.keys() == hidden
    assert pruned.left_whole["model.cls.predictions.transform.dense"] == SHARED
    assert pruned.left_whole["model.cls.predictions.decoder"] == OUTPUT
    own = dict(pruned.model.named_parameters(remove_duplicate=False))
    tied = "model.bert.embeddings.word_embeddings.weight"
    assert own["model.cls.predictions.decoder.weight"] is own[tied]
    headless = prune(model, TOKENS, heads=0.5)
    assert not headless.left_whole.keys() & headless.widths.keys()

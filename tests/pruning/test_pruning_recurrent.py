"""LSTM and GRU as people use them: hidden units are cut exactly, or stay with a reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from pastille.pruning import prune, read_model, remove, survey, write_model
from pastille.task import forward

SIZE, INPUTS, STEPS = 16, 6, 9
LENGTHS = torch.tensor([7, 9, 3, 4])
BATCH = {"input": torch.randn(4, STEPS, INPUTS, generator=torch.Generator().manual_seed(0))}
CELLS = [nn.LSTM, nn.GRU]

Use = Callable[["Sequence", Tensor], Tensor]


class Sequence(nn.Module):
    """A recurrent layer between two linear ones, used in some way."""

    def __init__(self, cell: Any, use: Use, *, layers: int = 1, directions: int = 1, **settings: Any) -> None:
        super().__init__()
        self.front = nn.Linear(INPUTS, SIZE)
        both = directions == 2
        self.body = cell(SIZE, SIZE, layers, batch_first=True, bidirectional=both, **settings)
        self.init = nn.Linear(SIZE, SIZE)
        self.head = nn.LazyLinear(5)
        self.use, self.states = use, layers * directions
        self(BATCH["input"])  # lets the head see how wide it is

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.use(self, F.relu(self.front(x))))
        return out

    def last(self, x: Any, *state: Any) -> Tensor:
        """h_n, ``(layers · directions, N, H)``."""
        states = self.body(x, *state)[1]
        found: Tensor = states[0] if isinstance(states, tuple) else states
        return found

    def given(self, state: Tensor) -> Any:
        return (state, state) if isinstance(self.body, nn.LSTM) else state


def packed(x: Tensor) -> Any:
    return pack_padded_sequence(x, LENGTHS, batch_first=True, enforce_sorted=False)


def last_of_both(net: Sequence, x: Tensor) -> Tensor:
    states = net.last(x)
    return torch.cat([states[-2], states[-1]], dim=1)


def padded_again(net: Sequence, x: Tensor) -> Tensor:
    return pad_packed_sequence(net.body(packed(x))[0], batch_first=True)[0].mean(dim=1)


# How the states are used, in how many layers and directions.
EXACT: dict[str, tuple[Use, int, int]] = {
    "h_n[-1]": (lambda net, x: net.last(x)[-1], 1, 1),
    "h_n[-1] of two layers": (lambda net, x: net.last(x)[-1], 2, 1),
    "h_n[-1] of both ways": (lambda net, x: net.last(x)[-1], 2, 2),
    "h_n[-2], h_n[-1]": (last_of_both, 2, 2),
    "h_n.squeeze(0)": (lambda net, x: net.last(x).squeeze(0), 1, 1),
    "h_n flattened": (lambda net, x: net.last(x).transpose(0, 1).flatten(1), 2, 2),
    "h_n.unbind()": (lambda net, x: net.last(x).unbind(0)[-1], 2, 1),
    "packed": (lambda net, x: net.last(packed(x))[-1], 2, 2),
    "padded again": (padded_again, 1, 2),
    "ways added": (lambda net, x: torch.stack(net.body(x)[0].chunk(2, -1)).sum(0)[:, -1], 1, 2),
}


def half_silent(model: Sequence) -> Tensor:
    """Let half of the hidden units of every layer and direction stay 0; gives their place in the group.

    What they would become next is 0, whatever they read.
    """
    (group,) = [g for g in survey(model, BATCH) if g.name == "body"]
    own = group.num_channels // SIZE  # 1 where those of both directions are added
    gate = 2 * SIZE  # of an LSTM's cell, and of a GRU's new state
    for i in range(model.states):
        layer, direction = divmod(i, 1 + model.body.bidirectional)
        suffix = f"l{layer}{'_reverse' * direction}"
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            nn.init.zeros_(
                model.body.get_parameter(f"{name}_{suffix}").detach()[gate + i % own % 2 : gate + SIZE : 2]
            )
    return torch.cat([torch.arange(i % 2, SIZE, 2) + i * SIZE for i in range(own)])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", EXACT)
def test_removing_silent_units_changes_no_answer(name: str, cell: type[nn.RNNBase]) -> None:
    use, layers, directions = EXACT[name]
    torch.manual_seed(0)
    model = Sequence(cell, use, layers=layers, directions=directions).eval()
    pruned = remove(model, BATCH, {"body": half_silent(model)})
    width = SIZE * layers * directions
    assert pruned.widths == {"body": (width, width // 2)}
    assert pruned.model.get_submodule("body").hidden_size == SIZE // 2
    expected = forward(model, BATCH)
    assert expected.std() > 1e-3
    torch.testing.assert_close(forward(pruned.model, BATCH), expected, rtol=0, atol=1e-6)


def test_c_n_is_followed_too() -> None:
    torch.manual_seed(0)
    model = Sequence(nn.LSTM, lambda net, x: net.body(x)[1][1][-1], layers=2).eval()
    pruned = remove(model, BATCH, {"body": half_silent(model)})
    torch.testing.assert_close(forward(pruned.model, BATCH), forward(model, BATCH), rtol=0, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_hidden_sizes_are_rounded_layer_by_layer(cell: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    model = Sequence(cell, last_of_both, layers=2, directions=2).eval()
    (group,) = [g for g in survey(model, BATCH) if g.name == "body"]
    assert (group.parts, group.apart, group.num_channels) == (4, True, 4 * SIZE)
    assert prune(model, BATCH, sparsity=0.25, round_to=4).widths["body"] == (64, 48)
    pruned = prune(model, BATCH, sparsity=0.3, round_to=8, layers={"front": 0.5}).widths
    assert "body" not in pruned  # 16 · 0.7 = 11.2, and the next multiple of 8 is 16
    assert prune(model, BATCH, sparsity=0.5, round_to=8).model.get_submodule("body").hidden_size == 8


def of_zeros(net: Sequence, x: Tensor) -> Tensor:
    return net.last(x, net.given(torch.zeros(net.states, len(x), SIZE)))[-1]


def of_computed(net: Sequence, x: Tensor) -> Tensor:
    first = torch.tanh(net.init(x[:, 0])).expand(net.states, -1, -1).contiguous()
    return net.last(x, net.given(first))[-1]


def twice(net: Sequence, x: Tensor) -> Tensor:
    _, state = net.body(x)
    return net.last(x, state)[-1]


ZEROS = (
    "its code gives it a first state, of a width of its own; that is zeros anyway: without it, it could be "
    "pruned"
)
OWN = "its code gives it a first state, of a width of its own"


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(
    ("use", "whole"),
    [
        (of_zeros, {"body": ZEROS}),
        (of_computed, {"body": OWN, "init": "makes the first state of a recurrent layer"}),
        (twice, {"body": OWN}),
    ],
    ids=["zeros", "computed", "twice"],
)
def test_a_first_state_that_is_given_leaves_the_layer_whole(
    use: Use, whole: dict[str, str], layers: int, cell: type[nn.RNNBase]
) -> None:
    torch.manual_seed(0)
    pruned = prune(Sequence(cell, use, layers=layers).eval(), BATCH, sparsity=0.5)
    assert pruned.widths == {"front": (16, 8)}
    assert {name: why for name, why in pruned.left_whole.items() if name != "head"} == whole
    assert forward(pruned.model, BATCH).shape == (4, 5)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("use", [EXACT["h_n[-1]"][0], EXACT["packed"][0], padded_again])
def test_a_projection_stays_and_what_it_reads_is_pruned(use: Use, directions: int, tmp_path: Path) -> None:
    def build() -> Sequence:
        return Sequence(nn.LSTM, use, layers=2, directions=directions, proj_size=8)

    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        for name in ("weight", "bias"):
            model.front.get_parameter(name)[::2] = 0
    pruned = remove(model, BATCH, {"front": torch.arange(0, SIZE, 2)})
    assert pruned.widths == {"front": (16, 8)}
    assert pruned.left_whole["body"] == "recurrent layer with a projection (proj_size)"
    body = pruned.model.get_submodule("body")
    sizes: dict[str, object] = vars(body)
    assert [sizes[name] for name in ("input_size", "hidden_size", "proj_size")] == [8, SIZE, 8]
    torch.testing.assert_close(forward(pruned.model, BATCH), forward(model, BATCH), rtol=0, atol=1e-6)
    write_model(pruned.model, build(), tmp_path)
    assert torch.equal(forward(read_model(build, tmp_path), BATCH), forward(pruned.model, BATCH))


def test_a_width_that_the_code_takes_a_part_of_stays() -> None:
    """The last step of one way and the first of the other, cut out by a number."""

    def ends(net: Sequence, x: Tensor) -> Tensor:
        out = net.body(x)[0]
        return torch.cat([out[:, -1, :SIZE], out[:, 0, SIZE:]], dim=1)

    torch.manual_seed(0)
    pruned = prune(Sequence(nn.GRU, ends, directions=2).eval(), BATCH, sparsity=0.5)
    assert pruned.widths == {"front": (16, 8)}
    assert "rearranged" in pruned.left_whole["body"]

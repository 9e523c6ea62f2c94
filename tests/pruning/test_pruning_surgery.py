"""Pruning cuts the right channels everywhere: removing dead channels changes no answer."""

from __future__ import annotations

import copy

import pytest
import torch
from pruning_nets import (
    IMAGE,
    NETS,
    Net,
    Residual,
    W,
    even_,
    half_of,
    kill_,
    trained_looking,
    without_shift_,
)
from torch import Tensor, nn

from pastille.errors import PreconditionError
from pastille.pruning import prune, remove
from pastille.pruning.removal import layer_widths
from pastille.pruning.structured import NothingToRemove
from pastille.stages.contract import state_digest
from pastille.task import forward


def answer(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        return forward(model, batch)


def half_dead(net: Net) -> nn.Module:
    """The network with a random half of the channels of every coupled set dead."""
    model = trained_looking(net)
    without_shift_(model)
    even_(model)
    generator = torch.Generator().manual_seed(3)
    for names in net.coupled:
        width = layer_widths(model)[names[0]]
        kill_(model, names, half_of(net, names[0], width, generator))
    return model


class PruningContract:
    """What pruning promises for every network."""

    @pytest.fixture
    def net(self) -> Net:
        raise NotImplementedError

    def test_removing_dead_channels_changes_no_answer(self, net: Net) -> None:
        """The proof of the surgery: readers lose exactly what makers lose, everywhere."""
        model, batch = half_dead(net), net.batch(8)
        pruned = prune(model, batch, sparsity=0.5)
        coupled = {name for names in net.coupled for name in names}
        assert {n: after / before for n, (before, after) in pruned.widths.items()} == dict.fromkeys(
            coupled, 0.5
        )
        expected = answer(model, batch)
        assert expected.std() > 1e-3  # dead channels did not silence the net
        torch.testing.assert_close(answer(pruned.model, batch), expected, rtol=0, atol=1e-5)

    def test_output_shape_stays_and_widths_are_multiples(self, net: Net) -> None:
        model, batch = trained_looking(net), net.batch()
        pruned = prune(model, batch, sparsity=0.4)
        assert answer(pruned.model, batch).shape == answer(model, batch).shape
        assert pruned.widths
        assert all(after % 8 == 0 and after < before for before, after in pruned.widths.values())

    def test_widths_tell_the_truth(self, net: Net) -> None:
        model, batch = trained_looking(net), net.batch()
        pruned = prune(model, batch, sparsity=0.5)
        before, after = layer_widths(model), layer_widths(pruned.model)
        assert pruned.widths == {n: (before[n], w) for n, w in after.items() if w != before[n]}
        assert not pruned.left_whole.keys() & pruned.widths.keys()
        for name, module in pruned.model.named_modules():
            if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
                assert module.weight.shape[int(getattr(module, "transposed", False))] == after[name]

    def test_the_input_is_left_alone(self, net: Net) -> None:
        model, batch = trained_looking(net), net.batch()
        digest, shapes = state_digest(model), layer_widths(model)
        prune(model, batch, sparsity=0.5)
        assert (state_digest(model), layer_widths(model)) == (digest, shapes)

    def test_the_same_model_is_pruned_the_same_each_time(self, net: Net) -> None:
        model, batch = trained_looking(net), net.batch()
        first, second = (prune(model, batch, sparsity=0.5).model for _ in range(2))
        assert state_digest(first) == state_digest(second)

    def test_steps_arrive_where_one_step_does(self, net: Net) -> None:
        model, batch = trained_looking(net), net.batch()
        widths = layer_widths(model)
        step = prune(model, batch, sparsity=0.25, original_widths=widths).model
        twice = prune(step, batch, sparsity=0.5, original_widths=widths).model
        assert layer_widths(twice) == layer_widths(prune(model, batch, sparsity=0.5).model)

    def test_nothing_chosen_removes_nothing(self, net: Net) -> None:
        model, batch = trained_looking(net), net.batch()
        pruned = remove(model, batch, {})
        assert not pruned.widths
        assert state_digest(pruned.model) == state_digest(model)

    def test_frozen_weights_are_pruned_and_stay_frozen(self, net: Net) -> None:
        model, batch = trained_looking(net), net.batch()
        free = prune(model, batch, sparsity=0.5)
        model.requires_grad_(False)
        *_, (last, _) = model.named_parameters()
        model.get_parameter(last).requires_grad_(True)
        frozen = prune(model, batch, sparsity=0.5)
        assert state_digest(frozen.model) == state_digest(free.model)
        assert [n for n, p in frozen.model.named_parameters() if p.requires_grad] == [last]
        assert [n for n, p in model.named_parameters() if p.requires_grad] == [last]


class TestResidual(PruningContract):
    @pytest.fixture
    def net(self) -> Net:
        return NETS["residual"]


class TestDense(PruningContract):
    @pytest.fixture
    def net(self) -> Net:
        return NETS["dense"]


class TestDepthwise(PruningContract):
    @pytest.fixture
    def net(self) -> Net:
        return NETS["depthwise"]


class TestGrouped(PruningContract):
    @pytest.fixture
    def net(self) -> Net:
        return NETS["grouped"]


class TestSqueezeExcite(PruningContract):
    @pytest.fixture
    def net(self) -> Net:
        return NETS["squeeze-excite"]


class TestFlatten(PruningContract):
    @pytest.fixture
    def net(self) -> Net:
        return NETS["flatten"]


class TestTransposed(PruningContract):
    @pytest.fixture
    def net(self) -> Net:
        return NETS["transposed"]


class TestLateNorm(PruningContract):
    @pytest.fixture
    def net(self) -> Net:
        return NETS["late-norm"]


class TestSignal(PruningContract):
    @pytest.fixture
    def net(self) -> Net:
        return NETS["signal"]


class TestMlp(PruningContract):
    @pytest.fixture
    def net(self) -> Net:
        return NETS["mlp"]


class TestReused(PruningContract):
    @pytest.fixture
    def net(self) -> Net:
        return NETS["reused"]


class TestScaled(PruningContract):
    @pytest.fixture
    def net(self) -> Net:
        return NETS["scaled"]


class TestChunked(PruningContract):
    @pytest.fixture
    def net(self) -> Net:
        return NETS["chunked"]


class TestTwoAnswers(PruningContract):
    """The second answer is not looked at, but must not break the first."""

    @pytest.fixture
    def net(self) -> Net:
        return NETS["two answers"]

    def test_the_layer_behind_the_second_answer_stays(self, net: Net) -> None:
        pruned = prune(trained_looking(net), net.batch(), sparsity=0.5)
        assert pruned.left_whole["auxiliary"] == "makes the model's output"


def test_every_network_is_under_contract() -> None:
    assert len(PruningContract.__subclasses__()) == len(NETS)


def test_the_lowest_scores_go() -> None:
    """By the documented rule, worked out by hand for one hidden layer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    makes, reads = (model.get_parameter(f"{i}.weight").detach().double() for i in (0, 2))
    scores = makes.abs().sum(1) / makes.abs().sum(1).mean() + reads.abs().sum(0) / reads.abs().sum(0).mean()
    kept = scores.argsort()[8:].sort().values
    pruned = prune(model, {"input": torch.zeros(2, 4)}, sparsity=0.5).model
    torch.testing.assert_close(pruned.get_parameter("0.weight"), makes[kept].float())
    torch.testing.assert_close(pruned.get_parameter("2.weight"), reads[:, kept].float())


def test_batch_statistics_of_a_model_in_train_mode_are_left_alone() -> None:
    model = trained_looking(NETS["residual"]).train()
    digest = state_digest(model)
    prune(model, NETS["residual"].batch(), sparsity=0.5)
    assert state_digest(model) == digest
    assert model.training


@pytest.mark.parametrize(
    ("pattern", "stay"),
    [
        ("conv1", {"conv1"}),
        ("stem.0", {"stem.0", "conv2"}),  # its residual partner too
        ("stem", {"stem.0", "conv2"}),  # a name stands for what it holds
        ("conv[12]", {"conv1", "conv2", "stem.0"}),
        ("s*", {"stem.0", "conv2", "short", "conv4"}),
    ],
)
def test_protected_modules_keep_their_channels(pattern: str, stay: set[str]) -> None:
    net = NETS["residual"]
    pruned = prune(trained_looking(net), net.batch(), sparsity=0.5, protect=[pattern])
    protected = {n for n, why in pruned.left_whole.items() if why.startswith("protected by the recipe")}
    assert protected == stay
    assert pruned.widths.keys() == {n for names in net.coupled for n in names} - stay


def test_a_protected_layer_that_blocks_others_is_named() -> None:
    net = NETS["residual"]
    why = prune(trained_looking(net), net.batch(), sparsity=0.5, protect=["stem"]).left_whole
    assert why["conv2"] == "protected by the recipe (stem.0, and with it conv2)"


def test_protecting_everything_leaves_nothing_to_remove() -> None:
    net = NETS["residual"]
    with pytest.raises(NothingToRemove, match=r"protected by the recipe.*leave prune out"):
        prune(trained_looking(net), net.batch(), sparsity=0.5, protect=["*"])


def test_a_pattern_that_names_no_module_is_refused_with_the_closest() -> None:
    net = NETS["residual"]
    with pytest.raises(PreconditionError, match=r"prune.protect: no module .* 'haed'; closest: .*head"):
        prune(trained_looking(net), net.batch(), sparsity=0.5, protect=["haed"])


def test_rounding_that_forbids_any_cut_says_what_to_do() -> None:
    net = NETS["residual"]
    with pytest.raises(NothingToRemove, match=r"no narrower multiple of 128.*lower round_to") as caught:
        prune(trained_looking(net), net.batch(), sparsity=0.5, round_to=128)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong", [{"sparsity": 1.0}, {"sparsity": -0.1}, {"round_to": 0}, {"criterion": "l3"}], ids=str
)
def test_arguments_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    net = NETS["mlp"]
    with pytest.raises(ValueError, match="must be"):
        prune(trained_looking(net), net.batch(), **{"sparsity": 0.5, **wrong})  # type: ignore[arg-type]


def test_round_to_one_cuts_to_the_channel() -> None:
    net = NETS["mlp"]
    pruned = prune(trained_looking(net), net.batch(), sparsity=0.3, round_to=1)
    assert pruned.widths == {"0": (2 * W, 45), "2": (2 * W, 45)}  # 64 · 0.7 = 44.8, rounded up


def test_named_inputs_of_integers() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.hidden, self.head = nn.Embedding(9, 16), nn.Linear(16, 32), nn.Linear(32, 2)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            seen = self.embed(input_ids) * attention_mask[..., None]
            out: Tensor = self.head(torch.relu(self.hidden(seen.sum(dim=1))))
            return out

    model = Tokens()
    kill_(model, ("hidden",), torch.arange(0, 32, 2))
    batch = {"input_ids": torch.randint(0, 9, (4, 6)), "attention_mask": torch.ones(4, 6, dtype=torch.int64)}
    assert prune(model, batch, sparsity=0.5).widths == {"embed": (16, 8), "hidden": (32, 16)}
    pruned = prune(model, batch, sparsity=0.5, protect=["embed"])
    assert pruned.widths == {"hidden": (32, 16)}
    torch.testing.assert_close(pruned.model(**batch), model(**batch))


def test_a_pruned_model_can_be_trained_and_copied() -> None:
    net = NETS["residual"]
    pruned = copy.deepcopy(prune(trained_looking(net), net.batch(), sparsity=0.5).model).train()
    pruned(net.batch(4)["input"]).square().mean().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in pruned.parameters())


def test_nothing_is_printed_and_no_global_state_changes(capfd: pytest.CaptureFixture[str]) -> None:
    state = torch.get_rng_state()
    torch.set_grad_enabled(False)
    try:
        prune(Residual(), Net(build=Residual, shape=IMAGE, coupled=()).batch(), sparsity=0.5)
        assert not torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(True)
    torch.set_rng_state(state)
    assert capfd.readouterr() == ("", "")

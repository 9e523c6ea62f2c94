"""Students cut out of a teacher hold what matters most of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from student_nets import NETS, Signal, bert, parameters, trained_looking, width_of
from torch import nn

from pastille.distillation.students_cut import anew, evenly, narrowed, narrower, nearest, shallower
from pastille.errors import PreconditionError
from pastille.pruning.replacements import Skip
from pastille.task.forward import forward


def test_the_longest_channels_stay_in_their_order() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 3))
    norms = torch.tensor([1.0, 6, 2, 5, 3, 4])
    with torch.no_grad():
        net.get_parameter("0.weight").copy_(torch.ones(6, 1, 3, 3) * norms[:, None, None, None])
        net.get_parameter("0.bias").zero_()
        net.get_parameter("2.weight").copy_(torch.randn(2, 6, 3, 3).sign())  # all are read alike
    student = narrower(net, {"input": torch.zeros(1, 1, 8, 8)}, 0.5)
    assert student.get_parameter("0.weight")[:, 0, 0, 0].tolist() == [6, 5, 4]
    kept = net.get_parameter("2.weight")[:, [1, 3, 5]]
    assert torch.equal(student.get_parameter("2.weight"), kept)


def test_scores_that_are_given_decide() -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    scores = {"0": torch.tensor([0.0, 1, 2, 3])}
    student = narrower(net, {"input": torch.zeros(1, 2)}, 0.5, scores=scores)
    assert torch.equal(student.get_parameter("0.weight"), net.get_parameter("0.weight")[2:])


def test_the_strongest_heads_stay() -> None:
    model, batch = trained_looking("bert"), NETS["bert"][1]()
    attention: Any = model.get_submodule("model.bert.encoder.layer.2.attention.self")
    with torch.no_grad():
        for layer in (attention.query, attention.key, attention.value):
            layer.weight[8:16] *= 9  # head 1 of 4, 8 wide
            layer.weight[24:] *= 9
    cut: Any = narrower(model, batch, 0.5).get_submodule("model.bert.encoder.layer.2.attention.self")
    kept = [*range(8, 16), *range(24, 32)]
    assert cut.num_attention_heads == 2
    assert torch.equal(cut.value.weight, attention.value.weight[kept])


def test_large_layers_are_rounded_for_kernels_and_small_ones_are_not() -> None:
    net = nn.Sequential(nn.Linear(3, 96), nn.ReLU(), nn.Linear(96, 30), nn.ReLU(), nn.Linear(30, 2))
    student = narrower(net, {"input": torch.zeros(1, 3)}, 0.3)
    assert (width_of(student, "0"), width_of(student, "2")) == (32, 9)


def test_a_share_that_removes_nothing_says_so() -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    batch = {"input": torch.zeros(1, 2)}
    assert narrowed(net, batch, 0.95) is None
    with pytest.raises(PreconditionError, match=r"distill\.student\.width: 0\.95 leaves every layer"):
        narrower(net, batch, 0.95)
    with pytest.raises(ValueError, match="width must be more than 0 and less than 1"):
        narrower(net, batch, 1.0)


def layers_there(model: nn.Module) -> list[bool]:
    layers = model.get_submodule("model.bert.encoder.layer")
    assert isinstance(layers, nn.ModuleList)
    return [not isinstance(layer, Skip) for layer in layers]


def test_layers_of_a_transformer_are_every_other_one() -> None:
    model, batch = trained_looking("bert"), NETS["bert"][1]()
    student = shallower(model, batch, 0.5)
    assert [i for i, there in enumerate(layers_there(student)) if there] == [0, 2, 5]
    one = parameters(model.get_submodule("model.bert.encoder.layer.0"))
    assert parameters(model) - parameters(student) == 3 * one
    # The same as calling those three layers by hand.
    inner: Any = model.get_submodule("model.bert")
    with torch.no_grad():
        x = inner.embeddings(batch["input_ids"])
        for i in (0, 2, 5):
            out = inner.encoder.layer[i](x)
            x = out[0] if isinstance(out, tuple) else out
        by_hand = model.get_submodule("model.classifier")(inner.pooler(x))
        assert torch.allclose(forward(student, batch), by_hand, atol=1e-5)


def test_two_thirds_of_three_layers_are_two() -> None:
    batch = NETS["bert"][1]()
    short = shallower(bert(num_hidden_layers=3).eval(), batch, 0.67)
    assert layers_there(short) == [True, False, True]
    shorter = shallower(short, batch, 0.5)  # progressive: of those that are left
    assert layers_there(shorter) == [True, False, False]


def test_convolutional_blocks_that_change_little_go() -> None:
    torch.manual_seed(0)
    net, batch = Signal().eval(), NETS["signal"][1]()
    with torch.no_grad():
        for i, size in enumerate((1.0, 1e-3, 1.0, 1e-2)):
            net.get_parameter(f"blocks.{i}.conv2.weight").mul_(size)
            net.get_parameter(f"blocks.{i}.conv2.bias").mul_(size)
    student = shallower(net, batch, 0.5, batches=[batch])
    blocks = [student.get_submodule(f"blocks.{i}") for i in range(4)]
    assert [isinstance(block, Skip) for block in blocks] == [False, True, False, True]
    with torch.no_grad():
        by_hand = net.head(net.blocks[2](net.blocks[0](torch.relu(net.stem(batch["input"])))).mean(-1))
        assert torch.allclose(student(batch["input"]), by_hand, atol=1e-6)


def test_a_model_without_blocks_says_so() -> None:
    with pytest.raises(PreconditionError, match="no residual block or layer that could be left out"):
        shallower(NETS["mlp"][0]().eval(), NETS["mlp"][1](), 0.5)
    with pytest.raises(PreconditionError, match=r"depth: 0\.95 of 4 blocks leaves all of them"):
        shallower(Signal().eval(), NETS["signal"][1](), 0.95)


def test_numbers_of_layers() -> None:
    assert [nearest(share, 6) for share in (0.5, 0.34, 0.1, 0.99)] == [3, 2, 1, 6]
    assert evenly(12, 3) == [0, 6, 11]
    assert all(len(set(evenly(n, k))) == k for n in range(1, 30) for k in range(1, n + 1))


@pytest.mark.parametrize("name", NETS)
def test_begun_anew_nothing_is_left_of_the_teacher(name: str) -> None:
    model, batch = trained_looking(name), NETS[name][1]()
    state = torch.random.get_rng_state()
    new, again, other = (anew(model, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    theirs = dict(model.named_parameters())
    for key, parameter in new.named_parameters():
        assert not torch.equal(parameter, theirs[key]), key
        assert torch.equal(parameter, again.get_parameter(key))
    assert any(not torch.equal(p, other.get_parameter(k)) for k, p in new.named_parameters())
    for key, buffer in new.named_buffers():
        if key.endswith("running_mean"):
            assert not buffer.any()
    with torch.no_grad():
        assert bool(forward(new.eval(), batch).isfinite().all())

"""The training loop: what it depends on, what it keeps, what it refuses."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from train_data import LABELS, blobs, line, net, paired, settings

import pastille.train.batches
import pastille.train.loop
from pastille.errors import PreconditionError
from pastille.progress import Silent
from pastille.stages.contract import state_digest
from pastille.stats.metrics import headline_value
from pastille.task import forward
from pastille.train import Extras, Fitted, Objective, fit
from pastille.train.batches import Drawn, epoch_rows, reader, steps
from pastille.train.precision import dtype_for
from pastille.train.scoring import Choice

TRAIN, VALIDATION = blobs(60, 0), blobs(30, 1)


def accuracy(model: nn.Module, data: tuple[Any, Any] = VALIDATION) -> float:
    with torch.inference_mode():
        out = model.eval()(torch.from_numpy(np.stack(list(data[0].inputs))))
    return headline_value(out.numpy(), data[1])


def test_it_learns() -> None:
    fitted = fit(net(), TRAIN, VALIDATION, settings(epochs=8), seed=0)
    assert accuracy(net()) < 0.6
    assert accuracy(fitted.model) > 0.9
    assert fitted.loss[-1] < 0.5 * fitted.loss[0]
    assert (len(fitted.loss), len(fitted.validation), fitted.metric) == (8, 8, "accuracy")
    assert not fitted.model.training


def test_it_learns_a_regression() -> None:
    train, validation = line(80, 0), line(40, 1)
    fitted = fit(net(1), train, validation, settings(epochs=12, optimizer="adamw"), seed=0)
    assert fitted.metric == "r2"
    assert max(fitted.validation) > 0.8


@pytest.mark.parametrize(
    "given", [{}, {"optimizer": "adamw"}, {"momentum": 0, "schedule": "constant"}], ids=str
)
def test_the_same_seed_gives_the_same_weights_bit_for_bit(given: dict[str, Any]) -> None:
    """Whatever was drawn before: order, dropout and augmentation are seeded."""
    digests = []
    for drawn in (1, 5):
        model = net()
        torch.rand(drawn)
        fitted = fit(model, TRAIN, VALIDATION, settings(**given), seed=3, augment=noisy)
        digests.append(state_digest(fitted.model))
    assert digests[0] == digests[1]
    other = fit(net(), TRAIN, VALIDATION, settings(**given), seed=4, augment=noisy)
    assert state_digest(other.model) != digests[0]


def noisy(x: Tensor, generator: torch.Generator) -> Tensor:
    return x + 0.1 * torch.randn(x.shape, generator=generator)


FRESH = """
import sys
sys.path.insert(0, sys.argv[1])
from train_data import blobs, net, settings
from test_train_loop import noisy
from pastille.stages.contract import state_digest
from pastille.train import fit
print(state_digest(fit(net(), blobs(60, 0), blobs(30, 1), settings(), seed=3, augment=noisy).model))
"""


def test_a_fresh_process_gives_the_same_weights_bit_for_bit() -> None:
    here = fit(net(), TRAIN, VALIDATION, settings(), seed=3, augment=noisy)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FRESH, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == (state_digest(here.model), "")


def test_the_given_model_and_the_random_numbers_are_left_alone() -> None:
    model = net()
    digest, state = state_digest(model), torch.get_rng_state()
    fit(model, TRAIN, VALIDATION, settings(), seed=0)
    assert state_digest(model) == digest
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def watched(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> list[str]:
    """Let validation say what it is told, and note the weights that it was asked about."""
    seen: list[str] = []

    def scorer(*args: object) -> Callable[[nn.Module], float]:
        def score(model: nn.Module) -> float:
            seen.append(state_digest(model))
            return scores[len(seen) - 1]

        return score

    monkeypatch.setattr(pastille.train.loop, "scorer", scorer)
    return seen


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([0.1, 0.5, 0.9, 0.3], 2),
        ([0.1, 0.9, 0.5, 0.9], 3),  # on a tie the later one, with the lower learning rate
        ([0.8, 0.5, 0.6, 0.7], 0),  # training only harms: the given weights stay
        ([0.8, 0.5, 0.8, 0.7], 2),
    ],
)
def test_the_best_epoch_is_kept(scores: list[float], best: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch, scores)
    fitted = fit(net(), TRAIN, VALIDATION, settings(), seed=0)
    assert fitted.best_epoch == best
    assert len(set(seen)) == 4
    assert state_digest(fitted.model) == seen[best]
    assert fitted.validation == tuple(scores[1:])


def test_weights_from_before_a_training_diverged_are_kept() -> None:
    """For real: a rate that is far too high, from weights that are already good."""
    good = fit(net(dropout=0), TRAIN, VALIDATION, settings(epochs=8), seed=0).model
    wild = fit(good, TRAIN, VALIDATION, settings(learning_rate=30.0, schedule="constant"), seed=0)
    assert min(wild.validation) < accuracy(good) - 0.2
    assert wild.best_epoch == 0
    assert state_digest(wild.model) == state_digest(good)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_loss_that_is_not_finite_names_the_epoch_and_the_rate(optimizer: str) -> None:
    class Explodes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.calls = nn.Linear(3, 3), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += self.training  # two batches an epoch
            out: Tensor = self.layer(x) * (float("nan") if self.calls > 2 and self.training else 1.0)
            return out

    asked = settings(batch_size=32, optimizer=optimizer, learning_rate=0.125)
    with pytest.raises(PreconditionError, match=r"^tuning: the loss became nan in epoch 2, in") as caught:
        fit(Explodes(), TRAIN, VALIDATION, asked, seed=0, what="tuning")
    order = np.random.default_rng([0, 2]).permutation(60)
    first = ", ".join(map(str, order[:5]))
    assert f"batch of cases {first} and 27 more, whose inputs are finite; lower" in str(caught.value)
    assert "learning_rate (now 0.125)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_answers_that_are_not_finite_after_the_last_step_are_found() -> None:
    huge = settings(learning_rate=1e30, epochs=1, batch_size=60, momentum=0)
    with pytest.raises(PreconditionError, match=r"in epoch 1; lower learning_rate \(now 1e\+30\)"):
        fit(nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 3)), TRAIN, VALIDATION, huge, seed=0)


@pytest.mark.parametrize(("n", "size"), [(33, 16), (17, 16), (16, 16), (5, 16), (3, 1), (2, 1), (1, 1)])
def test_every_row_is_read_once_but_a_last_batch_of_one(n: int, size: int) -> None:
    rows = list(epoch_rows(np.random.default_rng(0), n, size))
    read = np.sort(np.concatenate(rows))
    alone = n % size == 1 and size > 1 and n > 1
    assert len(read) == n - alone
    assert len(np.unique(read)) == len(read)
    assert size == 1 or n == 1 or min(map(len, rows)) > 1
    assert steps(n, settings(batch_size=size)) == len(rows)


def test_another_row_is_left_out_each_epoch() -> None:
    order = np.random.default_rng(0)
    left = [set(range(17)) - set(np.concatenate(list(epoch_rows(order, 17, 16)))) for _ in range(5)]
    assert len({next(iter(rows)) for rows in left}) > 1


@pytest.mark.parametrize(("n", "size"), [(17, 16), (33, 16), (6, 1)])
def test_the_reported_loss_is_the_mean_over_the_rows_that_were_used(n: int, size: int) -> None:
    """At a rate that changes nothing, for a model that answers the same for all: exactly ln 3."""

    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.zero = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return (x * 0 * self.zero)[:, :3]

    fitted = fit(Same(), blobs(n, 0), VALIDATION, settings(batch_size=size, learning_rate=1e-12), seed=0)
    assert fitted.loss == pytest.approx([np.log(3)] * 3)


def test_batches_of_one_train_too() -> None:
    model = nn.Linear(3, 3)
    fitted = fit(model, TRAIN, VALIDATION, settings(batch_size=1, epochs=2), seed=0)
    assert accuracy(fitted.model) > 0.8


class Lazy(Sequence[np.ndarray]):
    """Inputs that are read one by one, and counted."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows, self.reads = rows, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self.rows):
            raise IndexError(index)
        self.reads += 1
        return self.rows[index]


def test_reading_lazily_gives_the_same_weights_as_reading_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    split, cases = TRAIN
    at_once, lazily = Lazy(np.stack(list(split.inputs))), Lazy(np.stack(list(split.inputs)))
    first = fit(net(), (replace(split, inputs=at_once), cases), VALIDATION, settings(), seed=0)
    monkeypatch.setattr(pastille.train.batches, "_IN_MEMORY_BYTES", split.n * 3 * 4 - 1)
    second = fit(net(), (replace(split, inputs=lazily), cases), VALIDATION, settings(), seed=0)
    assert state_digest(first.model) == state_digest(second.model)
    assert at_once.reads == split.n + 1  # one to see how large it is
    assert lazily.reads == 3 * split.n + 1


@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["lazily", "at once"])
def test_batches_are_read_in_the_order_that_is_asked(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pastille.train.batches, "_IN_MEMORY_BYTES", limit)
    inputs = [{"ids": np.array([i]), "mask": np.array([1.0, i], np.float32)} for i in range(6)]
    batch = reader(paired(inputs, np.arange(6), "multiclass", LABELS)[0])(np.array([4, 0, 5]))
    assert batch["ids"].tolist() == [[4], [0], [5]]
    assert batch["mask"][:, 1].tolist() == [4.0, 0.0, 5.0]


def test_augmentation_sees_training_batches_and_a_seeded_generator() -> None:
    seen: list[tuple[tuple[int, ...], float]] = []

    def augment(x: Tensor, generator: torch.Generator) -> Tensor:
        seen.append((tuple(x.shape), float(torch.rand(1, generator=generator))))
        return x

    for _ in range(2):
        fit(net(), TRAIN, VALIDATION, settings(epochs=2, batch_size=30), seed=5, augment=augment)
    assert [shape for shape, _ in seen[:4]] == [(30, 3)] * 4  # never validation
    assert seen[:4] == seen[4:]
    assert len({drawn for _, drawn in seen[:4]}) == 4  # another at each step


@pytest.mark.parametrize(
    "augment",
    [
        lambda x, _: x + torch.randn(x.shape),
        lambda x, _: x + torch.from_numpy(np.random.normal(size=tuple(x.shape)).astype(np.float32)),  # noqa: NPY002
        lambda x, _: x * random.random(),
    ],
    ids=["torch", "numpy", "python"],
)
@pytest.mark.parametrize("views", [None, 2])
def test_augmentation_that_draws_from_global_generators_follows_the_seed_too(
    augment: Any, views: int | None
) -> None:
    """As transforms of torchvision do, which take no generator."""
    found, after = [], []
    for seed in (0, 1):
        model = net()
        torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)  # noqa: NPY002
        drawn = fit(model, TRAIN, VALIDATION, settings(), seed=0, augment=augment, extras=Extras(views=views))
        found.append(state_digest(drawn.model))
        after.append([float(torch.rand(1)), np.random.random(), random.random()])  # noqa: NPY002
        torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)  # noqa: NPY002
        assert after[-1] == [float(torch.rand(1)), np.random.random(), random.random()]  # noqa: NPY002
    assert found[0] == found[1]
    one = fit(net(), TRAIN, VALIDATION, settings(), seed=1, augment=augment).model
    assert state_digest(one) != found[0]


def test_augmentation_changes_what_is_learned_and_not_the_data() -> None:
    before = np.stack(list(TRAIN[0].inputs)).copy()

    def in_place(x: Tensor, generator: torch.Generator) -> Tensor:
        return x.neg_()

    fitted = fit(net(dropout=0), TRAIN, VALIDATION, settings(epochs=6), seed=0, augment=in_place)
    assert accuracy(fitted.model) < 0.6
    assert np.array_equal(np.stack(list(TRAIN[0].inputs)), before)


@pytest.mark.parametrize(
    ("augment", "problem"),
    [
        (
            lambda x, g: x[:1],
            r"augment must return torch.float32 \(16, 3\) as it is given, got torch.float32 \(1, 3\)",
        ),
        (lambda x, g: x.double(), r"augment must return .* got torch.float64 \(16, 3\)"),
        (lambda x, g: None, r"augment must return .* got NoneType"),
        (lambda x, g: x.view(7, 7), r"augment raised RuntimeError: "),
        (lambda x: x, r"augment raised TypeError: "),
    ],
)
def test_augmentation_that_fails(augment: Any, problem: str) -> None:
    with pytest.raises(PreconditionError, match=problem) as caught:
        fit(net(), TRAIN, VALIDATION, settings(), seed=0, augment=augment)
    assert "\n" not in str(caught.value)


class Sums(nn.Module):
    """Two named inputs, one of them of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(3, 4), nn.Linear(4, 3)

    def forward(self, ids: Tensor, scale: Tensor) -> Tensor:
        out: Tensor = self.head(self.embed(ids).sum(dim=1) * scale)
        return out


def named(n: int) -> tuple[Any, Any]:
    targets = np.arange(n) % 3
    inputs = [{"ids": np.array([t, t]), "scale": np.ones(1, np.float32)} for t in targets]
    return paired(inputs, targets, "multiclass", LABELS)


def test_named_inputs() -> None:
    fitted = fit(Sums(), named(30), named(9), settings(epochs=20), seed=0)
    assert max(fitted.validation) == 1.0


def test_augmentation_of_several_inputs_is_refused() -> None:
    with pytest.raises(
        PreconditionError, match="augment takes a model's only input, but this one has ids, scale"
    ):
        fit(Sums(), named(30), named(9), settings(), seed=0, augment=noisy)


def test_frozen_parameters_stay_and_a_frozen_model_is_refused() -> None:
    model = net()
    model.get_submodule("0").requires_grad_(False)
    fitted = fit(model, TRAIN, VALIDATION, settings(), seed=0)
    assert torch.equal(fitted.model.get_parameter("0.weight"), model.get_parameter("0.weight"))
    assert not torch.equal(fitted.model.get_parameter("4.weight"), model.get_parameter("4.weight"))
    with pytest.raises(PreconditionError, match="none of its parameters requires a gradient"):
        fit(model.requires_grad_(False), TRAIN, VALIDATION, settings(), seed=0)


def test_a_model_that_fails_in_train_mode_is_one_line() -> None:
    class Fails(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise ValueError("targets\nare required")
            return super().forward(x)

    with pytest.raises(PreconditionError, match="cannot be trained: ValueError: targets are required"):
        fit(Fails(3, 3), TRAIN, VALIDATION, settings(), seed=0)


def test_the_first_of_several_answers_is_trained() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.other = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.head(x), self.other(x)

    fitted: Fitted = fit(Pair(), TRAIN, VALIDATION, settings(epochs=6), seed=0)
    assert max(fitted.validation) > 0.8
    assert forward(fitted.model, {"input": torch.ones(2, 3)}).shape == (2, 3)


def with_nan(cases: list[int]) -> tuple[Any, Any]:
    split, held = TRAIN
    inputs = np.array(split.inputs)
    inputs[cases, 1] = np.nan
    return replace(split, inputs=inputs, ids=np.array([f"p{i}" for i in range(60)])), held


def test_cases_whose_inputs_are_not_finite_are_named() -> None:
    with pytest.raises(PreconditionError) as caught:
        fit(net(), with_nan([7, 30]), VALIDATION, settings(batch_size=60), seed=0)
    said = str(caught.value)
    assert "epoch 1: the inputs of cases p" in said
    assert {"p7", "p30"} <= set(said.replace(",", " ").split())
    assert said.endswith("hold NaN or infinity; mend them")


def test_a_training_ends_at_the_step_that_shows_that_it_diverged() -> None:
    """On a CPU each loss is looked at."""
    calls: list[int] = []

    def counted(x: Tensor, generator: torch.Generator) -> Tensor:
        calls.append(len(x))
        return x * float("nan") if len(calls) == 6 else x

    with pytest.raises(PreconditionError, match="nan in epoch 2"):
        fit(net(), TRAIN, VALIDATION, settings(), seed=0, augment=counted)
    assert len(calls) == 6


@pytest.mark.parametrize("counts_from", [0.0, 0.6])
def test_patience_counts_epochs_that_may_be_kept(counts_from: float, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = [0.9, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.04, 0.03, 0.02, 0.01]
    watched(monkeypatch, scores[1:] if counts_from else scores)
    extras = Extras(counts_from=counts_from)
    fitted = fit(net(), TRAIN, VALIDATION, settings(epochs=10, patience=2), seed=0, extras=extras)
    last, best = (8, 6) if counts_from else (2, 0)
    assert (len(fitted.validation), fitted.best_epoch) == (last, best)
    assert fitted.stopped == f"ended after epoch {last}: none of the last 2 was better"


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.flatten() for p in model.parameters()])


def test_long_gradients_are_clipped() -> None:
    norms: list[float] = []

    def noted(model: nn.Module) -> None:
        norms.append(
            float(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm())
        )

    before, after = net(dropout=0), []
    asked = settings(epochs=1, batch_size=60, momentum=0, weight_decay=0, clip_norm=1e-3)
    for given in (asked, asked.model_copy(update={"clip_norm": None})):
        extras = Extras(before_step=noted, counts_from=1.0)
        after.append(fit(before, TRAIN, VALIDATION, given, seed=0, extras=extras).model)
    with torch.no_grad():
        moved = [float((flat(model) - flat(before)).norm()) for model in after]
    assert moved[0] == pytest.approx(0.05 * 1e-3, rel=0.01)
    assert moved[1] == pytest.approx(0.05 * norms[1], rel=0.01)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.SyncBatchNorm])
@pytest.mark.parametrize(("n", "size"), [(30, 1), (1, 16)])
def test_batch_norm_of_one_case_is_refused_before_the_first_step(kind: type, n: int, size: int) -> None:
    model = nn.Sequential(nn.Linear(3, 8), kind(8), nn.Linear(8, 3))
    with pytest.raises(
        PreconditionError, match=r"batch norms such as 1 need two cases .* raise it"
    ) as caught:
        fit(model, blobs(n, 0), VALIDATION, settings(batch_size=size), seed=0)
    assert f"batch_size {size}, {n} cases" in str(caught.value)


def test_a_batch_norm_that_is_frozen_may_see_one_case() -> None:
    class Frozen(nn.BatchNorm1d):
        def train(self, mode: bool = True) -> Frozen:
            super().train(False)
            return self

    model = nn.Sequential(nn.Linear(3, 8), Frozen(8), nn.Linear(8, 3))
    assert fit(model, TRAIN, VALIDATION, settings(batch_size=1, epochs=1), seed=0).loss


@pytest.mark.parametrize("empty", ["train", "validation"])
def test_no_case_is_refused(empty: str) -> None:
    data = {"train": TRAIN, "validation": VALIDATION, empty: blobs(0, 0)}
    with pytest.raises(PreconditionError, match=f"there is no case in {empty}; training needs both"):
        fit(net(), data["train"], data["validation"], settings(), seed=0)


class Noted(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_epochs_that_take_long_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Noted()
    fit(net(), TRAIN, VALIDATION, settings(), seed=0, progress=told)
    assert len(told.notes) == 1
    monkeypatch.setattr(pastille.train.loop, "_LONG_S", 0.0)
    found = fit(net(), TRAIN, VALIDATION, settings(), seed=0, progress=told, what="tuning")
    expected = (
        f"tuning: epoch 2 of 3: loss {found.loss[1]:.3f}, validation accuracy {found.validation[1]:.3f}"
    )
    assert told.notes[2] == expected


@pytest.mark.parametrize("precision", ["bf16", "auto"])
def test_lower_precision_learns_as_well(precision: str) -> None:
    asked = settings(epochs=8, precision=precision)
    fitted = fit(net(), TRAIN, VALIDATION, asked, seed=0)
    assert accuracy(fitted.model) > 0.9
    assert {p.dtype for p in fitted.model.parameters()} == {torch.float32}


def test_an_epoch_is_scored_by_the_answers_of_the_model_as_it_ships() -> None:
    """In full precision, which is what is exported; half of it would tell close answers apart no more."""
    seen: list[np.ndarray] = []

    def value(found: np.ndarray) -> float:
        seen.append(found)
        return 0.0  # on a tie the later epoch stays

    extras = Extras(chosen_by=Choice(metric="accuracy", value=value))
    asked = settings(epochs=2, precision="bf16")
    fitted = fit(net(), TRAIN, VALIDATION, asked, seed=0, extras=extras)
    with torch.no_grad():
        answers = fitted.model(torch.from_numpy(np.asarray(VALIDATION[0].inputs)))
    np.testing.assert_array_equal(seen[-1], answers.numpy())


def test_answers_reach_the_loss_in_full_precision() -> None:
    seen: list[torch.dtype] = []

    def loss(batch: Drawn, outputs: Tensor) -> Tensor:
        seen.append(outputs.dtype)
        return outputs.square().mean()

    extras = Extras(objective=lambda _: Objective(loss=loss))
    fit(net(), TRAIN, VALIDATION, settings(epochs=1, precision="bf16"), seed=0, extras=extras)
    assert set(seen) == {torch.float32}


def test_fp16_needs_a_gpu() -> None:
    with pytest.raises(PreconditionError, match="fp16 needs a CUDA device, but this training runs on cpu"):
        dtype_for("fp16", "cpu")


def test_auto_takes_bf16_where_there_are_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, expected in (
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False}, None),
        ({}, None),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flags=flags: flags)
        assert dtype_for("auto", "cpu") == expected


def test_targets_are_those_that_metrics_read() -> None:
    """Where the two differ, as with labels that are counted from another number."""
    split, held = TRAIN
    off = replace(split, targets=(split.targets + 1) % 3)
    one, other = (fit(net(), (s, held), VALIDATION, settings(), seed=0) for s in (split, off))
    assert state_digest(one.model) == state_digest(other.model)

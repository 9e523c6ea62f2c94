"""What a student minimises, as a whole."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pastille.data.split import Split
from pastille.distillation import distillation_loss
from pastille.distillation.layers import proposed_pairs, watched
from pastille.distillation.objective import HINT_LOSSES, taught
from pastille.distillation.teaching import Live, Told
from pastille.errors import PreconditionError
from pastille.recipe import Annealed, Distill, Hints, Train
from pastille.task.forward import forward
from pastille.train import Extras, Objective, fit
from pastille.train.batches import Drawn
from pastille.values import Cases


def drawn(inputs: Mapping[str, torch.Tensor], targets: torch.Tensor, done: float = 0.0) -> Drawn:
    n = len(targets)
    return Drawn(
        inputs=dict(inputs),
        targets=targets,
        rows=np.arange(n),
        of=n,
        step=0,
        epoch=1,
        ends_epoch=False,
        done=done,
        view=0,
    )


def labels(batch: Drawn, outputs: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs, batch.targets)


def convolutional(width: int) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(2 * width, 3),
    )


class Reader(nn.Module):
    """A transformer over padded tokens."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        torch.manual_seed(width)
        self.words = nn.Embedding(20, width)
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers)
        self.head = nn.Linear(width, 3)

    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        seen = self.encoder(self.words(ids), src_key_padding_mask=~attention_mask.bool())
        return self.head(seen[:, 0])  # type: ignore[no-any-return]


IMAGES = {"input": torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))}
TOKENS = {
    "ids": torch.randint(20, (12, 6), generator=torch.Generator().manual_seed(0)),
    "attention_mask": (torch.arange(6) < torch.arange(12)[:, None] % 4 + 3).long(),
}
TARGETS = torch.arange(12) % 3
LOSSES = get_args(Hints.model_fields["loss"].annotation)


def nets(loss: str) -> tuple[nn.Module, nn.Module, dict[str, torch.Tensor]]:
    if loss in ("minilm", "hidden"):
        return Reader(8, 1), Reader(16, 2), TOKENS
    return convolutional(2), convolutional(4), IMAGES


def objective_of(loss: str, asked: Distill) -> tuple[nn.Module, nn.Module, Objective, Drawn]:
    student, teacher, batch = nets(loss)
    assert asked.hints is not None
    pairs = proposed_pairs(student, teacher, batch, asked.hints)
    teaching = Live([teacher], layers=[p.teacher for p in pairs])
    made = taught(labels, teaching, asked, kind="multiclass", pairs=pairs)(student)
    return student, teaching.teachers[0], made, drawn(batch, TARGETS)


def test_every_loss_of_the_recipe_exists() -> None:
    assert set(LOSSES) == set(HINT_LOSSES)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_reach_the_student_and_its_projections_alone(loss: str) -> None:
    asked = Distill(alpha=1.0, hints=Hints(loss=loss))
    student, teacher, objective, batch = objective_of(loss, asked)
    objective.loss(batch, forward(student, batch.inputs)).backward()  # type: ignore[no-untyped-call]
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert (objective.learned is not None) == (loss in ("fitnets", "hidden"))
    for p in objective.learned.parameters() if objective.learned else ():
        assert p.grad is not None
        assert float(p.grad.abs().max()) > 0


@pytest.mark.parametrize("loss", LOSSES)
def test_a_hint_is_taken(loss: str) -> None:
    """Trained on hints all but alone, what is left of their loss falls below half."""
    asked = Distill(alpha=1.0, hints=Hints(loss=loss, weight=1e4))
    student, _, objective, batch = objective_of(loss, asked)
    beside = [] if objective.learned is None else list(objective.learned.parameters())
    optimizer = torch.optim.Adam([*student.parameters(), *beside], 0.02)
    values = []
    for _ in range(80):
        optimizer.zero_grad()
        value = objective.loss(batch, forward(student, batch.inputs))
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        values.append(value.item())
    assert values[-1] < (0.75 if loss == "fitnets" else 0.5) * values[0]


def test_labels_answers_and_hints_are_weighed_as_asked() -> None:
    asked = Distill(
        alpha=Annealed(start=0.8, end=0.4),
        temperature=Annealed(start=6.0, end=2.0),
        hints=Hints(loss="similarity", weight=3.0),
    )
    student, teacher, objective, batch = objective_of("similarity", asked)
    halfway = drawn(batch.inputs, batch.targets, done=0.5)
    outputs = forward(student, batch.inputs)
    told = forward(teacher, batch.inputs)
    found = objective.loss(halfway, outputs).item()
    hints = []
    pairs = proposed_pairs(student, teacher, batch.inputs, Hints(loss="similarity"))
    for pair in pairs:
        ours, theirs = watched(student, [pair.student]), watched(teacher, [pair.teacher])
        forward(student, batch.inputs)
        forward(teacher, batch.inputs)
        maps = [x.flatten(2) for x in (ours.latest[pair.student], theirs.latest[pair.teacher])]
        hints.append(HINT_LOSSES["similarity"](maps[0], maps[1], None).item())
    like = distillation_loss(outputs, told, kind="multiclass", temperature=4.0).item()
    expected = 0.4 * labels(batch, outputs).item() + 0.6 * (like + 3 * np.mean(hints))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", ["minilm", "hidden", "fitnets"])
def test_what_stands_in_the_padding_is_not_learned(loss: str) -> None:
    student, teacher = Reader(8, 1), Reader(16, 2)
    hints = Hints(loss=loss)
    pairs = proposed_pairs(student, teacher, TOKENS, hints)
    live = Live([teacher], layers=[p.teacher for p in pairs])
    objective = taught(labels, live, Distill(hints=hints), kind="multiclass", pairs=pairs)(student)
    values = []
    for filler in (0, 7):
        ids = torch.where(TOKENS["attention_mask"].bool(), TOKENS["ids"], filler)
        batch = drawn(TOKENS | {"ids": ids}, TARGETS)
        values.append(objective.loss(batch, forward(student, batch.inputs)).item())
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_alpha_of_nothing_is_the_labels_alone() -> None:
    student, teacher, batch = nets("fitnets")
    made = taught(labels, Live([teacher]), Distill(alpha=0.0), kind="multiclass")(student)
    outputs = forward(student, batch)
    torch.testing.assert_close(made.loss(drawn(batch, TARGETS), outputs), F.cross_entropy(outputs, TARGETS))


def test_decoupled_follows_the_labels() -> None:
    """What is the target is said by the labels, not by the teacher."""
    told = torch.eye(3)[TARGETS.roll(1)] * 4
    outputs = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    asked = Distill(alpha=1.0, method="dkd")
    made = taught(labels, lambda _: Told(answers=told), asked, kind="multiclass")(nn.Identity())
    found = made.loss(drawn(IMAGES, TARGETS), outputs)
    given = {"kind": "multiclass", "temperature": 2.0, "method": "dkd"}
    torch.testing.assert_close(found, distillation_loss(outputs, told, targets=TARGETS, **given))  # type: ignore[arg-type]
    assert float(found) != pytest.approx(float(distillation_loss(outputs, told, **given)))  # type: ignore[arg-type]


def test_hints_without_layers_are_refused() -> None:
    with pytest.raises(PreconditionError, match=r"distill\.hints: this training knows no layers"):
        taught(labels, Live([convolutional(4)]), Distill(hints=Hints()), kind="multiclass")


def test_a_student_of_other_modules_is_refused() -> None:
    student, teacher, batch = nets("fitnets")
    pairs = proposed_pairs(student, teacher, batch, Hints())
    make = taught(labels, Live([teacher]), Distill(hints=Hints()), kind="multiclass", pairs=pairs)
    with pytest.raises(PreconditionError, match=r"distill\.hints\.layers: the model that is trained has no"):
        make(nn.Linear(2, 3))


def test_nothing_stays_on_a_student_once_it_is_taught() -> None:
    student, _, objective, _ = objective_of("fitnets", Distill(hints=Hints()))
    assert any(m._forward_hooks for m in student.modules())
    del objective
    gc.collect()
    assert not any(m._forward_hooks for m in student.modules())


def splits(n: int, *, seed: int) -> tuple[Split, Cases]:
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, 3, n)
    inputs = generator.normal(size=(n, 1, 8, 8)).astype(np.float32)
    inputs[np.arange(n), 0, targets * 2] += 1.0
    cases = Cases(kind="multiclass", split="train", targets=targets, labels=("a", "b", "c"))
    return Split(inputs=inputs, targets=targets), cases


@pytest.mark.parametrize("loss", ["fitnets", "attention"])
def test_a_training_with_hints_follows_from_its_arguments_alone(loss: str) -> None:
    student, teacher, _ = nets(loss)
    train, validation = splits(40, seed=0), splits(20, seed=1)
    asked = Distill(hints=Hints(loss=loss))
    pairs = proposed_pairs(student, teacher, IMAGES, Hints(loss=loss))
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        live = Live([teacher], layers=[p.teacher for p in pairs])
        extras = Extras(objective=taught(labels, live, asked, kind="multiclass", pairs=pairs))
        fitted = fit(student, train, validation, Train(epochs=2, batch_size=16), seed=0, extras=extras)
        assert not any(m._forward_hooks for m in fitted.model.modules())
        found.append(fitted)
    assert found[0].loss == found[1].loss
    torch.testing.assert_close(found[0].model.state_dict(), found[1].model.state_dict())


def digits(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))[rows]
    return torch.tensor(found.images[order] / 16, dtype=torch.float32).flatten(1), torch.tensor(
        found.target[order]
    )


def perceptron(width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def trained(
    model: nn.Module, steps: int, loss: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor
) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(x)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@pytest.mark.parametrize("method", ["kl", "dkd", "dist"])
def test_a_tiny_student_of_digits_does_better_with_a_teacher(method: str) -> None:
    """60 labels; the teacher learned from 1,200 and answers 600 cases without labels too."""
    (x, y), (few, truth) = digits(slice(0, 1200)), digits(slice(1200, None))
    teacher = perceptron(128, 0)
    trained(teacher, 200, lambda out: F.cross_entropy(out, y), x)
    told = teacher(x[:600]).detach()
    taught_well: list[float] = []
    alone: list[float] = []
    for seed in range(3):
        student, scratch = perceptron(16, seed), perceptron(16, seed)
        trained(
            student,
            150,
            lambda out: (
                F.cross_entropy(out[:60], y[:60])
                + distillation_loss(out, told, kind="multiclass", temperature=4.0, method=method)
            ),
            x[:600],
        )
        trained(scratch, 150, lambda out: F.cross_entropy(out[:60], y[:60]), x[:600])
        for model, scores in ((student, taught_well), (scratch, alone)):
            scores.append(float((model(few).argmax(dim=1) == truth).float().mean()))
    assert min(taught_well) > max(alone) + 0.05

"""One process of `test_train_places`: trains small models, and writes down what they came to.

Called as ``several_worker.py FOLDER``; the environment says how many there are, as a launcher does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pastille.data.cases import cases
from pastille.data.split import Split
from pastille.errors import PastilleError
from pastille.processes import end, here
from pastille.recipe import TaskSection, Train
from pastille.task.forward import forward
from pastille.train import Extras, Fitted, Objective, fit
from pastille.train.batches import Augment, Drawn
from pastille.train.loop import labels_alone
from pastille.train.places import place_for

N, SIZE, CLASSES = 50, 16, 3  # the last batch of an epoch has two cases


class Net(nn.Module):
    """Without batch norm; ``spare`` is never used."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.spare, self.head = nn.Linear(6, 8), nn.Linear(2, 2), nn.Linear(8, CLASSES)
        self.latest = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self.latest = self.inner(x)
        return self.head(torch.relu(self.latest))  # type: ignore[no-any-return]

    def __deepcopy__(self, memo: object) -> Net:  # what was computed last is no leaf, and no part of it
        new = Net()
        new.load_state_dict(self.state_dict())
        return new


def split(n: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(n, 6)).astype(np.float32)
    return Split(inputs=inputs, targets=(inputs[:, 0] > 0).astype(np.int64) + (inputs[:, 1] > 0.5))


def trained(
    settings: Train,
    *,
    validation: int = 21,
    extras: Extras | None = None,
    model: nn.Module | None = None,
    augment: Augment | None = None,
    odd: int | None = None,
) -> Fitted:
    task = TaskSection(kind="multiclass", labels=["a", "b", "c"], positive=["c"], model="m.py:m")
    train, held = split(N, 1), split(validation, 2)
    if odd is not None:
        train.inputs[odd] = np.nan  # type: ignore[index]
    pairs = ((train, cases(train, "train", task)), (held, cases(held, "validation", task)))
    # The last epoch counts alone, so that what is compared was trained.
    last = replace(extras or Extras(), counts_from=1.0)
    return fit(model or Net(), *pairs, settings, seed=3, augment=augment, extras=last)


def hinted(model: nn.Module) -> Objective:
    """The labels, and features of a teacher through a projection that is learned."""
    torch.manual_seed(5)
    teacher, projection = nn.Linear(6, 4), nn.Linear(8, 4)
    task = TaskSection(kind="multiclass", labels=["a", "b", "c"], positive=["c"], model="m.py:m")
    train = split(N, 1)
    labels = labels_alone(cases(train, "train", task), Train(epochs=1)).loss

    def loss(batch: Drawn, outputs: Tensor) -> Tensor:
        with torch.no_grad():
            told = forward(teacher, batch.inputs)
        like = nn.functional.mse_loss(projection(model.get_submodule("").latest), told)
        return labels(batch, outputs) + like

    return Objective(loss=loss, learned=projection)


def train_as(**changes: object) -> Train:
    return Train.model_validate({"epochs": 2, "batch_size": SIZE, "learning_rate": 0.05} | changes)


TRAININGS: dict[str, Callable[[], Fitted]] = {
    "sgd": lambda: trained(train_as()),
    "adamw": lambda: trained(train_as(optimizer="adamw", learning_rate=0.01)),
    "clipped": lambda: trained(train_as(clip_norm=0.1)),
    "hinted": lambda: trained(train_as(), extras=Extras(objective=hinted)),
    "penalised": lambda: trained(train_as(), extras=Extras(penalty=lambda m, *_: sum_of_squares(m))),
}


def sum_of_squares(model: nn.Module) -> Tensor:
    used = [p for name, p in model.named_parameters() if not name.startswith("spare")]
    return 0.1 * torch.stack([p.square().sum() for p in used]).sum()


def refused() -> dict[str, str]:
    """What is said where there are more processes than cases."""
    found = {}
    for what, settings, validation in (
        ("batch_size", train_as(batch_size=1), 21),
        ("validation", train_as(), 1),
    ):
        try:
            trained(settings, validation=validation)
        except PastilleError as error:
            found[what] = str(error)
    return found


def normed() -> float:
    """The loss of an epoch of a model that needs two cases at a time, as its last batch holds."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))
    return trained(train_as(epochs=1), model=net).loss[0]


def drawn_by_augmentation() -> list[int]:
    """The first number that the augmentation of each step is given."""
    found: list[int] = []

    def augment(x: Tensor, generator: torch.Generator) -> Tensor:
        found.append(int(torch.randint(1 << 40, (1,), generator=generator)))
        return x

    trained(train_as(epochs=1), augment=augment)
    return found


def diverged() -> str:
    """What is said where one case, which one process alone sees, holds NaN."""
    try:
        trained(train_as(), odd=7)
    except PastilleError as error:
        return str(error)
    return ""


def main(folder: Path) -> None:
    among = here()
    told: dict[str, object] = {}
    for name, train in TRAININGS.items():
        fitted = train()
        state = {key: x.numpy() for key, x in fitted.model.state_dict().items()}
        np.savez(folder / f"{name}-{among.rank}of{among.world}.npz", **state)
        told[name] = {"loss": fitted.loss, "validation": fitted.validation}
    place = place_for()
    rows = np.arange(7)
    told["shares"] = [int(r) for r in place.share(rows)][: place.own(7)]
    told["gathered"] = place.gathered(torch.from_numpy(place.share(rows)) * 2.0, 7).tolist()
    told["agreed"] = among.agreed(lambda: among.agreed(lambda: ["of", among.rank]))
    told["refused"] = refused()
    told["normed"] = normed()
    told["drawn"] = drawn_by_augmentation()
    told["diverged"] = diverged()
    (folder / f"told-{among.rank}of{among.world}.json").write_text(json.dumps(told))
    end()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

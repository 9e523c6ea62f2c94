"""Training, top to bottom: a copy of the model goes in, the best epoch's model comes out."""

from __future__ import annotations

import copy
import math
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from pastille.data.split import Split
from pastille.errors import IntegrityError, PastilleError, PreconditionError
from pastille.processes import here
from pastille.progress import SILENT, Progress
from pastille.recipe import Train
from pastille.references import one_line
from pastille.task.forward import forward
from pastille.train.batches import (
    Augment,
    Drawn,
    drawn,
    names_of,
    odd_rows,
    require_batches,
    seed_everything,
    seed_of,
    steps,
)
from pastille.train.checkpoint import Checkpoint, Kept, Standing, key_of
from pastille.train.course import Course, Look
from pastille.train.extras import PLAIN, Extras, Objective
from pastille.train.losses import labels_loss
from pastille.train.moving import decay_at, follow
from pastille.train.optimizing import Momenta, optimizer_for, rate
from pastille.train.places import Place, place_for
from pastille.train.scoring import Choice, choice_for, scorer
from pastille.values import Cases

if TYPE_CHECKING:
    from torch import Tensor, nn

_LOOK_EVERY: Final = 64  # steps: each look at a loss would wait for a GPU, or for the other processes
_LONG_S: Final = 10.0  # epochs that take longer are told one by one
_KEPT: Final = "kept "  # name in a checkpoint, and a number


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A trained model and how it came about.

    Attributes:
        model: In eval mode, the weights of the best epoch.
        metric: What "best" means, on validation; see `pastille.stats.metrics.selection_metric`.
        loss: Mean training loss of each epoch.
        validation: The metric after each epoch.
        best_epoch: Counted from 1; 0 if no epoch beat the model that was given.
        score: The metric of ``model``, the best epoch's.
        stopped: Why it ended early, in a sentence; "" if it did not.
    """

    model: nn.Module
    metric: str
    loss: tuple[float, ...]
    validation: tuple[float, ...]
    best_epoch: int
    score: float
    stopped: str = ""


def fit(
    model: nn.Module,
    train: tuple[Split, Cases],
    validation: tuple[Split, Cases],
    settings: Train,
    *,
    seed: int,
    augment: Augment | None = None,
    extras: Extras = PLAIN,
    keep: Path | None = None,
    progress: Progress = SILENT,
    what: str = "fine-tuning",
) -> Fitted:
    """Train a copy of a model on labels and keep the epoch that is best on validation.

    The result depends on the arguments alone: what is random in a step follows from the seed and the
    number of the step, so a training that was killed goes on as if it had not been.

    Args:
        model: Not modified.
        train: Inputs with their targets.
        validation: Likewise; scored after every epoch.
        settings: Epochs, optimizer and schedule.
        seed: Of everything random.
        augment: Called with a batch of the only input ``(N, …)`` and a seeded generator.
        extras: What else is to be done at each step.
        keep: A folder of this training alone: where it stands is kept there after epochs, and every minute
            within one; it is taken up after a kill, and removed at the end.
        progress: Shown step by step.
        what: Name of the training in the progress.

    Raises:
        PreconditionError: The loss or an answer became NaN or infinite, the epoch and the cases are named;
            the model cannot be trained; or the augmentation failed.
        OutputError: ``keep`` cannot be written.
    """
    place = place_for(settings.precision)
    train = (replace(train[0], targets=train[1].targets), train[1])  # as the metrics read them
    lesson = _Lesson(
        train=train,
        validation=validation,
        settings=settings,
        seed=seed,
        extras=extras,
        progress=progress,
        what=what,
    )
    training = _Training(model, lesson, place, keep)
    batches = drawn(
        train[0],
        settings,
        seed=seed,
        start=training.course.step,
        augment=augment,
        views=extras.views,
        share=place.share,
        device=place.device,
    )
    with _own_numbers(place.device):
        for batch in progress.track(batches, what=what, total=training.left):
            if training.step(batch):
                break
    progress.note(f"{what}: {training.outcome()}")
    return training.fitted()


def _own_numbers(device: str) -> AbstractContextManager[object]:
    """Dropout draws from the global generators, which the caller keeps: those of the devices in use."""
    devices = [torch.cuda.current_device()] if device == "cuda" else []
    return torch.random.fork_rng(devices=devices)


def labels_alone(cases: Cases, settings: Train) -> Objective:
    """The loss of the labels, by the recipe's settings."""
    labels = labels_loss(cases, settings)
    return Objective(loss=lambda batch, outputs: labels(outputs, batch.targets))


@dataclass(frozen=True, kw_only=True)
class _Lesson:
    """What `fit` was given beside the model."""

    train: tuple[Split, Cases]
    validation: tuple[Split, Cases]
    settings: Train
    seed: int
    extras: Extras
    progress: Progress
    what: str

    def choice(self) -> Choice:
        """What the best epoch is chosen by."""
        balanced = self.settings.class_weights == "balanced"
        return self.extras.chosen_by or choice_for(self.validation[1], balanced=balanced)

    def objective(self, model: nn.Module) -> Objective:
        """What is minimised."""
        own = self.extras.objective
        return own(model) if own else labels_alone(self.train[1], self.settings)

    def splits(self) -> dict[str, Split]:
        """By name."""
        return {"train": self.train[0], "validation": self.validation[0]}

    def checkpoint(self, model: nn.Module, keep: Path | None) -> Checkpoint | None:
        """Of this training of this model; None where it is not to be kept."""
        if keep is None:
            return None
        what = f"{self.what}, {self.extras.views} views"
        key = key_of(self.settings, self.seed, model, self.splits(), what=what)
        return Checkpoint(folder=keep, key=key)


class _Training:
    """One training on its way: what `fit` does at each step, and at the end of each epoch."""

    def __init__(self, model: nn.Module, lesson: _Lesson, place: Place, keep: Path | None) -> None:
        self._lesson, self._place = lesson, place
        self._settings, self._extras = lesson.settings, lesson.extras
        self._checkpoint = lesson.checkpoint(model, keep)
        self._model = copy.deepcopy(model).to(place.device)
        require_batches(self._model.train(), self._settings, lesson.splits(), place)
        # What is scored and kept: a moving average of the weights, or they themselves.
        self._scored = copy.deepcopy(self._model) if self._settings.ema else self._model
        objective, self._choice = lesson.objective(self._model), lesson.choice()
        learned = None if objective.learned is None else objective.learned.to(place.device)
        self._optimizer = optimizer_for([self._model, *([learned] if learned else [])], self._settings)
        self._called, self._loss_of = place.wrapped(self._model, self._optimizer), objective.loss
        self._score = scorer(lesson.validation[0], self._choice, place)
        self._total = self._settings.epochs * steps(lesson.train[0].n, self._settings)
        self._epoch, self._since = 0, time.monotonic()
        self._parts: dict[str, Kept] = {
            "model": self._model,
            "optimizer": Momenta(optimizer=self._optimizer),
            "place": place,
            **({"average": self._scored} if self._settings.ema else {}),
            **({"learned": learned} if learned else {}),
            **{f"{_KEPT}{number}": kept for number, kept in enumerate(self._extras.kept)},
        }
        self.course = self._taken_up() or self._begun()

    @property
    def left(self) -> int:
        """How many steps there will be at most."""
        return self._total - self.course.step

    def step(self, batch: Drawn) -> bool:
        """One step of the optimizer; whether it was the last."""
        extras, place, model, done = self._extras, self._place, self._model, (batch.step + 1) / self._total
        if batch.epoch != self._epoch:
            self._begin(batch.epoch)
        seed_everything(seed_of(self._lesson.seed, batch.step, place.rank), place.device)
        for group in self._optimizer.param_groups:
            group["lr"] = self._settings.learning_rate * rate(batch.step, self._total, self._settings)
        loss = self._forward_and_backward(batch, done)
        if extras.before_step is not None:
            extras.before_step(model)
        place.step(self._optimizer, self._settings.clip_norm)
        if extras.after_step is not None:
            extras.after_step(model, done)
        if self._settings.ema is not None:
            follow(self._scored, model, decay_at(batch.step, self._settings.ema))
        self.course.stepped(loss.detach(), batch, own=place.own(batch.of))
        return self._looked(batch)

    def _begin(self, epoch: int) -> None:
        self._epoch, self._since = epoch, time.monotonic()
        self._model.train()
        if self._extras.before_epoch is not None:
            self._extras.before_epoch(self._model, epoch)

    def _forward_and_backward(self, batch: Drawn, done: float) -> Tensor:
        try:
            with self._place.autocast():
                loss = self._loss_of(batch, forward(self._called, batch.inputs).float())
                if self._extras.penalty is not None:
                    loss = loss + self._extras.penalty(self._model, done)
            self._place.backward(loss, n=len(batch.rows), of=batch.of)
        except PastilleError:
            raise
        except Exception as error:
            raise PreconditionError(f"the model cannot be trained: {one_line(error, 200)}") from error
        return loss

    def _looked(self, batch: Drawn) -> bool:
        """See whether the loss is finite, the epoch done and a checkpoint due; whether the training ends."""
        free = self._place.device == "cpu" and self._place.processes == 1
        if not (free or batch.ends_epoch or (batch.step + 1) % _LOOK_EVERY == 0):
            return False
        writer = self._checkpoint if self._place.rank == 0 else None
        due = writer is not None and writer.due(ends_epoch=batch.ends_epoch)
        look = self.course.look(self._place, due=due)
        ends = (batch.ends_epoch or not look.finite) and self._ends(batch.epoch, look)
        if look.due and not ends and self.left:
            self._write()
        return ends

    def _ends(self, epoch: int, look: Look) -> bool:
        """Score the epoch, and say whether it was the last.

        Raises:
            PreconditionError: The loss or an answer is not finite.
        """
        course, extras, settings, model = self.course, self._extras, self._settings, self._scored
        loss = course.mean_loss()
        if not math.isfinite(loss) and extras.stop is None:
            raise PreconditionError(self._diverged("the loss", loss, epoch, self._of_all(look.rows)))
        value = self._value(epoch) if math.isfinite(loss) else -math.inf
        if (stop := extras.stop) is not None:
            course.stopped = here().agreed(lambda: stop(model, epoch, loss, value))
            if course.stopped:
                return True
        if not math.isfinite(value):
            raise PreconditionError(self._diverged("an answer", value, epoch))
        if course.scored(loss, value, counts=epoch >= extras.counts_from * settings.epochs):
            course.best_state = copy.deepcopy(model.state_dict())
        if settings.patience is not None and course.waited >= settings.patience:
            course.stopped = f"ended after epoch {epoch}: none of the last {settings.patience} was better"
        self._tell(epoch, loss, value)
        return bool(course.stopped)

    def _value(self, epoch: int) -> float:
        for model in {id(m): m for m in (self._model, self._scored)}.values():
            self._place.settled(model)
        if self._extras.after_epoch is not None:
            self._extras.after_epoch(self._scored, epoch)
        return self._score(self._scored)

    def _tell(self, epoch: int, loss: float, value: float) -> None:
        if time.monotonic() - self._since < _LONG_S:
            return
        name, lesson = self._choice.metric.replace("_", " "), self._lesson
        lesson.progress.note(
            f"{lesson.what}: epoch {epoch} of {self._settings.epochs}: loss {loss:.3f}, "
            f"validation {name} {value:.3f}"
        )

    def _of_all(self, rows: np.ndarray) -> np.ndarray:
        """What each process names, together."""
        if self._place.processes == 1:
            return rows
        named = torch.zeros(self._lesson.train[0].n, device=self._place.device)
        named[torch.from_numpy(rows).to(named.device)] = 1.0
        return self._place.total(named).nonzero().flatten().cpu().numpy()

    def _diverged(self, which: str, value: float, epoch: int, rows: np.ndarray | None = None) -> str:
        split, lower = self._lesson.train[0], f"lower learning_rate (now {self._settings.learning_rate:g})"
        said = f"{self._lesson.what}: {which} became {value} in epoch {epoch}"
        if rows is None:
            return f"{said}; {lower} or check the inputs"
        if len(odd := odd_rows(split, rows)):
            return f"{said}: the inputs of cases {names_of(split, odd)} hold NaN or infinity; mend them"
        return f"{said}, in the batch of cases {names_of(split, rows)}, whose inputs are finite; {lower}"

    def _begun(self) -> Course:
        score = -math.inf if self._extras.counts_from else self._score(self._scored)
        return Course(best=score, best_state=copy.deepcopy(self._scored.state_dict()))

    def _taken_up(self) -> Course | None:
        """Where an earlier process stood; None if there was none, or its checkpoint is of no use."""
        found = here().agreed(self._found)
        if found is None:
            return None
        for name, part in self._parts.items():
            tensors = found.tensors.get(name, {})
            if name.startswith(_KEPT):
                tensors = {key: x.to(self._place.device) for key, x in tensors.items()}
            part.load_state_dict(tensors)
        course = Course(best_state=found.tensors["best"], **found.numbers)
        self._lesson.progress.note(f"{self._lesson.what}: taken up after step {course.step} of {self._total}")
        return course

    def _found(self) -> Standing | None:
        try:
            return self._checkpoint.read() if self._checkpoint else None
        except IntegrityError as error:
            self._lesson.progress.note(f"{self._lesson.what}: {error}; it begins anew")
            return None

    def _write(self) -> None:
        """What of a model in several pieces is whole only if all of them take part: so all call this."""
        tensors = {name: part.state_dict() for name, part in self._parts.items()}
        if self._checkpoint is not None and self._place.rank == 0:
            course = self.course
            self._checkpoint.write(
                Standing(tensors={**tensors, "best": course.best_state}, numbers=course.numbers())
            )

    def outcome(self) -> str:
        """What came of it, in a sentence."""
        course, name = self.course, self._choice.metric.replace("_", " ")
        epochs = self._settings.epochs
        if course.best_epoch == 0:
            kept = f"no epoch of {epochs} beat the model before it (validation {name} {course.best:.4f})"
            return f"{kept}, which stays"
        return f"validation {name} {course.best:.4f} in epoch {course.best_epoch} of {epochs}"

    def fitted(self) -> Fitted:
        """The model of the best epoch."""
        course = self.course
        self._model.load_state_dict(course.best_state)
        if self._checkpoint is not None and self._place.rank == 0:
            self._checkpoint.remove()
        return Fitted(
            model=self._place.released(self._model).cpu().eval(),
            metric=self._choice.metric,
            loss=tuple(course.loss),
            validation=tuple(course.validation),
            best_epoch=course.best_epoch,
            score=course.best,
            stopped=course.stopped,
        )

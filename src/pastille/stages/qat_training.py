"""Training a simulated int8 file: the best epoch stays, and a run that diverges ends early."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from pastille.progress import Progress
from pastille.pruning.sparse import masked, zero_masks
from pastille.quantization.qat import measure_ranges
from pastille.quantization.simulation import Simulation
from pastille.recipe import Distill, Train
from pastille.record import Curve
from pastille.stages.lessons import taught_by
from pastille.stages.tuning import curve_of, labels_of
from pastille.task import Task
from pastille.task.forward import forward
from pastille.train import BatchLoss, Extras, Objective, fit
from pastille.train.batches import Augment, Batch, Drawn, drawn, steps
from pastille.train.places import Place, place_for
from pastille.train.scoring import Choice, choice_for, scorer

if TYPE_CHECKING:
    from torch import Tensor

WHAT = "training in int8"
_SLOWER = 10.0  # a trained model needs a tenth of the learning rate that trained it
_LOST = 0.75  # of what a model knew
_WORSE = 0.5  # of its loss, of one that knew next to nothing
_SAMPLE_BATCHES, _SAMPLE_CASES = 16, 512  # at least so many of each


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How well a model does.

    Attributes:
        loss: Mean over a sample of the training split.
        score: The metric on validation, the larger the better; minus infinity for answers that are not
            finite.
    """

    loss: float
    score: float


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A simulation after training, and how it came about.

    Attributes:
        model: In eval mode, with the best epoch's weights and ranges.
        curve: Of each epoch; its best epoch is 0 if none beat what quantization gave.
        stopped: Why it ended early, in a sentence; "" if it did not.
    """

    model: Simulation
    curve: Curve
    stopped: str


def train_in_int8(
    simulated: Simulation,
    settings: Train,
    task: Task,
    *,
    freeze_after: float,
    distill: tuple[Distill, nn.Module] | None,
    augment: Augment | None,
    progress: Progress,
    keep_zeros: bool = False,
    keep: Path | None = None,
) -> Trained:
    """Train a copy of a simulated int8 file, and keep the epoch that is best on validation.

    A run that diverges is stopped, and what was best before that is kept: at worst what quantization
    gave. The result depends on the arguments alone.

    Args:
        simulated: Not modified.
        settings: As in `pastille.train.fit`, but a tenth of the learning rate is taken.
        task: Train is learned from, validation chooses the epoch.
        freeze_after: Share of the epochs after which the ranges of activations stay as they are.
        distill: The float model to answer like, and how much; None for the labels alone.
        augment: As in `pastille.train.fit`.
        progress: Shown epoch by epoch.
        keep_zeros: Whether weights that are exactly zero stay so.
        keep: As in `pastille.train.fit`.

    Raises:
        PreconditionError: The model cannot be trained, or the augmentation failed.
    """
    settings = settings.model_copy(update={"learning_rate": settings.learning_rate / _SLOWER})
    lesson = _lesson(settings, task, distill)
    start = copy.deepcopy(simulated).to(lesson.place.device)
    measure_ranges(start, lesson.sample())
    first, blind = lesson.standing(start), lesson.standing(_blind(start, lesson))

    def follows(epoch: int) -> bool:
        return epoch <= math.ceil(freeze_after * settings.epochs)

    def before_epoch(model: nn.Module, epoch: int) -> None:
        assert isinstance(model, Simulation)
        of_epoch = steps(task.splits.train.n, settings)
        model.set_ranges("follow" if follows(epoch) else "fixed", batches=of_epoch)

    def after_epoch(model: nn.Module, epoch: int) -> None:
        assert isinstance(model, Simulation)
        model.set_ranges("fixed")
        if follows(epoch):
            measure_ranges(model, lesson.sample(), again=True)

    def stop(model: nn.Module, epoch: int, loss: float, score: float) -> str:
        now = Standing(loss=lesson.loss(model) if math.isfinite(loss) else loss, score=score)
        why = divergence(now, start=first, blind=blind, metric=lesson.choice.metric)
        return f"{WHAT} was stopped in epoch {epoch}: {why}" if why else ""

    zeros = zero_masks(start) if keep_zeros else {}
    fitted = fit(
        start,
        (task.splits.train, task.cases["train"]),
        (task.splits.validation, task.cases["validation"]),
        settings,
        seed=task.recipe.seed,
        augment=augment,
        extras=Extras(
            objective=lesson.objective,
            before_epoch=before_epoch,
            after_step=(lambda model, _done: masked(model, zeros)) if zeros else None,
            after_epoch=after_epoch,
            stop=stop,
        ),
        keep=keep,
        progress=progress,
        what=WHAT,
    )
    assert isinstance(fitted.model, Simulation)
    stopped = fitted.stopped
    if stopped.startswith(WHAT):  # and not by patience
        kept = f"epoch {fitted.best_epoch}" if fitted.best_epoch else "what quantization gave before it"
        stopped = f"{stopped}; {kept} is kept; lower learning_rate"
    return Trained(model=fitted.model, curve=curve_of(fitted, WHAT), stopped=stopped)


@dataclass(frozen=True, kw_only=True)
class _Lesson:
    """What is learned from, and judged by."""

    place: Place
    choice: Choice
    batches: Callable[[], Iterator[Drawn]]  # the same each time, not augmented
    objective: Callable[[nn.Module], Objective]
    score: Callable[[nn.Module], float]

    def sample(self) -> Iterator[Batch]:
        """Inputs alone."""
        return (batch.inputs for batch in self.batches())

    def loss(self, model: nn.Module) -> float:
        """Mean over the sample; the model is left in eval mode."""
        loss_of = self.objective(model).loss
        model.eval()
        with torch.no_grad():
            parts = [(loss_of(b, forward(model, b.inputs)).item(), len(b.rows)) for b in self.batches()]
        return sum(value * n for value, n in parts) / sum(n for _, n in parts)

    def standing(self, model: nn.Module) -> Standing:
        """How well a model does."""
        return Standing(loss=self.loss(model), score=self.score(model))


def _lesson(settings: Train, task: Task, distill: tuple[Distill, nn.Module] | None) -> _Lesson:
    place, labels = place_for(settings.precision), labels_of(settings, task)
    choice = choice_for(task.cases["validation"], balanced=settings.class_weights == "balanced")
    enough = max(_SAMPLE_BATCHES, math.ceil(_SAMPLE_CASES / settings.batch_size))
    once = settings.model_copy(update={"epochs": 1})

    train = replace(task.splits.train, targets=task.cases["train"].targets)

    def batches() -> Iterator[Drawn]:
        return islice(drawn(train, once, seed=task.recipe.seed, device=place.device), enough)

    objective = _objective(labels, distill, task)
    return _Lesson(
        place=place,
        choice=choice,
        batches=batches,
        objective=objective,
        score=scorer(task.splits.validation, choice, place),
    )


def _objective(
    labels: BatchLoss, distill: tuple[Distill, nn.Module] | None, task: Task
) -> Callable[[nn.Module], Objective]:
    if distill is None:
        return lambda _model: Objective(loss=labels)
    asked, teacher = distill
    return taught_by(labels, teacher, teacher, asked, task)


class _Constant(nn.Module):
    """A model that gives every case the same answer."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, *given: Tensor, **named: Tensor) -> Tensor:
        (first, *_) = (*given, *named.values())
        return self.answer.expand(len(first), *self.answer.shape[1:])


def _blind(model: Simulation, lesson: _Lesson) -> nn.Module:
    """A model that answers every case with another's mean answer: what knowing nothing is worth."""
    with torch.no_grad():
        answers = torch.cat([forward(model, batch).cpu() for batch in lesson.sample()])
    return _Constant(answers.mean(dim=0, keepdim=True).to(next(model.buffers()).device))


def divergence(now: Standing, *, start: Standing, blind: Standing, metric: str) -> str:
    """Why training must stop after an epoch, in a few words; "" if it need not.

    Losses and metrics have units of their own, R² is near 0 for a weak model and an error has no upper
    end. So both are held against a model that gives every case the same answer: an epoch has diverged
    where three quarters of what the start was better than that are lost. The loss alone may show it. A
    small validation split may lose as much by chance, and counts only where the loss rose as well, which
    training makes fall. A start that knew next to nothing may not lose half of its loss more.

    Args:
        now: After the epoch.
        start: Before training, as quantization gave it.
        blind: Of the model that gives every case the same answer.
        metric: Name of the metric.

    Example:
        >>> start, blind = Standing(loss=0.1, score=0.9), Standing(loss=1.1, score=0.5)
        >>> divergence(Standing(loss=0.3, score=0.8), start=start, blind=blind, metric="accuracy")
        ''
        >>> divergence(Standing(loss=1.1, score=0.5), start=start, blind=blind, metric="accuracy")
        'the loss went from 0.1000 to 1.1000'
    """
    if not math.isfinite(now.loss):
        return f"the loss became {now.loss}"
    if not math.isfinite(now.score):
        return "an answer became NaN or infinite"
    if now.loss > start.loss + max(_LOST * (blind.loss - start.loss), _WORSE * start.loss):
        return f"the loss went from {start.loss:.4f} to {now.loss:.4f}"
    lead = start.score - blind.score
    if now.loss > start.loss and lead > 0 and now.score < start.score - _LOST * lead:
        return f"validation {_spoken(metric)} went from {abs(start.score):.4f} to {abs(now.score):.4f}"
    return ""


def _spoken(metric: str) -> str:
    return metric.replace("_", " ")

"""Training a simulated int8 file: the best epoch stays, and a run that diverges ends early."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from pastille.errors import PreconditionError
from pastille.progress import Progress
from pastille.pruning.sparse import masked, zero_masks
from pastille.quantization.qat import measure_ranges
from pastille.quantization.simulation import Simulation
from pastille.recipe import Distill, Train
from pastille.record import Curve
from pastille.references import one_line
from pastille.task import Task
from pastille.task.forward import forward
from pastille.train.distillation import likeness
from pastille.train.loop import (
    Augment,
    Batch,
    augmented,
    choice_for,
    epoch_rows,
    optimizer_for,
    reader,
    scorer,
    steps,
)
from pastille.train.losses import Loss, loss_for

if TYPE_CHECKING:
    from torch import Tensor

WHAT = "training in int8"
_SLOWER = 10.0  # a trained model needs a tenth of the learning rate that trained it
_LOST = 0.75  # of what a model knew
_WORSE = 0.5  # of its loss, of one that knew next to nothing
_SAMPLE_BATCHES, _SAMPLE_CASES = 16, 512  # at least so many of each

Pair = tuple[Batch, "Tensor"]  # of inputs and targets
BatchLoss = Callable[[Batch, "Tensor", "Tensor"], "Tensor"]


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

    Raises:
        PreconditionError: The model cannot be trained, or the augmentation failed.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = settings.model_copy(update={"learning_rate": settings.learning_rate / _SLOWER})
    model = copy.deepcopy(simulated).to(device)
    lesson = _lesson(model, settings, task, distill, augment, device, keep_zeros)
    measure_ranges(model, (batch for batch, _ in lesson.sample()))
    start, blind = lesson.standing(model), lesson.standing(_blind(model, lesson))
    best, best_epoch, best_state, stopped = start.score, 0, copy.deepcopy(model.state_dict()), ""
    losses: list[float] = []
    scores: list[float] = []
    for epoch in progress.track(range(1, settings.epochs + 1), what=WHAT):
        loss = _epoch(model, lesson, follow=epoch <= math.ceil(freeze_after * settings.epochs))
        now = lesson.standing(model) if math.isfinite(loss) else Standing(loss=loss, score=-math.inf)
        stopped = divergence(now, start=start, blind=blind, metric=lesson.metric)
        if stopped:
            kept = f"epoch {best_epoch}" if best_epoch else "what quantization gave before it"
            stopped = f"{WHAT} was stopped in epoch {epoch}: {stopped}; {kept} is kept; lower learning_rate"
            break
        losses.append(loss)
        scores.append(now.score)
        if now.score >= best:  # on a tie the later epoch: it saw the lower learning rate
            best, best_epoch, best_state = now.score, epoch, copy.deepcopy(model.state_dict())
    model.load_state_dict(best_state)
    progress.note(f"{WHAT}: {_outcome(lesson.metric, start.score, best, best_epoch)}")
    curve = Curve(
        stage=WHAT, metric=lesson.metric, loss=tuple(losses), validation=tuple(scores), best_epoch=best_epoch
    )
    return Trained(model=model.cpu().eval(), curve=curve, stopped=stopped)


@dataclass(frozen=True, kw_only=True)
class _Lesson:
    """What is learned from, and judged by."""

    metric: str
    of_epoch: int  # number of batches
    batches: Callable[[], Iterator[Pair]]  # of one epoch, in another order each time
    sample: Callable[[], Iterator[Pair]]  # the same each time, not augmented
    loss: BatchLoss
    step: Callable[[Batch, Tensor], float]
    score: Callable[[nn.Module], float]

    def standing(self, model: nn.Module) -> Standing:
        """How well a model does; it is left in eval mode."""
        model.eval()
        with torch.no_grad():
            parts = [(self.loss(x, forward(model, x), y).item(), len(y)) for x, y in self.sample()]
        return Standing(loss=_mean(parts), score=self.score(model))


def _lesson(
    model: Simulation,
    settings: Train,
    task: Task,
    distill: tuple[Distill, nn.Module] | None,
    augment: Augment | None,
    device: str,
    keep_zeros: bool,
) -> _Lesson:
    split, cases, seed, size = task.splits.train, task.cases["train"], task.recipe.seed, settings.batch_size
    read, balanced = reader(split), settings.class_weights == "balanced"
    order, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    targets = torch.from_numpy(cases.targets)
    labels = loss_for(cases, balanced=balanced)
    loss = _alone(labels) if distill is None else _with_teacher(labels, cases.kind, *distill)
    choice = choice_for(task.cases["validation"], balanced=balanced)

    def batches() -> Iterator[Pair]:
        for rows in epoch_rows(order, split.n, size):
            yield _on(augmented(read(rows), augment, generator), device), targets[rows].to(device)

    def sample() -> Iterator[Pair]:
        enough = max(_SAMPLE_BATCHES, math.ceil(_SAMPLE_CASES / size))
        for rows in islice(epoch_rows(np.random.default_rng(seed), split.n, size), enough):
            yield _on(read(rows), device), targets[rows].to(device)

    of_epoch = steps(split.n, settings)
    return _Lesson(
        metric=choice.metric,
        of_epoch=of_epoch,
        batches=batches,
        sample=sample,
        loss=loss,
        step=_stepper(model, settings, loss, of_epoch=of_epoch, keep_zeros=keep_zeros),
        score=scorer(task.splits.validation, choice, device),
    )


def _epoch(model: Simulation, lesson: _Lesson, *, follow: bool) -> float:
    """Train one epoch; its mean loss, or the first that is not finite."""
    model.train()
    model.set_ranges("follow" if follow else "fixed", batches=lesson.of_epoch)
    parts: list[tuple[float, int]] = []
    for batch, targets in lesson.batches():
        parts.append((lesson.step(batch, targets), len(targets)))
        if not math.isfinite(parts[-1][0]):
            return parts[-1][0]
    model.set_ranges("fixed")
    if follow:
        measure_ranges(model, (batch for batch, _ in lesson.sample()), again=True)
    return _mean(parts)


def _mean(parts: Sequence[tuple[float, int]]) -> float:
    """Of values, each counted as often as its whole number says."""
    return sum(value * n for value, n in parts) / sum(n for _, n in parts)


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
        answers = torch.cat([forward(model, batch).cpu() for batch, _ in lesson.sample()])
    return _Constant(answers.mean(dim=0, keepdim=True).to(next(model.buffers()).device))


def _on(batch: Batch, device: str) -> Batch:
    return {name: x.to(device) for name, x in batch.items()}


def _stepper(
    model: Simulation, settings: Train, loss_of: BatchLoss, *, of_epoch: int, keep_zeros: bool
) -> Callable[[Batch, Tensor], float]:
    """A function that takes one optimization step and gives the loss before it."""
    optimizer, schedule = optimizer_for(model, settings, steps=of_epoch)
    zeros = zero_masks(model) if keep_zeros else {}

    def step(batch: Batch, targets: Tensor) -> float:
        try:
            loss = loss_of(batch, forward(model, batch), targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
        except PreconditionError:
            raise
        except Exception as error:
            raise PreconditionError(f"the model cannot be trained: {one_line(error, 200)}") from error
        optimizer.step()
        masked(model, zeros)
        schedule.step()
        return loss.item()

    return step


def _alone(labels: Loss) -> BatchLoss:
    return lambda _, outputs, targets: labels(outputs, targets)


def _with_teacher(labels: Loss, kind: str, asked: Distill, teacher: nn.Module) -> BatchLoss:
    like = likeness(teacher, kind=kind, temperature=asked.temperature)

    def loss(batch: Batch, outputs: Tensor, targets: Tensor) -> Tensor:
        return (1 - asked.alpha) * labels(outputs, targets) + asked.alpha * like(batch, outputs)

    return loss


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


def _outcome(metric: str, start: float, best: float, epoch: int) -> str:
    name = _spoken(metric)
    if epoch == 0:
        return f"no epoch beat quantization alone (validation {name} {abs(start):.4f}), which stays"
    return f"validation {name} {abs(best):.4f} in epoch {epoch}, {abs(start):.4f} by quantization alone"

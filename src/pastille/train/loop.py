"""Training, top to bottom: a copy of the model goes in, the best epoch's model comes out."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pastille.data.split import INPUT, Split, batches
from pastille.errors import PastilleError, PreconditionError
from pastille.progress import SILENT, Progress
from pastille.recipe import Train
from pastille.references import one_line
from pastille.stats.metrics import selection_metric, selection_value
from pastille.task.forward import forward, to_tensors
from pastille.train.losses import Loss, loss_for
from pastille.values import Cases

if TYPE_CHECKING:
    from torch import Tensor, nn

Batch = dict[str, "Tensor"]
Augment = Callable[["Tensor", torch.Generator], "Tensor"]

_IN_MEMORY_BYTES = 1 << 30
_EVAL_BATCH = 256


# Of a batch: the answers, the targets, and which rows of the training split they are, ``(N,)``.
BatchLoss = Callable[[Batch, "Tensor", "Tensor", "np.ndarray"], "Tensor"]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the best epoch is chosen by.

    Attributes:
        metric: Its name.
        value: Of the answers to validation, ``(N, ...)`` float32; the larger the better.
    """

    metric: str
    value: Callable[[np.ndarray], float]


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What a training does beside minimising the loss of its labels.

    Attributes:
        loss: In place of the labels' own, of a batch's inputs, answers, targets and row numbers.
        penalty: Added to the loss, of the model as it is.
        before_step: Called with the model once its gradients are there.
        after_step: Called with the model and the share of all steps that are done, in ``(0, 1]``.
        counts_from: An epoch may be the best one, and so be kept, once that share of the epochs is done;
            above 0 the weights before training are never kept.
        chosen_by: What the best epoch is chosen by in place of the task's own metric.
    """

    loss: BatchLoss | None = None
    penalty: Callable[[nn.Module], Tensor] | None = None
    before_step: Callable[[nn.Module], None] | None = None
    after_step: Callable[[nn.Module, float], None] | None = None
    counts_from: float = 0.0
    chosen_by: Choice | None = None


PLAIN = Extras()


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
    """

    model: nn.Module
    metric: str
    loss: tuple[float, ...]
    validation: tuple[float, ...]
    best_epoch: int
    score: float


def fit(
    model: nn.Module,
    train: tuple[Split, Cases],
    validation: tuple[Split, Cases],
    settings: Train,
    *,
    seed: int,
    augment: Augment | None = None,
    extras: Extras = PLAIN,
    progress: Progress = SILENT,
    what: str = "fine-tuning",
) -> Fitted:
    """Train a copy of a model on labels and keep the epoch that is best on validation.

    The result depends on the arguments alone: data order, augmentation and dropout are seeded, so
    a training that is repeated after a kill gives the same weights on the same machine.

    Args:
        model: Not modified.
        train: Inputs with their targets.
        validation: Likewise; scored after every epoch.
        settings: Epochs, optimizer and schedule.
        seed: Of everything random.
        augment: Called with a batch of the only input ``(N, …)`` and a seeded generator.
        extras: What else is to be done at each step.
        progress: Shown epoch by epoch.
        what: Name of the training in the progress.

    Raises:
        PreconditionError: The loss or an answer became NaN or infinite, the epoch is named; the model
            cannot be trained; or the augmentation failed.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = copy.deepcopy(model).to(device)
    (split, cases), balanced = train, settings.class_weights == "balanced"
    read, order = reader(split), np.random.default_rng(seed)
    targets = torch.from_numpy(cases.targets)
    generator = torch.Generator().manual_seed(seed)
    labels = loss_for(cases, balanced=balanced)
    step = stepper(
        model, settings, extras.loss or _of_labels(labels), extras, of_epoch=steps(split.n, settings)
    )
    choice = extras.chosen_by or choice_for(validation[1], balanced=balanced)
    metric, check = choice.metric, scorer(validation[0], choice, device)
    best, best_epoch, best_state = check(model), 0, copy.deepcopy(model.state_dict())
    if extras.counts_from:
        best = -math.inf
    losses: list[float] = []
    scores: list[float] = []
    with torch.random.fork_rng():  # dropout draws from the global generator, which the caller keeps
        torch.manual_seed(seed)
        for epoch in progress.track(range(1, settings.epochs + 1), what=what):
            model.train()
            total, seen = 0.0, 0
            for rows in epoch_rows(order, split.n, settings.batch_size):
                batch = augmented(read(rows), augment, generator)
                batch = {name: x.to(device) for name, x in batch.items()}
                total += step(batch, targets[rows].to(device), rows) * len(rows)
                seen += len(rows)
            losses.append(total / seen)
            if not math.isfinite(losses[-1]):
                raise PreconditionError(_diverged(what, "the loss", losses[-1], epoch, settings))
            scores.append(check(model))
            if not math.isfinite(scores[-1]):
                raise PreconditionError(_diverged(what, "an answer", scores[-1], epoch, settings))
            # On a tie the later epoch: it saw the lower learning rate.
            if scores[-1] >= best and epoch >= extras.counts_from * settings.epochs:
                best, best_epoch, best_state = scores[-1], epoch, copy.deepcopy(model.state_dict())
    model.load_state_dict(best_state)
    progress.note(f"{what}: {_outcome(metric, best, best_epoch, settings.epochs)}")
    return Fitted(
        model=model.cpu().eval(),
        metric=metric,
        loss=tuple(losses),
        validation=tuple(scores),
        best_epoch=best_epoch,
        score=best,
    )


def _of_labels(labels: Loss) -> BatchLoss:
    return lambda _batch, outputs, targets, _rows: labels(outputs, targets)


def stepper(
    model: nn.Module, settings: Train, loss_of: BatchLoss, extras: Extras = PLAIN, *, of_epoch: int
) -> Callable[[Batch, Tensor, np.ndarray], float]:
    """A function that takes one optimization step and gives the loss before it.

    Raises:
        PreconditionError: Every parameter is frozen; the step itself, if the model raises in train mode.
    """
    optimizer, schedule = optimizer_for(model, settings, steps=of_epoch)
    done = itertools.count(1)

    def step(batch: Batch, targets: Tensor, rows: np.ndarray) -> float:
        try:
            loss = loss_of(batch, forward(model, batch), targets, rows)
            if extras.penalty is not None:
                loss = loss + extras.penalty(model)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
        except PastilleError:
            raise
        except Exception as error:
            raise PreconditionError(f"the model cannot be trained: {one_line(error, 200)}") from error
        if extras.before_step is not None:
            extras.before_step(model)
        optimizer.step()
        schedule.step()
        if extras.after_step is not None:
            extras.after_step(model, next(done) / max(1, settings.epochs * of_epoch))
        return loss.item()

    return step


def _diverged(what: str, which: str, value: float, epoch: int, settings: Train) -> str:
    return (
        f"{what}: {which} became {value} in epoch {epoch}; lower learning_rate "
        f"(now {settings.learning_rate:g}) or check the inputs"
    )


def _outcome(metric: str, best: float, epoch: int, epochs: int) -> str:
    name = metric.replace("_", " ")
    if epoch == 0:
        return f"no epoch of {epochs} beat the model before it (validation {name} {best:.4f}), which stays"
    return f"validation {name} {best:.4f} in epoch {epoch} of {epochs}"


def epoch_rows(order: np.random.Generator, n: int, size: int) -> Iterator[np.ndarray]:
    """Shuffled row numbers in batches; a last batch of one is left out (batch norm needs two)."""
    rows = order.permutation(n)
    for start in range(0, n, size):
        if len(batch := rows[start : start + size]) > 1 or min(n, size) == 1:
            yield batch


def steps(n: int, settings: Train) -> int:
    """How many batches `epoch_rows` gives.

    Example:
        >>> [steps(n, Train(epochs=1, batch_size=4)) for n in (8, 9, 10)]
        [2, 2, 3]
    """
    return sum(1 for _ in epoch_rows(np.random.default_rng(0), n, settings.batch_size))


def augmented(batch: Batch, augment: Augment | None, generator: torch.Generator) -> Batch:
    """A batch as the user's augmentation changes it.

    Raises:
        PreconditionError: The augmentation failed, or gave something of another shape or type.
    """
    if augment is None:
        return batch
    if list(batch) != [INPUT]:
        raise PreconditionError(f"augment takes a model's only input, but this one has {', '.join(batch)}")
    before = batch[INPUT]
    try:
        after = augment(before, generator)
    except Exception as error:
        raise PreconditionError(f"augment raised {one_line(error, 200)}") from error
    if not isinstance(after, torch.Tensor) or (after.shape, after.dtype) != (before.shape, before.dtype):
        got = (
            f"{after.dtype} {tuple(after.shape)}" if isinstance(after, torch.Tensor) else type(after).__name__
        )
        raise PreconditionError(
            f"augment must return {before.dtype} {tuple(before.shape)} as it is given, got {got}"
        )
    return {INPUT: after}


def optimizer_for(
    model: nn.Module, settings: Train, *, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """The optimizer, and its learning rate over all steps: constant, or half a cosine to zero.

    Raises:
        PreconditionError: Every parameter is frozen.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise PreconditionError("the model cannot be trained: none of its parameters requires a gradient")
    lr, decay = settings.learning_rate, settings.weight_decay
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            parameters, lr, momentum=settings.momentum, weight_decay=decay, nesterov=settings.momentum > 0
        )
    else:
        optimizer = torch.optim.AdamW(parameters, lr, weight_decay=decay)
    total = max(1, settings.epochs * steps)

    def factor(step: int) -> float:
        return 1.0 if settings.schedule == "constant" else 0.5 * (1 + math.cos(math.pi * step / total))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def reader(split: Split) -> Callable[[Sequence[int] | np.ndarray], Batch]:
    """Read batches by row number; inputs that fit in memory are stacked once."""
    size = sum(array.nbytes for array in next(batches(split.inputs, [0], 1)).values())
    if size * split.n > _IN_MEMORY_BYTES:
        return lambda rows: to_tensors(next(batches(split.inputs, list(rows), len(rows))))
    whole = to_tensors(next(batches(split.inputs, range(split.n), split.n)))
    return lambda rows: {name: x[torch.as_tensor(rows)] for name, x in whole.items()}


def choice_for(cases: Cases, *, balanced: bool) -> Choice:
    """The metric of a task that its best epoch is chosen by.

    Args:
        cases: Of validation.
        balanced: Whether the training weighs classes by their rarity.
    """
    metric = selection_metric(cases, balanced=balanced)
    return Choice(metric=metric, value=lambda found: selection_value(found, cases, metric=metric))


def scorer(split: Split, choice: Choice, device: str) -> Callable[[Any], float]:
    """A function that gives a model's value on a split; minus infinity for NaN answers."""
    read = reader(split)

    def score(model: nn.Module) -> float:
        model.eval()
        with torch.inference_mode():
            outputs = [
                forward(model, {name: x.to(device) for name, x in read(rows).items()}).cpu()
                for rows in np.array_split(np.arange(split.n), math.ceil(split.n / _EVAL_BATCH))
            ]
        found = torch.cat(outputs).float().numpy()
        return choice.value(found) if np.isfinite(found).all() else -math.inf

    return score

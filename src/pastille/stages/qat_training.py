"""Training a simulated int8 file: the best epoch stays, and a run that diverges ends early."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from pastille.errors import PreconditionError
from pastille.progress import Progress
from pastille.quantization.qat import measure_ranges
from pastille.quantization.simulation import Simulation
from pastille.recipe import Train
from pastille.record import Curve
from pastille.references import one_line
from pastille.stats.metrics import selection_metric
from pastille.task import Task
from pastille.task.forward import forward
from pastille.train.loop import Augment, Batch, augmented, epoch_rows, optimizer_for, reader, scorer, steps
from pastille.train.losses import loss_for

if TYPE_CHECKING:
    from torch import Tensor, nn

WHAT = "training in int8"
_SLOWER = 10.0  # a trained model needs a tenth of the learning rate that trained it
_COLLAPSED = 0.5  # of the metric lost, or as much added to an error
_RANGE_BATCHES = 16

BatchLoss = Callable[[Batch, "Tensor", "Tensor"], "Tensor"]


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How much of the loss is to answer like the float model.

    Attributes:
        alpha: Its share, 0 to 1; the labels have the rest.
        temperature: That both models' logits are divided by; of no use in regression.

    References:
        Hinton et al., 2015, arXiv:1503.02531.
    """

    alpha: float = 0.5
    temperature: float = 2.0


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
    distill: tuple[Distillation, nn.Module] | None,
    augment: Augment | None,
    progress: Progress,
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

    Raises:
        PreconditionError: The model cannot be trained, or the augmentation failed.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = settings.model_copy(update={"learning_rate": settings.learning_rate / _SLOWER})
    model = copy.deepcopy(simulated).to(device)
    epoch_loss = _epochs(model, settings, task, distill, augment, device)
    balanced = settings.class_weights == "balanced"
    metric = selection_metric(task.cases["validation"], balanced=balanced)
    check = scorer(task.splits.validation, task.cases["validation"], metric, device)
    start = best = check(model)
    best_epoch, best_state, stopped = 0, copy.deepcopy(model.state_dict()), ""
    losses: list[float] = []
    scores: list[float] = []
    for epoch in progress.track(range(1, settings.epochs + 1), what=WHAT):
        model.set_ranges("follow" if epoch <= math.ceil(freeze_after * settings.epochs) else "fixed")
        loss = epoch_loss()
        model.set_ranges("fixed")
        score = check(model) if math.isfinite(loss) else -math.inf
        stopped = _divergence(loss, score, start, metric)
        if stopped:
            kept = f"epoch {best_epoch}" if best_epoch else "what quantization gave before it"
            stopped = f"{WHAT} was stopped in epoch {epoch}: {stopped}; {kept} is kept; lower learning_rate"
            break
        losses.append(loss)
        scores.append(score)
        if score >= best:  # on a tie the later epoch: it saw the lower learning rate
            best, best_epoch, best_state = score, epoch, copy.deepcopy(model.state_dict())
    model.load_state_dict(best_state)
    progress.note(f"{WHAT}: {_outcome(metric, start, best, best_epoch)}")
    curve = Curve(
        stage=WHAT, metric=metric, loss=tuple(losses), validation=tuple(scores), best_epoch=best_epoch
    )
    return Trained(model=model.cpu().eval(), curve=curve, stopped=stopped)


def _epochs(
    model: Simulation,
    settings: Train,
    task: Task,
    distill: tuple[Distillation, nn.Module] | None,
    augment: Augment | None,
    device: str,
) -> Callable[[], float]:
    """A function that trains one epoch and gives its mean loss; the ranges are measured first."""
    split, cases, seed = task.splits.train, task.cases["train"], task.recipe.seed
    read, size = reader(split), settings.batch_size
    first = islice(epoch_rows(np.random.default_rng(seed), split.n, size), _RANGE_BATCHES)
    measure_ranges(model, (_on(read(rows), device) for rows in first))
    order, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    targets = torch.from_numpy(cases.targets)
    labels = loss_for(cases, balanced=settings.class_weights == "balanced")
    loss = _alone(labels) if distill is None else _with_teacher(labels, cases.kind, *distill, device)
    step = _stepper(model, settings, loss, of_epoch=steps(split.n, settings))

    def epoch() -> float:
        model.train()
        total, seen = 0.0, 0
        for rows in epoch_rows(order, split.n, size):
            batch = _on(augmented(read(rows), augment, generator), device)
            total += step(batch, targets[rows].to(device)) * len(rows)
            seen += len(rows)
        return total / seen

    return epoch


def _on(batch: Batch, device: str) -> Batch:
    return {name: x.to(device) for name, x in batch.items()}


def _stepper(
    model: Simulation, settings: Train, loss_of: BatchLoss, *, of_epoch: int
) -> Callable[[Batch, Tensor], float]:
    """A function that takes one optimization step and gives the loss before it."""
    optimizer, schedule = optimizer_for(model, settings, steps=of_epoch)

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
        schedule.step()
        return loss.item()

    return step


def _alone(labels: Callable[[Tensor, Tensor], Tensor]) -> BatchLoss:
    return lambda _, outputs, targets: labels(outputs, targets)


def _with_teacher(
    labels: Callable[[Tensor, Tensor], Tensor],
    kind: str,
    asked: Distillation,
    teacher: nn.Module,
    device: str,
) -> BatchLoss:
    taught = copy.deepcopy(teacher).to(device).eval()

    def loss(batch: Mapping[str, Tensor], outputs: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            answer = forward(taught, batch)
        like = distillation_loss(outputs, answer, kind=kind, temperature=asked.temperature)
        return (1 - asked.alpha) * labels(outputs, targets) + asked.alpha * like

    return loss


def distillation_loss(outputs: Tensor, teacher: Tensor, *, kind: str, temperature: float) -> Tensor:
    """How far a model's answers are from its teacher's.

    Args:
        outputs: Logits, ``(N, K, …)`` of exclusive classes, ``(N,)``, ``(N, 1, …)`` or ``(N, L)`` of
            yes-or-no questions; predictions of a regression.
        teacher: Likewise, of the same shape.
        kind: Of the task.
        temperature: Both are divided by it; the loss is multiplied by its square, so that gradients
            keep their size.

    Returns:
        Kullback-Leibler divergence in nats, averaged over the batch; of a regression, the mean squared
        difference over the teacher's variance in the batch.

    Example:
        >>> x = torch.tensor([[1.0, -1.0]])
        >>> float(distillation_loss(x, x, kind="multiclass", temperature=2.0))
        0.0
    """
    if kind == "regression":
        return F.mse_loss(outputs, teacher) / teacher.var(correction=0).clamp_min(1e-6)
    logs = [_log_probabilities(x / temperature, kind) for x in (outputs, teacher)]
    each = (logs[1].exp() * (logs[1] - logs[0])).sum(dim=1)
    return each.mean() * temperature**2


def _log_probabilities(logits: Tensor, kind: str) -> Tensor:
    """Of each class, or of yes and no, along axis 1."""
    if kind == "multilabel" or logits.ndim == 1 or logits.shape[1] == 1:
        return torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)], dim=1)
    return F.log_softmax(logits, dim=1)


def _divergence(loss: float, score: float, start: float, metric: str) -> str:
    """Why training must stop after an epoch, in a few words; "" if it need not."""
    if not math.isfinite(loss):
        return f"the loss became {loss}"
    if not math.isfinite(score):
        return "an answer became NaN or infinite"
    if score < start - _COLLAPSED * abs(start):
        return f"validation {metric.replace('_', ' ')} went from {abs(start):.4f} to {abs(score):.4f}"
    return ""


def _outcome(metric: str, start: float, best: float, epoch: int) -> str:
    name = metric.replace("_", " ")
    if epoch == 0:
        return f"no epoch beat quantization alone (validation {name} {abs(start):.4f}), which stays"
    return f"validation {name} {abs(best):.4f} in epoch {epoch}, {abs(start):.4f} by quantization alone"

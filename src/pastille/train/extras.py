"""What a training minimises, and what it does beside that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pastille.train.batches import Drawn
from pastille.train.checkpoint import Kept
from pastille.train.scoring import Choice

if TYPE_CHECKING:
    from torch import Tensor, nn

# Of a batch and the model's answers to it, float32; called between the model's forward and its backward pass.
BatchLoss = Callable[[Drawn, "Tensor"], "Tensor"]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a training minimises.

    Attributes:
        loss: Of a batch and the answers to it, a scalar.
        learned: Trained beside the model, and left behind: projections of features, say.
    """

    loss: BatchLoss
    learned: nn.Module | None = None


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What a training does beside minimising the loss of its labels.

    Attributes:
        objective: In place of the labels' own loss; made of the copy of the model that is trained, whose
            inner features it may watch.
        penalty: Added to the loss, of the model and the share of all steps that are done with this one.
        before_epoch: Called with the model, in train mode, and the number of the epoch from 1; once more for
            an epoch that is taken up after a kill.
        before_step: Called with the model once its gradients are there.
        after_step: Called with the model and the share of all steps that are done, in ``(0, 1]``.
        after_epoch: Called with the model that will be scored, which is the moving average of the weights
            where there is one, and the number of the epoch.
        stop: Called with the model that was scored, the epoch, its mean loss and its score, neither of which
            needs to be finite; a sentence ends the training without that epoch, "" goes on. None: what is
            not finite is an error.
        counts_from: An epoch may be the best one, and so be kept, once that share of the epochs is done;
            above 0 the weights before training are never kept.
        chosen_by: What the best epoch is chosen by in place of the task's own metric.
        views: Of each case, how many augmentations there are, see `pastille.train.batches.drawn`.
        kept: What the functions above remember from step to step, so that a kill does not lose it.
    """

    objective: Callable[[nn.Module], Objective] | None = None
    penalty: Callable[[nn.Module, float], Tensor] | None = None
    before_epoch: Callable[[nn.Module, int], None] | None = None
    before_step: Callable[[nn.Module], None] | None = None
    after_step: Callable[[nn.Module, float], None] | None = None
    after_epoch: Callable[[nn.Module, int], None] | None = None
    stop: Callable[[nn.Module, int, float, float], str] | None = None
    counts_from: float = 0.0
    chosen_by: Choice | None = None
    views: int | None = None
    kept: tuple[Kept, ...] = ()


PLAIN: Final = Extras()

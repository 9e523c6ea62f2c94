"""How far a student's answers are from its teacher's.

Each loss takes logits ``(N, K)`` of exclusive classes; `distillation_loss` brings pixels, yes-or-no
questions and numbers into the form that a loss takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
import torch.nn.functional as F

from pastille.errors import PreconditionError

if TYPE_CHECKING:
    from torch import Tensor

_FEWEST: Final = 3  # classes: of two, one probability says all
_SHORT: Final = 1e-3  # probabilities that differ by less say nothing
_CONSTANT: Final = 1e-6  # of the mean square; a spread below it is rounding


def method_problem(kind: str, num_labels: int, method: str) -> str | None:
    """Why answers of a task cannot be compared by a method, in a sentence; None if they can.

    Args:
        kind: Of the task.
        num_labels: Of the task.
        method: ``kl``, ``dkd`` or ``dist``.

    Example:
        >>> method_problem("binary", 2, "dkd")
        'method dkd compares the classes that are not the target, so it takes at least 3 exclusive
        classes, but this task is binary; use method: kl'
        >>> method_problem("multiclass", 4, "dkd")
    """
    if method == "kl" or (kind in ("multiclass", "segmentation") and num_labels >= _FEWEST):
        return None
    why = {
        "dkd": "compares the classes that are not the target",
        "dist": "correlates the probabilities of the classes",
    }[method]
    what = f"has {num_labels}" if kind in ("multiclass", "segmentation") else f"is {kind}"
    return (
        f"method {method} {why}, so it takes at least {_FEWEST} exclusive classes, but this task {what}; "
        "use method: kl"
    )


def distillation_loss(
    outputs: Tensor,
    teacher: Tensor,
    *,
    kind: str,
    temperature: float,
    method: str = "kl",
    targets: Tensor | None = None,
    unit: float | None = None,
) -> Tensor:
    """How far a model's answers are from its teacher's.

    Args:
        outputs: Logits, ``(N, K, …)`` of exclusive classes, ``(N,)``, ``(N, 1, …)`` or ``(N, L)`` of
            yes-or-no questions; predictions of a regression.
        teacher: Likewise, of the same shape; no gradient flows into it.
        kind: Of the task.
        temperature: Both are divided by it; the loss is multiplied by its square, so that gradients
            keep their size. Regressions have none.
        method: ``kl``, ``dkd`` or ``dist``, see `method_problem`.
        targets: Class indices, ``(N, …)``, for method ``dkd``; what the teacher says if None.
        unit: Of a regression's numbers, the standard deviation of the training targets say; None: of what
            the teacher says here. Of two cases that is anything, and a small batch would count for most.

    Returns:
        Scalar, averaged over the batch, over labels and over pixels.

    Raises:
        PreconditionError: The two answer in different forms.

    References:
        Hinton et al., 2015, arXiv:1503.02531; for the others see their functions.

    Example:
        >>> x = torch.tensor([[1.0, -1.0]])
        >>> float(distillation_loss(x, x, kind="multiclass", temperature=2.0))
        0.0
    """
    teacher = _alike(outputs, teacher.detach()).float()
    outputs = outputs.float()
    if kind == "regression":
        return variance_scaled(outputs, teacher, unit)
    logits, taught = _as_classes(outputs, kind), _as_classes(teacher, kind)
    match method:
        case "dkd":
            truth = taught.argmax(dim=1) if targets is None else targets.reshape(-1)
            return decoupled(logits, taught, truth, temperature=temperature)
        case "dist":
            return correlations(logits, taught, temperature=temperature)
        case _:
            return divergence(logits, taught, temperature=temperature)


def _alike(outputs: Tensor, teacher: Tensor) -> Tensor:
    """The teacher's answers in the student's shape, which may differ by an axis of one alone."""
    if [n for n in outputs.shape[1:] if n > 1] != [n for n in teacher.shape[1:] if n > 1]:
        raise PreconditionError(
            f"distill: the student answers with shape {_shape(outputs)} but its teacher with "
            f"{_shape(teacher)}; both must answer the task's labels in one form"
        )
    return teacher.reshape(outputs.shape)


def _shape(x: Tensor) -> str:
    return f"(N{''.join(f', {n}' for n in x.shape[1:])})"


def _as_classes(logits: Tensor, kind: str) -> Tensor:
    """``(M, K)``: a row for each case or pixel; of a yes-or-no question, yes has the logit and no has 0."""
    if kind == "multilabel" or logits.ndim == 1 or logits.shape[1] == 1:
        flat = logits.reshape(-1)
        return torch.stack([flat, torch.zeros_like(flat)], dim=1)
    return logits.movedim(1, -1).reshape(-1, logits.shape[1])


def variance_scaled(outputs: Tensor, teacher: Tensor, unit: float | None = None) -> Tensor:
    """Mean squared difference over the teacher's variance in the batch: 1 for one constant answer, its mean.

    Where the teacher's answers do not vary (in a batch of one, say) their mean square stands for the
    variance.

    Args:
        outputs: Any shape.
        teacher: The same shape.
        unit: Its square takes the place of that variance.

    Example:
        >>> teacher = torch.tensor([1.0, 3.0])
        >>> float(variance_scaled(torch.tensor([2.0, 2.0]), teacher))
        1.0
    """
    return F.mse_loss(outputs, teacher) / (spread(teacher) if unit is None else unit**2)


def spread(x: Tensor) -> Tensor:
    """The variance of all values; their mean square where they do not vary, 1 where they are zero."""
    square, variance = x.square().mean(), x.var(correction=0)
    known = torch.where(variance > _CONSTANT * square, variance, square)
    return torch.where(known > torch.finfo(x.dtype).tiny, known, torch.ones_like(known))


def divergence(outputs: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """Match softened probabilities: ``T² · KL(teacher ‖ student)``.

    Args:
        outputs: Logits, ``(N, K)``.
        teacher: Logits, ``(N, K)``.
        temperature: Above 0; 1 leaves the probabilities as they are.

    Returns:
        Scalar in nats, averaged over rows.

    References:
        Hinton et al., 2015, arXiv:1503.02531, section 2.
    """
    logs, told = (F.log_softmax(x / temperature, dim=1) for x in (outputs, teacher))
    return temperature**2 * F.kl_div(logs, told, reduction="batchmean", log_target=True)


def decoupled(
    outputs: Tensor, teacher: Tensor, targets: Tensor, *, temperature: float, others: float = 2.0
) -> Tensor:
    """Match how sure the teacher is of the target, and apart from that how it ranks the other classes.

    In `divergence` the second part is weighed by how unsure the teacher is, so that the cases it knows
    best teach least about the other classes.

    Args:
        outputs: Logits, ``(N, K)``.
        teacher: Logits, ``(N, K)``; K at least 3.
        targets: Class indices, ``(N,)`` int64.
        temperature: As in `divergence`.
        others: Weight of the other classes over that of the target; 0.5 to 8 in the paper.

    Returns:
        Scalar in nats, averaged over rows.

    References:
        Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, arXiv:2203.08679, equation 7.

    Example:
        >>> x, y = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([0])
        >>> float(decoupled(x, x, y, temperature=4.0))
        0.0
    """
    is_target = F.one_hot(targets, outputs.shape[1]).bool()
    of_target = divergence(
        *(_target_or_not(x / temperature, is_target) for x in (outputs, teacher)), temperature=1.0
    )
    apart = (x[~is_target].reshape(len(x), -1) for x in (outputs, teacher))
    return temperature**2 * of_target + others * divergence(*apart, temperature=temperature)


def _target_or_not(logits: Tensor, is_target: Tensor) -> Tensor:
    """Logits of the target and of all other classes together, ``(N, 2)``."""
    others = logits[~is_target].reshape(len(logits), -1).logsumexp(dim=1)
    return torch.stack([logits[is_target], others], dim=1)


def correlations(outputs: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """Match what a strong teacher prefers rather than how sure it is: relations, not values.

    Pearson's correlation of the probabilities of each case over the classes, and of each class over the
    cases of the batch; of a batch of one, the former alone.

    Args:
        outputs: Logits, ``(N, K)``.
        teacher: Logits, ``(N, K)``; K at least 3.
        temperature: As in `divergence`.

    Returns:
        Scalar, at most ``4 T²``.

    References:
        Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, arXiv:2205.10536.

    Example:
        >>> x = torch.eye(3)
        >>> round(float(correlations(x, x, temperature=1.0)), 4)
        0.0
    """
    ours, told = (F.softmax(x / temperature, dim=1) for x in (outputs, teacher))
    between = pearson_distance(ours, told)
    within = pearson_distance(ours.T, told.T) if len(ours) > 1 else torch.zeros_like(between)
    return temperature**2 * (between + within)


def pearson_distance(a: Tensor, b: Tensor) -> Tensor:
    """One minus Pearson's correlation of each row of one with that of the other, averaged.

    A row that is constant correlates with nothing.

    Args:
        a: ``(N, M)``.
        b: ``(N, M)``.

    Example:
        >>> a = torch.tensor([[1.0, 2.0, 4.0]])
        >>> round(float(pearson_distance(a, 3 * a + 1)), 4), round(float(pearson_distance(a, -a)), 4)
        (0.0, 2.0)
    """
    a, b = (unit(x - x.mean(dim=1, keepdim=True), _SHORT) for x in (a, b))
    return 1 - (a * b).sum(dim=1).mean()


def unit(x: Tensor, short: Tensor | float) -> Tensor:
    """Vectors along the last axis, of length 1; those that are much shorter than ``short`` stay near zero.

    So gradients stay bounded where a vector is zero, as the answers of a last layer that begins at zero.

    Example:
        >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), 1e-3)
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    return x * (x.square().sum(dim=-1, keepdim=True) + short**2).rsqrt()

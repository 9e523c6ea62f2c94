"""What a training sees, batch by batch: all of it follows from the seed and the number of the step."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from pastille.data.split import INPUT, Split, batches
from pastille.errors import PreconditionError
from pastille.recipe import Train
from pastille.references import one_line
from pastille.task.forward import to_tensors
from pastille.train.places import Place, require_enough

if TYPE_CHECKING:
    from torch import Tensor, nn

Batch = dict[str, "Tensor"]
Augment = Callable[["Tensor", torch.Generator], "Tensor"]

_IN_MEMORY_BYTES: Final = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One batch of the training split, and where in the training it comes up.

    Attributes:
        inputs: As augmented, ``{name: (N, ...)}``.
        targets: ``(N, ...)``.
        rows: Which cases of the split they are, ``(N,)`` int64.
        of: Cases in the batch of all processes together; ``N`` if there is one process.
        step: From 0, over the whole training.
        epoch: From 1.
        ends_epoch: Whether it is the last of its epoch.
        done: Share of all steps that lie before it, in ``[0, 1)``.
        view: Which of the views of each case this is; 0 where views are not counted.
    """

    inputs: Batch
    targets: Tensor
    rows: np.ndarray
    of: int
    step: int
    epoch: int
    ends_epoch: bool
    done: float
    view: int


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
    size = settings.batch_size
    return n // size + (n % size > 1 or min(n, size) == 1 != size)


def drawn(
    split: Split,
    settings: Train,
    *,
    seed: int,
    start: int = 0,
    augment: Augment | None = None,
    views: int | None = None,
    share: Callable[[np.ndarray], np.ndarray] = lambda rows: rows,
    device: str = "cpu",
) -> Iterator[Drawn]:
    """Every batch of a training, from some step on: the same ones, whether or not it was interrupted.

    Args:
        split: What is learned from.
        settings: Epochs and batch size.
        seed: Of the order and of the augmentation.
        start: The first step to give, from 0.
        augment: The user's.
        views: How many different augmentations of a case there are; each case is then augmented by itself,
            by a seed of its row and view. None: a new one each time, of a batch at once.
        share: Of a batch's rows, those that this process takes.
        device: Where the tensors are put.

    Raises:
        PreconditionError: The augmentation failed.
    """
    read, of_epoch = reader(split), steps(split.n, settings)
    targets, total = torch.from_numpy(split.targets), settings.epochs * of_epoch
    for epoch in range(start // of_epoch + 1, settings.epochs + 1):
        view = (epoch - 1) % views if views else 0
        order = np.random.default_rng([seed, epoch])
        for number, whole in enumerate(epoch_rows(order, split.n, settings.batch_size)):
            step = (epoch - 1) * of_epoch + number
            if step < start:
                continue
            rows = share(whole)
            batch = read(rows)
            if augment is not None and views:
                batch = one_by_one(batch, augment, rows, view=view, seed=seed)
            elif augment is not None:
                own = (int(rows[0]),) if len(rows) < len(whole) else ()  # each process draws other numbers
                batch = together(batch, augment, seed=seed_of(seed, step, *own))
            yield Drawn(
                inputs={name: x.to(device) for name, x in batch.items()},
                targets=targets[torch.from_numpy(rows)].to(device),
                rows=rows,
                of=len(whole),
                step=step,
                epoch=epoch,
                ends_epoch=number == of_epoch - 1,
                done=step / total,
                view=view,
            )


def seed_of(*numbers: int) -> int:
    """A seed that follows from several numbers; others give another.

    Example:
        >>> seed_of(0, 1) == seed_of(0, 1), seed_of(0, 1) == seed_of(1, 0)
        (True, False)
    """
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_everything(seed: int, device: str) -> None:
    """Seed the generators that a step draws from.

    `torch.manual_seed` takes a millisecond: it makes a note of where it was called for each device that was
    not used yet.
    """
    torch.default_generator.manual_seed(seed)
    if device == "cuda":
        torch.cuda.manual_seed(seed)


def one_by_one(batch: Batch, augment: Augment, rows: np.ndarray, *, view: int, seed: int) -> Batch:
    """Each case augmented by itself, always in the same way for one row, view and seed."""
    cases = []
    with _globals_kept():
        for i, row in enumerate(rows):
            generator = torch.Generator().manual_seed(seed_of(seed, int(row), view))
            cases.append(_augmented({name: x[i : i + 1] for name, x in batch.items()}, augment, generator))
    return {name: torch.cat([case[name] for case in cases]) for name in batch}


def together(batch: Batch, augment: Augment, *, seed: int) -> Batch:
    """A batch augmented at once, always in the same way for one seed."""
    with _globals_kept():
        return _augmented(batch, augment, torch.Generator().manual_seed(seed))


def _augmented(batch: Batch, augment: Augment, generator: torch.Generator) -> Batch:
    """A batch as the user's augmentation changes it.

    The global generators of torch, numpy and Python, which transforms of torchvision draw from, are seeded
    like the one that is given; the caller puts them back.

    Raises:
        PreconditionError: The augmentation failed, or gave something of another shape or type.
    """
    if list(batch) != [INPUT]:
        raise PreconditionError(f"augment takes a model's only input, but this one has {', '.join(batch)}")
    before = batch[INPUT]
    try:
        _seed_globals(generator.initial_seed())
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


def _seed_globals(seed: int) -> None:
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


@contextlib.contextmanager
def _globals_kept() -> Iterator[None]:
    """Put the global generators of torch (of the CPU), numpy and Python back afterwards."""
    kept = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
        random.setstate(kept[2])


def reader(split: Split) -> Callable[[Sequence[int] | np.ndarray], Batch]:
    """Read batches by row number; inputs that fit in memory are stacked once."""
    size = sum(array.nbytes for array in next(batches(split.inputs, [0], 1)).values())
    if size * split.n > _IN_MEMORY_BYTES:
        return lambda rows: to_tensors(next(batches(split.inputs, list(rows), len(rows))))
    whole = to_tensors(next(batches(split.inputs, range(split.n), split.n)))
    return lambda rows: _taken(whole, torch.as_tensor(rows))


def _taken(whole: Batch, rows: Tensor) -> Batch:
    return {name: x[rows] for name, x in whole.items()}


def names_of(split: Split, rows: np.ndarray, *, most: int = 5) -> str:
    """What cases are called in the user's own files, the first few.

    Example:
        >>> names_of(Split(inputs=np.zeros((9, 1)), targets=np.zeros(9)), np.arange(9), most=2)
        '0, 1 and 7 more'
    """
    names = rows if split.ids is None else split.ids[rows]
    more = f" and {len(rows) - most} more" if len(rows) > most else ""
    return ", ".join(map(str, names[:most])) + more


def odd_rows(split: Split, rows: np.ndarray) -> np.ndarray:
    """Of some rows, those whose inputs hold NaN or infinity; ``(n,)``, as the data has them.

    Example:
        >>> split = Split(inputs=np.array([[1.0], [np.nan], [2.0]]), targets=np.zeros(3))
        >>> odd_rows(split, np.array([2, 1]))
        array([1])
    """
    finite = np.ones(len(rows), bool)
    for array in next(batches(split.inputs, list(rows), len(rows))).values():
        if np.issubdtype(array.dtype, np.floating):
            finite &= np.isfinite(array).reshape(len(rows), -1).all(axis=1)
    return rows[~finite]


def require_batches(model: nn.Module, settings: Train, splits: Mapping[str, Split], place: Place) -> None:
    """See that there are cases, and enough of them in a batch.

    Args:
        model: In train mode.
        settings: Batch size.
        splits: ``train`` and ``validation``.
        place: Where the training runs.

    Raises:
        PreconditionError: A split is empty, there are more processes than cases, or batch norms would see one
            case at a time.
    """
    empty = [name for name, split in splits.items() if not split.n]
    if empty:
        raise PreconditionError(f"there is no case in {' and '.join(empty)}; training needs both splits")
    n, size = splits["train"].n, settings.batch_size
    require_enough(place, batch_size=size, train=n, validation=splits["validation"].n)
    norms = [name for name, m in model.named_modules() if isinstance(m, _BatchNorm) and m.training]
    if norms and min(size, n) < 2 * place.processes:
        raise PreconditionError(
            f"batch norms such as {norms[0]} need two cases or more in a batch, but get one (batch_size "
            f"{size}, {n} cases, {place.processes} processes); raise it"
        )

"""One run in several processes: the main one measures, decides and writes; the others take it up."""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from pastille.errors import DataError, OutputError
from pastille.files import write_atomic
from pastille.processes import here
from pastille.recipe import DistillStep, FinetuneStep, PlanStep, PruneStep, QatQuantize, QuantizeStep, Recipe
from pastille.record import TaskLoaded
from pastille.runner.journal import Journal, follow_run, open_run

T = TypeVar("T")

_SEEN: Final = ".seen-by-all"
_PATIENCE_S: Final = 60.0  # a network file system may show a new file late
_EVERY_S: Final = 0.2


def joined(recipe: Recipe, base: Path, *, resume: bool) -> Journal:
    """Begin a run or take one up, as one of the processes that carry it out.

    Args:
        recipe: What was asked.
        base: The recipe's folder.
        resume: As in `pastille.runner.journal.open_run`.

    Raises:
        UsageError: As `open_run`.
        OutputError: The directory cannot be written, or not every process can see it.
    """
    among, opened = here(), []
    if among.world == 1:
        return open_run(recipe, base, resume=resume)

    def begun() -> tuple[Path, str]:
        journal, sign = open_run(recipe, base, resume=resume), secrets.token_hex(8)
        opened.append(journal)
        write_atomic(journal.directory / _SEEN, sign.encode())
        return journal.directory.resolve(), sign

    directory, sign = among.agreed(begun)
    if not among.is_main:
        _require_seen(directory / _SEEN, sign)
        opened.append(follow_run(directory))
    among.wait()
    if among.is_main:
        (directory / _SEEN).unlink(missing_ok=True)
    return opened[0]


def _require_seen(file: Path, sign: str) -> None:
    end = time.monotonic() + _PATIENCE_S
    while not file.is_file() or file.read_text() != sign:
        if time.monotonic() > end:
            raise OutputError(
                f"process {here().rank} does not see the run's folder {file.parent}, which the main process "
                "writes: put the recipe on a file system that all machines share, at the same path"
            )
        time.sleep(_EVERY_S)


def written(journal: Journal, work: Callable[[], None]) -> None:
    """Let the main process write something into the record, and every process know it.

    Args:
        journal: The run.
        work: Called in the main process alone.
    """

    def record() -> object:
        work()
        return journal.record

    journal.record = here().agreed(record)  # type: ignore[assignment]


def told(journal: Journal, work: Callable[[], T]) -> T:
    """What the main process works out and writes down; the others take it up from the record.

    Args:
        journal: The run.
        work: Takes up what the record holds, and else works it out.
    """
    found: list[T] = []
    written(journal, lambda: found.append(work()))
    return found[0] if found else work()


def require_same(loaded: TaskLoaded, journal: Journal) -> None:
    """See that this process loaded what the main one did.

    Raises:
        DataError: It has other data, or another model.
    """
    main = journal.record.last(TaskLoaded)
    for what in ("data_digest", "model_digest"):
        if main is not None and getattr(main, what) != getattr(loaded, what):
            raise DataError(
                f"process {here().rank} has another {what.removesuffix('_digest')} than the main process: "
                "every machine must see the same files, and the model's factory must not draw at random"
            )


def trains(step: PlanStep) -> bool:
    """Whether all processes take part in a stage: in others there is nothing to share.

    Args:
        step: The entry of the plan.
    """
    if isinstance(step, QuantizeStep):
        return isinstance(step.quantize, QatQuantize)
    return isinstance(step, FinetuneStep | DistillStep | PruneStep)


@contextmanager
def work_folder(journal: Journal, name: str) -> Iterator[Path]:
    """Where a stage may write: the run's own folder for the main process, one to throw away for others.

    Args:
        journal: The run.
        name: Of the folder in the run's directory.
    """
    if here().is_main:
        yield journal.fresh_folder(name)
        return
    with tempfile.TemporaryDirectory(prefix="pastille-") as folder:
        yield Path(folder)

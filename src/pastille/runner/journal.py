"""A run's directory: what is finished lies there, and a killed run is taken up from it."""

from __future__ import annotations

import fcntl
import io
import os
import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TypeVar

import numpy as np

from pastille.devices import this_machine
from pastille.errors import DataError, IntegrityError, OutputError, UsageError
from pastille.files import write_atomic
from pastille.recipe import Recipe, recipe_hash
from pastille.record import (
    BundleWritten,
    Environment,
    Event,
    Record,
    Resumed,
    Started,
    TaskLoaded,
    appended,
    environment,
    read_record,
    write_record,
)
from pastille.runtime import ONNXRUNTIME
from pastille.stages.contract import STEPS

E = TypeVar("E")


@dataclass
class Journal:
    """The record of one run, on disk after every event.

    Attributes:
        directory: ``runs/NAME/STAMP-HASH``.
        record: As far as it was written.
    """

    directory: Path
    record: Record
    _lock: IO[str] = field(repr=False)

    def append(self, event: Event) -> None:
        """Write one more event; what it speaks of must be on disk already."""
        self.record = appended(self.record, event)
        write_record(self.record, self.directory / "run.json")

    def note_task(self, event: TaskLoaded) -> None:
        """Write what was loaded, or, when resuming, see that it is still the same.

        Raises:
            DataError: The data or the model changed since the run was begun.
        """
        before = self.record.last(TaskLoaded)
        if before is None:
            self.append(event)
        elif (before.data_digest, before.model_digest) != (event.data_digest, event.model_digest):
            what = "data" if before.data_digest != event.data_digest else "model"
            raise DataError(f"the {what} changed since the run was begun; start a new run without --resume")

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to do."""
        return self.record.last(BundleWritten) is not None

    def fresh_folder(self, name: str) -> Path:
        """A folder for the work of a stage, empty but for the steps of it that a killed run had finished.

        Raises:
            OutputError: It cannot be made.
        """
        folder = self.directory / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.iterdir():
                if left.is_symlink() or not left.is_dir():
                    left.unlink()
                elif left.name != STEPS:
                    shutil.rmtree(left)
        except OSError as error:
            raise OutputError(f"cannot write {folder}: {error.strerror}") from error
        return folder

    def close(self) -> None:
        """Let another process take the run up."""
        self._lock.close()


def open_run(recipe: Recipe, base: Path, *, resume: bool) -> Journal:
    """Begin a new run, or take up the newest one that asked the same.

    Args:
        recipe: What was asked.
        base: The recipe's folder.
        resume: Take up instead of beginning; begins too if the earlier process was killed before it
            had begun anything.

    Raises:
        UsageError: The recipe is not that of the runs that are there, or another process is carrying
            the run out.
        OutputError: The directory cannot be written.
    """
    home = base / recipe.output / recipe.name
    directory = _newest(home, recipe) if resume else None
    if directory is None:
        return _begin(_new_directory(home, recipe), recipe)
    journal = _reopen(directory, recipe)
    if not journal.complete:
        journal.append(Resumed(environment=_environment(recipe)))
    return journal


def finished_run(recipe: Recipe, base: Path) -> Journal:
    """Open the newest run of a recipe that came to its end.

    Args:
        recipe: What was asked.
        base: The recipe's folder.

    Raises:
        UsageError: There is none, or another process has it open.
    """
    home = base / recipe.output / recipe.name
    for directory in sorted(home.glob(f"*-{recipe_hash(recipe)}"), reverse=True):
        file = directory / "run.json"
        if file.is_file() and read_record(file).all(BundleWritten):
            return _reopen(directory, recipe)
    raise UsageError(
        f"there is no finished run of this recipe in {home}; carry it out with `pastille run` first"
    )


def nested(journal: Journal, name: str) -> Journal:
    """A journal of its own within a run, begun or taken up; the run's own record is not touched.

    Args:
        journal: Of the run.
        name: Folder of the run's directory.

    Raises:
        OutputError: It cannot be made.
    """
    directory = journal.directory / name
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {directory}: {error.strerror}") from error
    lock, file = _locked(directory), directory / "run.json"
    record = read_record(file) if file.is_file() else Record(name=journal.record.name)
    return Journal(directory=directory, record=record, _lock=lock)


def _new_directory(home: Path, recipe: Recipe) -> Path:
    asked = recipe_hash(recipe)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    directory = home / f"{stamp}-{asked}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        attempt = 1
        while not _made(directory):
            attempt += 1
            directory = home / f"{stamp}.{attempt}-{asked}"
    except OSError as error:
        raise OutputError(f"cannot write {home}: {error.strerror}") from error
    return directory


def _begin(directory: Path, recipe: Recipe) -> Journal:
    journal = Journal(directory=directory, record=Record(name=recipe.name), _lock=_locked(directory))
    started = Started(
        recipe=recipe.model_dump(mode="json"),
        recipe_hash=recipe_hash(recipe),
        environment=_environment(recipe),
    )
    journal.append(started)
    return journal


def _made(directory: Path) -> bool:
    try:
        directory.mkdir()
    except FileExistsError:
        return False
    return True


def _newest(home: Path, recipe: Recipe) -> Path | None:
    """The newest run of this recipe; None if none was begun."""
    found = sorted(home.glob(f"*-{recipe_hash(recipe)}"))
    others = sorted(home.iterdir()) if home.is_dir() else []
    if not found and others:
        raise UsageError(
            f"there is no run of this recipe to resume: the runs in {home} asked something else; "
            "run the recipe that they had, or leave --resume out"
        )
    return found[-1] if found else None


def _reopen(directory: Path, recipe: Recipe) -> Journal:
    lock = _locked(directory)
    for draft in directory.rglob(".*.draft"):  # half a file that a killed process was writing
        draft.unlink(missing_ok=True) if draft.is_file() else shutil.rmtree(draft, ignore_errors=True)
    if not (directory / "run.json").is_file():  # killed before its first event
        lock.close()
        return _begin(directory, recipe)
    record = read_record(directory / "run.json")
    if record.last(Started) is None:
        raise IntegrityError(f"{directory / 'run.json'} does not say what was asked; start a new run")
    return Journal(directory=directory, record=record, _lock=lock)


def _locked(directory: Path) -> IO[str]:
    """Hold the run for this process; the lock goes with the process, however it ends."""
    try:
        lock = (directory / ".lock").open("w")
    except OSError as error:
        raise OutputError(f"cannot write {directory}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise UsageError(f"another process is carrying out the run {directory}; wait for it") from None
    return lock


def _environment(recipe: Recipe) -> Environment:
    machine = this_machine(
        threads=recipe.measure.threads, runtime=ONNXRUNTIME.name, runtime_version=ONNXRUNTIME.version
    )
    return environment(machine)


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array as ``.npy``, whole or not at all."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_atomic(path, buffer.getvalue())


def load_array(path: Path) -> np.ndarray:
    """Read what `save_array` wrote.

    Raises:
        IntegrityError: It is missing or damaged.
    """
    try:
        array: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise IntegrityError(f"cannot read {path}: {error}; start a new run") from error
    return array


def relative(path: Path, journal: Journal) -> str:
    """A path as the record names it, the same on every machine."""
    return path.relative_to(journal.directory).as_posix().replace(os.sep, "/")


def follow_run(directory: Path) -> Journal:
    """A run that another process carries out and this one takes part in: it is read, not written.

    Args:
        directory: Of the run.
    """
    record = read_record(directory / "run.json")
    return Journal(directory=directory, record=record, _lock=Path(os.devnull).open())

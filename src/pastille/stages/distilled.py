"""A student that was taught, kept on disk for a run that is killed before its stage is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from pastille.errors import DataError, IntegrityError
from pastille.files import read_bounded, write_atomic
from pastille.processes import here
from pastille.pruning import read_model, write_model
from pastille.record import Curve
from pastille.values import StudentTaught, from_json, to_json

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")

STUDENT: Final = "student.json"
WIDTH: Final = "width.json"
TEACHERS: Final = "teachers.json"
_MAX_BYTES: Final = 16 << 20


@dataclass(frozen=True, kw_only=True)
class Done:
    """What is kept of a student beside its model.

    Attributes:
        student: For the record.
        curves: Of its trainings.
        notes: For the user.
    """

    student: StudentTaught
    curves: tuple[Curve, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Width:
    """What a student's budget came to: it is measured, so another process might find another."""

    width: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Begun:
    """Who taught when the stage was begun: a digest of each one's weights."""

    teachers: tuple[str, ...]


def require_same_teachers(begun: Begun, folder: Path) -> None:
    """See that those who teach are those who did before a kill, and note who they are.

    Args:
        begun: Who they are now.
        folder: Of all students.

    Raises:
        DataError: One changed.
    """

    def check() -> None:
        file = folder / TEACHERS
        if not file.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(file, to_json(begun))
        elif _read(Begun, file) != begun:
            raise DataError("a teacher changed since the run was begun; start a new run without --resume")

    here().agreed(check)


def keep(done: Done, module: nn.Module, build: Callable[[], nn.Module], folder: Path) -> None:
    """Write a student in its safe form, and last what says that it is complete.

    Args:
        done: Beside its model.
        module: The student.
        build: Builds it untrained.
        folder: Of this student alone.

    Raises:
        OutputError: It cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_model(module, build(), folder)
    write_atomic(folder / STUDENT, to_json(done))


def kept(build: Callable[[], nn.Module], folder: Path) -> tuple[Done, nn.Module] | None:
    """A student that an earlier process finished; None if it did not.

    Raises:
        IntegrityError: What it left is damaged.
    """
    place = here().agreed(lambda: str(folder.resolve()) if (folder / STUDENT).is_file() else None)
    if place is None:
        return None
    return _read(Done, Path(place) / STUDENT), read_model(build, Path(place)).eval()


def width_of(folder: Path, measure: Callable[[], Width]) -> Width:
    """What a budget came to: as an earlier process found it, or as it is measured now.

    Args:
        folder: Of the student.
        measure: Finds it.
    """

    def found() -> Width:
        file = folder / WIDTH
        if file.is_file():
            return _read(Width, file)
        width = measure()
        write_atomic(file, to_json(width))
        return width

    return here().agreed(found)


def _read(kind: type[T], file: Path) -> T:
    try:
        return from_json(kind, read_bounded(file, _MAX_BYTES, what="student"))
    except ValueError as error:
        problem = " ".join(str(error).split())[:200]
        raise IntegrityError(
            f"{file} is not what was written of a student: {problem}; start a new run"
        ) from None

"""Everything Pastille raises on purpose, and the exit code that each error ends a command with.

PastilleError                      1
├── UsageError                     2   something that was asked or brought; the user's to fix
│   ├── RecipeError                    .key: the dotted key of the recipe
│   ├── DataError                      the data or its splits
│   │   ├── LeakageError               .pairs: what is in two splits
│   │   └── CalibrationError           too few samples, or unusable ones
│   ├── TaskError                      the model factory, or a model that does not suit the task
│   │   └── WeightsError               .missing, .unexpected, .mismatched
│   ├── PreconditionError              the model does not suit a stage of the plan
│   └── ExportError                    .operator, .module_name: what cannot be exported
├── OutputError                    1   disk full, no permission: what was written stays
├── InferenceError                 1   a runtime failed on a file that it should run
├── StageError                     1   a stage broke its own promise; report it as our bug
│   └── ParityError                    .max_abs_error, .tolerance
└── IntegrityError                 5   a hash, a golden case or a manifest that does not match
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum


class ExitCode(IntEnum):
    """What a command's exit code means."""

    DONE = 0  # also: approved
    FAILURE = 1
    USAGE = 2
    REJECTED = 3
    INCONCLUSIVE = 4
    INTEGRITY = 5
    INTERRUPTED = 130  # Ctrl-C, by the shell's convention


class PastilleError(Exception):
    """Root of all errors that Pastille raises on purpose; the message is one line for the user."""

    exit_code: ExitCode = ExitCode.FAILURE


class UsageError(PastilleError):
    """Something that was asked for or brought is wrong; the message says how to mend it."""

    exit_code = ExitCode.USAGE


class RecipeError(UsageError):
    """The recipe is malformed, contradicts itself, or asks for what its risk tier forbids."""

    def __init__(self, message: str, *, key: str = "") -> None:
        super().__init__(message)
        self.key = key


class DataError(UsageError):
    """The data, or the way it is split, cannot be used."""


class LeakageError(DataError):
    """The same subject, or an identical input, is in two splits."""

    def __init__(self, message: str, *, pairs: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.pairs = tuple(pairs)


class CalibrationError(DataError):
    """The calibration samples are too few, or hold NaN or infinity."""


class TaskError(UsageError):
    """The model factory failed, or the model does not suit the task."""


class WeightsError(TaskError):
    """The weights do not fit the model that the factory built."""

    def __init__(
        self,
        message: str,
        *,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        mismatched: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.missing = tuple(missing)
        self.unexpected = tuple(unexpected)
        self.mismatched = tuple(mismatched)


class PreconditionError(UsageError):
    """The model or the data does not suit a stage of the plan."""


class ExportError(UsageError):
    """The model cannot be exported."""

    def __init__(self, message: str, *, operator: str = "", module_name: str = "") -> None:
        super().__init__(message)
        self.operator = operator
        self.module_name = module_name


class OutputError(PastilleError):
    """A result could not be written; everything written before it is intact."""


class InferenceError(PastilleError):
    """A runtime failed to load or to run a model file."""


class StageError(PastilleError):
    """A stage broke the promise it makes in ``ensures``: our bug, not the user's."""


class ParityError(StageError):
    """The exported file does not answer like the model it was exported from."""

    def __init__(self, message: str, *, max_abs_error: float, tolerance: float) -> None:
        super().__init__(message)
        self.max_abs_error = max_abs_error
        self.tolerance = tolerance


class IntegrityError(PastilleError):
    """A bundle's hash, golden case or manifest does not match what is on disk."""

    exit_code = ExitCode.INTEGRITY

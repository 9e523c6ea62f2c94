"""One process among several that carry out the same run: who writes, and how what it found is shared.

Every process runs the same lines. What is measured, chosen or written is done by the main one alone, and the
others are told; the batches of a training are shared among all, see `pastille.train.places`. The launcher
(``accelerate launch``, ``torchrun``) says through the environment how many there are.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import time
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, Final, TypeVar

from pastille.errors import ExitCode, PastilleError

T = TypeVar("T")

_WORLD: Final = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
_RANK: Final = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK")
_PATIENCE: Final = timedelta(days=30)  # the others wait while the main one measures
_HEARD_S: Final = 5.0
_EVERY_S: Final = 0.1
_FAILED: Final = "pastille/failed"
_NO_SHARDS: Final = "FSDP was asked for: every process holds the whole model all the same (DDP)"
_ONE_PROCESS: Final = (
    "one process: accelerate launch --cpu starts no others; with --multi_gpu in place of --cpu it does, on "
    "machines without a GPU too, and so does torchrun"
)
_working_alone: ContextVar[bool] = ContextVar("working alone", default=False)


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process among those of a run.

    Attributes:
        rank: Of this process, from 0; 0 is the main one.
        world: How many there are.

    Example:
        >>> Processes().agreed(lambda: 1 + 1)
        2
    """

    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes, measures and prints."""
        return self.rank == 0

    def agreed(self, compute: Callable[[], T]) -> T:
        """What the main process computes; the others wait for it, and get the same.

        Args:
            compute: Called in the main process alone, where everything that it calls works as if there were
                no other. What it returns must be plain data, which can be pickled.

        Raises:
            PastilleError: What ``compute`` raised in the main process, in every one; or another process
                ended.
        """
        if self.world == 1 or _working_alone.get():
            return compute()
        return self._tell(compute) if self.is_main else self._hear()

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1 and not _working_alone.get():
            with losses_named():
                _distributed().barrier(group=talk())

    def _tell(self, compute: Callable[[], T]) -> T:
        token = _working_alone.set(True)
        try:
            found = compute()
            pickle.dumps(found)  # what cannot be told fails here, while the others can still be told that
        except Exception as error:
            code = error.exit_code if isinstance(error, PastilleError) else ExitCode.FAILURE
            _broadcast((None, str(error) or type(error).__name__, code))
            raise
        finally:
            _working_alone.reset(token)
        _broadcast((found, "", ExitCode.DONE))
        return found

    def _hear(self) -> Any:
        found, problem, code = _broadcast(None)
        if code is not ExitCode.DONE:
            failure = PastilleError(problem)
            failure.exit_code = code
            raise failure
        return found


def _broadcast(told: object) -> Any:
    """What the main process tells, in every process; torch carries it as it carries any object."""
    carried = [told]
    with losses_named():
        _distributed().broadcast_object_list(carried, src=0, group=talk())
    return carried[0]


_ALONE: Final = Processes()


def here() -> Processes:
    """This process among those that the launcher started; one where there was no launcher.

    Within what `Processes.agreed` computes, the main process is alone.
    """
    if _working_alone.get():
        return _ALONE
    world = _number(_WORLD, 1)
    return Processes(rank=_number(_RANK, 0), world=world) if world > 1 else _ALONE


def advice() -> str:
    """What to tell a user whose launcher was asked for something else than it gets; "" if nothing.

    ``accelerate launch --cpu --num_processes 2`` starts one process and says nothing. And what is compressed
    fits on one device: its tensors are not spread over several.
    """
    if here().world > 1:
        return _NO_SHARDS if _asked("ACCELERATE_USE_FSDP") else ""
    alone = _asked("ACCELERATE_USE_CPU") and "MASTER_ADDR" in os.environ
    return _ONE_PROCESS if alone else ""


def _asked(name: str) -> bool:
    return os.environ.get(name, "").lower() == "true"


@contextlib.contextmanager
def one_voice(error: BaseException) -> Iterator[bool]:
    """Tell an error once, whichever processes it ends; gives whether this one is to print it.

    The main process prints before it lets go of the others: a launcher ends all of them as soon as one is
    gone. Another one prints what it failed with only where the main one did not fail by itself.

    Args:
        error: What ends this process.
    """
    among = here()
    if among.world == 1:
        yield True
    elif among.is_main:
        yield True
        if not isinstance(error, LostProcessError):
            with contextlib.suppress(Exception):  # the others find out all the same, if more slowly
                _store().set(_FAILED, "yes")
    else:
        yield not isinstance(error, LostProcessError) and not _main_failed()


def _main_failed() -> bool:
    """Whether the main process failed by itself, now or in some seconds."""
    end = time.monotonic() + _HEARD_S
    with contextlib.suppress(Exception):
        while time.monotonic() < end:
            if _store().check([_FAILED]):
                return True
            time.sleep(_EVERY_S)
    return False


class LostProcessError(PastilleError):
    """Another process of the run ended, or cannot be reached."""


@contextlib.contextmanager
def losses_named() -> Iterator[None]:
    """An error of the network between processes, as what it is for the user."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, _distributed().DistError) or "gloo" in str(error)):
            raise
        raise LostProcessError(
            "another process of this run ended or cannot be reached; its own error says why "
            f"({' '.join(str(error).split())[:120]})"
        ) from error


def _number(names: tuple[str, ...], default: int) -> int:
    found = (os.environ[name] for name in names if os.environ.get(name, "").isdecimal())
    return int(next(found, default))


def started() -> Any:
    """Accelerate's state of this process, with the group of all processes begun."""
    return _state()


@cache
def _state() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on numbers of threads, which a run sets by itself
        import torch
        from accelerate import PartialState

        os.environ["ACCELERATE_USE_FSDP"] = "false"  # see `advice`
        return PartialState(cpu=not torch.cuda.is_available())


def _distributed() -> Any:
    import torch.distributed

    return torch.distributed


@cache
def talk() -> Any:
    """The group that objects go through: on the CPU, and as patient as the longest measurement."""
    _state()
    return _distributed().new_group(backend="gloo", timeout=_PATIENCE)


@cache
def _store() -> Any:
    """What can be read and written without waiting for the others."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return _distributed().TCPStore(address, port, is_master=False, timeout=timedelta(seconds=_HEARD_S))


def end() -> None:
    """Leave the group once every process is done; a launcher ends all of them as soon as one fails."""
    if here().world == 1:
        return
    with contextlib.suppress(Exception):  # whoever was here first is gone already
        here().wait()
        _distributed().destroy_process_group()

"""Calls that arrive together run together, within a bound on how long one waits for the others."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from pastille.errors import InferenceError
from pastille.serve.engine.fallback import FaultError
from pastille.serve.engine.places import NoPlaceError
from pastille.serve.errors import Refused

Inputs = Mapping[str, np.ndarray]  # {name: (N, ...)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Ran:
    """What the model gave to one batch: raw output ``(N, ...)``, and seconds in the runtime."""

    outputs: np.ndarray
    compute_s: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Batched:
    """What one call gets of it.

    Attributes:
        outputs: ``(N, ...)``, its own cases alone.
        rows: Cases that ran together, its own included.
        compute_s: Seconds in the runtime, of all of them.
    """

    outputs: np.ndarray
    rows: int
    compute_s: float


Run = Callable[[Inputs, float], Awaitable[Ran]]  # a batch, and the `time.monotonic` by which it must be done


@final
class Batcher:
    """Collects the calls of one variant. Belongs to one event loop.

    A call runs at once where a place is free. Otherwise it waits until a batch of its own ends, as many
    cases are together as may be, or it has waited long enough: whatever comes first.
    """

    def __init__(
        self, run: Run, *, rows: int, wait_s: float, places: int = 1, idle: Callable[[], bool] = lambda: True
    ) -> None:
        """Make one.

        Args:
            run: Runs a batch, and waits for a place where none is free.
            rows: Cases in one batch at most; a call with as many or more runs alone.
            wait_s: That a call may wait for others.
            places: Batches that may run at once.
            idle: Whether a place is free of what others run.
        """
        self._run = run
        self._limit, self._wait_s, self._places = rows, wait_s, places
        self._idle = idle
        self._waiting: deque[_Waiting] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """Calls that were collected and do not run yet."""
        return len(self._waiting)

    async def answer(self, inputs: Inputs, deadline: float) -> Batched:
        """Run one call, perhaps with others.

        Args:
            inputs: ``{name: (N, ...)}``, finite and of the model's shapes and types.
            deadline: `time.monotonic` from which the answer is worth nothing.

        Raises:
            Refused: ``deadline`` where it passed.
            NoPlaceError: None was free in time.
            Exception: What ``run`` raised on this call alone: another one's fault is not its own.
        """
        loop = asyncio.get_running_loop()
        call = _Waiting(inputs=inputs, deadline=deadline, given=loop.create_future())
        self._add(call)
        too_late = loop.call_later(max(0.0, deadline - time.monotonic()), _too_late, call)
        try:
            return await call.given
        finally:
            too_late.cancel()
            if call in self._waiting:  # given up: it must not take a row of others
                self._waiting.remove(call)

    def _add(self, call: _Waiting) -> None:
        if self._rows + call.rows > self._limit:
            self._flush()
        self._waiting.append(call)
        if self._rows >= self._limit or self._free:
            self._flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._wait_s, self._flush)

    @property
    def _rows(self) -> int:
        return sum(call.rows for call in self._waiting)

    @property
    def _free(self) -> bool:
        # Those that were started in this very moment hold no place yet: they are counted here.
        return len(self._running) < self._places and self._idle()

    def _flush(self) -> None:
        """Start what waits; never more than one batch, for `_add` starts the one before."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        calls = [call for call in self._waiting if not call.given.done()]
        self._waiting.clear()
        if calls:
            task = asyncio.get_running_loop().create_task(self._answer_all(calls))
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if self._waiting and self._free:
            self._flush()

    async def _answer_all(self, calls: Sequence[_Waiting]) -> None:
        try:
            for call, answer in zip(calls, await self._together(calls), strict=True):
                call.give(answer)
        except (Refused, NoPlaceError) as error:  # of all of them: asked again, each would be refused again
            _fail(calls, error)
        except Exception as error:  # whatever a runtime raises
            if len(calls) == 1 or _stalled(error):
                _fail(calls, error)
            else:  # one of them is to blame, the others get their answers
                await asyncio.gather(*(self._answer_all([call]) for call in calls if not call.given.done()))

    async def _together(self, calls: Sequence[_Waiting]) -> Iterator[Batched]:
        ran = await self._run(_joined([call.inputs for call in calls]), max(call.deadline for call in calls))
        rows = sum(call.rows for call in calls)
        if len(calls) == 1:
            return iter([Batched(outputs=ran.outputs, rows=rows, compute_s=ran.compute_s)])
        if len(ran.outputs) != rows:
            raise InferenceError(f"a batch of {rows} cases was answered with {len(ran.outputs)}")
        ends = np.cumsum([call.rows for call in calls])[:-1]
        parts = np.split(ran.outputs, ends)
        return (Batched(outputs=part, rows=rows, compute_s=ran.compute_s) for part in parts)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Waiting:
    inputs: Inputs
    deadline: float
    given: asyncio.Future[Batched]

    @property
    def rows(self) -> int:
        return len(next(iter(self.inputs.values())))

    def give(self, answer: Batched) -> None:
        if not self.given.done():
            self.given.set_result(answer)


def _too_late(call: _Waiting) -> None:
    if not call.given.done():
        call.given.set_exception(Refused("deadline", "no answer in the time that the request allows"))


def _stalled(error: Exception) -> bool:
    """Asked again one by one, each might hang for as long and take a thread with it: all fall back."""
    return isinstance(error, FaultError) and error.why == "timeout"


def _fail(calls: Sequence[_Waiting], error: Exception) -> None:
    for call in calls:
        if not call.given.done():
            call.given.set_exception(error)


def _joined(inputs: Sequence[Inputs]) -> Inputs:
    if len(inputs) == 1:
        return inputs[0]
    return {name: np.concatenate([each[name] for each in inputs]) for name in inputs[0]}

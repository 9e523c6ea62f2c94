"""Places: the threads in which models run, a bounded queue in front of them, and what becomes of a stall.

Everything here belongs to the event loop's thread but `_work`, which is all that a thread does.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from time import monotonic
from typing import Any, Final, Generic, TypeVar

from pastille.runtime.onnxruntime import Stop
from pastille.serve.settings import Queue

T = TypeVar("T")

MOST_STUCK: Final = 4  # threads that may hang in a model before no other takes their place
_SMOOTHING: Final = 0.1  # weight of the newest call in the service time
_FIRST_GUESS_S: Final = 0.01
_FILL: Final = 0.6  # of the wait that is allowed: the rest is for calls that take longer than others
_MIN_RETRY_S: Final = 0.05
_LOOK_S: Final = 0.005


class NoPlaceError(Exception):
    """No place was free in time."""


class StalledError(Exception):
    """The model did not answer in time; its thread is left to itself."""


@dataclass(frozen=True, kw_only=True)
class Ran(Generic[T]):
    """What came of one call."""

    result: T
    queue_s: float
    compute_s: float


class _Job:
    """One call on its way; whoever moves it on first decides what becomes of it."""

    __slots__ = (
        "error",
        "finished",
        "future",
        "lock",
        "result",
        "start_by",
        "started",
        "state",
        "stop",
        "timer",
        "work",
    )

    def __init__(self, work: Callable[[Stop], Any], future: asyncio.Future[None]) -> None:
        self.work, self.future, self.lock = work, future, threading.Lock()
        self.state, self.stop = "waiting", Stop()
        self.timer: asyncio.TimerHandle | None = None
        self.start_by = 0.0
        self.result: Any = None
        self.error: BaseException | None = None
        self.started = self.finished = 0.0

    def move(self, before: str, after: str) -> bool:
        with self.lock:
            if self.state != before:
                return False
            self.state = after
            return True


class Places:
    """Runs calls, ``places`` at once, the first come first."""

    def __init__(self, places: int, rule: Queue, *, service_s: float = _FIRST_GUESS_S) -> None:
        self.places, self.in_flight = places, 0
        self.finished = 0  # calls, since somebody last set it to 0
        self.stuck = 0  # threads that hang in a model
        self.live = places  # places that are not lost to them
        self._rule, self._service_s = rule, service_s
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def waiting(self) -> int:
        """Calls that wait for a place."""
        return max(0, self.in_flight - self.live)

    def full(self, collected: int = 0) -> bool:
        """Whether one more would wait for too long.

        Args:
            collected: Calls that wait elsewhere, to run together.
        """
        if self.live == 0:
            return True
        waiting, depth = self.in_flight + collected - self.live, self._rule.depth
        if depth is None:
            depth = max(1, int(_FILL * self._rule.wait_s * self.live / self._service_s))
        return waiting >= depth

    @property
    def retry_after_s(self) -> float:
        """When a place will probably be free."""
        if self.live == 0:
            return self._rule.timeout_s
        return max(_MIN_RETRY_S, (self.waiting + 1) * self._service_s / self.live)

    async def run(self, work: Callable[[Stop], T], *, start_by: float) -> Ran[T]:
        """Run a call in a place.

        Args:
            work: In a thread; given what stops it.
            start_by: `time.monotonic` seconds until which it may wait.

        Raises:
            NoPlaceError: It would still be waiting then.
            StalledError: It took longer than the rule allows.
            Exception: Whatever ``work`` raised.
        """
        loop = self._started()
        job, asked_at = _Job(work, loop.create_future()), monotonic()
        self.in_flight += 1
        job.start_by = start_by
        first_look_s = min(start_by - asked_at, self._rule.timeout_s)
        job.timer = loop.call_later(max(0.0, first_look_s), self._look, job)
        self._jobs.put(job)
        try:
            await job.future
        except asyncio.CancelledError:  # the client went away: nobody waits for the answer
            self._give_up(job)
            raise
        return Ran(result=job.result, queue_s=job.started - asked_at, compute_s=job.finished - job.started)

    def run_here(self, work: Callable[[Stop | None], T]) -> Ran[T]:
        """Run a call in this very thread, which is the event loop's: only what takes no time to speak of.

        Raises:
            Exception: Whatever ``work`` raised.
        """
        started = monotonic()
        result = work(None)
        self.finished += 1
        return Ran(result=result, queue_s=0.0, compute_s=monotonic() - started)

    async def close(self) -> None:
        """Let what runs finish, for as long as one call may take, and end the threads."""
        for _ in self._threads:
            self._jobs.put(None)
        until = monotonic() + self._rule.timeout_s
        while self.in_flight and monotonic() < until:
            await asyncio.sleep(_LOOK_S)

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            for _ in range(self.places):
                self._start_thread()
        return self._loop

    def _start_thread(self) -> None:
        # Daemons: a thread that hangs in a model must not keep the process alive.
        thread = threading.Thread(target=self._work, name="pastille-place", daemon=True)
        self._threads = [t for t in self._threads if t.is_alive()] + [thread]
        thread.start()

    def _look(self, job: _Job) -> None:
        """The timer: refuse what has waited for too long, leave what has run for too long."""
        assert self._loop is not None
        now = monotonic()
        if now >= job.start_by and self._leave_queue(job):
            _settle(job, NoPlaceError())
            return
        waits, limit = job.state == "waiting", self._rule.timeout_s
        until = min(job.start_by, now + limit) if waits else job.started + limit
        if until > now:
            job.timer = self._loop.call_later(until - now, self._look, job)
        else:
            self._abandon(job)

    def _give_up(self, job: _Job) -> None:
        if not self._leave_queue(job):
            job.stop.set()  # should it not heed that, its timer still watches it

    def _leave_queue(self, job: _Job) -> bool:
        if not job.move("waiting", "given up"):
            return False
        self.in_flight -= 1
        _cancel_timer(job)
        job.work = _nothing  # its inputs need not wait for a thread to drop them
        return True

    def _abandon(self, job: _Job) -> None:
        if not job.move("running", "abandoned"):
            return
        job.stop.set()
        self.stuck += 1
        self.live -= 1
        self.in_flight -= 1
        if self.stuck <= MOST_STUCK:
            self._replace_thread()
        _settle(job, StalledError())

    def _replace_thread(self) -> None:
        self.live += 1
        self._start_thread()

    def _finish(self, job: _Job) -> None:
        self.in_flight -= 1
        self.finished += 1
        _cancel_timer(job)
        if not job.future.cancelled():  # else it was cut short: that says nothing of how long one takes
            self._service_s += _SMOOTHING * (job.finished - job.started - self._service_s)
            self._service_s = max(self._service_s, 1e-5)
        _settle(job, job.error)

    def _came_back(self, _: _Job) -> None:
        self.stuck -= 1
        if self.live < self.places:
            self._replace_thread()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.started = monotonic()  # before the move: from then on the timer reads it
            if not job.move("waiting", "running"):
                continue
            try:
                job.result = job.work(job.stop)
            except BaseException as error:
                job.error = error
            job.finished = monotonic()
            in_time = job.move("running", "done")
            self._tell(self._finish if in_time else self._came_back, job)
            if not in_time:
                return  # another thread has taken the place, or is started now
            del job  # waiting for the next, a thread must hold nothing of the last

    def _tell(self, what: Callable[[_Job], None], job: _Job) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(what, job)


def _nothing(_: Stop) -> None:
    return None


def _cancel_timer(job: _Job) -> None:
    if job.timer is not None:
        job.timer.cancel()


def _settle(job: _Job, error: BaseException | None) -> None:
    if job.future.done():
        return
    if error is None:
        job.future.set_result(None)
    else:
        job.future.set_exception(error)

"""Comparisons that nobody waits for: after the reply, where the machine has nothing else to do."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, final

from pastille.serve.assignment import is_sampled
from pastille.serve.comparing import compare
from pastille.serve.errors import Refused
from pastille.serve.settings import Settings
from pastille.serve.swapping import Other, Served
from pastille.serve.values import Call, Compared, Dropped, Reply

PAUSE_S: Final = 0.005  # between two looks whether the machine is idle
PATIENCE_S: Final = 30.0  # that a comparison waits for it: inputs are not held for longer
MOST_BYTES: Final = 64 << 20  # of inputs that may be held


@final
class Shadow:
    """The queue of comparisons. For one thread: the event loop's."""

    def __init__(self, settings: Settings, *, idle: Callable[[], bool]) -> None:
        """Make an empty one.

        Args:
            settings: How many requests are compared, and how many comparisons may wait.
            idle: Whether nothing runs or waits in any engine.
        """
        self._comparison, self._timeout_s = settings.comparison, settings.queue.timeout_s
        self._idle = idle
        self._queue: deque[_Comparison] = deque()
        self._bytes = self._offered = 0
        self._runner: asyncio.Task[None] | None = None
        self._active: asyncio.Task[None] | None = None

    @property
    def active(self) -> bool:
        """Whether a comparison takes a place now."""
        return self._active is not None

    def make_way(self) -> None:
        """Give the place back to a request that would wait for it; the comparison is begun anew later."""
        if self._active is not None:
            self._active.cancel()

    def offer(self, served: Served, other: Other, call: Call, reply: Reply) -> None:
        """Perhaps compare a reply later; returns at once and runs nothing.

        A cached reply was compared when it was made; one of a fallback says nothing about the variant that
        should have answered.
        """
        if reply.cached or reply.fallback:
            return
        self._offered += 1  # clients that send one id with every request are sampled all the same
        key, rule = f"{self._offered} {call.request_id}", self._comparison
        if not is_sampled(key, salt=rule.salt, share=rule.share):
            return
        item = _Comparison(served=served, other=other, call=call, reply=reply, until=_now() + PATIENCE_S)
        if len(self._queue) >= self._comparison.queue or self._bytes + item.size > MOST_BYTES:
            _drop(item)
            return
        self._queue.append(item)
        self._bytes += item.size
        if self._runner is None or self._runner.done():
            self._runner = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Forget what waits, and wait for the comparison that runs."""
        self._queue.clear()
        if self._runner is not None:
            await asyncio.gather(self._runner, return_exceptions=True)

    async def _run(self) -> None:
        """One comparison after another, each where nothing else has to be done; ends when none waits."""
        while self._queue:
            await asyncio.sleep(PAUSE_S)
            if self._queue and (self._queue[0].until < _now() or self._idle()):
                self._active = asyncio.get_running_loop().create_task(self._compare(self._queue[0]))
                await asyncio.wait({self._active})
                made_way, self._active = self._active.cancelled(), None
                if self._queue and not made_way:
                    self._bytes -= self._queue.popleft().size

    async def _compare(self, item: _Comparison) -> None:
        other = item.other
        if item.until < _now() or other.served.retired:
            _drop(item)
            return
        call = replace(item.call, deadline=_now() + self._timeout_s, subject=None, warnings=())
        try:
            answered = await other.served.answer(call, prefer=other.prefer)
        except Refused:
            _drop(item)
            return
        if answered.fallback:
            _drop(item)
            return
        item.served.observe(_compared(item, answered))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Comparison:
    served: Served
    other: Other
    call: Call
    reply: Reply
    until: float  # `time.monotonic`

    @property
    def size(self) -> int:
        return sum(array.nbytes for array in self.call.inputs.values())


def _compared(item: _Comparison, answered: Reply) -> Compared:
    found = compare(item.reply.answer, answered.answer, item.served.engine.manifest)
    names = (_name(item.served, item.reply), _name(item.other.served, answered))
    if item.other.served is item.served:
        names = (item.reply.answer.variant, answered.answer.variant)
    return Compared(
        served=names[0],
        other=names[1],
        disagree=found.disagree,
        lost=found.lost,
        gained=found.gained,
        at=time.time(),
    )


def _name(served: Served, reply: Reply) -> str:
    return f"{reply.model}:{served.version}/{reply.answer.variant}"


def _drop(item: _Comparison) -> None:
    item.served.observe(Dropped(at=time.time()))


_now = time.monotonic

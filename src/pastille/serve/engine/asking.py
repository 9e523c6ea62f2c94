"""The variants of one engine, each with its breaker: ask one, and take note of how it did."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import numpy as np

from pastille.bundle import Answer, Manifest, VariantName
from pastille.bundle.load import answer_of
from pastille.runtime.onnxruntime import OnnxRuntimeSession, Stop
from pastille.serve.engine.batching import Batcher, Ran
from pastille.serve.engine.breaker import Breaker, asked, failed, new_breaker, permits, succeeded, unasked
from pastille.serve.engine.fallback import FaultError, ask
from pastille.serve.engine.places import NoPlaceError, Places, StalledError
from pastille.serve.engine.replying import Told
from pastille.serve.errors import Refused
from pastille.serve.seams import Observe
from pastille.serve.settings import Settings
from pastille.serve.values import Call, Faulted, Moved

_FAIR_S, _FAIR_TIMES = 1.0, 20  # seconds, and times what a call takes: the longer is a fair chance to answer
_TICK_S: Final = 0.01

Inputs = Mapping[str, np.ndarray]


class Variants:
    """Those that are usable. Belongs to one event loop."""

    def __init__(
        self,
        sessions: Mapping[VariantName, OnnxRuntimeSession],
        quick_rows: Mapping[VariantName, int],
        latencies_ms: Mapping[VariantName, float | None],
        manifest: Manifest,
        places: Places,
        settings: Settings,
        *,
        observe: Observe,
        clock: Callable[[], float],
    ) -> None:
        self.sessions, self.places, self._quick_rows = dict(sessions), places, dict(quick_rows)
        self._fair_s = {n: fair_s(latencies_ms.get(n), settings.queue.timeout_s) for n in sessions}
        self.breakers = {name: new_breaker(settings.breaker) for name in sessions}
        self.batchers: dict[VariantName, Batcher] = {}
        self._manifest, self._settings = manifest, settings
        self.tell, self._clock = observe, clock

    @property
    def collected(self) -> int:
        """Calls that wait to run together."""
        return sum(batcher.waiting for batcher in self.batchers.values()) if self.batchers else 0

    def permits(self, name: VariantName) -> bool:
        """Whether its breaker lets it be asked now."""
        return permits(self.breakers[name], self._clock())

    def batch(self, name: VariantName, rows: int) -> None:
        """From now on, run calls of a variant together."""
        self.batchers[name] = Batcher(
            partial(self._run_batch, name),
            rows=rows,
            wait_s=self._settings.batching.wait_s,
            places=self.places.places,
            idle=lambda: self.places.in_flight < self.places.live,
        )

    def start_by(self, call: Call, *, after: int = 0) -> float:
        """`time.monotonic` seconds until which a call may wait for its place.

        Args:
            call: What is asked.
            after: Runs of the same request that may have to end before.
        """
        queue = self._settings.queue
        return min(time.monotonic() + queue.wait_s + after * queue.timeout_s, call.deadline)

    async def ask(self, name: VariantName, call: Call, start_by: float) -> Told:
        """Ask one variant.

        Args:
            name: Which one.
            call: What is asked.
            start_by: `time.monotonic` seconds until which it may wait for a place.

        Raises:
            FaultError: It failed; that was counted and told.
            Refused: ``overload``: no place was free in time.
        """
        rested = self.permits(name)  # else it is asked as the last one
        self._move(name, asked(self.breakers[name], self._clock()))
        began = time.monotonic()
        try:
            told = await self._run(name, call, start_by)
        except FaultError as fault:
            self._failed(name, fault)
            raise
        except (Refused, asyncio.CancelledError) as ended:
            self._unfinished(name, call, began, ended)
            raise
        rule, breaker = self._settings.breaker, self.breakers[name]
        self._move(name, succeeded(breaker, rule) if rested else new_breaker(rule))
        return told

    def _failed(self, name: VariantName, fault: FaultError) -> None:
        if fault.counted:
            return
        fault.counted = True
        self.tell(Faulted(variant=name, why=fault.why, detail=fault.detail, at=time.time()))
        self._move(name, failed(self.breakers[name], self._clock(), self._settings.breaker))

    def _unfinished(self, name: VariantName, call: Call, began: float, ended: BaseException) -> None:
        """Clients that wait for less than the server would: else a variant that hangs were never left."""
        now = time.monotonic()
        if isinstance(ended, Refused) and ended.cause == "overload":
            self._move(name, unasked(self.breakers[name], self._clock()))
        elif now >= call.deadline - _TICK_S and now - began >= self._fair_s[name]:
            self._failed(
                name, FaultError("timeout", f"it did not answer a client within {now - began:.1f} s")
            )

    def _move(self, name: VariantName, after: Breaker) -> None:
        before, self.breakers[name] = self.breakers[name], after
        if after.state != before.state:
            self.tell(Moved(variant=name, state=after.state, at=time.time()))

    async def _run(self, name: VariantName, call: Call, start_by: float) -> Told:
        batcher = self.batchers.get(name)
        if batcher is None:
            return await self._run_alone(name, call.inputs, start_by)
        began = time.monotonic()
        batched = await batcher.answer(call.inputs, call.deadline)
        return Told(
            variant=name,
            outputs=batched.outputs,
            queue_s=max(0.0, time.monotonic() - began - batched.compute_s),
            compute_s=batched.compute_s,
            batch=batched.rows,
        )

    async def _run_batch(self, name: VariantName, inputs: Inputs, deadline: float) -> Ran:
        start_by = min(time.monotonic() + self._settings.queue.wait_s, deadline)
        told = await self._run_alone(name, inputs, start_by)
        return Ran(outputs=told.outputs, compute_s=told.compute_s)

    async def _run_alone(self, name: VariantName, inputs: Inputs, start_by: float) -> Told:
        work = partial(_answered, self.sessions[name], inputs, self._manifest, name)
        try:
            if len(next(iter(inputs.values()))) <= self._quick_rows[name]:
                ran = self.places.run_here(work)
            else:
                ran = await self.places.run(work, start_by=start_by)
        except StalledError:
            limit = self._settings.queue.timeout_s
            raise FaultError("timeout", f"it did not answer within {limit:g} s") from None
        except NoPlaceError:
            raise self.overload() from None
        outputs, answer = ran.result
        return Told(
            variant=name,
            outputs=outputs,
            queue_s=ran.queue_s,
            compute_s=ran.compute_s,
            batch=len(outputs),
            answer=answer,
        )

    def overload(self) -> Refused:
        """What a call is told that no place is free for."""
        return Refused(
            "overload",
            "too many requests wait for the model; try again later",
            retry_after_s=self.places.retry_after_s,
        )


def fair_s(latency_ms: float | None, timeout_s: float) -> float:
    """After how long a variant is at fault that a client stopped waiting for, whatever that client asked.

    Args:
        latency_ms: Of one call here.
        timeout_s: After which it is at fault in any case.

    Example:
        >>> fair_s(2.0, 10.0), fair_s(200.0, 10.0), fair_s(900.0, 10.0)
        (1.0, 4.0, 10.0)
    """
    return min(timeout_s, max(_FAIR_S, _FAIR_TIMES * (latency_ms or 0.0) / 1000))


def _answered(
    session: OnnxRuntimeSession,
    inputs: Inputs,
    manifest: Manifest,
    name: VariantName,
    stop: Stop | None,
) -> tuple[np.ndarray, Answer | None]:
    """Masks take longer to decide than the event loop may stand still; all else is quicker there."""
    outputs = ask(session, inputs, manifest, stop)
    return outputs, answer_of(outputs, manifest, name) if manifest.kind == "segmentation" else None

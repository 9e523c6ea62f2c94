"""One bundle, opened: it chooses, runs and falls back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from pastille.bundle import Manifest, VariantName
from pastille.serve.engine.asking import Variants
from pastille.serve.engine.batching_plan import BatchingPlan, plan_batching
from pastille.serve.engine.cache import Question, ResponseCache, identity_of, question
from pastille.serve.engine.facts import Facts, order_of, standing_fallback, status_of
from pastille.serve.engine.fallback import FaultError
from pastille.serve.engine.machine import give_back_memory, keep_memory_small, this_machine
from pastille.serve.engine.opening import OpenedBundle, open_bundle
from pastille.serve.engine.places import Places
from pastille.serve.engine.replying import Served, reply_of
from pastille.serve.engine.validating import pair_of, unvalidated, validated
from pastille.serve.errors import Refused
from pastille.serve.seams import Observe
from pastille.serve.settings import Settings
from pastille.serve.values import Call, EngineStatus, Fallback, Faulted, Reply, Why

_LOOK_S: Final = (
    2.0  # how often, from the first request on, it is seen whether there is time for other things
)


def open_engine(
    directory: Path, settings: Settings, *, version: str, observe: Observe, judged: bool = True
) -> OpenedEngine:
    """Verify a bundle, choose its variant for this machine, and make it ready to answer.

    Blocks for as long as it takes to load, replay and time every variant: call it in a thread.

    Args:
        directory: The bundle.
        settings: Of the server.
        version: As served.
        observe: Told what happens; on the thread of the event loop that asks the engine.
        judged: False lets ``settings.variant`` name one that was not approved: for shadows alone.

    Raises:
        IntegrityError: The bundle was changed, or no variant is valid on this machine.
        UsageError: The settings force a variant that it does not have or that was not approved.
    """
    machine = this_machine()
    keep_memory_small()
    opened = open_bundle(directory, settings, machine, judged=judged)
    # One thread for each call and a call for each core: two sessions that share threads wait for each other.
    places = max(1, machine.cores // (settings.threads or 1))
    return OpenedEngine(opened, settings, version=version, observe=observe, places=places)


class OpenedEngine:
    """An `Engine`. Belongs to the event loop that asks it first."""

    def __init__(
        self,
        opened: OpenedBundle,
        settings: Settings,
        *,
        version: str,
        observe: Observe,
        places: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        manifest, sessions = opened.manifest, {v.name: v.session for v in opened.variants if v.session}
        first = next(v for v in opened.variants if v.name == opened.selection.preferred)
        self._opened, self._settings, self._observe, self._clock = opened, settings, observe, clock
        self._served = Served(manifest=manifest, model=settings.name or manifest.name, version=version)
        self._places = Places(places, settings.queue, service_s=(first.latency_ms or 10.0) / 1000)
        self._variants = Variants(
            sessions,
            {v.name: v.quick_rows for v in opened.variants},
            {v.name: v.latency_ms for v in opened.variants},
            manifest,
            self._places,
            settings,
            observe=observe,
            clock=clock,
        )
        self._cache = ResponseCache(settings.cache_bytes) if settings.cache_bytes else None
        self._identities = {name: identity_of(manifest, name, version) for name in sessions}
        self._plans = settings.batching.use == "on" or (
            settings.batching.use == "auto" and not first.quick_rows
        )
        self._batching = "off: not measured yet" if self._plans else "off"
        if first.quick_rows and not self._plans:
            self._batching = "off: calls are too quick to collect"
        self._alarm, self._closed = "", False
        self._degraded_since: float | None = None
        self._plan: asyncio.Future[BatchingPlan] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def manifest(self) -> Manifest:
        """Of the bundle."""
        return self._served.manifest

    @property
    def status(self) -> EngineStatus:
        """How it stands now."""
        status, collected = status_of(self._facts, self._settings, self._served), self._variants.collected
        self._degraded_since = (self._degraded_since or time.time()) if status.degraded else None
        found = self._cache.stats if self._cache else None
        return replace(
            status,
            ready=status.ready and not self._closed,
            degraded_since=self._degraded_since,
            batching=self._batching,
            in_flight=self._places.in_flight + collected,
            queued=self._places.waiting + collected,
            cache_hits=found.hits if found else 0,
            cache_misses=found.misses if found else 0,
            cache_bytes=found.bytes if found else 0,
        )

    @property
    def retry_after_s(self) -> float:
        """In how many seconds a place will probably be free."""
        return self._places.retry_after_s

    @property
    def full(self) -> bool:
        """Whether `answer` would refuse now: asked before a body is read."""
        return self._places.full(self._variants.collected)

    @property
    def idle(self) -> bool:
        """Whether no call runs or waits."""
        return not self._places.in_flight and not self._variants.collected

    async def answer(self, call: Call, *, prefer: VariantName | None = None) -> Reply:
        """Answer one request; see `Engine`.

        Args:
            call: What is asked.
            prefer: The variant to ask first in place of the preferred one; the cache then stays out of it.

        Raises:
            Refused: ``overload``, ``deadline``, ``not_ready``, or ``fault`` where every variant failed.
        """
        self._begin()
        facts = self._facts
        order = order_of(facts, prefer)
        if self._closed or not order:
            raise Refused("not_ready", "the model is being closed" if self._closed else self.status.reason)
        validates = self._settings.mode == "validate" and prefer is None and len(order) > 1
        asked = None if validates or prefer is not None else self._question(call, order[0])
        if known := self._known(asked, call):
            return known
        if self.full:
            raise self._variants.overload()
        standing = standing_fallback(facts, self._settings, prefer)
        resting = [n for n in pair_of(order) if not self._variants.permits(n)] if validates else []
        if validates and not resting:
            return await self._in_time(call, validated(self._variants, self._served, call, order, standing))
        reply = await self._in_time(call, self._first(call, order, standing))
        if resting:
            return unvalidated(reply, f"{resting[0]} failed several times in a row and rests")
        if asked is not None and self._cache is not None:
            self._cache.put(asked, reply)
        return reply

    def alarm(self, reason: str) -> None:
        """The disagreement alarm went off: take the compressed variants out of service, where so set."""
        if self._alarm or self._settings.alarm.action == "report":
            return
        self._alarm = reason
        if self._cache:
            self._cache.clear()
        for name in self._variants.sessions:
            if name != "fp32" and self._loop:  # told later: the alarm is raised in the middle of an event
                event = Faulted(variant=name, why="alarm", detail=reason, at=time.time())
                self._loop.call_soon(self._observe, event)

    async def close(self) -> None:
        """Finish what runs, and let go of the models."""
        self._closed = True
        await self._places.close()
        self._variants.sessions.clear()
        if self._cache:
            self._cache.clear()

    @property
    def _facts(self) -> Facts:
        return Facts(
            bundle=self._opened,
            breakers=self._variants.breakers,
            alarm=self._alarm,
            places=self._places.places,
            live=self._places.live,
            stuck=self._places.stuck,
            now=self._clock(),
        )

    def _begin(self) -> None:
        """On the first request: only now is there an event loop."""
        if self._loop is not None:
            return
        self._loop = asyncio.get_running_loop()
        for found in self._opened.variants:
            if found.why and not found.left_out:
                self._observe(Faulted(variant=found.name, why=found.why, detail=found.reason, at=time.time()))
        self._loop.call_later(_LOOK_S, self._use_rest)

    def _question(self, call: Call, name: VariantName) -> Question | None:
        return question(self._identities[name], call.inputs) if self._cache is not None else None

    def _known(self, asked: Question | None, call: Call) -> Reply | None:
        if asked is None or self._cache is None:
            return None
        return self._cache.get(asked, warnings=call.warnings)

    async def _in_time(self, call: Call, reply: Awaitable[Reply]) -> Reply:
        """A timer more only for clients that wait for less than the server's own limits allow."""
        queue, left = self._settings.queue, call.deadline - time.monotonic()
        if left >= queue.wait_s + queue.timeout_s:
            return await reply
        try:
            async with asyncio.timeout(left):
                return await reply
        except TimeoutError:
            raise Refused("deadline", "no answer in the time that the request allows") from None

    async def _first(self, call: Call, order: tuple[VariantName, ...], standing: Fallback | None) -> Reply:
        """Ask one variant after the other; the last is asked even while its breaker is open."""
        why: Why = "exception"
        fallback, start_by = standing, self._variants.start_by(call)
        for name in order:
            if name != order[-1] and not self._variants.permits(name):
                fallback = fallback or Fallback(
                    preferred=name, why="breaker", detail="it failed several times in a row and rests"
                )
                continue
            try:
                told = await self._variants.ask(name, call, start_by)
            except FaultError as fault:
                fallback = fallback or Fallback(preferred=name, why=fault.why, detail=fault.detail)
                why, start_by = fault.why, call.deadline  # it has waited for its place already
            else:
                return reply_of(self._served, call, told, fallback=fallback)
        raise _nobody_answered(order, why)

    def _use_rest(self) -> None:
        """Where nothing runs: measure once whether batching helps, and give memory back."""
        if self._closed or self._loop is None:
            return
        self._loop.call_later(_LOOK_S, self._use_rest)
        if not self.idle or not self._places.finished:
            return
        if self._plan is None and self._plans:
            self._plan = self._loop.run_in_executor(None, self._planning())
            self._plan.add_done_callback(self._planned)
        elif self._plan is None or self._plan.done():
            self._places.finished = 0
            self._loop.run_in_executor(None, give_back_memory)

    def _planning(self) -> Callable[[], BatchingPlan]:
        name, manifest = self._opened.selection.order[0], self.manifest
        session, rule = self._variants.sessions[name], self._settings.batching
        return partial(plan_batching, session, manifest, manifest.variant(name), self._opened.sample, rule)

    def _planned(self, plan: asyncio.Future[BatchingPlan]) -> None:
        if plan.cancelled() or plan.exception() is not None:
            self._batching = "off: it could not be measured"
            return
        self._batching = plan.result().words
        if plan.result().rows > 1 and not self._closed:
            self._variants.batch(self._opened.selection.order[0], plan.result().rows)


def _nobody_answered(order: tuple[VariantName, ...], why: Why) -> Refused:
    names = " and ".join(order)
    if why == "timeout":
        return Refused("deadline", f"{names} did not answer in time")
    return Refused("fault", f"{names} could not answer this request; the server's metrics say why")

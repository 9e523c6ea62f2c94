"""Places: who runs, who waits, who is refused, and what becomes of threads that hang."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

import pytest

from pastille.runtime.onnxruntime import Stop
from pastille.serve.engine.places import MOST_STUCK, NoPlaceError, Places, StalledError
from pastille.serve.settings import Queue


def far() -> float:
    return time.monotonic() + 60


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it never came to that")


def blocked(gate: threading.Event, name: str = "", seen: list[str] | None = None) -> Callable[[Stop], str]:
    def work(_: Stop) -> str:
        if seen is not None:
            seen.append(name)
        gate.wait(30)
        return name

    return work


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(_awaited(test), 60))


async def _awaited(test: Callable[[], Awaitable[None]]) -> None:
    await test()


def test_as_many_run_at_once_as_there_are_places_and_the_first_come_first() -> None:
    async def test() -> None:
        places, gate, seen = Places(2, Queue()), threading.Event(), list[str]()
        calls = [
            asyncio.create_task(places.run(blocked(gate, str(i), seen), start_by=far())) for i in range(5)
        ]
        await until(lambda: len(seen) == 2)
        assert (places.in_flight, places.waiting) == (5, 3)
        gate.set()
        assert [(await call).result for call in calls] == ["0", "1", "2", "3", "4"]
        assert sorted(seen[:2]) == ["0", "1"]
        assert (places.in_flight, places.waiting) == (0, 0)
        await places.close()

    run(test)


def test_what_waits_too_long_is_refused_and_never_runs() -> None:
    async def test() -> None:
        places, gate, seen = Places(1, Queue()), threading.Event(), list[str]()
        first = asyncio.create_task(places.run(blocked(gate, "first", seen), start_by=far()))
        await until(lambda: seen == ["first"])
        with pytest.raises(NoPlaceError):
            await places.run(blocked(gate, "late", seen), start_by=time.monotonic() + 0.02)
        assert places.waiting == 0
        gate.set()
        await first
        await places.run(blocked(gate, "next", seen), start_by=far())
        assert seen == ["first", "next"]
        await places.close()

    run(test)


@pytest.mark.parametrize(("depth", "room"), [(0, 1), (2, 3)])
def test_the_queue_is_as_deep_as_it_was_set(depth: int, room: int) -> None:
    async def test() -> None:
        places, gate = Places(1, Queue(depth=depth)), threading.Event()
        calls = []
        while not places.full():
            calls.append(asyncio.create_task(places.run(blocked(gate), start_by=far())))
            await asyncio.sleep(0)
        assert len(calls) == room
        gate.set()
        await asyncio.gather(*calls)
        assert not places.full()
        await places.close()

    run(test)


def test_the_queue_holds_what_can_be_answered_in_the_wait_allowed() -> None:
    places = Places(2, Queue(wait_s=0.2), service_s=0.02)  # 20 calls in 0.2 s; 60 % of them may wait
    places.in_flight = 2 + 11
    assert not places.full()
    assert places.full(collected=1)
    assert places.retry_after_s == pytest.approx(12 * 0.02 / 2)


def test_a_client_that_goes_away_frees_its_place_in_the_queue() -> None:
    async def test() -> None:
        places, gate, seen = Places(1, Queue()), threading.Event(), list[str]()
        first = asyncio.create_task(places.run(blocked(gate, "first", seen), start_by=far()))
        await until(lambda: seen == ["first"])
        second = asyncio.create_task(places.run(blocked(gate, "second", seen), start_by=far()))
        await asyncio.sleep(0)
        assert places.waiting == 1
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert places.waiting == 0
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert places.in_flight == 1, "its thread still runs"
        gate.set()
        await until(lambda: places.in_flight == 0)
        assert seen == ["first"]
        await places.close()

    run(test)


def test_a_stalled_call_is_asked_to_stop_and_another_thread_takes_its_place() -> None:
    async def test() -> None:
        places, gate, stops = Places(1, Queue(timeout_s=0.05)), threading.Event(), list[Stop]()

        def stall(stop: Stop) -> None:
            stops.append(stop)
            gate.wait(30)

        with pytest.raises(StalledError):
            await places.run(stall, start_by=far())
        assert stops[0].options.terminate
        assert (places.stuck, places.live, places.in_flight) == (1, 1, 0)
        assert (await places.run(lambda _: 7, start_by=far())).result == 7
        gate.set()
        await until(lambda: places.stuck == 0)
        assert places.live == 1
        await places.close()

    run(test)


def test_a_call_that_was_cut_short_says_nothing_of_how_long_one_takes() -> None:
    async def test() -> None:
        places, gate = Places(1, Queue(wait_s=1.0), service_s=0.5), threading.Event()
        assert places.retry_after_s == 0.5
        for _ in range(5):
            gate.clear()
            given_up = asyncio.create_task(places.run(blocked(gate), start_by=far()))
            await asyncio.sleep(0.01)
            given_up.cancel()
            gate.set()
            await until(lambda: places.in_flight == 0)
        assert places.retry_after_s == 0.5
        await places.close()

    run(test)


def test_threads_are_not_replaced_without_end_and_come_back() -> None:
    async def test() -> None:
        places, gate = Places(1, Queue(timeout_s=0.02)), threading.Event()
        for _ in range(MOST_STUCK + 1):
            assert not places.full()
            with pytest.raises(StalledError):
                await places.run(blocked(gate), start_by=far())
        assert (places.stuck, places.live) == (MOST_STUCK + 1, 0)
        assert places.full()
        patient = asyncio.create_task(places.run(lambda _: 7, start_by=far()))
        await asyncio.sleep(0.08)
        assert not patient.done(), "it may wait longer than a call may take"
        gate.set()
        await until(lambda: places.stuck == 0)
        assert places.live == 1
        assert (await patient).result == 7
        await until(lambda: sum(t.is_alive() for t in places._threads) == 1)
        await places.close()

    run(test)


def test_what_the_work_raises_is_raised() -> None:
    async def test() -> None:
        places = Places(1, Queue())

        def fail(_: Stop) -> None:
            raise MemoryError

        with pytest.raises(MemoryError):
            await places.run(fail, start_by=far())
        assert (await places.run(lambda _: 7, start_by=far())).result == 7
        await places.close()

    run(test)

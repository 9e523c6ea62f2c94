"""Large bodies are read two at a time; who waits too long is refused, and a refusal keeps nothing alive."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest

from pastille.serve.errors import Refused
from pastille.serve.reading import READERS, beside


class Gate:
    """Work that ends when it is let; it counts how much of it runs at once."""

    def __init__(self) -> None:
        self.open, self.busy = threading.Event(), threading.Semaphore(0)
        self.begun = 0

    def __call__(self) -> str:
        self.begun += 1
        self.busy.release()
        assert self.open.wait(30)
        return "read"

    async def wait_until_busy(self) -> None:
        for _ in range(READERS):
            await asyncio.to_thread(self.busy.acquire)


def test_more_than_two_wait_and_are_refused_in_the_end() -> None:
    gate = Gate()

    async def run() -> list[str]:
        running = [asyncio.create_task(beside(gate)) for _ in range(READERS)]
        await gate.wait_until_busy()
        with pytest.raises(Refused) as refused:
            await beside(gate, wait_s=0.01)
        assert (refused.value.status, refused.value.retry_after_s) == (503, 1)
        gate.open.set()
        return await asyncio.gather(*running)

    assert asyncio.run(run()) == ["read"] * READERS
    assert gate.begun == READERS  # what was refused is never run


def test_nothing_is_read_for_who_went_away() -> None:
    gate = Gate()

    async def run() -> None:
        running = [asyncio.create_task(beside(gate)) for _ in range(READERS)]
        await gate.wait_until_busy()
        gone = asyncio.create_task(beside(gate, wait_s=30))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        gate.open.set()
        await asyncio.gather(*running)
        assert await beside(int, "1") == 1  # behind what would have been run

    asyncio.run(run())
    assert gate.begun == READERS


class Body:
    """Something large."""


def test_what_was_half_read_goes_with_its_refusal() -> None:
    """An error's traceback knows the frame of the work: it must not be part of a cycle."""
    kept: list[weakref.ref[Body]] = []

    def broken() -> None:
        body = Body()
        kept.append(weakref.ref(body))
        raise ValueError("broken")

    async def run() -> None:
        with pytest.raises(ValueError, match="broken"):
            await beside(broken)
        await asyncio.sleep(0)

    gc.disable()
    try:
        asyncio.run(run())
        for _ in range(READERS):  # a thread forgets its last work when it takes the next
            asyncio.run(beside(int))
        assert kept[0]() is None
    finally:
        gc.enable()

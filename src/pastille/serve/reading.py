"""Reading what is large, beside the event loop: inflating, parsing, decoding pictures.

Each of these may take 200 MB for a moment, and none is quicker for being done six at a time: so there are two
threads for all of them, and who waits for too long is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from pastille.serve.errors import Refused

T = TypeVar("T")

READERS: Final = 2
_WAIT_S: Final = 1.0
_THREADS: Final = ThreadPoolExecutor(READERS, thread_name_prefix="pastille-reader")


async def beside(work: Callable[..., T], *arguments: object, wait_s: float = _WAIT_S) -> T:
    """Run it in one of the readers' threads.

    Args:
        work: Takes the arguments.
        *arguments: For it.
        wait_s: That it may wait for its turn.

    Raises:
        Refused: ``overload``: its turn did not come.
        Exception: Whatever ``work`` raised.
    """
    job = _THREADS.submit(work, *arguments)
    done = asyncio.wrap_future(job)
    try:
        await asyncio.wait({done}, timeout=wait_s)
        if job.cancel():  # only what has not begun can be
            message = "too many large bodies are being read; try again"
            raise Refused("overload", message, retry_after_s=1)
        return await done
    finally:
        done.cancel()  # who asked went away: nobody waits for it
        # An error knows this frame, and the frame the error: what was half read would outlive the refusal.
        del job, done

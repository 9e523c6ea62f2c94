"""What the machine offers a server, and giving memory back to it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pastille import devices

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_LARGE_BYTES: Final = 32 << 20  # the most that glibc takes for the second of them


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What this process may use."""

    isa: str
    cores: int
    memory_bytes: int  # 0: unknown


def this_machine() -> Machine:
    """By the processor, its affinity, and the limits of the cgroup."""
    return Machine(isa=devices.isa(), cores=devices.usable_cores(), memory_bytes=devices.memory_bytes())


def keep_memory_small() -> None:
    """Let all threads of this process share one heap, where the C library is glibc.

    By default each thread has its own, and each keeps what its largest call took: 26 MB more with ResNet-18
    on two cores, for 2 % less time. What a call frees stays for the next one, which would else fault in every
    page of it again, up to half as long as the call takes; `give_back_memory` is for when nothing runs.
    """
    mallopt = _of_c_library("mallopt")
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, 2 * _LARGE_BYTES)


def give_back_memory() -> None:
    """Return freed memory to the system, where the C library is glibc.

    Loading a model takes three times its size for a moment, and glibc keeps freed memory that is scattered.
    """
    trim = _of_c_library("malloc_trim")
    if trim is not None:
        trim(0)


def _of_c_library(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if os.name == "posix" else None


def resident_bytes() -> int | None:
    """Memory that this process holds now; None where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")

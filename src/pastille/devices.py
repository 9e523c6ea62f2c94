"""The machine that figures are taken on: its processor, and how much of it this process may use.

A container sees every core and all of the memory of its host; what it may use stands in its cgroup.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from pastille.values import Conditions

_PROC: Final = Path("/proc")
_CGROUPS: Final = Path("/sys/fs/cgroup")
_DEVICE_TREE: Final = Path("/proc/device-tree/model")

# Widest first: the path that 8-bit kernels take.
_ISA_BY_FLAG: Final = (
    ("amx_int8", "amx-int8"),
    ("avx512_vnni", "avx512-vnni"),
    ("avx_vnni", "avx-vnni"),
    ("avx512bw", "avx512"),
    ("avx2", "avx2"),
    ("avx", "avx"),
    ("sse2", "sse"),
    ("i8mm", "neon-i8mm"),
    ("asimddp", "neon-dotprod"),
    ("asimd", "neon"),
    ("neon", "neon"),
)
_ISA_BY_SYSCTL: Final = (
    ("hw.optional.arm.FEAT_I8MM", "neon-i8mm"),
    ("hw.optional.arm.FEAT_DotProd", "neon-dotprod"),
    ("hw.optional.neon", "neon"),
    ("hw.optional.avx512bw", "avx512"),
    ("hw.optional.avx2_0", "avx2"),
)
# Linux names no ARM core, only its number (implementer 0x41).
_ARM_CORES: Final = {
    0xD03: "Cortex-A53",
    0xD05: "Cortex-A55",
    0xD07: "Cortex-A57",
    0xD08: "Cortex-A72",
    0xD0B: "Cortex-A76",
    0xD0C: "Neoverse N1",
    0xD40: "Neoverse V1",
    0xD41: "Cortex-A78",
    0xD42: "Cortex-A78AE",
    0xD49: "Neoverse N2",
    0xD4F: "Neoverse V2",
}
_NO_LIMIT_BYTES: Final = 1 << 60  # cgroup v1 writes "no limit" as a number about this large


def this_machine(*, threads: int, runtime: str, runtime_version: str) -> Conditions:
    """The conditions of a figure that is about to be taken here.

    Args:
        threads: That the runtime was told to use.
        runtime: E.g. ``"onnxruntime"``.
        runtime_version: E.g. ``"1.31.1"``.
    """
    return Conditions(
        device=cpu_name(),
        isa=isa(),
        cores=usable_cores(),
        threads=threads,
        runtime=runtime,
        runtime_version=runtime_version,
        os=f"{platform.system()} {platform.release()} {platform.machine()}".strip(),
    )


def cpu_name() -> str:
    """The processor's name as its maker gives it, or the architecture where the system knows no more."""
    name = parse_cpu_name(_read(_PROC / "cpuinfo"), board=_read(_DEVICE_TREE))
    return name or _sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine()


def isa() -> str:
    """The widest path for 8-bit arithmetic that this processor has, e.g. ``"avx512-vnni"``.

    Where the system does not tell (Windows), the architecture, e.g. ``"amd64"``.
    """
    found = parse_isa(_read(_PROC / "cpuinfo"))
    found = found or next((name for key, name in _ISA_BY_SYSCTL if _sysctl(key) == "1"), "")
    return found or platform.machine().lower()


def usable_cores() -> int:
    """Cores that this process may use, by affinity and by the quota of its cgroup; at least 1."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, int(quota)))


def memory_bytes() -> int:
    """Memory that this process may use: the machine's, or less where its cgroup limits it."""
    limit = memory_limit()
    total = parse_total_memory(_read(_PROC / "meminfo")) or int(_sysctl("hw.memsize") or 0)
    return min(total or limit or 0, limit or total)


def parse_cpu_name(cpuinfo: str, *, board: str = "") -> str:
    r"""The processor's name in the text of ``/proc/cpuinfo``; empty if there is none.

    Args:
        cpuinfo: The text.
        board: Text of ``/proc/device-tree/model``, which ARM boards have.

    Example:
        >>> parse_cpu_name("processor\t: 0\nmodel name\t: AMD EPYC  9V74 \n")
        'AMD EPYC 9V74'
    """
    entries = _entries(cpuinfo)
    if name := entries.get("model name"):
        return " ".join(name.split())
    is_arm = _hexadecimal(entries.get("cpu implementer", "")) == 0x41
    core = _ARM_CORES.get(_hexadecimal(entries.get("cpu part", "")), "") if is_arm else ""
    computer = board.strip("\x00 \n") or entries.get("model", "") or entries.get("hardware", "")
    return f"{computer} ({core})" if computer and core else computer or core


def parse_isa(cpuinfo: str) -> str:
    r"""The widest 8-bit path named by the flags of ``/proc/cpuinfo``; empty if there are no flags.

    Example:
        >>> parse_isa("flags\t: sse2 avx avx2 fma avx_vnni\n")
        'avx-vnni'
    """
    entries = _entries(cpuinfo)
    flags = set((entries.get("flags") or entries.get("features") or "").lower().split())
    return next((name for flag, name in _ISA_BY_FLAG if flag in flags), "")


def parse_total_memory(meminfo: str) -> int | None:
    r"""Bytes of memory in the text of ``/proc/meminfo``.

    Example:
        >>> parse_total_memory("MemTotal:        2048 kB\nMemFree: 1 kB\n")
        2097152
    """
    found = re.search(r"^MemTotal:\s+(\d+) kB", meminfo, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def parse_cgroups(text: str) -> dict[str, str]:
    r"""The cgroup of each controller in the text of ``/proc/self/cgroup``; the key of v2 is empty.

    Example:
        >>> parse_cgroups("4:cpu,cpuacct:/box\n0::/user.slice\n")
        {'cpu': '/box', 'cpuacct': '/box', '': '/user.slice'}
    """
    lines = [line.split(":", 2) for line in text.splitlines() if line.count(":") >= 2]
    return {name: path for _, names, path in lines for name in names.split(",")}


def parse_cpu_max(text: str) -> float | None:
    """Cores granted by the text of cgroup v2's ``cpu.max``; None without a limit.

    Example:
        >>> parse_cpu_max("150000 100000"), parse_cpu_max("max 100000")
        (1.5, None)
    """
    numbers = re.fullmatch(r"(\d+)\s+(\d+)\s*", text)
    return int(numbers[1]) / int(numbers[2]) if numbers and int(numbers[2]) else None


def parse_memory_max(text: str) -> int | None:
    r"""Bytes granted by the text of a cgroup's memory limit, v1 or v2; None without a limit.

    Example:
        >>> parse_memory_max("536870912\n"), parse_memory_max("9223372036854771712"), parse_memory_max("max")
        (536870912, None, None)
    """
    digits = text.strip()
    return int(digits) if digits.isdecimal() and int(digits) < _NO_LIMIT_BYTES else None


def cpu_quota(*, proc: Path = _PROC, cgroups: Path = _CGROUPS) -> float | None:
    """Cores that this process's cgroup, or one above it, grants; None without a limit."""
    v2 = [parse_cpu_max(_read(f / "cpu.max")) for f in _folders("", proc, cgroups)]
    v1 = [
        parse_cpu_max(f"{_read(f / 'cpu.cfs_quota_us').strip()} {_read(f / 'cpu.cfs_period_us').strip()}")
        for f in _folders("cpu", proc, cgroups)
    ]
    return min((quota for quota in (*v2, *v1) if quota), default=None)


def memory_limit(*, proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int | None:
    """Bytes that this process's cgroup, or one above it, grants; None without a limit."""
    v2 = [parse_memory_max(_read(f / "memory.max")) for f in _folders("", proc, cgroups)]
    v1 = [parse_memory_max(_read(f / "memory.limit_in_bytes")) for f in _folders("memory", proc, cgroups)]
    return min((limit for limit in (*v2, *v1) if limit), default=None)


def _folders(controller: str, proc: Path, cgroups: Path) -> Iterator[Path]:
    """The folders of this process's cgroup and of all above it; some may not be visible here.

    A container often sees its own cgroup as the root, while ``/proc`` gives the host's path.
    """
    path = parse_cgroups(_read(proc / "self" / "cgroup")).get(controller)
    if path is None:
        return
    mounts = [cgroups / controller] if controller else [cgroups, cgroups / "unified"]
    inner = PurePosixPath(path.lstrip("/"))
    for mount in mounts:
        yield from (mount / step for step in (inner, *inner.parents))


def _entries(cpuinfo: str) -> dict[str, str]:
    """The first value of each key; the cores of one processor repeat it."""
    pairs = (line.partition(":") for line in cpuinfo.splitlines())
    found: dict[str, str] = {}
    for key, _, value in pairs:
        found.setdefault(key.strip().lower(), value.strip())
    return found


def _hexadecimal(text: str) -> int:
    return int(text, 16) if re.fullmatch(r"0x[0-9a-fA-F]+", text) else 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _sysctl(key: str) -> str:
    if platform.system() != "Darwin":
        return ""
    try:
        done = subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()

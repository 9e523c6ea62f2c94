"""A server's processes: started, stopped, held still, and what they cost."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.load import ask
from serving.servers import MARK, Server, environment

_TICKS = os.sysconf("SC_CLK_TCK")


class Running:
    """A server in a session of its own."""

    def __init__(self, server: Server, port: int, log: Path) -> None:
        self.server, self.port = server, port
        self.started = time.perf_counter()
        self._mark = f"{MARK}={port}-{os.getpid()}".encode()
        self._log = log.open("wb")
        self._process = subprocess.Popen(
            server.command,
            cwd=server.cwd,
            env=environment(server, self._mark.decode().partition("=")[2]),
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def await_answer(self, limit_s: float = 30.0) -> float:
        """Seconds from the start to the first correct answer."""
        wire, deadline = self.server.request.wire(), self.started + limit_s
        while time.perf_counter() < deadline:
            with contextlib.suppress(OSError, ValueError):
                status, _, _ = ask(self.port, wire, timeout_s=20)
                if status == 200:
                    return time.perf_counter() - self.started
            if self._process.poll() is not None:
                raise RuntimeError(
                    f"{self.server.name} ended with {self._process.returncode}: {self._log.name}"
                )
            time.sleep(0.01)
        raise RuntimeError(f"{self.server.name} did not answer within {limit_s} s: see {self._log.name}")

    @property
    def pid(self) -> int:
        return self._process.pid

    def pids(self) -> list[int]:
        """Of it and all that it started; some servers put their workers into sessions of their own."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                if self._mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found

    def cpu_s(self) -> float:
        """CPU seconds of all its processes, threads included; of those that ended, what was waited for."""
        return sum(_cpu_s(pid) for pid in self.pids())

    def pss_mb(self) -> float:
        """Memory of all its processes, what they share counted once."""
        return sum(_pss_kb(pid) for pid in self.pids()) / 1024

    def hold(self) -> None:
        """Stop it, so that it takes nothing from what is measured."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def wait(self, limit_s: float) -> int | None:
        """Its exit code; None where it is still there."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(limit_s)
        return None

    def end(self) -> None:
        self.go_on()
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def _signal(self, number: int) -> None:
        for pid in self.pids():
            with contextlib.suppress(OSError):
                os.kill(pid, number)


def _cpu_s(pid: int) -> float:
    # Nanoseconds from the scheduler, per thread: the ticks of /proc/PID/stat are too coarse.
    total = 0
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def _pss_kb(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


@contextmanager
def running(server: Server, port: int, log: Path) -> Iterator[Running]:
    """A server that is ended in any case."""
    found = Running(server, port, log)
    try:
        yield found
    finally:
        found.end()

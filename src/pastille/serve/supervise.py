"""A lean parent that holds the listening socket and brings a killed server back; standard library alone.

    python -I -S supervise.py LISTENER WORKER -- COMMAND…

The first server is a fork of the command that then became this program, so starting costs nothing twice. When
a server is killed (out of memory, a fault in compiled code), connections wait in the socket's backlog while
COMMAND starts another. A server that ends by itself had its reasons: its exit code becomes this program's.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

HEALTHY_S = 60.0  # a server that lived so long begins with a clean slate
MOST = 8  # deaths in a row
LONGEST_S = 30.0


def pause_s(deaths: int) -> float:
    """Seconds before the next start, after so many deaths in a row.

    Example:
        >>> [pause_s(n) for n in (1, 2, 3, 4, 20)]
        [0.0, 0.5, 1.0, 2.0, 30.0]
    """
    return 0.0 if deaths <= 1 else min(LONGEST_S, 0.5 * 2.0 ** (deaths - 2))


def become_supervisor(listener: int, worker: int, command: Sequence[str]) -> NoReturn:
    """Replace this process, whose child ``worker`` is, by the lean one.

    Args:
        listener: File descriptor of the listening socket.
        worker: Process id of the first server.
        command: Starts another; it inherits the socket.
    """
    os.set_inheritable(listener, True)
    lean = [sys.executable, "-I", "-S", os.path.abspath(__file__)]  # noqa: PTH100  (pathlib is not lean)
    os.execv(sys.executable, [*lean, str(listener), str(worker), "--", *command])  # noqa: S606


def follow_parent() -> None:
    """End with the supervisor, however it ends; and take no Ctrl-C but what it passes on."""
    parent = os.getppid()
    os.setpgid(0, 0)
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGTERM))
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


class _Supervisor:
    def __init__(self, listener: int, worker: int, command: Sequence[str]) -> None:
        self.listener, self.worker, self.command = listener, worker, list(command)
        self.stopping = False
        self.deaths, self.born = 0, time.monotonic()

    def pass_on(self, number: int, _frame: object) -> None:
        if number != signal.SIGHUP:
            if not self.stopping:
                os.close(self.listener)  # the server holds it still, and decides when nobody may connect
            self.stopping = True
        if self.worker:
            try:  # noqa: SIM105  (contextlib is not lean)
                os.kill(self.worker, number)
            except ProcessLookupError:  # it has just ended, which `run` sees next
                pass

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self.pass_on)
        while True:
            code = os.waitstatus_to_exitcode(os.waitpid(self.worker, 0)[1])
            if code >= 0:
                return code
            if self.stopping:  # told to stop before it could answer anything, a server ends by the signal
                return 0 if -code in (signal.SIGTERM, signal.SIGINT) else 128 - code
            self.worker = 0
            if not self.revive(-code):
                return 0 if self.stopping else 1

    def revive(self, number: int) -> bool:
        """Start another server; False: not any more."""
        self.deaths = 1 if time.monotonic() - self.born > HEALTHY_S else self.deaths + 1
        say("killed", signal=signal.Signals(number).name, deaths=self.deaths)
        if self.deaths > MOST:
            say("given up", deaths=self.deaths)
            return False
        end = time.monotonic() + pause_s(self.deaths)
        while not self.stopping and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))  # a signal does not end a sleep
        if self.stopping:
            return False
        self.born = time.monotonic()
        self.worker = os.posix_spawn(self.command[0], self.command, os.environ)
        self.catch_up()
        return True

    def catch_up(self) -> None:
        """A signal may have come while there was nobody to pass it on to."""
        if self.stopping:
            os.kill(self.worker, signal.SIGTERM)


def say(what: str, **facts: object) -> None:
    """A line of the log, in the server's form."""
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + ".000Z"
    line = {"at": at, "level": "error", "event": f"server {what}", **facts}
    sys.stderr.write(json.dumps(line, separators=(",", ":")) + "\n")


def main(arguments: Sequence[str]) -> int:
    """Hold the socket until the server ends by itself, or was killed too often."""
    listener, worker, _, *command = arguments
    return _Supervisor(int(listener), int(worker), command).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

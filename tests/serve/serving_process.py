"""The real command as a process of its own, for tests that ask it over the network."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_PATIENCE_S = 60.0


@dataclass(kw_only=True)
class Running:
    """A server that was started; `stop` it, or let `running` do so."""

    process: subprocess.Popen[str]
    port: int
    said: list[str] = field(default_factory=list)  # lines of stdout
    logged: list[str] = field(default_factory=list)  # lines of stderr

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self.process.pid

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        timeout: float = 30.0,
    ) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own: status, headers in lower case, body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request(method, path, body=body, headers=dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()

    def ask_json(self, method: str, path: str, value: object = None, **headers: str) -> tuple[int, Any]:
        """Likewise with JSON both ways."""
        body = None if value is None else json.dumps(value).encode()
        status, _, answer = self.ask(method, path, body, headers)
        return status, json.loads(answer)

    def connect(self) -> socket.socket:
        """A raw connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def events(self) -> list[dict[str, Any]]:
        """What it logged so far."""
        return [json.loads(line) for line in self.logged if line.startswith("{")]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end: the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(_PATIENCE_S)

    def resident_bytes(self) -> int:
        """Memory of the process alone."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def running(
    *bundles: Path,
    args: tuple[str, ...] = (),
    restart: bool = False,
    env: Mapping[str, str] | None = None,
    clean: bool = True,
) -> Iterator[Running]:
    """``pastille serve`` on a free port, ready; ended with SIGTERM, which must leave nothing behind.

    Args:
        bundles: What it serves.
        args: Further arguments, e.g. ``("--mode", "validate")``.
        restart: Under its supervisor; `Running.pid` is then that one's.
        env: Further environment.
        clean: Whether it must end with exit code 0.
    """
    server = start(*bundles, args=args, restart=restart, env=env)
    try:
        wait_until_ready(server)
        yield server
        code = server.stop()
        assert not clean or code == 0, f"exit code {code}: {server.logged[-5:]}"
        assert not left_behind(server.pid), "processes outlive the server"
    finally:
        for pid in [server.pid, *left_behind(server.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        server.process.wait(_PATIENCE_S)


def start(
    *bundles: Path, args: tuple[str, ...] = (), restart: bool = False, env: Mapping[str, str] | None = None
) -> Running:
    """Start it and wait until it listens (or has ended); it need not be ready."""
    command = [sys.executable, "-m", "pastille", "serve", *map(str, bundles), "--port", "0", *args]
    if not restart:
        command.append("--no-restart")
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
    )
    server = Running(process=process, port=0)
    for stream, lines in ((process.stdout, server.said), (process.stderr, server.logged)):
        threading.Thread(target=_collect, args=(stream, lines), daemon=True).start()
    _until(lambda: bool(_port(server)) or process.poll() is not None, "it listens")
    server.port = _port(server)
    return server


def wait_until_ready(server: Running) -> None:
    """Until every model can be asked; fails at once where the process has ended."""

    def ready() -> bool:
        assert server.process.poll() is None, f"it ended: {server.logged[-5:]}"
        return server.ask("GET", "/healthz/ready")[0] == 200

    _until(ready, "it is ready")


def left_behind(pid: int) -> list[int]:
    """Processes that descend from this one, or did before it ended: found by their process group's leader."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid:
                found.append(int(folder.name))
    return found


def _port(server: Running) -> int:
    said = [line for line in server.said if line.startswith("listening on ")]
    return int(said[0].rpartition(":")[2]) if said else 0


def _collect(stream: Any, lines: list[str]) -> None:
    with stream:
        for line in stream:
            lines.append(line.rstrip("\n"))


def _until(true: Any, what: str) -> None:
    end = time.monotonic() + _PATIENCE_S
    while not true():
        assert time.monotonic() < end, f"not within {_PATIENCE_S:g} s: {what}"
        time.sleep(0.02)

"""Python code in a process of its own that need not import everything anew: it is forked from one that has.

A run is killed and taken up some thirty times in these tests, and importing torch is the larger part of each
process. A forked process is killed like any other. What it shares with its siblings is the seed of hashes:
the run that others are compared with is therefore made by an interpreter of its own.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
from multiprocessing.context import ForkServerProcess
from pathlib import Path

PASTILLE = "from pastille.cli import main\nmain()"
_IMPORTED = [
    "pastille.cli",
    "pastille.runner",
    "onnxruntime",
    "onnxscript.function_libs.torch_lib.ops",
    "sympy.tensor.tensor",
    "torch._dynamo",
    "torch._inductor.config",
    "torch.export._trace",
    "torch.onnx._internal.exporter._compat",
]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(_IMPORTED)


class Forked:
    """A process that executes code as ``python -c`` does, with what it writes kept in files.

    Args:
        code: What it executes.
        arguments: ``sys.argv[1:]``.
        file_bytes: Largest file that it may write, as on a full disk.
    """

    def __init__(self, code: str, *arguments: str, file_bytes: int | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory()
        base = Path(self._folder.name)
        self._told = base / "out", base / "err"
        self._process: ForkServerProcess = _CONTEXT.Process(
            target=_execute, args=(code, arguments, self._told, file_bytes)
        )
        self._process.start()

    def poll(self) -> int | None:
        """The exit code, or None while it goes on."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Does nothing if it has ended."""
        if self._process.pid is not None and self._process.exitcode is None:
            os.kill(self._process.pid, number)

    def finished(self, timeout: float = 300) -> tuple[int, str, str]:
        """Wait for its exit code, and what it wrote to stdout and stderr."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            raise TimeoutError(f"the process did not end within {timeout} s")
        out, err = (path.read_text() if path.exists() else "" for path in self._told)
        self._folder.cleanup()
        return code, out, err


def _execute(code: str, arguments: tuple[str, ...], told: tuple[Path, Path], file_bytes: int | None) -> None:
    gc.freeze()  # what was imported stays: half a million objects that no collection need walk again
    # A shell starts what it runs in the background with SIGINT ignored, the tests included.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, path in enumerate(told, start=1):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY), number)
    if file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    sys.argv = ["-c", *arguments]
    with contextlib.suppress(BrokenPipeError):
        exec(compile(code, "<forked>", "exec"), {"__name__": "__main__"})

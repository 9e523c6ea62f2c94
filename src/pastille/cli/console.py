"""What a person sees: progress on stderr, results on stdout, errors in one line."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, NoReturn, ParamSpec, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from pastille.errors import ExitCode, PastilleError
from pastille.processes import here, one_voice
from pastille.progress import SILENT, Progress
from pastille.references import one_line

T = TypeVar("T")
P = ParamSpec("P")

# NO_COLOR and the absence of a terminal are respected by rich itself.
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


_LINE_SECONDS = 10.0
_EXTRAS = {  # module that is missing -> what brings it
    **dict.fromkeys(("torch", "onnx", "onnxscript", "safetensors", "sklearn"), "compress"),
    "scipy": "judge",
}


class Live:
    """Progress as bars with the time left; without a terminal, a line per note."""

    def __init__(self) -> None:
        # Bound to this stream now: the exporter's own output is redirected while bars go on.
        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._depth = 0

    def track(self, items: Iterable[T], *, what: str, total: int | None = None) -> Iterator[T]:
        """Show a bar while ``items`` are passed on."""
        if total is None and isinstance(items, Sized):
            total = len(items)
        if not self._console.is_terminal:
            yield from self._in_lines(items, what, total)
            return
        self._enter()
        task = self._bars.add_task(what, total=total)
        try:
            for item in items:
                yield item
                self._bars.advance(task)
        finally:
            self._bars.remove_task(task)
            self._leave()

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        if self._console.is_terminal:
            self._console.print(text, markup=False)
            return
        with contextlib.suppress(BrokenPipeError):  # nobody reads any more; the work goes on
            self._console.file.write(text + "\n")
            self._console.file.flush()

    def _in_lines(self, items: Iterable[T], what: str, total: int | None) -> Iterator[T]:
        """A log instead of bars: at most one line every `_LINE_SECONDS`."""
        started = said = time.monotonic()
        for done, item in enumerate(items):
            if (now := time.monotonic()) - said > _LINE_SECONDS:
                said = now
                left = f", {(now - started) / done * (total - done):.0f} s left" if total and done else ""
                self.note(f"{what}: {done}/{total or '?'}{left}")
            yield item

    def _enter(self) -> None:
        if self._depth == 0:
            self._bars.start()
        self._depth += 1

    def _leave(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._bars.stop()


def progress(*, quiet: bool) -> Progress:
    """What long work reports to; of several processes the main one speaks."""
    return SILENT if quiet or not here().is_main else Live()


@contextlib.contextmanager
def strangers_aside() -> Iterator[None]:
    """Whatever the user's own code prints goes to stderr: stdout is for results alone."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def show_json(value: object) -> None:
    """Print a result for a program: one JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def fail(message: str, code: ExitCode, *, as_json: bool = False) -> NoReturn:
    """End the command with one line on stderr, and with ``--json`` an object on stdout too."""
    show_error(message, code, as_json=as_json)
    raise SystemExit(int(code))


def show_error(message: str, code: ExitCode, *, as_json: bool = False) -> None:
    """Say why a command ends; which of several processes it is, where that is not the main one."""
    among = here()
    where = "" if among.is_main else f"process {among.rank} of {among.world}: "
    err.print(f"[bold red]error:[/] {where}{_escaped(message)}")
    if as_json:
        show_json({"error": message, "exit_code": int(code)})


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(" ".join(text.split()))


def reports_errors(command: Callable[P, Any]) -> Callable[P, Any]:
    """Turn what a command raises into one line and the documented exit code."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Any:
        as_json = bool(kwargs.get("as_json", False))
        with _noticing_interrupts() as interrupts:
            try:
                return command(*args, **kwargs)
            except (Exception, KeyboardInterrupt) as error:
                _debug()
                message, code = _explained(error)
                if interrupts:
                    hint = "; take it up with --resume" if command.__name__ == "run" else ""
                    message, code = f"interrupted: what was finished is kept{hint}", ExitCode.INTERRUPTED
                with one_voice(error) as speaks:
                    if speaks:
                        show_error(message, code, as_json=as_json and here().is_main)
                raise SystemExit(int(code)) from None

    return wrapped


@contextlib.contextmanager
def _noticing_interrupts() -> Iterator[list[int]]:
    """Note every Ctrl-C: below us, compiled code may turn a KeyboardInterrupt into another error."""
    noticed: list[int] = []

    def interrupt(signum: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # we are leaving: once is enough
        noticed.append(signum)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        yield noticed
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield noticed
    finally:
        if not noticed:
            signal.signal(signal.SIGINT, before)


def _explained(error: BaseException) -> tuple[str, ExitCode]:
    if isinstance(error, PastilleError):
        return str(error), error.exit_code
    if isinstance(error, ModuleNotFoundError) and error.name in _EXTRAS:
        what = f"this command needs {error.name}, which an edge installation leaves out"
        return f"{what}; run: pip install 'pastille[{_EXTRAS[error.name]}]'", ExitCode.USAGE
    if isinstance(error, OSError):
        return f"{one_line(error)}: what was finished is kept", ExitCode.FAILURE
    hint = "this is a fault of Pastille; PASTILLE_DEBUG=1 shows where, for a report"
    return f"unexpected: {one_line(error)}: {hint}", ExitCode.FAILURE


def _debug() -> None:
    if os.environ.get("PASTILLE_DEBUG"):
        err.print_exception()

"""The server's log: one JSON object per line on stderr, without inputs, outputs or anything of a patient."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import sys
import time
import traceback
import warnings
from typing import Final

LOGGER: Final = logging.getLogger("pastille.serve")
_FACTS: Final = "facts"
_FRAMES: Final = 6
_KEY: Final = secrets.token_bytes(
    32
)  # of this process: without it, the few numbers of a clinic could be tried


class JsonLines(logging.Formatter):
    """A record as one line of JSON: time, level, event, and its facts.

    Example:
        >>> record = logging.LogRecord("x", logging.INFO, "", 0, "started", None, None)
        >>> record.created, record.facts = 0.0, {"port": 8080}
        >>> JsonLines().format(record)
        '{"at":"1970-01-01T00:00:00.000Z","level":"info","event":"started","port":8080}'
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        seconds, fraction = divmod(record.created, 1)
        at = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(fraction * 1000):03d}Z"
        line = {"at": at, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, _FACTS, {})
        return json.dumps(line, ensure_ascii=False, separators=(",", ":"), default=str)


def set_up(level: int = logging.INFO) -> None:
    """Log as JSON lines on stderr; what uvicorn would say is said here, or not at all."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    LOGGER.handlers, LOGGER.propagate = [handler], False
    LOGGER.setLevel(level)
    # A hostile picture makes its decoder warn thousands of times; each text would be kept for ever, too.
    warnings.simplefilter("ignore")
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        foreign = logging.getLogger(name)
        foreign.handlers, foreign.propagate = [], False
        foreign.setLevel(logging.CRITICAL + 1)


def event(what: str, *, level: int = logging.INFO, **facts: object) -> None:
    """Log that something happened.

    Args:
        what: In a word or two: ``"ready"``, ``"swapped"``.
        level: Of `logging`.
        facts: Anything but inputs, outputs and what a client sent; see `pseudonym` for its request id.
    """
    if LOGGER.isEnabledFor(level):
        LOGGER.log(level, what, extra={_FACTS: facts})


def fault(route: str, error: BaseException) -> None:
    """Log a fault of ours: where it happened and of which type, not its message, which may hold an input."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    places = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]
    event("fault", level=logging.ERROR, route=route, error=type(error).__name__, where=places)


def pseudonym(request_id: str) -> str:
    """A short keyed hash in place of an id that a client chose: it may be a patient's.

    Lines of one process about one id have the same; nobody can tell which id that was.

    Example:
        >>> pseudonym("Jane Doe 1980-01-01") == pseudonym("Jane Doe 1980-01-01")
        True
    """
    return hashlib.blake2b(request_id.encode("utf-8", "replace"), key=_KEY, digest_size=6).hexdigest()

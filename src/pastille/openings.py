"""The ledger of test openings: which test cases were looked at, when and for what, over all runs.

A verdict is sound if the test split was looked at once. A run that is begun again, after its predecessor's
verdict was read, looks a second time at the same cases; the ledger lies above the runs, so that it
remembers what no single record can. It is append-only, one line of JSON per opening.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pastille.data.split import Split, named
from pastille.errors import OutputError
from pastille.files import read_bounded
from pastille.values import from_json, to_json

LEDGER = "test-openings.jsonl"
_MAX_BYTES = 16 << 20
_SKETCH = 32
_HASH_LENGTH = 16  # hexadecimal digits kept of each hash


@dataclass(frozen=True, kw_only=True)
class Opening:
    """One look at a test split."""

    at: str  # UTC, ISO 8601
    purpose: str  # e.g. "final gate"
    by: str  # the run, relative to the ledger's folder, or the command
    cases: int
    sketch: tuple[str, ...]  # the smallest hashes of the cases: two splits that share cases share hashes


def sketch(split: Split) -> tuple[str, ...]:
    """The smallest hashes of a split's inputs: enough to tell whether two splits share cases.

    Neither a case nor its order can be read from it.

    Args:
        split: Inputs are read once each.

    References:
        Broder, "On the resemblance and containment of documents", 1997 (bottom-k sketch).
    """
    hashes = (_hash(split.inputs[index]) for index in range(split.n))
    return tuple(sorted(set(hashes))[:_SKETCH])


def _hash(sample: object) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(named(sample).items()):
        little = np.asarray(array, dtype=array.dtype.newbyteorder("<"))
        digest.update(f"{name}:{little.dtype.name}{little.shape}".encode() + little.tobytes())
    return digest.hexdigest()[:_HASH_LENGTH]


def shared(one: Sequence[str], other: Sequence[str]) -> float:
    """About what share of all the cases of two splits is in both, from their sketches.

    Example:
        >>> shared(("a", "b"), ("a", "b")), shared(("a", "b"), ("c", "d"))
        (1.0, 0.0)
    """
    both = sorted(set(one) | set(other))[: max(len(one), len(other), 1)]
    return len(set(both) & set(one) & set(other)) / len(both) if both else 0.0


def read_openings(ledger: Path) -> tuple[Opening, ...]:
    """Every opening so far, oldest first; none if there is no ledger.

    A line that a killed process left half written is passed over.

    Raises:
        IntegrityError: The ledger is unreadable or too large.
    """
    if not ledger.exists():
        return ()
    lines = read_bounded(ledger, _MAX_BYTES, what="ledger of test openings").splitlines()
    return tuple(_parsed(lines))


def _parsed(lines: Sequence[bytes]) -> Iterator[Opening]:
    for line in lines:
        try:
            yield from_json(Opening, line)
        except ValueError:
            continue


def record_opening(ledger: Path, opening: Opening) -> tuple[Opening, ...]:
    """Append an opening, durably, before the cases are looked at.

    Returns:
        Earlier openings, by others, of test splits that share cases with this one, oldest first.

    Raises:
        OutputError: The ledger cannot be written.
        IntegrityError: It cannot be read.
    """
    before = read_openings(ledger)
    line = to_json(opening, indent=None) + b"\n"
    try:
        ledger.parent.mkdir(parents=True, exist_ok=True)
        with ledger.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # A line that was cut short must not swallow this one.
            file.write(b"\n" + line if _cut_short(ledger) else line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"cannot write {ledger}: {error.strerror}") from error
    return tuple(o for o in before if o.by != opening.by and shared(o.sketch, opening.sketch) > 0)


def _cut_short(ledger: Path) -> bool:
    with ledger.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if not size:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def earlier_looks(earlier: Sequence[Opening], sketched: Sequence[str]) -> str | None:
    """What a verdict has to say about earlier looks at its cases; None if there were none.

    Example:
        >>> first = Opening(at="2026-01-02T03:04:05", purpose="final gate", by="r/1", cases=9, sketch=("a",))
        >>> print(earlier_looks([first], ("a",)))
        these test cases were opened 1 time before (2026-01-02, final gate of r/1): whoever chose this
        candidate may have known how an earlier one did on them, so the verdict is weaker than its
        interval says
    """
    if not earlier:
        return None
    last = earlier[-1]
    overlap = max(shared(o.sketch, sketched) for o in earlier)
    which = (
        "these test cases were" if overlap > 0.99 else f"about {100 * overlap:.0f} % of these test cases were"
    )
    times = f"{len(earlier)} time{'s' if len(earlier) > 1 else ''}"
    latest = f"{'last ' if len(earlier) > 1 else ''}{last.at[:10]}, {last.purpose} of {last.by}"
    return (
        f"{which} opened {times} before ({latest}): whoever chose this candidate may have known how an "
        "earlier one did on them, so the verdict is weaker than its interval says"
    )

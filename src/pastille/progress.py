"""How long work says where it stands, without knowing who listens. Only `pastille.cli` prints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """What every function that may take over two seconds is given."""

    def track(self, items: Iterable[T], *, what: str, total: int | None = None) -> Iterator[T]:
        """Pass ``items`` on one by one, showing how far it is and how long it will take.

        Args:
            items: Anything; may be endless if ``total`` is None.
            what: A few words in the ``-ing`` form, e.g. ``"fine-tuning"``.
            total: How many there will be; taken from ``len(items)`` where it has one.
        """
        ...

    def note(self, text: str) -> None:
        """Say one line that stays, e.g. the result of an epoch or of a stage."""
        ...


class Silent:
    """Shows nothing.

    Example:
        >>> list(Silent().track("ab", what="reading"))
        ['a', 'b']
    """

    def track(self, items: Iterable[T], *, what: str, total: int | None = None) -> Iterator[T]:
        """Pass ``items`` on."""
        yield from items

    def note(self, text: str) -> None:
        """Drop the line."""


SILENT = Silent()

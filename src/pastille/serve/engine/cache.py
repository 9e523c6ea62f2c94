"""Answers kept for inputs that come again: found by hash, compared byte by byte, forgotten by size."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import numpy as np

from pastille.bundle import Answer, Manifest, VariantName
from pastille.serve.values import Reply

ENTRY_BYTES = 2048  # about what Python keeps of an entry beside its arrays


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Everything but the inputs that an answer depends on.

    Attributes:
        content: Of the bundle: covers preprocessing, labels, thresholds and every model.
        version: As served; an answer says which one gave it.
        variant: That answers.
        sha256: Of its ONNX file.
    """

    content: str
    version: str
    variant: VariantName
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Question:
    """One input to one variant, in full.

    Attributes:
        identity: Who is asked.
        tensors: Name, type and shape of each tensor, by name.
        data: Bytes of each tensor, row-major, in the same order.
    """

    identity: Identity
    tensors: tuple[tuple[str, str, tuple[int, ...]], ...]
    data: tuple[bytes, ...]

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 over all of it."""
        found = hashlib.sha256(repr((self.identity, self.tensors)).encode())
        for part in self.data:  # their lengths follow from the shapes
            found.update(part)
        return found.digest()

    @property
    def size(self) -> int:
        """Bytes of the tensors."""
        return sum(map(len, self.data))


@dataclass(frozen=True, kw_only=True)
class CacheStats:
    """How a cache did since the start."""

    hits: int
    misses: int
    bytes: int
    entries: int


def identity_of(manifest: Manifest, variant: VariantName, version: str) -> Identity:
    """What the answers of a variant depend on; made once, not per request."""
    sha256 = manifest.variant(variant).model.sha256
    return Identity(content=manifest.content, version=version, variant=variant, sha256=sha256)


def question(identity: Identity, inputs: Mapping[str, np.ndarray]) -> Question:
    """One input, copied so that nothing can change it later.

    Args:
        identity: Who is asked.
        inputs: ``{name: (N, ...)}``, as the model takes them.
    """
    arrays = sorted(inputs.items())
    return Question(
        identity=identity,
        tensors=tuple((name, array.dtype.str, array.shape) for name, array in arrays),
        data=tuple(array.tobytes() for _, array in arrays),
    )


@final
class ResponseCache:
    """The answers that were asked for last, up to a number of bytes. For one thread: the event loop's.

    It keeps only what the asked variant itself answered: no fallback, no answer that another variant was
    held against, nothing non-finite.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()  # oldest use first
        self._bytes = self._hits = self._misses = 0
        self._thread: int | None = None

    @property
    def stats(self) -> CacheStats:
        """How it did since the start."""
        return CacheStats(hits=self._hits, misses=self._misses, bytes=self._bytes, entries=len(self._entries))

    def get(self, asked: Question, *, warnings: tuple[str, ...] = ()) -> Reply | None:
        """The answer to the very same input, or None.

        Args:
            asked: The input.
            warnings: Of the call now.
        """
        self._check_thread()
        entry = self._entries.get(asked.digest)
        if entry is None or entry.asked != asked:  # compared in full: a hash proves nothing
            self._misses += 1
            return None
        self._hits += 1
        self._entries.move_to_end(asked.digest)
        return replace(entry.reply, warnings=warnings)

    def put(self, asked: Question, reply: Reply) -> bool:
        """Keep an answer, unless it is one that must not be given again.

        Returns:
            Whether it was kept.
        """
        self._check_thread()
        if not _may_be_kept(asked, reply):
            return False
        entry = _entry(asked, reply)
        if entry.size > self._capacity:
            return False
        self._drop(asked.digest)
        self._entries[asked.digest] = entry
        self._bytes += entry.size
        while self._bytes > self._capacity:
            self._drop(next(iter(self._entries)))
        return True

    def clear(self) -> None:
        """Forget every answer; the counts stay."""
        self._entries.clear()
        self._bytes = 0

    def _drop(self, digest: bytes) -> None:
        entry = self._entries.pop(digest, None)
        self._bytes -= entry.size if entry else 0

    def _check_thread(self) -> None:
        now = threading.get_ident()
        self._thread = self._thread or now
        if now != self._thread:
            raise RuntimeError("a response cache must be used by one thread, the event loop's")


@dataclass(frozen=True, kw_only=True)
class _Entry:
    asked: Question
    reply: Reply
    size: int


def _may_be_kept(asked: Question, reply: Reply) -> bool:
    return (
        reply.fallback is None
        and reply.disagreement is None
        and not reply.cached
        and reply.answer.variant == asked.identity.variant
        and reply.model_sha256 == asked.identity.sha256
        and reply.version == asked.identity.version
        and bool(np.isfinite(reply.answer.outputs).all())
    )


def _entry(asked: Question, reply: Reply) -> _Entry:
    confidence = None if reply.confidence is None else _own(reply.confidence)
    kept = replace(
        reply,
        answer=_owned(reply.answer),
        confidence=confidence,
        cached=True,
        arm=None,
        queue_s=0.0,
        compute_s=0.0,
        batch=1,
        warnings=(),
    )
    return _Entry(asked=asked, reply=kept, size=asked.size + _nbytes(kept) + ENTRY_BYTES)


def _owned(answer: Answer) -> Answer:
    return replace(
        answer,
        outputs=_own(answer.outputs),
        probabilities=None if answer.probabilities is None else _own(answer.probabilities),
        masks=None if answer.masks is None else _own(answer.masks),
    )


def _own(array: np.ndarray) -> np.ndarray:
    """A copy that nobody can write to: a view would keep the whole batch alive."""
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def _nbytes(reply: Reply) -> int:
    answer = reply.answer
    arrays: Iterable[np.ndarray | None] = (
        answer.outputs,
        answer.probabilities,
        answer.masks,
        reply.confidence,
    )
    return sum(array.nbytes for array in arrays if array is not None)

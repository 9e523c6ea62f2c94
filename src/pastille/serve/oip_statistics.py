"""``/v2/models/M/stats``: how often a model was asked and how long that took, in Triton's shape."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pastille.serve.values import Answered, EngineStatus, Reply

_MOST_SIZES = 64  # batch sizes that are told apart; a request has at most as many rows


@dataclass(slots=True)
class _Duration:
    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += max(0.0, seconds)

    def body(self) -> dict[str, int]:
        return {"count": self.count, "ns": round(self.seconds * 1e9)}


@dataclass(slots=True)
class _Times:
    """A group of durations; what is not the runtime's is counted as input, for it is mostly reading."""

    input: _Duration = field(default_factory=_Duration)
    infer: _Duration = field(default_factory=_Duration)
    output: _Duration = field(default_factory=_Duration)

    def add(self, reply: Reply, total_s: float) -> None:
        self.input.add(total_s - reply.queue_s - reply.compute_s)
        self.infer.add(reply.compute_s)
        self.output.add(0.0)

    def body(self) -> dict[str, Any]:
        return {
            "compute_input": self.input.body(),
            "compute_infer": self.infer.body(),
            "compute_output": self.output.body(),
        }


@dataclass(slots=True)
class _Tally:
    """Of one model and version."""

    last: float = 0.0  # Unix time
    rows: int = 0
    executions: float = 0.0
    success: _Duration = field(default_factory=_Duration)
    fail: _Duration = field(default_factory=_Duration)
    queue: _Duration = field(default_factory=_Duration)
    times: _Times = field(default_factory=_Times)
    cache_hit: _Duration = field(default_factory=_Duration)
    by_size: dict[int, _Times] = field(default_factory=dict)

    def add(self, event: Answered) -> None:
        reply = event.reply
        self.last = event.at
        self.success.add(event.total_s)
        if reply.cached:
            self.cache_hit.add(event.total_s)
            return
        rows = event.call.rows
        self.rows += rows
        self.executions += rows / max(reply.batch, rows)  # calls that ran together share one execution
        self.queue.add(reply.queue_s)
        self.times.add(reply, event.total_s)
        if reply.batch in self.by_size or len(self.by_size) < _MOST_SIZES:
            self.by_size.setdefault(reply.batch, _Times()).add(reply, event.total_s)

    def body(self, status: EngineStatus) -> dict[str, Any]:
        nothing = _Duration().body()
        return {
            "name": status.model,
            "version": status.version,
            "last_inference": round(self.last * 1e3),
            "inference_count": self.rows,
            "execution_count": round(self.executions),
            "inference_stats": {
                "success": self.success.body(),
                "fail": self.fail.body(),
                "queue": self.queue.body(),
                **self.times.body(),
                "cache_hit": self.cache_hit.body(),
                "cache_miss": nothing | {"count": status.cache_misses},
            },
            "batch_stats": [
                {"batch_size": size, **times.body()} for size, times in sorted(self.by_size.items())
            ],
        }


class Statistics:
    """Of every model and version; for the event loop's thread alone.

    Example:
        >>> Statistics().body([])
        {'model_stats': []}
    """

    def __init__(self) -> None:
        self._tallies: defaultdict[tuple[str, str], _Tally] = defaultdict(_Tally)

    def answered(self, event: Answered) -> None:
        """A request was answered."""
        self._tallies[event.reply.model, event.reply.version].add(event)

    def failed(self, model: str, version: str, total_s: float) -> None:
        """A request to a model that is served was refused, or failed."""
        self._tallies[model, version].fail.add(total_s)

    def forget(self, model: str, version: str) -> None:
        """A version was closed for good."""
        self._tallies.pop((model, version), None)

    def body(self, statuses: Sequence[EngineStatus]) -> dict[str, Any]:
        """``GET /v2/models/M/stats``, or of all models.

        Args:
            statuses: Of those that are asked about.
        """
        return {
            "model_stats": [
                self._tallies.get((status.model, status.version), _Tally()).body(status)
                for status in statuses
            ]
        }

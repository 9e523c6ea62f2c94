"""Everything that is kept of one version of a bundle while it is served."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Final, final

from pastille.bundle import Manifest
from pastille.serve.comparing import positive_labels
from pastille.serve.settings import Alarm
from pastille.serve.values import Answered, Compared, Dropped, Event, Faulted, Label, Moved, Reply, Turned
from pastille.serve.watch.disagreement import Disagreement
from pastille.serve.watch.drift import Drift
from pastille.serve.watch.labels import Decision
from pastille.serve.watch.sensitivity import Sensitivity, positive_found
from pastille.serve.watch.windows import Histogram, Ring, Throughput
from pastille.values.reference import VariantReference

RECENT: Final = 50
_MOST_PAIRS: Final = 8

_CHOSEN_BY_INPUT: Final = frozenset({"exception", "non_finite", "shape", "timeout", "disagreement"})

Tell = Callable[[str, str], None]  # of an alarm: its kind, and a sentence
Seen = tuple[float, str, str, str, int, str, float | None, float, str, bool, int]  # see `views.recent`


@final
class VariantWindow:
    """The answers of one variant."""

    def __init__(self) -> None:
        self.requests = 0
        self.total, self.compute = Ring(), Ring()
        self.total_histogram, self.compute_histogram = Histogram(), Histogram()

    def add(self, event: Answered) -> None:
        """One more; what came from the cache took no time in the runtime."""
        self.requests += 1
        self.total.add(event.total_s)
        self.total_histogram.add(event.total_s)
        if not event.reply.cached:
            self.compute.add(event.reply.compute_s)
            self.compute_histogram.add(event.reply.compute_s)


@final
class Watched:
    """One version of a bundle: its windows, counts and alarms. Belongs to the event loop's thread."""

    def __init__(
        self,
        manifest: Manifest,
        version: str,
        *,
        alarm: Alarm,
        act: Callable[[str], None],
        tell: Tell,
        monotonic: Callable[[], float],
    ) -> None:
        self.manifest, self.version = manifest, version
        self.feared = positive_labels(manifest)
        self._alarm, self._act, self._tell, self._monotonic = alarm, act, tell, monotonic
        self._on: set[str] = set()  # alarms that are on
        self.started = monotonic()
        self.variants: dict[str, VariantWindow] = {}
        self.routes: Counter[str] = Counter()
        self.fallbacks: Counter[tuple[str, str]] = Counter()  # preferred variant, why
        self.faults: Counter[tuple[str, str]] = Counter()  # variant, why
        self.queue = Histogram()
        self.throughput = Throughput()
        self.recent: deque[Seen] = deque(maxlen=RECENT)
        self.dropped = 0
        self.pairs: dict[tuple[str, str], Disagreement] = {}
        self.drift = {v.name: Drift(v.name, self._reference(v.name)) for v in manifest.variants}
        self.sensitivity = Sensitivity(self._reference(manifest.selected))

    def observe(self, event: Event) -> None:
        """Take note of what happened."""
        match event:
            case Answered():
                self.answered(event)
            case Compared():
                self._compared(event)
            case Faulted(variant=variant, why=why):
                self.faults[(variant, why)] += 1
            case Dropped():
                self.dropped += 1
            case Moved() | Turned():
                pass  # the breaker's state is read where it is shown; refusals are the server's

    def answered(self, event: Answered) -> None:
        """Take note of an answer: on the way of every request, so nothing here is computed early."""
        call, reply = event.call, event.reply
        variant, fallback = reply.answer.variant, reply.fallback
        window = self.variants.get(variant)
        if window is None:
            window = self.variants[variant] = VariantWindow()
        window.add(event)
        self.routes[call.route] += 1
        self.queue.add(reply.queue_s)
        self.throughput.add(self._monotonic())
        if fallback is not None:
            self.fallbacks[(fallback.preferred, fallback.why)] += 1
        if reply.confidence is not None and variant in self.drift and speaks_of_traffic(reply):
            drift, row = self.drift[variant], _turn(self.throughput.total, len(reply.confidence))
            drift.add(reply.confidence[row : row + 1])  # the others may be the same patient's
            self._alarmed(f"drift of {variant}", drift.alarm, lambda: drift.view().words)
        self.recent.append(seen(event))

    def labelled(self, label: Label, decision: Decision) -> None:
        """Take note of what turned out to be right."""
        found = positive_found(label.label, decision, self.feared)
        if found is not None:
            self.sensitivity.add(label.groups, found=found)
            self._alarmed("sensitivity", self.sensitivity.alarm, lambda: self.sensitivity.words)

    def _compared(self, event: Compared) -> None:
        key = (event.served, event.other)
        if key not in self.pairs:
            if len(self.pairs) >= _MOST_PAIRS:
                return
            self.pairs[key] = Disagreement(*key, self._alarm)
        pair = self.pairs[key]
        if not pair.add(event):
            return
        self._tell("disagreement", pair.reason)
        if pair.of_variants and self._alarm.action == "fall_back":
            self._act(pair.reason)

    def _alarmed(self, kind: str, on: bool, detail: Callable[[], str]) -> None:
        """Tell of an alarm when it goes off, not as long as it is on."""
        if on == (kind in self._on):
            return
        if on:
            self._on.add(kind)
            self._tell(kind, detail())
        else:
            self._on.remove(kind)

    def _reference(self, variant: str) -> VariantReference | None:
        return None if self.manifest.reference is None else self.manifest.reference.variant(variant)


def speaks_of_traffic(reply: Reply) -> bool:
    """Whether an answer is a fair sample of the requests: no repetition, nor chosen by what was in it.

    What fp32 answers because int8 failed on it, or because they disagreed, is not what is usually asked.
    """
    return bool(
        reply.confidence is not None
        and len(reply.confidence)
        and not reply.cached
        and (reply.fallback is None or reply.fallback.why not in _CHOSEN_BY_INPUT)
    )


def _turn(count: int, of: int) -> int:
    """Which of so many comes now: each as often, whatever the rhythm (multiples of the golden ratio)."""
    return (count * 0x9E3779B1 % (1 << 32)) * of >> 32


def seen(event: Answered) -> Seen:
    """What is kept of a request: nothing of its inputs; its id is hashed where it is shown."""
    call, reply = event.call, event.reply
    decided = reply.answer.decisions[0] if reply.answer.decisions else ""
    return (
        event.at,
        call.request_id,
        call.route,
        reply.answer.variant,
        len(reply.answer.outputs),
        decided if isinstance(decided, str) else ", ".join(decided),
        None if reply.confidence is None or not len(reply.confidence) else float(reply.confidence[0]),
        event.total_s,
        "" if reply.fallback is None else reply.fallback.why,
        reply.cached,
        len(reply.warnings),
    )

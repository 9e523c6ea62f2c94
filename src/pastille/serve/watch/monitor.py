"""The monitor of a server: who is watched, what was refused, which decision a label belongs to."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from pastille.bundle import Manifest
from pastille.serve.errors import Refused
from pastille.serve.seams import Observe
from pastille.serve.settings import Settings
from pastille.serve.swapping import CANDIDATE
from pastille.serve.values import Answered, EngineStatus, Label, Turned
from pastille.serve.watch.comparison import ArmComparison
from pastille.serve.watch.labels import Memory, Remembered, as_decision, counts, decision_of
from pastille.serve.watch.metrics import CONTENT_TYPE, Shown, exposition
from pastille.serve.watch.snapshot import Snapshot
from pastille.serve.watch.views import snapshot_of
from pastille.serve.watch.watched import Watched

METRICS_TYPE: Final = CONTENT_TYPE
Bundle = tuple[str, str]  # model, version
_MOST_GROUPS, _MOST_TEXT = 16, 128
_SHOWN_LABELS: Final = 20


@dataclass(frozen=True, kw_only=True)
class Alarmed:
    """An alarm went off: for logs and the audit."""

    kind: str  # "disagreement", "drift of int8", "sensitivity" or "comparison"
    model: str
    version: str
    detail: str  # a sentence


def _ignored(_: Alarmed) -> None:
    """Nobody is told."""


def open_monitor(
    settings: Settings,
    *,
    on_alarm: Callable[[Alarmed], None] = _ignored,
    clock: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
) -> ServerMonitor:
    """A monitor that watches nothing yet.

    Args:
        settings: Alarm, mode and share of an A/B test.
        on_alarm: Told of each alarm once, when it goes off.
        clock: Unix time, only shown.
        monotonic: What durations and ages are taken of.
    """
    return ServerMonitor(settings, on_alarm=on_alarm, clock=clock, monotonic=monotonic)


@final
class ServerMonitor:
    """Watches every version that is served. Belongs to the event loop's thread; takes no lock."""

    def __init__(
        self,
        settings: Settings,
        *,
        on_alarm: Callable[[Alarmed], None],
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._on_alarm = on_alarm
        self._settings, self._clock, self._monotonic = settings, clock, monotonic
        self._watched: dict[tuple[str, str], Watched] = {}
        self._refusals: Counter[tuple[str, int, str]] = Counter()  # route, status, cause
        self._memory = Memory()
        self._comparisons: dict[Bundle, ArmComparison] = {}  # by arm a: another version is another test
        self._facing: Bundle = ("", "")  # arm a of a test of two bundles, now

    def watch(self, manifest: Manifest, version: str, *, act: Callable[[str], None]) -> Observe:
        """Begin to watch an engine; see `pastille.serve.seams.Monitor`."""
        watched = Watched(
            manifest,
            version,
            alarm=self._settings.alarm,
            act=act,
            tell=lambda kind, detail: self._tell(kind, manifest.name, version, detail),
            monotonic=self._monotonic,
        )
        self._watched[(manifest.name, version)] = watched
        self._face((manifest.name, version))
        return watched.observe

    def forget(self, model: str, version: str) -> None:
        """Let go of a version that was closed for good."""
        self._watched.pop((model, version), None)
        self._comparisons.pop((model, version), None)
        self._memory.forget(model, version)

    def answered(self, event: Answered) -> None:
        """A request was answered; by a version that was forgotten in the meantime, it counts no more."""
        watched = self._watched.get((event.reply.model, event.reply.version))
        if watched is None:
            return
        watched.answered(event)
        if event.reply.arm == "a":
            self._face((event.reply.model, event.reply.version))
        against = self._arm_a(event.reply.model, event.reply.version)
        self._memory.put(event, now=self._monotonic(), against=against)
        if event.reply.arm is not None:
            self._comparison(against).add(event)

    def turned(self, event: Turned) -> None:
        """A request was refused."""
        self._refusals[(event.route, event.status, event.cause)] += 1

    def feedback(self, label: Label) -> Mapping[str, Any]:
        """A label that arrived later.

        Returns:
            What the earlier decision was, whether it was right, and whether the label was counted: the same
            label again is not.

        Raises:
            Refused: ``not_found`` where the request is not known any longer, ``malformed`` for an unknown
                label, a row that there was not, another label than before, or too many groups.
        """
        remembered = self._memory.find(label.request_id, now=self._monotonic())
        decision = decision_of(remembered, label)
        assert remembered is not None  # else refused
        watched = self._watched[(remembered.model, remembered.version)]  # both are forgotten together
        _check(label, watched.manifest)
        counted = counts(remembered, label)
        correct = as_decision(decision) == as_decision(label.label)
        if counted:
            watched.labelled(label, decision)
            self._judge(remembered, correct=correct)
        return {"decision": decision, "correct": correct, "counted": counted}

    def metrics(self, statuses: Sequence[EngineStatus]) -> bytes:
        """Prometheus text format, of type `METRICS_TYPE`."""
        shown = [
            Shown(status=status, watched=watched)
            for status in statuses
            if (watched := self._watched.get((status.model, status.version))) is not None
        ]
        return exposition(shown, refusals=self._refusals, comparisons=self._comparisons)

    def snapshot(self, status: EngineStatus) -> Snapshot:
        """What ``/monitor.json`` and the page show of one engine.

        Raises:
            Refused: ``not_found``: it is not watched.
        """
        watched = self._watched.get((status.model, status.version))
        if watched is None:
            raise Refused("not_found", f"{status.model} {status.version} is not watched")
        refusals: Counter[tuple[int, str]] = Counter()
        for (_, code, cause), n in self._refusals.items():
            refusals[(code, cause)] += n
        return snapshot_of(
            watched,
            status,
            at=self._clock(),
            now=self._monotonic(),
            refusals=refusals,
            comparison=self._comparison(self._arm_a(status.model, status.version)).view()
            if self._settings.mode == "ab"
            else None,
        )

    def _judge(self, remembered: Remembered, *, correct: bool) -> None:
        if remembered.arm is None or remembered.against not in self._watched:
            return
        comparison = self._comparison(remembered.against)
        before = comparison.test.alarm
        comparison.judge(remembered.arm, correct=correct, subject=remembered.subject)
        if comparison.test.alarm and not before:
            self._tell("comparison", remembered.model, remembered.version, comparison.view().words)

    def _tell(self, kind: str, model: str, version: str, detail: str) -> None:
        self._on_alarm(Alarmed(kind=kind, model=model, version=version, detail=detail))

    def _face(self, bundle: Bundle) -> None:
        if bundle[1] != CANDIDATE:
            self._facing = bundle

    def _arm_a(self, model: str, version: str) -> Bundle:
        """Whose test an answer belongs to: after a swap labels still speak of the version that answered."""
        return (model, version) if version != CANDIDATE else self._facing

    def _comparison(self, arm_a: Bundle) -> ArmComparison:
        if arm_a not in self._comparisons:
            self._comparisons[arm_a] = ArmComparison(self._settings.comparison.share)
        return self._comparisons[arm_a]


def _check(label: Label, manifest: Manifest) -> None:
    given = (label.label,) if isinstance(label.label, str) else label.label
    several = manifest.kind == "multilabel"
    if several == isinstance(label.label, str):
        what = "a list of labels" if several else "one label"
        raise Refused("malformed", f"label must be {what} for a {manifest.kind} task")
    if unknown := set(given) - set(manifest.labels):
        more = ", …" if len(manifest.labels) > _SHOWN_LABELS else ""
        allowed = ", ".join(manifest.labels[:_SHOWN_LABELS]) + more
        raise Refused(
            "malformed", f"{len(unknown)} unknown label{'s' * (len(unknown) > 1)}; allowed: {allowed}"
        )
    if len(label.groups) > _MOST_GROUPS or any(
        len(text) > _MOST_TEXT for pair in label.groups.items() for text in pair
    ):
        raise Refused(
            "malformed",
            f"groups must be at most {_MOST_GROUPS} names and values of at most {_MOST_TEXT} characters",
        )

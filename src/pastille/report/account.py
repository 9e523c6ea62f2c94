"""The events of a record, each where a reader looks for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pastille.report.text as text
from pastille.record import (
    Ablated,
    BaselineProfiled,
    BundleWritten,
    FinalJudged,
    Record,
    Resumed,
    StageFinished,
    Started,
    TaskLoaded,
    TestOpened,
    ThresholdChosen,
)
from pastille.values import Conditions, Evidence, Latency, LeftOut, Metrics, Profile, Speedup, Verdict


@dataclass(frozen=True, kw_only=True)
class Account:
    """One run, finished or not: what is missing is None or empty."""

    name: str
    started: Started | None
    resumed: tuple[Resumed, ...]
    loaded: TaskLoaded | None
    threshold: ThresholdChosen | None
    baseline: BaselineProfiled | None
    stages: tuple[StageFinished, ...]  # one per index of the plan, in its order
    opened: tuple[TestOpened, ...]
    final: FinalJudged | None
    bundle: BundleWritten | None
    left_out: tuple[LeftOut, ...] = ()  # one per stage, in the plan's order; the whole plan first

    @property
    def recipe(self) -> dict[str, Any]:
        """What was asked, or an empty mapping before it was written down."""
        return dict(self.started.recipe) if self.started else {}

    @property
    def before(self) -> Profile | None:
        """The baseline's profile."""
        return self.baseline.profile if self.baseline else None

    @property
    def after(self) -> Profile | None:
        """The profile of the file that was judged; before that, of the newest stage that was kept."""
        return self.candidate.profile if self.candidate else None

    @property
    def candidate(self) -> StageFinished | None:
        """The stage whose file was judged; before that, the newest that was kept."""
        if self.final is None:
            return next((s for s in reversed(self.stages) if s.kept), None)
        judged = self.final.candidate
        matching = [s for s in self.stages if judged in (s.name, s.profile.name)]
        return next((s for s in reversed(matching) if s.kept), matching[-1] if matching else None)

    @property
    def verdict(self) -> Verdict | None:
        """The verdict on test; before that, the newest kept stage's on validation."""
        if self.final:
            return self.final.verdict
        return self.candidate.verdict if self.candidate else None

    @property
    def evidence(self) -> Evidence:
        """What was compared before that verdict; empty in records of versions that kept none."""
        return (self.verdict.evidence if self.verdict else None) or Evidence()

    @property
    def requirements(self) -> Mapping[str, Any]:
        """What was asked of the result, or an empty mapping."""
        asked = self.recipe.get("requirements")
        return asked if isinstance(asked, Mapping) else {}

    @property
    def metrics(self) -> tuple[Metrics | None, Metrics | None]:
        """Metrics before and after: on the test split once that was judged, on validation until then."""
        if self.final:
            return self.final.baseline_metrics, self.final.candidate_metrics
        return (self.before.metrics if self.before else None), (self.after.metrics if self.after else None)

    @property
    def speedup(self) -> Speedup | None:
        """How much faster one input is answered, measured last."""
        judged = self.final.speedups if self.final else ()
        found = next((s for s in judged if s.batch == 1), None)
        return found or (self.after.speedup if self.after else None)

    @property
    def metric(self) -> str:
        """The metric that the page leads with: the first that a limit is set on."""
        return next(self._candidates(), "")

    def _candidates(self) -> Iterator[str]:
        verdicts = [self.final.verdict] if self.final else []
        verdicts += [s.verdict for s in reversed(self.stages)]
        yield from (c.metric for v in verdicts for c in v.checks if c.drop is not None and not c.where)
        known = [m.overall for m in self.metrics if m is not None]
        yield from (name for name in ("accuracy", "r2") if any(name in overall for overall in known))
        yield from sorted({n for overall in known for n in overall}, key=text.lower_is_better)


def account(record: Record) -> Account:
    """Arrange the events of a run; of a stage that was carried out twice, the later one counts."""
    stages = {stage.index: stage for stage in record.all(StageFinished)}
    left_out = {done.left_out.index: done.left_out for done in record.all(Ablated)}
    return Account(
        name=record.name,
        started=record.last(Started),
        resumed=record.all(Resumed),
        loaded=record.last(TaskLoaded),
        threshold=record.last(ThresholdChosen),
        baseline=record.last(BaselineProfiled),
        stages=tuple(stages[i] for i in sorted(stages)),
        opened=record.all(TestOpened),
        final=record.last(FinalJudged),
        bundle=record.last(BundleWritten),
        left_out=tuple(left_out[i] for i in sorted(left_out)),
    )


def machine(run: Account) -> Conditions | None:
    """The conditions that the baseline was timed under, else those of the machine that began the run."""
    timed = [latency.conditions for latency in (run.before.latency if run.before else ())]
    return next(iter(timed), run.started.environment.machine if run.started else None)


def at_batch(profile: Profile | None, batch: int = 1) -> Latency | None:
    """The latency of a profile at one batch size."""
    found = profile.latency if profile else ()
    return next((latency for latency in found if latency.batch == batch), None)

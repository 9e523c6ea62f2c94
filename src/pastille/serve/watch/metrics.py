"""``/metrics``: every figure in the Prometheus text format, read from what is kept when it is asked for.

Nothing is counted twice on the way of a request: the counts of the page are those of the metrics. The
library is imported at the first scrape, for a server that nobody scrapes needs none of it.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Final, Literal, cast

from pastille.serve.values import EngineStatus
from pastille.serve.watch.comparison import ArmComparison
from pastille.serve.watch.snapshot import DriftView
from pastille.serve.watch.watched import Watched
from pastille.serve.watch.windows import Histogram

if TYPE_CHECKING:
    from prometheus_client.core import Metric
    from prometheus_client.registry import CollectorRegistry

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
Labels = Mapping[str, str]
_STATES: Final = ("closed", "open", "half_open")


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One version, with what its engine says."""

    status: EngineStatus
    watched: Watched

    @property
    def labels(self) -> dict[str, str]:
        """What each of its figures carries."""
        return {"model": self.status.model, "version": self.status.version}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One metric: its samples for every version."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: tuple[str, ...]
    samples: list[tuple[Labels, float | Histogram]] = field(default_factory=list)


def exposition(
    shown: Sequence[Shown],
    *,
    refusals: Mapping[tuple[str, int, str], int],
    comparisons: Mapping[tuple[str, str], ArmComparison],
) -> bytes:
    """All metrics as text.

    Args:
        shown: Every version that is served.
        refusals: Of the whole server: how many, by route, status and cause.
        comparisons: A/B tests, by model and version of arm a.
    """
    from prometheus_client import generate_latest

    collected = families(shown, refusals=refusals, comparisons=comparisons)
    return generate_latest(_Once(collected)) + generate_latest(_process())


class _Once:
    """A registry of one scrape: what is collected is known already."""

    def __init__(self, found: Iterable[Family]) -> None:
        self._found = found

    def collect(self) -> Iterator[Metric]:
        return map(_metric, self._found)


@cache
def _process() -> CollectorRegistry:
    """Memory, time and files of the process; a registry of our own, so that tests may run two servers."""
    from prometheus_client import CollectorRegistry, ProcessCollector

    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry


def _metric(family: Family) -> Metric:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.text, labels=family.labels)
        for labels, one in family.samples:
            assert isinstance(one, Histogram)
            histogram.add_metric(_values(family, labels), one.buckets(), one.sum)
        return cast("Metric", histogram)
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(family.name, family.text, labels=family.labels)
    for labels, number in family.samples:
        assert not isinstance(number, Histogram)
        metric.add_metric(_values(family, labels), number)
    return cast("Metric", metric)


def _values(family: Family, labels: Labels) -> list[str]:
    return [labels[name] for name in family.labels]


_VERSION = ("model", "version")
_VARIANT = (*_VERSION, "variant")
_PAIR = (*_VERSION, "served", "other")


def families(
    shown: Sequence[Shown],
    *,
    refusals: Mapping[tuple[str, int, str], int],
    comparisons: Mapping[tuple[str, str], ArmComparison],
) -> Iterator[Family]:
    """Every metric that there is, in the order in which it is shown."""
    yield _build()
    yield from _traffic(shown, refusals)
    yield from _times(shown)
    yield from _standing(shown)
    yield from _cache(shown)
    yield from _agreement(shown)
    yield from _drift(shown)
    yield from _labels(shown)
    yield from _alarms(shown, comparisons)


def _build() -> Family:
    about = {
        "pastille": metadata.version("pastille"),
        "onnxruntime": metadata.version("onnxruntime"),
        "python": platform.python_version(),
    }
    return Family(
        name="pastille_build_info",
        kind="gauge",
        text="Versions of the software, always 1.",
        labels=tuple(about),
        samples=[(about, 1.0)],
    )


def _traffic(shown: Sequence[Shown], refusals: Mapping[tuple[str, int, str], int]) -> Iterator[Family]:
    requests = Family(
        name="pastille_requests",
        kind="counter",
        text="Requests by the status of their answer; those refused before a model was known have none.",
        labels=(*_VERSION, "route", "status"),
    )
    for each in shown:
        for route, n in each.watched.routes.items():
            requests.samples.append((each.labels | {"route": route, "status": "200"}, n))
    refused = Family(
        name="pastille_refusals",
        kind="counter",
        text="Requests that got no answer but an error, by cause.",
        labels=("cause",),
    )
    by_status: dict[tuple[str, int], int] = {}
    by_cause: dict[str, int] = {}
    for (route, status, cause), n in refusals.items():
        by_status[(route, status)] = by_status.get((route, status), 0) + n
        by_cause[cause] = by_cause.get(cause, 0) + n
    for (route, status), n in by_status.items():
        labels = {"model": "", "version": "", "route": route, "status": str(status)}
        requests.samples.append((labels, n))
    refused.samples.extend(({"cause": cause}, n) for cause, n in by_cause.items())
    yield requests
    yield refused


def _times(shown: Sequence[Shown]) -> Iterator[Family]:
    total = _histogram("pastille_request_seconds", "From the whole request to its encoded answer.", _VARIANT)
    compute = _histogram("pastille_compute_seconds", "In the runtime alone; not of cached answers.", _VARIANT)
    queue = _histogram("pastille_queue_seconds", "That a request waited for a free place.", _VERSION)
    for each in shown:
        for name, window in each.watched.variants.items():
            labels = each.labels | {"variant": name}
            total.samples.append((labels, window.total_histogram))
            compute.samples.append((labels, window.compute_histogram))
        queue.samples.append((each.labels, each.watched.queue))
    yield from (total, compute, queue)


def _standing(shown: Sequence[Shown]) -> Iterator[Family]:
    yield _gauge("pastille_in_flight", "Calls that run or wait.", _VERSION, _each(shown, "in_flight"))
    yield _gauge("pastille_queued", "Calls that wait for a place.", _VERSION, _each(shown, "queued"))
    yield _gauge("pastille_ready", "1: it can be asked.", _VERSION, _each(shown, "ready"))
    yield _gauge(
        "pastille_degraded",
        "1: another variant answers than the bundle selected.",
        _VERSION,
        _each(shown, "degraded"),
    )
    usable = _gauge("pastille_variant_usable", "1: this variant may answer on this machine.", _VARIANT, ())
    breaker = _gauge("pastille_breaker_state", "1 for the state of the breaker.", (*_VARIANT, "state"), ())
    fallbacks = _counter(
        "pastille_fallbacks", "Answers of another variant than preferred.", (*_VERSION, "preferred", "why")
    )
    faults = _counter("pastille_faults", "Failures of a variant.", (*_VARIANT, "why"))
    for each in shown:
        for variant in each.status.variants:
            labels = each.labels | {"variant": variant.name}
            usable.samples.append((labels, float(variant.usable)))
            states = ((labels | {"state": s}, float(s == variant.breaker)) for s in _STATES)
            breaker.samples.extend(states)
        for (preferred, why), n in each.watched.fallbacks.items():
            fallbacks.samples.append((each.labels | {"preferred": preferred, "why": why}, n))
        for (name, why), n in each.watched.faults.items():
            faults.samples.append((each.labels | {"variant": name, "why": why}, n))
    yield from (usable, breaker, fallbacks, faults)


def _cache(shown: Sequence[Shown]) -> Iterator[Family]:
    hits = _counter("pastille_cache_hits", "Answers from the cache.", _VERSION)
    misses = _counter("pastille_cache_misses", "Questions that the cache had no answer to.", _VERSION)
    hits.samples.extend(_each(shown, "cache_hits"))
    misses.samples.extend(_each(shown, "cache_misses"))
    yield from (hits, misses)
    yield _gauge("pastille_cache_bytes", "Of inputs and outputs kept.", _VERSION, _each(shown, "cache_bytes"))
    dropped = _counter("pastille_shadow_dropped", "Shadow comparisons that found their queue full.", _VERSION)
    dropped.samples.extend((each.labels, each.watched.dropped) for each in shown)
    yield dropped


def _agreement(shown: Sequence[Shown]) -> Iterator[Family]:
    compared = _counter("pastille_compared", "Cases that two variants, or bundles, answered.", _PAIR)
    disagreed = _counter("pastille_disagreements", "Of them, those that were decided differently.", _PAIR)
    lost = _counter("pastille_disagreements_lost", "Called negative, positive by the other.", _PAIR)
    gained = _counter("pastille_disagreements_gained", "Called positive, negative by the other.", _PAIR)
    evidence = _gauge(
        "pastille_disagreement_evidence", "E-process: 1 at the start, alarm at its limit.", _PAIR, ()
    )
    limit = _gauge("pastille_disagreement_alarm_at", "Evidence at which the alarm goes off.", _PAIR, ())
    for each in shown:
        for pair in each.watched.pairs.values():
            labels = each.labels | {"served": pair.served, "other": pair.other}
            compared.samples.append((labels, pair.rate.n))
            disagreed.samples.append((labels, pair.rate.disagreed))
            lost.samples.append((labels, pair.lost))
            gained.samples.append((labels, pair.gained))
            evidence.samples.append((labels, pair.rate.evidence))
            limit.samples.append((labels, pair.rate.alarm_at))
    yield from (compared, disagreed, lost, gained, evidence, limit)


def _drift(shown: Sequence[Shown]) -> Iterator[Family]:
    found = [(each.labels | {"variant": view.variant}, view) for each in shown for view in _drifts(each)]
    told = {
        "psi": "Population stability index of the last confidences against validation.",
        "psi_limit": "That index exceeds it by chance in 1 % of looks.",
        "ks": "Largest distance of the distribution functions of the same.",
        "ks_limit": "That distance exceeds it by chance in 1 % of looks.",
    }
    for name, text in told.items():
        values = ((labels, getattr(view, name)) for labels, view in found)
        known = ((labels, value) for labels, value in values if value is not None)
        yield _gauge(f"pastille_drift_{name}", text, _VARIANT, known)


def _drifts(each: Shown) -> Iterator[DriftView]:
    return (drift.view() for drift in each.watched.drift.values())


def _labels(shown: Sequence[Shown]) -> Iterator[Family]:
    group = (*_VERSION, "group")
    positives = _counter("pastille_labelled_positives", "Positive cases that a label arrived for.", group)
    found = _counter("pastille_labelled_positives_found", "Of them, those that were called positive.", group)
    for each in shown:
        for view in each.watched.sensitivity.views():
            labels = each.labels | {"group": view.group}
            positives.samples.append((labels, view.positives))
            found.samples.append((labels, view.found))
    yield from (positives, found)


def _alarms(shown: Sequence[Shown], comparisons: Mapping[tuple[str, str], ArmComparison]) -> Iterator[Family]:
    alarm = _gauge("pastille_alarm", "1: the sequential test of that kind went off.", (*_VERSION, "kind"), ())
    for each in shown:
        watched = each.watched
        kinds = {
            "disagreement": any(pair.rate.alarm for pair in watched.pairs.values()),
            "drift": any(drift.alarm for drift in watched.drift.values()),
            "sensitivity": watched.sensitivity.alarm,
        }
        alarm.samples.extend((each.labels | {"kind": kind}, float(on)) for kind, on in kinds.items())
    for (model, version), comparison in comparisons.items():
        labels = {"model": model, "version": version, "kind": "comparison"}
        alarm.samples.append((labels, float(comparison.test.alarm)))
    yield alarm


def _each(shown: Sequence[Shown], attribute: str) -> Iterator[tuple[Labels, float]]:
    return ((each.labels, float(getattr(each.status, attribute))) for each in shown)


def _gauge(
    name: str, text: str, labels: tuple[str, ...], samples: Iterable[tuple[Labels, float | Histogram]]
) -> Family:
    return Family(name=name, kind="gauge", text=text, labels=labels, samples=list(samples))


def _counter(name: str, text: str, labels: tuple[str, ...]) -> Family:
    return Family(name=name, kind="counter", text=text, labels=labels)


def _histogram(name: str, text: str, labels: tuple[str, ...]) -> Family:
    return Family(name=name, kind="histogram", text=text, labels=labels)

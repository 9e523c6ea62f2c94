"""What the monitor keeps and shows: windows, counts, disagreement and its alarm, drift."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from serving_events import answered, compared
from serving_watched import VALIDATED, manifest, status, watching

from pastille.serve.errors import Refused
from pastille.serve.values import Dropped, Fallback, Turned
from pastille.serve.watch import words
from pastille.serve.watch.snapshot import Latency
from pastille.serve.watch.windows import Histogram, Ring, Throughput, latency_of
from pastille.stats.quantiles import latency_quantiles, samples_needed


def test_percentiles_are_shown_only_where_so_many_times_give_them() -> None:
    times = np.random.default_rng(0).exponential(0.01, 5000)
    for q, name in ((0.5, "p50_ms"), (0.95, "p95_ms"), (0.99, "p99_ms")):
        fewest = samples_needed(q)
        assert getattr(latency_of(times[: fewest - 1]), name) is None
        found = getattr(latency_of(times[:fewest]), name)
        (expected,) = latency_quantiles(1000 * times[:fewest], (q,))
        assert found == pytest.approx(expected.value_ms, abs=1e-4)
    assert latency_of(times[:0]) == Latency(n=0, p50_ms=None, p95_ms=None, p99_ms=None)


def test_a_ring_keeps_the_last() -> None:
    ring = Ring(100)
    for k in range(1050):
        ring.add(k)
    assert sorted(ring.values().tolist()) == list(range(950, 1050))


def test_a_histogram_counts_what_numpy_counts() -> None:
    bounds = (0.001, 0.01, 0.1)
    times = np.append(
        np.random.default_rng(0).exponential(0.02, 500), bounds
    )  # a bound belongs to its bucket
    histogram = Histogram(bounds)
    for seconds in times.tolist():
        histogram.add(seconds)
    expected = [int((times <= bound).sum()) for bound in bounds]
    assert [n for _, n in histogram.buckets()] == [*expected, len(times)]
    assert histogram.sum == pytest.approx(times.sum())


def test_throughput_is_that_of_whole_seconds_and_forgets_after_a_minute() -> None:
    seen = Throughput()
    for now in (100.0, 100.9, 103.2, 103.3, 103.9, 104.1):
        seen.add(now)
    assert seen.history(104.5)[-5:] == (0.0, 2.0, 0.0, 0.0, 3.0)
    assert sum(seen.history(164.0)) == 1
    assert sum(seen.history(165.0)) == 0


def test_answers_are_counted_by_variant_and_shown_without_the_patient() -> None:
    seen = watching()
    for k in range(100):
        seen.clock.now += 0.1
        seen.monitor.answered(answered(request_id=f"Jane Doe {k}", confidence=(0.8,)))
    fell_back = Fallback(preferred="int8", why="non_finite", detail="int8 gave NaN")
    seen.monitor.answered(answered(("no tumour",), variant="fp32", fallback=fell_back, warnings=("far off",)))
    seen.monitor.turned(Turned(cause="rate", status=429, route="infer", at=0.0))
    seen.observe(Dropped(at=0.0))
    seen.clock.now += 1
    found = seen.monitor.snapshot(status(in_flight=3, cache_hits=7))
    assert (found.requests, found.answered, found.in_flight, found.cache_hits) == (102, 101, 3, 7)
    assert found.shadow_dropped == 1
    assert found.per_second == pytest.approx(10, abs=1)
    int8, fp32 = found.variants
    assert (int8.requests, fp32.requests) == (100, 1)
    assert int8.latency == Latency(n=100, p50_ms=4.0, p95_ms=4.0, p99_ms=None)
    assert int8.compute.p50_ms == 2.0
    assert [(c.what, c.why, c.count) for c in found.fallbacks] == [("int8", "non_finite", 1)]
    assert [(c.what, c.why, c.count) for c in found.refusals] == [("429", "rate", 1)]
    assert len(found.recent) == 50
    tried = {hashlib.sha256(f"Jane Doe {k}".encode()).hexdigest()[:8] for k in range(200)}
    assert tried.isdisjoint(one.id[:8] for one in found.recent)  # no hash that anybody can make
    newest = found.recent[0]
    assert (newest.variant, newest.decision, newest.fallback) == ("fp32", "no tumour", "non_finite")
    assert (newest.warnings, newest.cached, newest.total_ms) == (1, False, 4.0)
    text = json.dumps(dataclasses.asdict(found), allow_nan=False)
    assert "Jane" not in text


def test_a_cached_answer_took_no_time_in_the_runtime() -> None:
    seen = watching()
    for _ in range(10):
        seen.monitor.answered(answered(cached=True, compute_s=0.0))
    int8 = seen.monitor.snapshot(status()).variants[0]
    assert (int8.latency.n, int8.compute.n) == (10, 0)


def test_disagreement_raises_the_alarm_once_and_takes_int8_out_of_service() -> None:
    seen = watching()
    calm = [False] * 19 + [True]
    for _ in range(30):
        seen.observe(compared(calm))
    (view,) = seen.monitor.snapshot(status()).disagreements
    assert (view.n, view.disagreed, view.lost, view.gained, view.state) == (600, 30, 30, 0, "ok")
    assert view.low is not None
    assert view.high is not None
    assert view.low < 0.05 < view.high
    assert not seen.acted
    for _ in range(3):
        seen.observe(compared([True, False], lost=False))
    (view,) = seen.monitor.snapshot(status()).disagreements
    assert view.state == "ok"
    for _ in range(200):
        seen.observe(compared([True, False], lost=False))
    (view,) = seen.monitor.snapshot(status()).disagreements
    assert (view.state, view.limit) == ("alarm", 0.05)
    assert view.alarm_at == pytest.approx(100)
    assert view.evidence >= view.alarm_at
    assert view.gained == 203
    assert len(seen.acted) == 1
    assert [(a.kind, a.model, a.version, a.detail) for a in seen.alarms] == [
        ("disagreement", "tiny", "1", seen.acted[0])
    ]
    assert "were decided otherwise than by fp32" in seen.acted[0]
    assert "more than the 5.0 % that may be" in view.words


@pytest.mark.parametrize("alarm", [{"rate": 1.0}, {"significance": 1.0}])
def test_an_alarm_that_could_never_be_is_refused_at_the_start(alarm: dict[str, float]) -> None:
    """Not at the first comparison, in the middle of a request."""
    with pytest.raises(ValueError, match="less than 1"):
        watching(alarm=alarm)


def test_one_odd_scan_of_many_slices_is_no_alarm() -> None:
    seen = watching()
    seen.observe(compared([True] * 64))
    (view,) = seen.monitor.snapshot(status()).disagreements
    assert (view.n, view.disagreed, view.state) == (64, 64, "not_enough_data")
    assert view.evidence < view.alarm_at
    assert not seen.acted


def test_an_alarm_that_only_reports_or_that_is_of_two_bundles_takes_nothing_out_of_service() -> None:
    reports = watching(alarm={"action": "report"})
    bundles = watching()
    for _ in range(40):
        reports.observe(compared([True]))
        bundles.observe(compared([True], served="tiny:1/int8", other="tiny:candidate/int8"))
    for seen in (reports, bundles):
        assert seen.monitor.snapshot(status()).disagreements[0].state == "alarm"
        assert not seen.acted
        assert [alarmed.kind for alarmed in seen.alarms] == ["disagreement"]


def test_two_cases_are_too_few_to_speak_of_a_rate() -> None:
    seen = watching()
    seen.observe(compared([False, False]))
    (view,) = seen.monitor.snapshot(status()).disagreements
    assert view.state == "not_enough_data"


def test_an_alarm_after_a_long_calm_does_not_contradict_the_interval() -> None:
    """The interval is of the rate over all cases, the alarm may be of a change."""
    after_calm, always = (
        words.disagreement("int8", "fp32", n=455, disagreed=16, low=low, high=0.075, limit=0.05, alarm=True)
        for low in (0.013, 0.06)
    )
    assert "the true rate is between" not in after_calm
    assert "a rate above the 5.0 % that may be is shown" in after_calm
    assert "the true rate is between 6.0 % and 7.5 %" in always


def test_drift_is_seen_against_validation_and_only_with_enough_data() -> None:
    seen = watching()
    rng = np.random.default_rng(1)
    for value in rng.choice(VALIDATED, 49):
        seen.monitor.answered(answered(confidence=(value,)))
    assert drift_of(seen.monitor.snapshot(status()).drift) == ("not_enough_data", 49)
    for value in rng.choice(VALIDATED, 600):
        seen.monitor.answered(answered(confidence=(value,)))
    (int8, fp32) = seen.monitor.snapshot(status()).drift
    assert int8.state == "ok"
    assert int8.psi is not None
    assert int8.psi_limit is not None
    assert int8.psi < int8.psi_limit
    assert sum(int8.now) == pytest.approx(1)
    assert fp32.state == "not_enough_data"
    assert "has no reference" in fp32.words
    for value in rng.beta(4, 2, 1000):
        seen.monitor.answered(answered(confidence=(value,)))
    int8 = seen.monitor.snapshot(status()).drift[0]
    assert int8.state == "alarm"
    assert int8.ks is not None
    assert int8.ks_limit is not None
    assert int8.ks > int8.ks_limit
    assert [alarmed.kind for alarmed in seen.alarms] == ["drift of int8"]
    for value in rng.choice(VALIDATED, 1000):
        seen.monitor.answered(answered(confidence=(value,)))
    assert seen.monitor.snapshot(status()).drift[0].state == "ok"
    for value in rng.beta(4, 2, 1000):
        seen.monitor.answered(answered(confidence=(value,)))
    assert len(seen.alarms) == 2  # it ended, and went off again


def test_drift_is_seen_in_a_fair_sample_of_the_requests() -> None:
    """No repetition, none chosen by what was in it, and one case of each request."""
    seen = watching()
    for why in ("non_finite", "disagreement"):
        failed = Fallback(preferred="fp32", why=why, detail="x")
        seen.monitor.answered(answered(confidence=(0.5,), fallback=failed))
    seen.monitor.answered(answered(confidence=(0.5,), cached=True))
    assert drift_of(seen.monitor.snapshot(status()).drift) == ("not_enough_data", 0)
    rested = Fallback(preferred="fp32", why="breaker", detail="x")
    seen.monitor.answered(answered(confidence=(0.9,), fallback=rested))
    rng = np.random.default_rng(0)
    for chosen in rng.choice(VALIDATED, 999):  # 64 slices of one patient are alike
        seen.monitor.answered(answered(["glioma"] * 64, confidence=[chosen] * 64))
    assert drift_of(seen.monitor.snapshot(status()).drift) == ("ok", 500)
    assert not seen.alarms
    for k in range(1500):  # which case is looked at goes round, also where sizes alternate
        pair = ["glioma"] * (2 if k % 2 else 1)
        seen.monitor.answered(answered(pair, confidence=(0.9, 0.5)[: len(pair)]))
    shares = sorted(seen.monitor.snapshot(status()).drift[0].now)
    assert shares[-2:] == pytest.approx([0.25, 0.75], abs=0.01)


def drift_of(views: tuple[object, ...]) -> tuple[object, object]:
    return getattr(views[0], "state"), getattr(views[0], "n")  # noqa: B009


def test_a_bundle_without_a_reference_says_so() -> None:
    seen = watching(manifest(with_reference=False))
    seen.monitor.answered(answered())
    found = seen.monitor.snapshot(status())
    assert {view.state for view in found.drift} == {"not_enough_data"}
    assert found.sensitivity == ()


def test_a_forgotten_version_is_gone_and_what_was_in_flight_counts_no_more() -> None:
    seen = watching()
    seen.monitor.answered(answered())
    seen.monitor.forget("tiny", "1")
    seen.monitor.answered(answered())
    with pytest.raises(Refused, match="is not watched"):
        seen.monitor.snapshot(status())
    assert b'model="tiny"' not in seen.monitor.metrics([status()])

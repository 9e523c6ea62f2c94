"""What the page says follows from the record, and from nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import report_records as records
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pastille.record import BaselineProfiled, FinalJudged, Record, StageDetails, StageFinished, TaskLoaded
from pastille.report import text
from pastille.report.comparison import Point
from pastille.report.svg.scatter import pareto_front
from pastille.report.view import view
from pastille.values import Estimate, Interval, Metrics, Status, from_json, to_json


def changed(record: Record, kind: type[Any], **fields: Any) -> Record:
    """The record with one event's fields replaced."""
    events = tuple(replace(e, **fields) if isinstance(e, kind) else e for e in record.events)
    return replace(record, events=events)


def final(record: Record) -> FinalJudged:
    found = record.last(FinalJudged)
    assert found is not None
    return found


def gains(record: Record) -> dict[str, tuple[str, str]]:
    return {gain.what: (gain.value, gain.detail) for gain in view(record).banner.gains}


@pytest.mark.parametrize("name", records.ALL)
def test_a_record_read_back_from_json_gives_the_same_view(name: str) -> None:
    record = records.ALL[name]()
    assert view(from_json(Record, to_json(record))) == view(record)


@pytest.mark.parametrize(
    ("record", "word"),
    [
        (records.digits(), "Approved"),
        (records.regression(), "Rejected"),
        (records.skin(), "Inconclusive"),
        (records.unfinished(), "Not finished"),
        (Record(name="nothing"), "Not finished"),
    ],
)
def test_verdict_in_words(record: Record, word: str) -> None:
    assert view(record).banner.word == word


def test_headline_states_size_speed_and_drop_with_their_intervals() -> None:
    assert view(records.digits()).banner.headline.replace("\u202f", " ") == (
        "13.2× smaller, 4.1× faster at batch 1 (95 % CI 3.9–4.3), "
        "accuracy drop 0.3 points (95 % CI −0.9 to 1.4; limit 5)"
    )


def test_size_in_the_banner_is_that_of_the_judged_file() -> None:
    record = records.digits()
    stage = record.all(StageFinished)[-1]
    events = tuple(
        replace(e, profile=replace(e.profile, size_bytes=565_000)) if e is stage else e for e in record.events
    )
    assert gains(replace(record, events=events))["smaller"] == ("2.0×", "1.13\u202fMB → 565\u202fkB")


def test_speed_in_the_banner_is_the_final_measurement() -> None:
    record = records.digits()
    faster = changed(record, FinalJudged, speedups=(records.speedup(7.0),))
    assert gains(faster)["faster at batch 1"] == ("7.0×", "95\u202f% CI 6.6–7.4")


def test_drop_in_the_banner_is_the_final_check() -> None:
    record = records.digits()
    said = final(record).verdict
    check = replace(said.checks[0], drop=0.021, interval=Interval(low=0.011, high=0.031, confidence=0.9))
    worse = changed(record, FinalJudged, verdict=replace(said, checks=(check,)))
    assert gains(worse)["accuracy drop"] == ("2.1 points", "90\u202f% CI 1.1 to 3.1; limit 5")


def test_reason_and_choice_in_the_banner_are_those_of_the_record() -> None:
    record = records.digits()
    said = replace(final(record).verdict, reason="because of this")
    other = changed(
        record, FinalJudged, verdict=said, selected="compressed", selection_reason="int8 is slower"
    )
    banner = view(other).banner
    assert banner.reason == "Because of this."
    assert (banner.serves, banner.serves_reason) == ("the compressed float model", "Int8 is slower.")


def test_what_is_not_served_is_not_called_a_gain() -> None:
    assert "not what is served" in view(records.skin()).banner.gains_title
    assert view(records.digits()).banner.gains_title == "What changed"


@pytest.mark.parametrize(
    ("ratio", "half", "word"),
    [(1.2, 0.1, "faster"), (0.8, 0.1, "slower"), (1.02, 0.05, "no difference shown")],
)
def test_speed_is_called_by_its_interval(ratio: float, half: float, word: str) -> None:
    record = changed(records.digits(), FinalJudged, speedups=(records.speedup(ratio, half=half),))
    assert any(word in what for what in gains(record))


def test_a_compressed_model_that_is_slower_is_called_slower() -> None:
    (sentence,) = view(records.skin()).comparison.not_faster
    assert sentence.startswith("1 prune is slower than the baseline: 0.92×")
    assert view(records.skin()).comparison.rows[1].pace == "slower"


def test_medians_of_the_paired_measurement_are_shown_where_they_are_known() -> None:
    known = replace(records.speedup(4.0), baseline_ms=2.0, candidate_ms=0.5)
    assert gains(changed(records.digits(), FinalJudged, speedups=(known,)))["faster at batch 1"][1].endswith(
        "; 2.00\u202fms → 0.500\u202fms"
    )


def test_inconclusive_says_how_many_more_cases() -> None:
    banner = view(records.skin()).banner
    assert "not an approval" in banner.meaning
    assert "1,180 more" in banner.meaning
    assert [check.more_cases for check in banner.checks.shown] == ["–", "about 1,180", "–"]


def test_a_drop_beside_its_limit_is_never_rounded_onto_it() -> None:
    record = records.digits()
    said = final(record).verdict
    interval = Interval(low=-0.001, high=0.0501, confidence=0.95)
    near = changed(
        record, FinalJudged, verdict=replace(said, checks=(replace(said.checks[0], interval=interval),))
    )
    assert view(near).banner.checks.shown[0].interval.endswith("to 5.01")


def test_a_check_without_a_measurement_is_shown_as_absent() -> None:
    record = records.digits()
    said = final(record).verdict
    blank = replace(said.checks[0], candidate=None, baseline=None, drop=None, interval=None)
    row = view(changed(record, FinalJudged, verdict=replace(said, checks=(blank,)))).banner.checks.shown[0]
    assert (row.candidate, row.drop, row.mark) == ("–", "–", None)


@pytest.mark.parametrize(
    ("events", "words"),
    [(2, "the baseline has not been measured yet"), (3, "0 of 2"), (4, "1 of 2 planned stages done")],
)
def test_an_unfinished_run_says_how_far_it_came(events: int, words: str) -> None:
    banner = view(records.unfinished(events)).banner
    assert words in banner.reason
    assert "Nothing on this page is an approval" in banner.reason
    assert not banner.serves


def test_the_copy_inside_the_bundle_is_written_before_the_bundle_is() -> None:
    record = records.digits()
    page = view(replace(record, events=record.events[:-1]))
    assert page.banner == view(record).banner
    assert not any("--resume" in command for command, _ in page.origin.commands)
    assert any("--resume" in command for command, _ in view(records.unfinished()).origin.commands)


def test_a_run_that_dropped_every_stage() -> None:
    record = records.digits()
    events = tuple(replace(e, kept=False) if isinstance(e, StageFinished) else e for e in record.events[:6])
    page = view(replace(record, events=events))
    assert page.banner.gains == ()
    assert {row.fate for row in page.comparison.rows} == {"reference", "dropped"}
    assert len(page.evidence.matrices) == 1


def test_of_a_stage_carried_out_twice_the_later_counts() -> None:
    record = records.digits()
    stage = record.all(StageFinished)[0]
    again = replace(stage, kept=False)
    page = view(replace(record, events=(*record.events, again)))
    assert [row.fate for row in page.comparison.rows] == ["reference", "dropped", "kept", "kept"]


def test_leakage_and_a_second_opening_are_warned_of() -> None:
    leak, openings = view(records.leaky()).warnings
    assert "leak" in leak.title
    assert "lesion HAM_0001234 is in train and test" in leak.items
    assert "2 times" in openings.title
    assert view(records.digits()).warnings == ()


def test_regression_has_no_confusion_and_is_read_by_r2() -> None:
    page = view(records.regression())
    assert (page.evidence.matrices, page.evidence.classes) == ((), None)
    assert page.comparison.metrics == ("R²",)
    assert page.tradeoffs[0].y_title == "R² on validation"
    assert page.comparison.rows[1].fate == "dropped"


def test_absent_figures_are_dashes() -> None:
    record = records.digits()
    baseline = record.last(BaselineProfiled)
    assert baseline is not None
    bare = replace(
        baseline.profile,
        footprint=None,
        preprocessing=None,
        latency=(),
        metrics=replace(
            baseline.profile.metrics,
            overall={"accuracy": replace(baseline.profile.metrics.overall["accuracy"], interval=None)},
        ),
    )
    page = view(changed(record, BaselineProfiled, profile=bare))
    assert (page.comparison.rows[0].p50, page.comparison.rows[0].metrics[0].span) == ("–", "")
    assert len(page.timing.memory) == 1
    assert page.tradeoffs[0].points[0].low is None


def test_p99_without_enough_samples_is_a_dash() -> None:
    by_batch = {row.batch: row for row in view(records.digits()).timing.latency}
    assert by_batch["1"].percentiles[3].value != "–"
    assert by_batch["32"].percentiles[3].value == "–"


def test_the_bottleneck_is_named() -> None:
    assert view(records.skin()).timing.slower_part.startswith("Preprocessing is the bottleneck: 82")
    assert view(records.digits()).timing.slower_part.startswith("Inference is the larger part")


def test_the_clinical_metric_is_plotted_too() -> None:
    assert [plot.y_title for plot in view(records.skin()).tradeoffs] == [
        *["accuracy on validation"] * 2,
        *["sensitivity on validation"] * 2,
    ]


def test_empty_groups_and_groups_without_cases_are_shown() -> None:
    record = records.skin()
    judged = final(record)
    empty = replace(judged.baseline_metrics, groups={"sex": {}, "": {"": {}}})
    page = view(
        changed(record, FinalJudged, baseline_metrics=empty, candidate_metrics=replace(empty, groups={}))
    )
    assert page.evidence.groups == ()


def test_bands_are_in_their_own_order() -> None:
    (ages,) = [
        t for t in view(records.skin()).evidence.groups if (t.title, t.metric) == ("age band", "accuracy")
    ]
    assert [row.label for row in ages.rows] == ["under 45", "45 to 64", "65 and over"]


def test_many_classes_become_a_list_of_confusions() -> None:
    page = view(records.with_labels([f"c{i}" for i in range(300)]))
    assert page.evidence.matrices == ()
    assert len(page.evidence.mixups) == 15
    assert page.evidence.classes is not None
    assert page.evidence.classes.more_rows == 276


def test_the_recipe_is_whole() -> None:
    assert yaml.safe_load(view(records.skin()).origin.recipe) == json.loads(json.dumps(records.skin_recipe()))


def test_digests_stand_whole_in_the_data_section() -> None:
    record = changed(records.digits(), TaskLoaded, model_digest="ab" * 32)
    values = [value for _, value in view(record).data.facts]
    assert "ab" * 32 in values


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_any_number_prints(value: float) -> None:
    for words in (
        text.fixed(value, 1),
        text.significant(value),
        text.size(value),
        text.amount(value),
        text.milliseconds(value),
        text.metric("accuracy", value),
        text.metric("r2", value),
        text.drop("accuracy", value),
        text.times(value),
    ):
        assert words
        assert "-" not in words
        assert "nan" not in words
        assert "inf" not in words


@given(st.lists(st.tuples(st.floats(0.1, 9), st.floats(0, 100)), min_size=1, max_size=12))
def test_no_point_beats_one_of_the_front(pairs: list[tuple[float, float]]) -> None:
    points = [Point(label="", kind="kept", x=x, y=y, low=None, high=None) for x, y in pairs]
    front = pareto_front(points)
    for chosen in front:
        assert not any(
            p.x <= chosen.x and p.y >= chosen.y and (p.x, p.y) != (chosen.x, chosen.y) for p in points
        )
    for point in points:
        assert any(f.x <= point.x and f.y >= point.y for f in front)


def test_speedup_and_metrics_may_be_absent() -> None:
    record = records.digits()
    nothing = Metrics(split="test", n=0, overall={})
    bare = changed(record, FinalJudged, baseline_metrics=nothing, candidate_metrics=nothing, speedups=())
    last = record.all(StageFinished)[-1]
    events = tuple(
        replace(e, profile=replace(e.profile, speedup=None)) if e is last else e for e in bare.events
    )
    page = view(replace(bare, events=events))
    assert not any("batch" in gain.what for gain in page.banner.gains)


def test_temperature_and_threshold_of_a_stage_are_among_its_facts() -> None:
    record = records.digits()
    told = StageDetails(temperature=1.8412, threshold=0.4321)
    facts = dict(view(changed(record, StageFinished, details=told)).changes[-1].facts)
    assert facts["temperature"] == "answers are divided by 1.84"
    assert facts["operating threshold of this file"] == "0.432"


def test_an_error_may_rise_to_its_limit_and_not_fall_to_it() -> None:
    record = records.regression()
    said = final(record).verdict
    rmse = replace(said.checks[0], metric="rmse", limit=2.0)
    plots = view(changed(record, FinalJudged, verdict=replace(said, checks=(rmse,)))).tradeoffs
    assert plots[0].floor == pytest.approx(53.8 + 2.0)
    assert plots[0].floor_words == "limit: baseline + 2"


def test_an_error_that_grows_in_a_group_is_a_positive_drop() -> None:
    record = records.regression()
    found = final(record)

    def by_site(metrics: Metrics, mae: float) -> Metrics:
        error = Estimate(value=mae, interval=None, n=40, method="BCa bootstrap")
        return replace(metrics, overall={"mae": error}, groups={"site": {"north": {"mae": error}}})

    grown = changed(
        record,
        FinalJudged,
        baseline_metrics=by_site(found.baseline_metrics, 1.0),
        candidate_metrics=by_site(found.candidate_metrics, 1.5),
    )
    (table,) = view(grown).evidence.groups
    assert [row.drop for row in table.rows] == ["0.500"]


def test_a_verdict_on_validation_does_not_speak_of_unseen_cases_nor_of_a_bundle() -> None:
    record = records.digits()
    judged = replace(final(record).verdict, split="validation", status=Status.APPROVED)
    banner = view(changed(record, FinalJudged, verdict=judged, selected="candidate")).banner
    assert "on the cases of the validation split" in banner.meaning
    assert banner.serves == ""
    assert "no stage had seen" in view(records.digits()).banner.meaning

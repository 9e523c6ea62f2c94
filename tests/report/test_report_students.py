"""Distillations and ablations on the page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import distilled_records as distilled
import pytest
import report_records as records
from distilled_records import ROWS, TEACHER, TWO, interval, left_out, regression_student, student

from pastille.recipe import DistillTraining
from pastille.record import BudgetLimit, Record, StageFinished
from pastille.report import render, svg
from pastille.report.ablation import Ablation
from pastille.report.budget import budget_rows
from pastille.report.changes import Change
from pastille.report.options import options_line
from pastille.report.students import Students, students
from pastille.report.view import view
from pastille.values import StudentTaught, from_json, to_json


def plain(words: str) -> str:
    return words.replace("\u202f", " ")


def seen(*found: StudentTaught) -> Students:
    made = students(found)
    assert made is not None
    return made


def apart(record: Record) -> Ablation:
    made = view(record).ablation
    assert made is not None
    return made


def words_of(page: str, section: str) -> str:
    """The text of one section, without its markup."""
    found = re.search(rf'<section id="{section}">.*?</section>', page, flags=re.DOTALL)
    assert found
    return plain(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", found[0])))


# Students and teachers


def test_a_stage_that_taught_nobody_shows_no_students() -> None:
    assert students(()) is None
    assert 'class="learned-figure"' not in render(view(records.skin()))


def test_a_student_beside_its_teacher() -> None:
    (row,) = seen(student()).rows
    assert (row.name, row.teachers, row.asked) == ("width 0.5", "baseline", "cached, 4 views, 12 MB")
    # 2,800,000 of 11,177,538.
    assert plain(row.share) == "25 %"
    assert plain(row.metric) == "78.8 %"
    assert plain(row.scratch) == "75.1 %"


def test_the_gain_is_that_of_the_record_and_certain_only_where_its_interval_is() -> None:
    rows = seen(*TWO).rows
    # (231 - 220) / 293 and (224 - 221) / 293.
    assert [row.gain for row in rows] == ["3.8 points", "1.0 points"]
    assert [row.tone for row in rows] == ["good", "unsure"]
    worse = student(scratch=records.share(240, 293), gain=interval(-0.06, -0.01))
    assert seen(worse).rows[0].tone == "bad"
    assert "3.1 points worse than that of the same student" in seen(worse).verdict


def test_of_a_metric_of_which_less_is_better_a_gain_is_still_a_gain() -> None:
    found = seen(regression_student())
    assert found.rows[0].gain == "3.500"
    assert "3.500 better" in found.verdict
    assert [mark.value for mark in found.panels[1].rows] == [3.5]


def test_without_a_comparison_nothing_is_claimed() -> None:
    found = seen(student(scratch=None, gain=None))
    assert not found.compared
    assert found.verdict == ""
    assert len(found.panels) == 1
    page = render(view(distilled.distilled((student(scratch=None, gain=None),))))
    assert "labels alone" not in words_of(page, "changes")


def test_what_a_teacher_is_worse_on_is_said_to_be_inherited() -> None:
    found = seen(student())
    assert found.teachers[0].worse == "age band = 65 and over (by 8.2 points); sex = female (by 4.1 points)"
    assert "its student will inherit" in words_of(render(view(distilled.distilled())), "changes")
    fair = student(teachers=(replace(TEACHER, worse={}),))
    assert not seen(fair).inherits
    page = words_of(render(view(distilled.distilled((fair,)))), "changes")
    assert "inherit" not in page
    assert "no group, for certain" in page


def test_several_teachers_come_with_their_weights_and_each_once() -> None:
    found = seen(*TWO)
    assert plain(found.rows[1].teachers) == "baseline (60 %), student width 0.5 (40 %)"
    assert [row.name for row in found.teachers] == ["baseline", "student width 0.5"]
    assert [row.ece for row in found.teachers] == ["0.031", "–"]


def test_the_plot_has_a_row_for_each_model_and_tells_them_apart_by_shape() -> None:
    models, gains = seen(*TWO).panels
    assert [mark.kind for mark in models.rows] == [
        *("teacher", "taught", "scratch", "taught", "scratch"),  # the assistant once, as it was taught
    ]
    drawing = ET.fromstring(svg.learned_plot(models))
    rows = [g for g in drawing if g.tag == "g"]
    assert [g.find("rect") is not None for g in rows] == [True, False, False, False, False]
    width = float(drawing.get("viewBox", "").split()[2])
    for circle in drawing.iter("circle"):
        assert 210 <= float(circle.get("cx", 0)) <= width
    assert ET.fromstring(svg.learned_plot(gains)).find(".//path[@class='zero']") is not None


def test_many_students_are_bounded() -> None:
    found = seen(*(student(name=f"s{i}") for i in range(30)))
    assert (len(found.rows), found.more) == (8, 22)


def test_students_survive_the_disk() -> None:
    record = distilled.taken_apart()
    assert from_json(Record, to_json(record)) == record


# The chain


def test_the_chain_is_at_the_top_with_a_row_for_each_file() -> None:
    page = render(view(distilled.distilled()))
    chain = words_of(page, "chain")
    for words in ("baseline", "1 prune", "2 distill", "3 quantize", "15.7×", "2.4×", "0.92×", "slower"):
        assert words in chain
    assert page.index('id="chain"') < page.index('id="checks"')


def test_one_stage_is_no_chain() -> None:
    record = records.skin()
    events = tuple(e for e in record.events if not (isinstance(e, StageFinished) and e.name == "prune"))
    assert 'id="chain"' not in render(view(replace(record, events=events)))


# Ablations


def test_a_run_that_was_not_taken_apart_has_no_such_section() -> None:
    assert view(distilled.distilled()).ablation is None
    assert 'id="ablation"' not in render(view(distilled.distilled()))


def test_a_row_for_the_whole_plan_and_for_each_stage() -> None:
    found = apart(distilled.taken_apart())
    assert [row.name for row in found.rows] == [
        *("the whole plan", "without 1 prune and finetune", "without 2 distill", "without 3 quantize"),
    ]
    assert [row.worse for row in found.rows] == ["", "−0.3 points", "5.1 points", "−1.4 points"]
    assert [row.larger for row in found.rows] == ["", "as large", "2.5× larger", "3.9× larger"]
    # Only what is certainly worse without it is praised.
    assert [row.tone for row in found.rows] == ["plain", "plain", "good", "plain"]
    assert [row.status for row in found.rows] == ["inconclusive", "inconclusive", "rejected", "approved"]


def test_the_plot_shows_what_is_missing_without_a_stage() -> None:
    panel = apart(distilled.taken_apart()).panel
    assert panel is not None
    assert [mark.label for mark in panel.rows] == ["1 prune and finetune", "2 distill", "3 quantize"]
    assert [mark.value for mark in panel.rows] == pytest.approx([-0.34, 5.12, -1.37])
    assert panel.low < -2.6
    assert panel.high > 8.3


def test_rows_come_in_the_order_of_the_plan_and_the_later_of_two_counts() -> None:
    again = left_out(1, "prune and finetune", worse=0.2, interval=interval(0.1, 0.3))
    found = apart(distilled.taken_apart((ROWS[0], ROWS[2], ROWS[1], again)))
    assert [row.name for row in found.rows[1:]] == ["without 1 prune and finetune", "without 2 distill"]
    assert found.rows[1].worse == "20.0 points"


def test_what_was_not_timed_or_cannot_be_told_is_a_dash_or_nothing() -> None:
    bare = left_out(2, "distill", latency_ms=None, speedup=None)
    row = apart(distilled.taken_apart((ROWS[0], bare))).rows[1]
    assert (row.latency, row.speed, row.worse, row.worse_span) == ("–", "–", "", "")


def test_the_time_that_a_run_lasted_is_without_its_ablation() -> None:
    facts = dict(view(distilled.taken_apart()).origin.run)
    assert facts["lasted"] == dict(view(distilled.distilled()).origin.run)["lasted"]
    told = [words for _, words in view(distilled.taken_apart()).origin.course]
    assert told[-3:] == [f"carried out without {row.stage}, on validation" for row in ROWS[1:]]


# Budgets


def test_a_budget_beside_what_was_reached() -> None:
    rows = next(c for c in view(distilled.distilled()).changes if c.name == "1 prune").budget
    assert [(row.name, plain(row.asked), plain(row.reached)) for row in rows] == [
        ("latency p95", "11.0 ms", "11.4 ms"),
        ("size", "20.0 MB", "17.3 MB"),
        ("latency p99", "12.0 ms", "–"),
    ]
    assert [row.outcome for row in rows] == ["missed", "reached", "not measured"]
    assert plain(rows[0].by_ratio) == "10.9 ms"


@pytest.mark.parametrize(("reached", "outcome"), [(5.0, "reached"), (5.1, "missed")])
def test_a_limit_that_is_just_met_is_reached(reached: float, outcome: str) -> None:
    (row,) = budget_rows([BudgetLimit(name="max_macs", asked=5.0, reached=reached, by_ratio=None)])
    assert (row.name, row.outcome) == ("MACs", outcome)


# What a distillation was told


def test_options_name_the_student_first() -> None:
    (change,) = (c for c in view(distilled.distilled()).changes if c.name == "2 distill")
    assert isinstance(change, Change)
    assert change.options == "student width 0.25, epochs 20, alpha 0.7, temperature 8 to 2"


def test_defaults_of_a_training_are_not_told() -> None:
    asked = DistillTraining.model_validate(
        {"student": "same", "epochs": 3, "hints": {"loss": "attention"}, "clip_norm": 1.0, "ema": 0.99}
    )
    line = options_line(asked.model_dump(mode="json"))
    assert line.startswith("method kl, student same, alpha 0.5, temperature 2.0, hints attention, epochs 3,")
    assert "clip norm 1.0, ema 0.99" in line
    assert not any(word in line for word in ("momentum", "focal", "smoothing", "scratch", "warmup"))
    weighed = asked.model_copy(update={"class_weights": "balanced", "compare_to_scratch": True})
    assert "class weights balanced, compare to scratch" in options_line(weighed.model_dump(mode="json"))


def test_what_a_row_says_is_not_said_again_in_a_note() -> None:
    record = distilled.distilled()
    (stage,) = (e for e in record.all(StageFinished) if e.name == "distill")
    notes = (
        "student width 0.5: its teachers are cached, 12 MB",
        "teacher 'baseline' misses more where sex = F",
    )
    told = replace(stage, details=replace(stage.details, notes=notes))
    events = tuple(told if e is stage else e for e in record.events)
    (change,) = (c for c in view(replace(record, events=events)).changes if c.name == "2 distill")
    assert change.notes == ("Teacher 'baseline' misses more where sex = F.",)

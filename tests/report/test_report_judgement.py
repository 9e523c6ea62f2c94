"""The evidence on the page is that of the verdict: nothing of it is lost, overlooked or coloured wrongly."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import pytest
import report_records as records
import rich_records as rich
from hypothesis import given
from hypothesis import strategies as st

from pastille.record import FinalJudged, Record, StageFinished, Started
from pastille.report import render, svg
from pastille.report.evidence import allot
from pastille.report.forest import ForestBlock, ForestRow
from pastille.report.view import View, view
from pastille.values import Comparison, Evidence, Fairness, Status, Verdict, from_json, to_json

PLACES = [{"sex": "female"}, {"sex": "male"}, {"sex": "other"}]


def said(
    *held: tuple[Comparison, float, Status], evidence: Evidence | None = None, notes: tuple[str, ...] = ()
) -> Verdict:
    checks = tuple(rich.limit_on(found, limit, status) for found, limit, status in held)
    status = max((c.status for c in checks), key=list(Status).index, default=Status.APPROVED)
    return Verdict(
        status=status, reason="reasons", checks=checks, split="test", notes=notes, evidence=evidence
    )


def judged(verdict: Verdict, **requirements: Any) -> View:
    return view(rich.judged(records.skin(), verdict, **requirements))


def of_sex(drop: float, n: int = 200, metric: str = "sensitivity", value: str = "female") -> Comparison:
    return rich.comparison(metric, {"sex": value}, drop, n=n)


def with_groups(*groups: Comparison, attribute: str = "sex") -> Evidence:
    return Evidence(fairness=(Fairness(attribute=attribute, groups=groups, gaps=()),))


def rows(page: View) -> dict[tuple[str, str], ForestRow]:
    return {(b.title, r.label): r for b in page.judgement.forest.blocks for r in b.rows}


@pytest.mark.parametrize("name", ["rich", "hostile evidence"])
def test_a_record_read_back_from_json_gives_the_same_page(name: str) -> None:
    record = rich.ALL[name]()
    assert render(view(from_json(Record, to_json(record)))) == render(view(record))


def test_what_decided_is_shown_and_what_is_approved_is_counted() -> None:
    approved = [(of_sex(0.0, value=f"group {i}"), 0.02, Status.APPROVED) for i in range(34)]
    bad = (of_sex(0.1), 0.02, Status.REJECTED)
    overall = (rich.comparison("accuracy", {}, 0.0), 0.02, Status.APPROVED)
    checks = judged(said(*approved, bad, overall)).banner.checks
    assert [(c.metric, c.place, c.status) for c in checks.shown] == [
        ("accuracy", "", "approved"),
        ("sensitivity", "sex female", "rejected"),
    ]
    assert checks.folded_words == "34 more checks, all approved"
    assert len(checks.folded) == 34


def test_more_open_checks_than_fit_are_counted_by_status() -> None:
    held = [(of_sex(0.01, value=f"group {i}"), 0.02, Status.INCONCLUSIVE) for i in range(40)]
    rejected = [(of_sex(0.1, value=f"harmed {i}"), 0.02, Status.REJECTED) for i in range(3)]
    checks = judged(said(*held, *rejected)).banner.checks
    assert [c.status for c in checks.shown[:4]] == ["rejected"] * 3 + ["inconclusive"]
    assert (
        checks.folded_words == f"{43 - len(checks.shown)} more checks: {43 - len(checks.shown)} inconclusive"
    )


def test_p_values_stand_beside_a_check_and_decide_nothing() -> None:
    (row,) = judged(said((of_sex(0.01), 0.02, Status.APPROVED))).banner.checks.folded
    assert row.aside == "Holm p = 0.300, McNemar p = 0.220"


def test_the_banner_of_very_many_checks_names_the_clearest_harm_first() -> None:
    unclear = [(of_sex(0.01, value=f"group {i}"), 0.02, Status.INCONCLUSIVE) for i in range(9)]
    harm = rich.limit_on(of_sex(0.4), 0.02, Status.INCONCLUSIVE)
    verdict = said(*unclear)
    clear = replace(harm, adjusted_p=0.04, reason="women are harmed")
    banner = judged(replace(verdict, checks=(*verdict.checks, clear))).banner
    assert banner.reasons[0] == "Women are harmed."
    assert banner.reason == "Of 10 checks on the test split: 10 inconclusive. First of all:"


def test_the_reason_of_few_checks_is_that_of_the_record_without_its_notes() -> None:
    verdict = replace(said((of_sex(0.0), 0.02, Status.APPROVED)), reason="all well; a; b", notes=("a", "b"))
    banner = judged(verdict).banner
    assert (banner.reason, banner.reasons) == ("All well.", ())


def test_drops_of_groups_do_not_lead_the_page() -> None:
    verdict = said(
        (of_sex(0.3), 0.02, Status.REJECTED),
        (rich.comparison("accuracy", {}, 0.001), 0.02, Status.APPROVED),
    )
    page = judged(verdict)
    assert [gain.what for gain in page.banner.gains if "drop" in gain.what] == ["accuracy drop"]
    assert page.comparison.metrics[0] == "accuracy"


@pytest.mark.parametrize(
    ("status", "tone"),
    [(Status.APPROVED, "good"), (Status.REJECTED, "bad"), (Status.INCONCLUSIVE, "unsure")],
)
def test_a_row_has_the_colour_and_limit_of_its_own_check(status: Status, tone: str) -> None:
    found, other = of_sex(0.03), of_sex(0.01, value="male")
    page = judged(said((found, 0.02, status), evidence=with_groups(found, other)))
    drawn = rows(page)
    female, male = drawn[("sex", "female")], drawn[("sex", "male")]
    assert (female.tone, female.limit, female.drop) == (tone, 2.0, 3.0)
    assert female.low == pytest.approx(2.0)
    assert female.high == pytest.approx(4.0)
    assert (male.tone, male.limit) == ("plain", None)
    assert f"limit 2: {status.value}" in female.words


def test_an_intersection_is_not_taken_for_its_parts() -> None:
    both = {"sex": "female", "age_band": "65+"}
    crossed = rich.comparison("sensitivity", both, 0.2)
    found = Evidence(
        fairness=(
            Fairness(attribute="sex", groups=(of_sex(0.0),), gaps=()),
            Fairness(attribute="sex × age_band", groups=(crossed,), gaps=()),
        )
    )
    drawn = rows(judged(said((crossed, 0.02, Status.REJECTED), evidence=found)))
    assert drawn[("sex", "female")].tone == "plain"
    assert drawn[("sex × age band", "female × 65+")].tone == "bad"


def test_groups_below_the_least_size_are_hollow() -> None:
    found = [of_sex(0.0, n=n, value=str(n)) for n in (49, 50)]
    page = judged(said(evidence=with_groups(*found)), fairness={"by": ["sex"], "min_group": 50})
    assert [row.few for row in rows(page).values()] == [True, False]
    assert render(page).count("too few</text>") == 1


def test_shares_and_other_units_have_axes_of_their_own() -> None:
    found = Evidence(comparisons=(rich.comparison("accuracy", {}, 0.01), rich.comparison("rmse", {}, 40.0)))
    points, rmse = judged(said(evidence=found)).judgement.forest.blocks
    assert (points.unit, rmse.unit) == ("points", "RMSE")
    assert points.high < 5 < 40 < rmse.high


def test_blocks_of_points_share_one_axis() -> None:
    blocks = view(rich.rich()).judgement.forest.blocks
    assert len({(block.low, block.high) for block in blocks}) == 1
    assert [block.title for block in blocks] == ["all cases", "class", "sex", "age band", "sex × age band"]


def test_of_too_many_rows_the_worst_are_drawn() -> None:
    drops = [of_sex(0.001 * i, value=f"group {i}") for i in range(200)]
    harm = of_sex(0.05, value="harmed")
    page = judged(said((harm, 0.02, Status.REJECTED), evidence=with_groups(*drops, harm)))
    (block,) = page.judgement.forest.blocks
    assert [row.label for row in block.rows[:3]] == ["harmed", "group 199", "group 198"]
    assert (len(block.rows), block.more) == (60, 141)


@given(st.lists(st.integers(0, 300), max_size=20), st.integers(0, 100))
def test_rows_are_shared_out_without_waste(sizes: list[int], most: int) -> None:
    given_ = allot(sizes, most)
    assert all(0 <= g <= size for g, size in zip(given_, sizes, strict=True))
    assert sum(given_) == min(sum(sizes), most) or not sizes


def test_an_interval_far_beyond_the_axis_ends_in_an_arrow() -> None:
    wide = rich.comparison("accuracy", {}, 0.0, half=0.9)
    page = judged(said((wide, 0.01, Status.INCONCLUSIVE), evidence=Evidence(comparisons=(wide,))))
    (block,) = page.judgement.forest.blocks
    assert block.high < 10
    drawn = str(svg.forest_block(block))
    assert re.search(r"l-5 4l5 4", drawn)
    assert re.search(r"l5 4l-5 4", drawn)


def test_a_drop_is_always_on_the_axis() -> None:
    lost = rich.comparison("accuracy", {}, 0.6)
    page = judged(said((lost, 0.01, Status.REJECTED), evidence=Evidence(comparisons=(lost,))))
    (block,) = page.judgement.forest.blocks
    assert block.low <= 60 <= block.high


def row(label: str, drop: float | None, heading: str = "", limit: float | None = 1.0) -> ForestRow:
    return ForestRow(
        heading=heading,
        label=label,
        n="200",
        drop=drop,
        drop_words="0.0",
        low=None if drop is None else drop - 1,
        high=None if drop is None else drop + 1,
        limit=limit,
        tone="good",
        few=False,
        words=label,
    )


def test_rows_of_a_block_lie_below_each_other_inside_the_drawing() -> None:
    listed = (row("a", 0.0, "recall"), row("b", None), row("c", 2.0, "accuracy", None), row("d", -1.0))
    block = ForestBlock(title="sex", unit="points", rows=listed, more=0, low=-3.0, high=5.0)
    root = ET.fromstring(str(svg.forest_block(block)))
    _, _, width, height = map(float, root.get("viewBox", "").split())
    texts = {t.text: float(t.get("y", 0)) for t in root.iter("text")}
    order = [texts[words] for words in ("recall", "a", "b", "accuracy", "c", "d")]
    assert order == sorted(set(order))
    assert max(float(t.get("x", 0)) for t in root.iter("text")) <= width
    assert max(order) < height
    assert len(list(root.iter("circle"))) == 3  # a drop that the cases cannot tell has no dot
    assert len(root.findall(".//rect")) == 3  # no limit, no ground


def test_gaps_show_their_limit_and_who_is_worst_off() -> None:
    fairness = view(rich.rich()).judgement.fairness
    first, *_ = fairness.attributes
    gap = first.gaps[0]
    assert (first.title, gap.name, gap.limit) == ("sex", "equalized odds difference", "5 points")
    assert gap.status == "inconclusive"
    assert gap.worst_after == "female"
    assert "other (3 cases of a positive class)" in first.left_out
    assert [(gap.name, gap.status) for gap in first.gaps[1:]] == [
        ("equal opportunity gap", "inconclusive"),
        ("accuracy gap", ""),
    ]
    assert fairness.gated == (
        "Gated: no group may lose more than 2 points (accuracy), 5 points (sensitivity), and no gap between "
        "groups may grow by more than 5 points (equalized odds difference, equal opportunity gap). "
        "Groups with fewer than 30 cases are never passed."
    )


def test_groups_that_were_to_be_gated_and_could_not_be_are_not_called_ungated() -> None:
    gated = judged(said(), fairness={"by": ["sex"]}).judgement.fairness.gated
    assert gated == "A fairness limit was asked for, but these cases decide about no group."


def test_the_clinically_worse_direction_comes_first_and_in_colour() -> None:
    changed = view(rich.rich()).judgement.disagreement
    assert changed
    assert (changed.tallies[0].what, changed.tallies[0].tone) == ("positive turned negative", "bad")
    assert changed.file == "final/disagreements.csv"
    assert not any(place.rstrip(".") in changed.summary for place in changed.places)


def test_without_positive_classes_no_direction_is_made_up() -> None:
    found = rich.crowded(2, 2).disagreement
    assert found
    plain = replace(found, positive_to_negative=None, negative_to_positive=None)
    changed = judged(said(evidence=Evidence(disagreement=plain))).judgement.disagreement
    assert changed
    assert changed.tallies[0].what == "newly wrong"


def test_reliability_has_a_diagonal_a_dot_for_each_bin_and_its_interval() -> None:
    found = view(rich.rich()).judgement.calibration
    assert found
    for diagram in found.diagrams:
        root = ET.fromstring(str(svg.reliability_diagram(diagram)))
        classes = [part.get("class") for part in root.iter()]
        assert classes.count("diagonal") == 1
        assert classes.count("bin") == classes.count("whisker") == len(diagram.bins) == 15
    assert [row.name for row in found.rows] == [
        *("expected calibration error", "Brier score", "calibration slope", "calibration intercept"),
    ]


def test_excess_is_shaded_only_where_the_candidate_degrades_faster() -> None:
    found = view(rich.rich()).judgement.stress
    assert found
    shaded = {plot.title: 'class="excess"' in str(svg.stress_curve(plot)) for plot in found.plots}
    assert shaded["gaussian noise"]
    assert not shaded["contrast"]
    assert found.severities == ("1", "3", "5")
    assert (found.rows[0].status, found.rows[0].limit) == ("inconclusive", "2 points")
    assert found.rows[0].cells[0] == ("1.2", "−0.4 to 2.8")


def test_of_errors_a_lower_curve_is_where_the_candidate_would_be() -> None:
    found = judged(said(evidence=Evidence(stress=(rich.curve("noise", 0.02, "rmse"),)))).judgement.stress
    assert found
    last = found.plots[0].marks[-1]
    assert last.expected == pytest.approx(last.candidate.value - 0.1)


def test_invariance_and_threshold_are_sentences_with_their_figures() -> None:
    found = view(rich.rich()).judgement
    assert found.invariance == (
        "However the file is asked: all of 256 cases are decided alike in batches of 1, 2, 4 and 32 and with "
        "1 and 2 threads; its numbers differ by 0.0000024 at most."
    )
    assert found.threshold.startswith("A case is called malignant from a probability of 0.3841 on")
    flipped = view(rich.crowd(groups=2, classes=2)).judgement.invariance
    assert "3 with batch 2 are decided differently" in flipped
    assert "compute over the whole batch: bn" in flipped


def test_an_override_stands_in_the_banner_and_among_the_warnings() -> None:
    page = view(rich.rich())
    assert page.banner.override == f"{rich.OVERRIDE}."
    assert page.warnings[0].text == f"{rich.OVERRIDE}."
    words = render(page)
    assert words.index('class="override"') < words.index('class="warning"')


def test_an_override_shows_before_any_verdict_does() -> None:
    record = records.unfinished(3)
    asked = {"by": "Dr. Ada Kern", "reason": "research use only"}
    events = tuple(
        replace(e, recipe={**e.recipe, "requirements": {"override": asked}}) if isinstance(e, Started) else e
        for e in record.events
    )
    page = view(replace(record, events=events))
    assert page.banner.override == "Override by Dr. Ada Kern. Reason given: research use only."
    assert page.warnings[0].title == "The limits are looser than the risk tier permits"


def test_every_note_of_a_verdict_is_a_warning() -> None:
    notes = (rich.OVERRIDE, rich.LOOKED, rich.HARM, "undecided, reported only: x", "something else")
    page = judged(said((of_sex(0.0), 0.02, Status.APPROVED), notes=notes))
    told = " ".join(f"{w.text} {' '.join(w.items)}" for w in page.warnings).lower()
    assert all(note.lower() in told for note in notes)
    looked = next(w for w in page.warnings if "looked at before" in w.title)
    assert looked.items == ("2026-11-02 10:11:12 UTC – final gate of runs/earlier, 2,003 cases",)


def test_earlier_openings_are_warned_of_without_a_note() -> None:
    page = judged(said((of_sex(0.0), 0.02, Status.APPROVED)))
    assert [w.title for w in page.warnings] == ["These test cases were looked at before"]


def test_before_the_final_verdict_the_evidence_of_the_newest_kept_stage_is_drawn() -> None:
    record = records.digits()
    found = Evidence(comparisons=(rich.comparison("accuracy", {}, 0.01),))
    events = tuple(
        replace(e, verdict=replace(e.verdict, evidence=found if e.index == 2 else None))
        if isinstance(e, StageFinished)
        else e
        for e in record.events[:5]
    )
    shown = view(replace(record, events=events)).judgement
    assert shown.split == "validation"
    assert [block.title for block in shown.forest.blocks] == ["all cases"]


def test_stages_do_not_repeat_the_evidence() -> None:
    plain = rich.rich()
    final = plain.all(FinalJudged)[0].verdict.evidence
    events = tuple(
        replace(e, verdict=replace(e.verdict, evidence=final)) if isinstance(e, StageFinished) else e
        for e in plain.events
    )
    assert render(view(replace(plain, events=events))) == render(view(plain))


def test_a_record_without_evidence_has_no_empty_sections() -> None:
    page = render(view(records.skin()))
    assert not re.findall(r'id="(losses|disagreement|calibration|stress)"', page)
    assert "<details>" not in page

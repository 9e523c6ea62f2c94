"""Where size and time went, each layer's width and cost, and the steps of iterative pruning, on the page."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import pytest
import report_records as records
from pruning_records import THREE, network, pruned, step, with_steps

from pastille.cli.pruned import operations_line, step_lines
from pastille.record import BaselineProfiled, Record, StageDetails, StageFinished, WidthChange
from pastille.report import render
from pastille.report.changes import Change
from pastille.report.layers import Layers, block_of
from pastille.report.options import options_line
from pastille.report.spending import PromisePoint, promise
from pastille.report.steps import Steps, kept_step
from pastille.report.svg.promise import promise_plot
from pastille.report.text import ABSENT
from pastille.report.view import view
from pastille.values import Profile, Speedup, from_json, to_json

MAX_BYTES = 300_000


def change(record: Record) -> Change:
    return next(c for c in view(record).changes if c.name == "1 prune")


def layers(record: Record) -> Layers:
    found = change(record).layers
    assert found is not None
    return found


def steps(record: Record) -> Steps:
    found = change(record).steps
    assert found is not None
    return found


def plain(words: str) -> str:
    return words.replace("\u202f", " ")


def profile(macs: int, speedup: Speedup | None, precision: Any = "fp32") -> Profile:
    base = records.skin().last(BaselineProfiled)
    assert base is not None
    return replace(base.profile, macs=macs, speedup=speedup, precision=precision)


# Size and time, stage by stage


def test_shares_of_the_baseline_are_those_of_the_record() -> None:
    found = view(records.skin()).spending
    assert dict(found.whole)["MACs"] == "150\u202fM"
    prune, quantize = found.rows
    shares = {cost.of: cost.share for cost in prune.costs}
    assert shares["parameters"] == pytest.approx(4_310_000 / 11_177_538)
    assert shares["MACs"] == pytest.approx(61 / 150)
    assert shares["size"] == pytest.approx(17_300_000 / 44_780_000)
    assert shares["time"] == pytest.approx(10.7 / 9.85), "by the ratio that was measured: it is slower"
    assert {cost.of: plain(cost.words) for cost in quantize.costs}["size"] == "10 %"
    assert found.most >= 10.7 / 9.85, "the longest bar fits"
    assert 'id="spending"' in render(view(records.skin()))


@pytest.mark.parametrize(
    ("macs", "ratio", "half", "said"),
    [
        (75, 1.7, 0.02, "2.0 times fewer multiply-accumulates than the baseline, measured 1.70 times faster"),
        (75, 1.7, 0.02, ": less than they promise."),
        (75, 2.0, 0.02, ": as they promise."),
        (75, 2.6, 0.02, ": more than they promise."),
        (75, 0.9, 0.02, "but measured SLOWER: 0.90 times the speed"),
        (75, 1.01, 0.05, "but measured no clear difference"),
        (300, 0.5, 0.02, "2.0 times MORE multiply-accumulates"),
    ],
)
def test_a_sentence_says_whether_the_speed_kept_up(macs: int, ratio: float, half: float, said: str) -> None:
    before, after = profile(150, None), profile(macs, records.speedup(ratio, half=half))
    assert said in plain(promise(before, after))


def test_what_int8_adds_is_not_put_down_to_pruning() -> None:
    after = profile(75, records.speedup(4.0), "int8")
    assert "more than they promise, int8 has its part in it" in promise(profile(150, None), after)
    assert "not measured" in promise(profile(150, None), profile(75, None))
    assert promise(profile(150, None), profile(150, records.speedup(2.0))) == ""


def test_a_stage_that_changes_neither_counts_nor_numbers_needs_no_sentence() -> None:
    said = view(records.digits()).spending.sentences
    assert [sentence.partition(":")[0] for sentence in said] == ["1 prune", "3 quantize"]


def test_where_nothing_was_taken_out_there_is_no_section() -> None:
    record = records.skin()
    base = record.last(BaselineProfiled)
    assert base is not None
    macs, parameters = base.profile.macs, base.profile.parameters
    events = tuple(
        replace(e, profile=replace(e.profile, macs=macs, parameters=parameters))
        if isinstance(e, StageFinished)
        else e
        for e in record.events
    )
    whole = replace(record, events=events)
    assert view(whole).spending.rows == ()
    assert 'id="spending"' not in render(view(whole))
    assert view(Record(name="empty")).spending.rows == ()


def test_a_time_that_was_not_measured_is_absent_and_not_drawn() -> None:
    found = view(pruned(profile={"speedup": None})).spending
    assert [cost.words for cost in found.rows[0].costs][-1] == "–"
    assert [point.label for point in found.points] == ["baseline", "2 quantize"]


def test_a_sparse_stage_says_what_it_does_not_speed_up() -> None:
    record = pruned(zeros=0.8, stored_bytes=4_100_000)
    said = next(s for s in view(record).spending.sentences if "zero" in s)
    assert plain(said) == (
        "1 prune: 80 % of the weights are zero; fewer bytes, not fewer multiply-accumulates: measured 0.92 "
        "times the speed (95 % CI 0.87–0.97, SLOWER); packed in a bundle the file takes 4.10 MB, "
        "unpacked 17.3 MB."
    )
    facts = dict(change(record).facts)
    assert plain(facts["zeros"]) == "80.0 % of the weights"
    assert plain(facts["stored"]) == "4.10 MB in a bundle"


def test_on_the_line_is_as_fast_as_promised_and_above_it_slower() -> None:
    def at(label: str, macs: float, ms: float) -> PromisePoint:
        return PromisePoint(label=label, kind="kept", macs=macs, ms=ms, low=ms * 0.97, high=ms * 1.03)

    base = PromisePoint(label="baseline", kind="baseline", macs=100, ms=10, low=None, high=None)
    for factor in (2, 10):  # linear axes, and logarithmic ones
        points = [base, at("kept up", 100 / factor, 10 / factor), at("slower", 100 / factor, 9.0)]
        root = ET.fromstring(promise_plot(points))
        (line,) = [e for e in root.iter("path") if e.get("class") == "diagonal"]
        x1, y1, x2, y2 = map(float, re.findall(r"-?[\d.]+", line.get("d", "")))
        circles = [(float(c.get("cx", 0)), float(c.get("cy", 0))) for c in root.iter("circle")]
        on_line = [y1 + (y2 - y1) * (x - x1) / (x2 - x1) for x, _ in circles]
        assert circles[0][1] == pytest.approx(on_line[0], abs=0.3)
        assert circles[1][1] < on_line[1] - 10, "slower is higher on the page"


# Layer by layer


def test_layers_stand_in_the_order_of_the_network_with_width_cost_and_reason() -> None:
    (block,) = layers(network(10)).blocks
    assert [row.module for row in block.rows][:3] == ["layer1.0.conv", "layer1.1.conv", "layer1.2.conv"]
    whole, halved = block.rows[:2]
    assert (whole.why, whole.width) == ("no narrower multiple of 8", None)
    assert halved.width is not None
    assert (halved.width.words, plain(halved.removed)) == ("64 → 32", "50 %")
    assert halved.macs is not None
    assert plain(halved.macs.words) == "2.00 k → 1.00 k"
    page = render(view(network(10)))
    assert "left whole: no narrower multiple of 8" in page
    assert "<details" not in page[page.index('id="changes"') :]


def test_many_layers_are_folded_by_block_and_the_sums_are_over_all() -> None:
    record = network(160)
    found = layers(record)
    assert [block.name for block in found.blocks] == ["layer1", "layer2", "layer3", "layer4"]
    assert found.blocks[0].words.startswith("40 layers, 2,048 → 1,024 channels, ")
    sums = [block.bar.before for block in found.blocks if block.bar]
    assert sum(sums) == sum(1000 * (i + 1) for i in range(160))
    page = render(view(record))
    assert page.count('<details class="block"') == 4


def test_hundreds_of_layers_stay_small_and_none_is_lost_silently() -> None:
    found = layers(network(1000))
    shown = sum(len(block.rows) for block in found.blocks)
    assert shown + sum(block.more for block in found.blocks) == 1000
    page = render(view(network(1000)))
    assert len(page.encode()) < MAX_BYTES
    assert "more layers not shown here" in page


def test_heads_and_blocks_are_counted_as_such() -> None:
    widths = (
        WidthChange(module="layer1.1", before=1, after=0, kind="blocks"),
        WidthChange(module="layer2.6", before=12, after=8, kind="heads"),
        WidthChange(module="layer2.7.conv", before=64, after=32),
    )
    record = pruned(network(10), widths=widths, left_whole={})
    facts = dict(change(record).facts)
    assert facts["blocks"] == "1 left out"
    assert facts["heads"] == "12 → 8 in 1 layer"
    assert facts["channels"] == "64 → 32 in 1 layer"
    rows = [(row.module, row.kind, row.removed) for row in layers(record).blocks[0].rows]
    assert rows.index(("layer1.1", "blocks", "left out")) + 1 == rows.index(("layer1.1.conv", "", ""))
    assert ("layer2.6", "heads", "33\u202f%") in rows


def test_a_record_that_kept_no_costs_shows_widths_alone() -> None:
    found = layers(records.skin())
    assert not found.with_costs
    assert [row.module for row in found.blocks[0].rows][-2:] == ["fc", "conv1"]
    assert "MACs</th><th" not in render(view(records.skin())).partition('id="changes"')[2]


def test_what_quantization_left_in_float_keeps_its_list() -> None:
    record = records.skin()
    events = tuple(
        replace(e, details=replace(e.details, left_whole={"fc": "faster in float"}))
        if isinstance(e, StageFinished) and e.name == "quantize"
        else e
        for e in record.events
    )
    shown = view(replace(record, events=events)).changes[-1]
    assert (shown.left_title, shown.left_whole) == ("Left in float", (("fc", "faster in float"),))


def test_blocks_of_known_networks() -> None:
    names = ("features.denseblock1.denselayer2.conv1", "conv1", "vit.encoder.layer.3.mlp", "classifier", "")
    assert [block_of(name) for name in names] == [
        *("features.denseblock1", "conv1", "vit.encoder.layer.3", "classifier", "")
    ]


# Step by step


def test_steps_are_listed_with_the_one_that_was_kept() -> None:
    record = with_steps(THREE, THREE[1].parameters)
    found = steps(record)
    assert [row.outcome for row in found.rows] == ["passed on", "kept", "rejected"]
    assert plain(found.words) == "step 2 of 3 was kept, with 36 % of the parameters removed; 1 rejected"
    assert [point.kind for point in found.points] == ["baseline", "kept", "final", "dropped"]
    assert [point.removed for point in found.points] == pytest.approx([0, 20, 36, 50])
    assert [plain(row.channels) for row in found.rows] == ["11 %", "20 %", "29 %"]
    only_heads = with_steps((replace(THREE[0], sparsity=0.0),), THREE[0].parameters)
    assert [(plain(x.removed), x.channels) for x in steps(only_heads).rows] == [("20 %", ABSENT)]
    page = render(view(record))
    assert "Accuracy fell for certain." in page
    assert "Pruning step by step: validation sensitivity" in page


def test_the_kept_step_is_the_one_that_the_file_is_of() -> None:
    assert kept_step(THREE, THREE[0].parameters) is THREE[0]
    assert kept_step(THREE, 7) is THREE[1], "none has as many: the last that passed"
    bad = (step(1, 0.5, 0.6, rejected=True),)
    assert kept_step(bad, bad[0].parameters) is bad[0]
    (row,) = steps(with_steps(bad, bad[0].parameters)).rows
    assert (row.outcome, row.tone) == ("rejected, yet the first: the gate judges it", "bad")


def test_a_first_step_that_rounding_left_nothing_to_is_counted() -> None:
    assert steps(with_steps(THREE[1:], THREE[1].parameters)).words.startswith("step 2 of 3 was kept")


def test_steps_without_a_metric_are_a_table_without_a_plot() -> None:
    blank = replace(step(1, 0.5, None), spent=None)
    record = pruned(steps=(blank,), curves=())
    assert steps(record).points == ()
    page = render(view(record))
    assert "step-by-step" not in page
    assert "Pruning step by step" not in page
    assert change(records.skin()).steps is None


def test_a_hundred_steps_stay_small() -> None:
    many = tuple(step(i, i / 101, 0.9 - i / 1000) for i in range(1, 101))
    page = render(view(with_steps(many, 5)))
    assert len(page.encode()) < MAX_BYTES
    assert "60 more steps not shown here" in page


# Untrusted words, old records, the terminal


def test_no_word_of_the_record_acts() -> None:
    evil = records.MARKUP * 30
    hostile = replace(THREE[0], note=evil)
    widths = tuple(WidthChange(module=f"{evil}{i}.{i}", before=0, after=8) for i in range(60))
    record = pruned(network(50), steps=(hostile,), widths=widths, left_whole={evil: evil}, zeros=9e99)
    page = render(view(record))
    assert "<script" not in page
    assert "<img" not in page
    for drawing in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ET.fromstring(drawing)


def test_a_budget_is_among_the_options_and_must_be_numbers() -> None:
    asked = {"budget": {"max_latency": {"p50": None, "p95": 5.0}, "max_size": 2_000_000, "max_macs": 3e8}}
    assert plain(options_line(asked)) == "budget p95 5.00 ms, size 2.00 MB, 300 M MACs"
    assert options_line({"budget": {"max_size": "<b>", "max_latency": ["x"]}, "fairness": "none"}) == ""


def test_records_of_versions_without_steps_and_layers_read() -> None:
    record = network(3)
    data = json.loads(to_json(record))
    for event in data["events"]:
        event.get("profile", {}).pop("layers", None)
        for name in ("steps", "zeros", "stored_bytes"):
            event.get("details", {}).pop(name, None)
        for width in event.get("details", {}).get("widths", ()):
            width.pop("kind")
    old = from_json(Record, json.dumps(data))
    assert layers(old).blocks[0].rows
    assert from_json(Record, to_json(record)) == record
    assert StageDetails().steps == ()


def test_the_terminal_says_the_same_in_lines() -> None:
    record = with_steps(THREE, THREE[1].parameters)
    assert list(step_lines(record)) == [
        "prune: step 2 of 3 was kept, with 36 % of the parameters removed; 1 rejected",
        "prune, step 1: 20 % removed, 8.94 M parameters left, sensitivity 79.0 %, passed on",
        "prune, step 2: 36 % removed, 7.15 M parameters left, sensitivity 78.5 %, kept",
        "prune, step 3: 50 % removed, 5.59 M parameters left, sensitivity 71.0 %, rejected: "
        "Accuracy fell for certain.",
    ]
    assert list(step_lines(records.skin())) == []
    (line,) = operations_line(profile(150, None), profile(75, None), records.speedup(1.7, half=0.02))
    assert line.startswith("operations  2.0 times fewer multiply-accumulates")
    assert operations_line(profile(150, None), profile(150, None), None) == []


def test_what_is_said_of_a_layer_is_shown_beside_it() -> None:
    odd = WidthChange(module="stem", before=64, after=30, note="no multiple of 8 fits its group")
    even = WidthChange(module="body", before=64, after=32)
    found = layers(pruned(widths=(odd, even)))
    assert {row.module: row.note for row in found.blocks[0].rows if row.width} == {
        "stem": "No multiple of 8 fits its group.",
        "body": "",
    }
    assert "No multiple of 8 fits its group." in render(view(pruned(widths=(odd, even))))


def test_what_a_steep_line_means_stays_within_its_plot() -> None:
    places = [("baseline", 157_000, 0.009), ("pruned", 41_500, 0.0087), ("distilled", 3_460, 0.0076)]
    points = tuple(
        PromisePoint(
            label=name, kind="baseline" if name == "baseline" else "kept", macs=m, ms=t, low=None, high=None
        )
        for name, m, t in places
    )
    root = ET.fromstring(promise_plot(points))
    (words,) = (e for e in root.iter("text") if e.text == "as fast as the MACs promise")
    _, _, width, height = map(float, root.get("viewBox", "").split())
    assert 0 <= float(words.get("x", -1)) <= width - 150
    assert 0 <= float(words.get("y", -1)) <= height - 46
    ticks = [e.text for e in root.iter("text") if e.get("class") == "tick end"]
    assert len(ticks) > 1

"""The page holds whatever the record says, and lets none of it act."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import distilled_records
import pruning_records
import pytest
import report_records as records
import rich_records
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pastille.errors import OutputError
from pastille.record import FinalJudged, Record, StageDetails, StageFinished
from pastille.report import render, svg, write_report
from pastille.report.comparison import Point, Tradeoff
from pastille.report.evidence import Matrix
from pastille.report.svg.scatter import Box, Mark, place_labels
from pastille.report.view import view
from pastille.values import Metrics

MAX_BYTES = 300_000
VOID = {"meta", "br", "img", "link", "input", "hr"}
PAGES: dict[str, Callable[[], Record]] = {
    **records.ALL,
    **rich_records.ALL,
    "pruned": lambda: pruning_records.pruned(pruning_records.network(12), steps=pruning_records.THREE),
    "taken apart": distilled_records.taken_apart,
    "hundreds of layers": lambda: pruning_records.network(400),
    "empty": lambda: Record(name="empty"),
    "before the baseline": lambda: records.unfinished(2),
    "after the baseline": lambda: records.unfinished(3),
    "two classes": lambda: records.with_labels(["no", "yes"]),
    "twenty classes": lambda: records.with_labels([f"a rather long name of class {i}" for i in range(20)]),
    "a thousand classes": lambda: records.with_labels([f"class {i}" for i in range(1000)]),
    "endless labels": lambda: records.with_labels([f"{i}" + "x" * 20_000 for i in range(20)]),
}


class Reader(HTMLParser):
    """Collects tags and attributes, and demands that every element is closed in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader


@pytest.fixture(scope="module", params=PAGES)
def page(request: pytest.FixtureRequest) -> str:
    return render(view(PAGES[request.param]()))


def test_every_element_is_closed(page: str) -> None:
    assert read(page).open == []


def test_every_drawing_is_well_formed_and_says_what_it_is(page: str) -> None:
    for drawing in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        root: ET.Element = ET.fromstring(drawing)
        if root.get("aria-hidden") != "true":
            assert root.get("role") == "img"
            assert root[0].tag == "title"
            assert root[0].text
            assert root[1].tag == "desc"


def test_small_enough_to_be_mailed(page: str) -> None:
    assert len(page.encode()) < MAX_BYTES


def test_nothing_runs_and_nothing_is_fetched(page: str) -> None:
    reader = read(page)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form", "use"} & set(
        reader.tags
    )
    names = {name for name, _ in reader.attributes}
    assert not {"src", "href", "xlink:href", "srcset", "action", "background"} & names
    assert not any(name.startswith("on") for name in names)
    assert "<script" not in page
    style = re.search(r"<style>(.*?)</style>", page, flags=re.DOTALL)
    assert style
    assert not re.search(r"url\(|@import|https?:", style[1])
    assert "http://" not in page
    assert "https://" not in page


def test_the_browser_is_told_to_refuse_anything_else(page: str) -> None:
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in page


def test_no_placeholder_shows(page: str) -> None:
    words = " ".join(read(page).text)
    assert not re.search(r"\bNone\b|\bnan\b|\binf\b|Undefined|\{\{|\{%", words)


def test_markup_of_the_record_is_shown_not_obeyed() -> None:
    reader = read(render(view(records.hostile())))
    assert records.MARKUP in " ".join(reader.text)
    assert not any("alert" in name for name, _ in reader.attributes)


def test_the_verdict_comes_first() -> None:
    page = render(view(records.leaky()))
    order = [page.index(mark) for mark in ('class="word"', 'class="warning"', 'id="checks"', 'id="stages"')]
    assert order == sorted(order)


def test_sections_appear_in_the_order_of_a_reading() -> None:
    page = render(view(records.skin()))
    assert re.findall(r'<section id="([a-z]+)"', page) == [
        *("chain", "checks", "groups", "confusion", "stages", "tradeoff", "spending", "latency"),
        *("changes", "data"),
        *("conditions", "reproduce"),
    ]
    assert re.findall(r'<section id="([a-z]+)"', render(view(rich_records.rich())))[:9] == [
        *(
            "chain",
            "checks",
            "losses",
            "groups",
            "disagreement",
            "confusion",
            "calibration",
            "stress",
            "stages",
        ),
    ]


def test_groups_are_said_not_to_be_gated_where_no_limit_was_asked_for() -> None:
    words = "described, not gated"
    assert words in render(view(records.skin()))
    assert words not in render(view(rich_records.rich()))


def test_a_plan_of_very_many_stages_stays_small() -> None:
    record = records.digits()
    stage = record.all(StageFinished)[0]
    many = tuple(replace(stage, index=i) for i in range(1, 101))
    page = render(view(replace(record, events=(*record.events[:3], *many))))
    assert len(page.encode()) < MAX_BYTES
    assert "more stages not shown here" in page


def test_a_training_of_very_many_epochs_stays_small() -> None:
    record = records.digits()
    details = StageDetails(
        curves=tuple(records.curve(f"step {i}", "accuracy", 9000, 0.9, 4321) for i in range(50))
    )
    events = tuple(replace(e, details=details) if isinstance(e, StageFinished) else e for e in record.events)
    page = render(view(replace(record, events=events)))
    assert len(page.encode()) < MAX_BYTES
    assert "epoch 4321 of 9000" in page


words = st.text(alphabet=st.characters(), max_size=40)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(labels=st.lists(words, min_size=2, max_size=6, unique=True), name=words)
def test_any_words_make_a_sound_page(labels: list[str], name: str) -> None:
    page = render(view(records.with_labels(labels, name=name)))
    page.encode()
    assert read(page).open == []
    for drawing in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ET.fromstring(drawing)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(55, 480), st.floats(20, 290)), min_size=1, max_size=14))
def test_labels_cover_neither_each_other_nor_a_symbol(places: list[tuple[float, float]]) -> None:
    marks = [Mark(x=x, y=y, top=y - 20, bottom=y + 20, words="12 quantize") for x, y in places]
    bounds = Box(x1=52, y1=14, x2=498, y2=292)
    boxes = [box for box in place_labels(marks, bounds) if box is not None]
    for i, box in enumerate(boxes):
        assert box.within(bounds)
        assert not any(box.meets(other) for other in boxes[i + 1 :])
        assert not any(box.x1 < m.x < box.x2 and box.y1 < m.y < box.y2 for m in marks)


def plot_of(xs: list[float]) -> Tradeoff:
    points = tuple(
        Point(label=f"m{x:g}", kind="kept", x=x, y=90 + i, low=None, high=None) for i, x in enumerate(xs)
    )
    return Tradeoff(
        title="t",
        x_title="file size",
        x_unit="bytes",
        y_title="accuracy",
        y_share=True,
        higher_is_better=True,
        points=points,
        floor=None,
        floor_words="",
    )


@pytest.mark.parametrize(("xs", "log"), [([1e5, 3.9e5], False), ([1e5, 4.1e5], True)])
def test_cost_is_logarithmic_from_a_factor_of_four(xs: list[float], log: bool) -> None:
    assert ("logarithmic" in svg.tradeoff_plot(plot_of(xs))) is log


def test_one_point_is_a_plot() -> None:
    assert ET.fromstring(svg.tradeoff_plot(plot_of([1e5]))).tag == "svg"


def test_kinds_of_points_differ_in_shape() -> None:
    shapes = {
        re.sub(r'class="[^"]*"', "", svg.key_mark(kind)) for kind in ("baseline", "kept", "dropped", "final")
    }
    assert len(shapes) == 4


@pytest.mark.parametrize("classes", [2, 7, 12, 13, 20])
def test_a_matrix_stays_within_its_drawing(classes: int) -> None:
    labels = tuple(f"a long label {i}" for i in range(classes))
    counts = tuple(tuple(1 + i + j for j in range(classes)) for i in range(classes))
    root = ET.fromstring(svg.confusion_matrix(Matrix(title="t", labels=labels, counts=counts)))
    _, _, width, height = map(float, root.get("viewBox", "").split())
    cells = root.findall("rect")
    assert len(cells) == classes**2
    assert max(float(c.get("x", 0)) + float(c.get("width", 0)) for c in cells) <= width
    assert max(float(c.get("y", 0)) + float(c.get("height", 0)) for c in cells) <= height


def test_a_drop_far_beyond_its_limit_points_outward() -> None:
    record = records.regression()
    judged = record.last(FinalJudged)
    assert judged is not None
    far = replace(judged.verdict.checks[0], drop=0.9)
    said = replace(judged.verdict, checks=(far,))
    events = tuple(replace(e, verdict=said) if e is judged else e for e in record.events)
    assert re.search(r'<path d="M[\d. ]+l10 6l-10 6z"', render(view(replace(record, events=events))))


def test_a_split_without_metrics_leaves_its_sections_out() -> None:
    record = records.digits()
    judged = record.last(FinalJudged)
    assert judged is not None
    nothing = Metrics(split="test", n=0, overall={})
    other = replace(judged, baseline_metrics=nothing, candidate_metrics=nothing)
    page = render(view(replace(record, events=tuple(other if e is judged else e for e in record.events))))
    assert 'id="confusion"' not in page


def test_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "report.html"
    write_report(records.digits(), path)
    assert path.read_text(encoding="utf-8") == render(view(records.digits()))
    assert list(path.parent.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_report(records.digits(), tmp_path / "file" / "report.html")

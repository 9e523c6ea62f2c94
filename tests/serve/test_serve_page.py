"""The page `/`: what it says, what it asks, and how it looks, in a real browser without a window."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import serving_snapshots as snapshots
from PIL import Image
from playwright.sync_api import FilePayload, Page, sync_playwright
from serving_bundles import tiny_bundle
from serving_pages import (
    ANSWER,
    FORM,
    IMAGE,
    ROW,
    SIGNAL,
    TEXT,
    Network,
    Stage,
    contrasts,
    drop_file,
    shown_json,
)
from serving_process import running

from pastille.values import ImageDecoding, Preprocessing

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
Opened = Callable[..., tuple[Page, Network]]
pytestmark = pytest.mark.skipif(
    BROWSER is None and "CI" not in os.environ, reason="neither chromium nor google-chrome is installed"
)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    assert BROWSER is not None, "CI tests the page: scripts/system-packages installs the browser"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield Stage(browser)
        browser.close()


@pytest.fixture
def opened(stage: Stage) -> Iterator[Opened]:
    """Opens the page; afterwards nothing outside was asked for, and nothing was complained of."""
    yield stage.open
    network = stage.network
    stage.page.goto("about:blank")
    assert (network.outside, network.faults) == ([], [])


def png(mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    pixels = np.arange(40 * 30 * 3, dtype=np.uint8).reshape(30, 40, 3)
    Image.fromarray(pixels).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


# What it says --------------------------------------------------------------------------------------------


def test_the_top_says_in_words_shape_and_colour_whether_all_is_well(opened: Opened, stage: Stage) -> None:
    states = {
        snapshots.OK: ("approved", "Answering with int8, as validated"),
        snapshots.FALLEN: ("inconclusive", r"Fallen back to fp32 since 08:05"),
        snapshots.ALARM: ("inconclusive", "Answering with int8, but please look"),
        snapshots.NEW: ("approved", "Answering with int8, as validated"),
        snapshots.CLOSED: ("rejected", "Not answering"),
    }
    page, _ = opened()
    shapes = {}
    for snapshot, (look, word) in states.items():
        stage.look(snapshot)
        assert re.fullmatch(word, page.inner_text("#word"))
        assert page.get_attribute("#banner", "class") == f"banner {look}"
        assert page.title().startswith(page.inner_text("#word"))
        shapes[look] = page.get_attribute("#icon .plate", "d")
    assert len(set(shapes.values())) == 3


def test_the_reason_of_a_fallback_is_named(opened: Opened) -> None:
    page, _ = opened(snapshots.FALLEN)
    assert "int8: its golden cases differ from where it was validated" in page.inner_text("#reason")
    variants = page.inner_text("#variants")
    assert "not used" in variants
    assert re.search(r"fp32\s+answering", variants)


def test_every_alarm_is_at_the_top_and_in_its_section(opened: Opened) -> None:
    page, _ = opened(snapshots.ALARM)
    reasons = page.locator("#reasons li").all_inner_texts()
    assert reasons == [snapshots.DIFFERING.words, snapshots.DRIFTED.words, snapshots.MISSED.words]
    for place in ("#disagreements", "#drift", "#sensitivity"):
        assert page.locator(f"{place} .badge.bad").count() == 1
    assert page.locator("#comparison").is_visible()
    assert "288 (90 %)" in page.inner_text("#arms")


def test_figures_are_those_of_the_snapshot(opened: Opened) -> None:
    page, _ = opened()
    figures = page.locator(".gains strong").all_inner_texts()
    assert figures == ["14", "2.4 ms", "4.1 ms", "7.9 ms", "1,840", "22"]
    text = page.inner_text("main")
    assert "31 of 1,840" in text
    assert "Evidence less than 0.01; it began at 1, and the alarm is at 100." in text
    assert "31 of 50 answers" in text
    assert "212 of 1,840 answers (12 %) needed no model; 18 MB are kept." in text
    assert "came too often from one client 429\n19" in text
    assert "9 positive turned negative, 4 negative turned positive." in text


def test_marks_stand_where_their_values_are(opened: Opened) -> None:
    page, _ = opened(snapshots.ALARM)
    track = page.locator("#disagreements .track").first.bounding_box()
    band = page.locator("#disagreements .band").first.bounding_box()
    limit = page.locator("#disagreements .limit").first.bounding_box()
    assert track is not None
    assert band is not None
    assert limit is not None
    left, width, end = track["x"], track["width"], 0.204 * 1.1

    def value(x: float) -> float:
        return (x - left) / width * end

    assert value(band["x"]) == pytest.approx(0.071, abs=0.002)
    assert value(band["x"] + band["width"]) == pytest.approx(0.204, abs=0.002)
    assert value(limit["x"]) == pytest.approx(0.05, abs=0.002)


def test_nothing_is_made_up_where_there_are_no_data(opened: Opened) -> None:
    page, _ = opened(snapshots.NEW)
    assert page.locator(".gains strong").all_inner_texts() == ["0", "–", "–", "–", "0", "0"]
    text = page.inner_text("main")
    assert "Nothing to hold it against: no answer yet, or no reference" in text
    assert "in mode auto, so there is nothing to hold it against" in text
    assert not re.search(r"NaN|undefined|null|Infinity", text)


def test_text_from_a_bundle_is_text(opened: Opened) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    recent = replace(snapshots.OK.recent[0], decision=hostile)
    engine = replace(snapshots.ENGINE, model=hostile, reason=hostile)
    page, _ = opened(replace(snapshots.OK, engine=engine, recent=(recent,)), models=(hostile, "b"))
    assert page.locator("img").count() == 0
    assert page.inner_text("#model") == hostile
    assert page.inner_text(".decision") == hostile


# How it asks ---------------------------------------------------------------------------------------------


def look_away(page: Page, away: bool) -> None:
    page.evaluate(
        """away => {
          Object.defineProperty(document, "hidden", { get: () => away, configurable: true });
          document.dispatchEvent(new Event("visibilitychange"));
        }""",
        away,
    )


def test_it_asks_every_two_seconds_and_not_when_nobody_looks(opened: Opened) -> None:
    page, network = opened()
    for times in (2, 3):
        network.snapshot = replace(snapshots.OK, answered=1840 + times)
        page.clock.run_for(1900)
        assert network.polls() == times - 1
        page.clock.run_for(100)
        page.locator(".gains", has_text=f"1,84{times}").wait_for()
        assert network.polls() == times
    look_away(page, away=True)
    page.clock.run_for(60_000)
    assert network.polls() == 3
    with page.expect_response("**/monitor.json"):
        look_away(page, away=False)


def test_a_server_that_is_gone_is_said_to_be_and_asked_less_often(opened: Opened) -> None:
    page, network = opened()
    network.gone = True
    page.clock.run_for(2000)
    page.wait_for_selector("#stale:visible")
    assert page.inner_text("#word") == "No answer from the server"
    page.clock.run_for(10_000)
    assert re.match(
        r"Last seen 12 s ago\. The figures below are from \d\d:\d\d:\d\d", page.inner_text("#stale")
    )
    page.click("#more")
    assert page.locator(".recent tbody tr").count() == 50
    assert page.inner_text("#word") == "No answer from the server"
    assert not page.locator("#glance").is_visible()
    asked = network.polls()
    for _ in range(60):
        page.clock.run_for(2000)
    assert 3 <= network.polls() - asked <= 6
    network.gone = False
    for _ in range(50):  # the last attempt may still be failing when time moves on
        page.clock.run_for(30_000)
        if not page.locator("#stale").is_visible():
            break
    assert page.inner_text("#word") == "Answering with int8, as validated"


def test_a_token_is_asked_for_once_and_sent(opened: Opened) -> None:
    page, network = opened(token="secret")
    assert page.inner_text("#word") == "A token, please"
    page.fill("#token-field", "wrong")
    page.press("#token-field", "Enter")
    page.locator("#token-note", has_text="does not accept").wait_for()
    page.fill("#token-field", "secret")
    page.click("text=Use it")
    page.wait_for_selector("#token", state="hidden")
    page.wait_for_selector(".drop")
    assert page.inner_text("#model") == "skin-lesions"
    assert "secret" not in page.content()
    assert page.evaluate("[localStorage.length, document.cookie, sessionStorage.length]") == [0, "", 1]
    assert network.asked[-1].headers["authorization"] == "Bearer secret"


def test_a_token_that_may_only_ask_can_still_try(opened: Opened) -> None:
    page, network = opened(forbidden=True)
    assert page.inner_text("#word") == "This token may not see the figures"
    assert not page.locator("#speed").is_visible()
    page.set_input_files("#file", FilePayload(name="a.png", mimeType="image/png", buffer=png()))
    page.wait_for_selector(".label")
    page.clock.run_for(60_000)
    assert network.polls() == 1


def test_old_figures_do_not_pass_for_new_ones_when_the_page_cannot_read_them(opened: Opened) -> None:
    page, network = opened()
    network.monitor = {"engine": None}
    page.clock.run_for(2000)
    page.locator("#word", has_text="This page cannot show what the server says").wait_for()
    assert page.locator("#stale").is_visible()
    assert len(network.faults) == 1
    network.faults.clear()
    network.monitor = None
    page.clock.run_for(5000)
    page.locator("#word", has_text="Answering with int8, as validated").wait_for()


def test_one_of_several_models_is_chosen(opened: Opened) -> None:
    page, network = opened(models=("skin-lesions", "ecg rhythm"))
    network.snapshot = replace(snapshots.NEW, engine=replace(snapshots.ENGINE, model="ecg rhythm"))
    network.accepts = (ROW,)
    page.click("#models >> text=ecg rhythm")
    page.wait_for_selector("textarea")
    assert page.inner_text("#model") == "ecg rhythm"
    assert page.get_attribute("#models a:last-child", "aria-current") == "page"
    assert {request.url.split("test/")[1] for request in network.asked[-2:]} == {
        "monitor.json?model=ecg%20rhythm",
        "predict/ecg%20rhythm",
    }


def test_what_is_read_aloud_is_not_touched_while_it_stays_true(opened: Opened) -> None:
    page, network = opened()
    page.evaluate("""() => {
      globalThis.touched = 0;
      const watch = new MutationObserver(() => { touched += 1; });
      for (const live of document.querySelectorAll("[aria-live], [role=status]"))
        watch.observe(live, { childList: true, subtree: true, characterData: true });
    }""")
    network.snapshot = replace(snapshots.OK, answered=1841, per_second=15.0, recent=snapshots.recents(40))
    page.focus("#watches a")
    page.clock.run_for(2000)
    page.locator(".gains", has_text="1,841").wait_for()
    assert page.evaluate("touched") == 0
    assert page.evaluate("document.activeElement.textContent") == "Agreement"
    network.snapshot = snapshots.CLOSED
    page.clock.run_for(2000)
    page.locator("#word", has_text="Not answering").wait_for()
    assert page.evaluate("touched") == 1


# Trying it -----------------------------------------------------------------------------------------------


def test_an_image_is_dropped_and_answered(opened: Opened) -> None:
    warned = {**ANSWER, "warnings": ["input 'image' lies far outside what validation saw"]}
    fallback = {"preferred": "int8", "why": "timeout", "detail": "took longer than 10 s"}
    page, network = opened(answer={**warned, "variant": "fp32", "fallback": fallback})
    data = png()
    drop_file(page, ".drop", "lesion.png", "image/png", data)
    page.wait_for_selector(".label")
    assert page.inner_text(".label") == "malignant"
    result = page.inner_text(".result")
    assert "Positive. Probability 93.1 %; positive is called from 41 % on" in result
    assert "int8 did not answer: it took too long." in result
    assert "lies far outside what validation saw" in result
    assert page.locator(".probabilities li span").all_inner_texts() == ["malignant", "benign", "unclear"]
    [request] = network.posted()
    assert request.post_data_buffer == data
    assert request.headers["content-type"] == "image/png"
    assert page.evaluate("document.querySelector('.preview img').naturalWidth") == 40
    assert shown_json(page)["variant"] == "fp32"


def test_a_file_is_chosen_by_a_click_and_asked_again(opened: Opened) -> None:
    page, network = opened()
    with page.expect_file_chooser() as chooser:
        page.click(".drop")
    chooser.value.set_files({"name": "a.dcm", "mimeType": "", "buffer": b"DICM"})
    page.wait_for_selector(".label")
    assert "the server reads it" in page.inner_text(".preview")
    page.click("text=Ask again")
    page.wait_for_selector(".result:not([aria-busy])")
    assert [request.headers["content-type"] for request in network.posted()] == ["application/dicom"] * 2


def test_a_signal_of_two_files_goes_as_one_form(opened: Opened) -> None:
    page, network = opened(accepts=(SIGNAL,))
    files = (("a.hea", b"header"), ("a.dat", b"samples"))
    octets = "application/octet-stream"
    page.set_input_files("#file", [FilePayload(name=n, mimeType=octets, buffer=body) for n, body in files])
    page.wait_for_selector(".label")
    [request] = network.posted()
    assert request.headers["content-type"].startswith("multipart/form-data; boundary=")
    table = FilePayload(name="b.csv", mimeType="text/csv", buffer=b"I,II\n0,1\n1,2\n0,3\n")
    page.set_input_files("#file", table)
    page.wait_for_selector(".trace")
    page.wait_for_selector(".result:not([aria-busy])")
    assert network.posted()[-1].headers["content-type"] == "text/csv"


def test_a_row_is_filled_in_and_only_sent_when_it_can_be_read(opened: Opened) -> None:
    page, network = opened(accepts=(ROW, TEXT, IMAGE))
    assert page.input_value("#input") == '{\n  "age": 61,\n  "sex": "female"\n}'
    page.fill("#input", '{"age": 61,')
    page.click("text=Ask the model")
    assert page.inner_text(".fault").startswith("This is not JSON yet")
    assert network.posted() == []
    page.fill("#input", '{"age": 62, "sex": "male"}')
    page.click("text=Ask the model")
    page.wait_for_selector(".label")
    assert network.posted()[0].post_data == '{"age": 62, "sex": "male"}'
    assert network.posted()[0].headers["content-type"] == "application/json"
    page.check("text=Text")
    assert page.input_value("#input") == "We studied 40."


def test_the_answer_to_one_input_is_not_shown_beside_another(opened: Opened) -> None:
    page, _ = opened(accepts=(ROW, TEXT, IMAGE))
    changes: tuple[Callable[[], object], ...] = (
        lambda: page.type("#input", " "),
        lambda: page.click("text=Back to the example"),
        lambda: page.check("text=Text"),
    )
    for change in changes:
        page.click("text=Ask the model")
        page.wait_for_selector(".label")
        change()
        assert page.locator(".label").count() == 0
        assert "The answer appears here" in page.inner_text(".result")


def test_a_row_is_a_form_where_its_columns_are_known(opened: Opened) -> None:
    page, network = opened(accepts=(FORM,))
    page.get_by_label("age").fill("")
    page.get_by_label("sex").select_option("male")
    page.click("text=Ask the model")
    page.wait_for_selector(".label")
    assert json.loads(network.posted()[0].post_data or "") == {"age": None, "sex": "male"}
    page.check("text=A row as JSON")
    assert '"age": 61' in page.input_value("#input")


def test_answers_of_every_task_are_shown(opened: Opened) -> None:
    page, network = opened(accepts=(TEXT,))
    base = {"variant": "fp32", "latency_ms": 1.0}
    for answer, label, words in (
        ({**ANSWER, "label": None, "decision": ["edema", "effusion"]}, ["edema, effusion"], "Positive."),
        ({**ANSWER, "label": None, "decision": [], "positive": False}, ["none of them"], "Negative."),
        ({**base, "value": 12.3456789}, ["12.346"], "answered by"),
        ({**base, "cases": [ANSWER] * 14}, ["14 cases"], "14 of them positive."),
        ({**base, "pixels": {"a": 30, "b": 10}}, [], "75 %"),
        ({**base, "outputs": [1.5, 2.5]}, [], "The answer as it was sent"),
    ):
        network.answer = {**answer, "version": words, "model": "m"}
        page.click("text=Ask the model")
        page.locator(".facts", has_text=f"m, version {words}").wait_for()
        assert page.locator(".label").all_inner_texts() == label
        assert words in page.inner_text(".result").replace(f"version {words}", "")


def test_a_refusal_is_said_in_plain_words(opened: Opened) -> None:
    page, network = opened(accepts=(TEXT,), answer={"error": "input 'x' holds NaN"})
    for status, headers, words in (
        (400, {}, "The server cannot use this input."),
        (413, {}, "This is larger than the server takes."),
        (429, {"Retry-After": "7"}, "Too many requests just now. Try again in 7 s."),
        (503, {}, "The server cannot answer just now. Try again in a moment."),
        (500, {}, "The model failed on this input. No answer is better than a wrong one."),
    ):
        network.status, network.headers = status, headers
        page.click("text=Ask the model")
        page.locator(".refusal", has_text=words).wait_for()
        assert "The server said: input 'x' holds NaN" in page.inner_text(".refusal")


# How it looks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (380, False), (380, True)])
def test_it_can_be_read_at_every_width_and_in_the_dark(opened: Opened, width: int, dark: bool) -> None:
    page, _ = opened(snapshots.ALARM, width=width, dark=dark, answer={**ANSWER, "warnings": ["unusual"]})
    drop_file(page, ".drop", "lesion.png", "image/png", png())
    page.wait_for_selector(".label")
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    scrolled = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
    assert page.evaluate(scrolled) == 0
    assert {text: ratio for text, ratio in contrasts(page).items() if ratio < 1} == {}
    with Image.open(io.BytesIO(page.screenshot(full_page=True))) as image:
        pixels = np.asarray(image.convert("L"))
    assert (np.median(pixels) > 128) is np.bool_(not dark)
    assert len(np.unique(pixels)) > 60
    assert (pixels[:, -8:] == pixels[1, 1]).all()  # nothing sticks out


def test_everything_is_reached_with_the_keyboard(opened: Opened) -> None:
    page, _ = opened(models=("skin-lesions", "ecg"))
    page.wait_for_selector(".drop")
    wanted = page.evaluate(
        "[...document.querySelectorAll('a, button, input, summary')].filter(e => e.checkVisibility()).length"
    )
    reached = set()
    for _ in range(wanted):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "(globalThis.seen ??= []).push(document.activeElement), seen.indexOf(document.activeElement)"
            )
        )
    assert len(reached) == wanted
    page.focus("#more")
    page.keyboard.press("Enter")
    assert page.locator(".recent tbody tr").count() == 50
    assert page.evaluate("document.activeElement.id") == "more"


# With the real server ------------------------------------------------------------------------------------


def test_a_real_server_is_watched_tried_and_missed(stage: Stage, tmp_path: Path) -> None:
    prepared = Preprocessing(image=ImageDecoding(height=8, width=8, channels=3))
    bundle = tiny_bundle(tmp_path / "bundle", name="tumours", shape=(3, 8, 8), preprocessing=prepared)
    page, faults = stage.visitor()
    with running(bundle, args=("--mode", "validate")) as server:
        page.goto(server.url)
        page.locator("#word", has_text="Answering with int8, as validated").wait_for()
        drop_file(page, ".drop", "scan.png", "image/png", png())
        page.wait_for_selector(".label")
        _, _, said = server.ask("POST", "/predict", png(), {"Content-Type": "image/png"})
        assert page.inner_text(".label") == json.loads(said)["label"]
        assert shown_json(page)["probabilities"] == json.loads(said)["probabilities"]
        page.locator("#requests tbody tr:nth-child(2)", has_text=json.loads(said)["label"]).wait_for()
        page.locator("#disagreements", has_text="0 of 2").wait_for()
        drop_file(page, ".drop", "scan.png", "image/png", b"no picture")
        page.locator(".refusal", has_text="The server cannot use this input.").wait_for()
        page.locator("#counted", has_text="could not be read as a request 400").wait_for()
        assert faults == []
    page.locator("#word", has_text="No answer from the server").wait_for()
    page.context.close()

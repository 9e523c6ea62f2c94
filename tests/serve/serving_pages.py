"""The page in a real browser, given snapshots and answers by a network that exists in the browser alone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import serving_snapshots as snapshots
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Route

from pastille.serve.page import CONTENT_POLICY, page_files
from pastille.serve.watch.snapshot import Snapshot

HOST = "http://pastille.test"
IMAGE = {
    "kind": "image",
    "media_types": ["image/png", "image/jpeg", "application/dicom"],
    "words": "A PNG, JPEG or DICOM image; it is scaled to 224 × 224.",
}
SIGNAL = {
    "kind": "signal",
    "media_types": ["text/csv", "application/zip"],
    "words": "A CSV file, or a WFDB record.",
}
ROW = {
    "kind": "row",
    "media_types": ["application/json"],
    "words": "One value for each column, as JSON.",
    "example": {"age": 61, "sex": "female"},
}
FORM = {
    **ROW,
    "columns": [
        {"name": "age", "type": "number", "codes": [], "optional": True},
        {"name": "sex", "type": "category", "values": ["female", "male"], "optional": False},
    ],
}
TEXT = {
    "kind": "text",
    "media_types": ["text/plain"],
    "words": "An abstract.",
    "example": "We studied 40.",
}
ANSWER: dict[str, Any] = {
    "label": "malignant",
    "probabilities": {"benign": 0.061, "malignant": 0.931, "unclear": 0.008},
    "decision": "malignant",
    "positive": True,
    "confidence": 0.931,
    "threshold": 0.41,
    "variant": "int8",
    "fallback": None,
    "warnings": [],
    "model": "skin-lesions",
    "version": "1",
    "latency_ms": 6.42,
    "cached": False,
}
# Text, its colour, all backgrounds from the element outwards, its size and weight: what contrast is made of.
_TEXTS = """() => [...document.querySelectorAll('body *')].filter(e => e.checkVisibility()
    && [...e.childNodes].some(c => c.nodeType === 3 && c.data.trim())).map(e => {
  const style = getComputedStyle(e), behind = [];
  for (let at = e; at; at = at.parentElement) behind.push(getComputedStyle(at).backgroundColor);
  const text = e.textContent.trim().slice(0, 40);
  return [text, style.color, behind, parseFloat(style.fontSize), +style.fontWeight];
})"""


@dataclass
class Network:
    """What the page can reach: it says what was asked, and can be told to fail."""

    snapshot: Snapshot
    accepts: Sequence[Mapping[str, Any]] = (IMAGE,)
    answer: Mapping[str, Any] = field(default_factory=lambda: ANSWER)
    status: int = 200  # of an answer to POST
    headers: Mapping[str, str] = field(default_factory=dict)
    token: str | None = None
    monitor: Mapping[str, Any] | None = None  # instead of the snapshot
    forbidden: bool = False  # whether the figures are refused with 403
    gone: bool = False
    models: tuple[str, ...] = ("skin-lesions",)
    asked: list[Request] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def posted(self) -> list[Request]:
        return [request for request in self.asked if request.method == "POST"]

    def polls(self) -> int:
        return sum("/monitor.json" in request.url for request in self.asked)

    def respond(self, route: Route) -> None:
        request = route.request
        if not request.url.startswith(f"{HOST}/"):
            self.outside.append(request.url)
            route.abort()
            return
        path = request.url.removeprefix(HOST).split("?")[0]
        if path in page_files():
            media_type, body = page_files()[path]
            headers = {"Content-Security-Policy": CONTENT_POLICY, "Content-Type": media_type}
            route.fulfill(body=body, headers=headers)
            return
        self.asked.append(request)
        if self.gone:
            route.abort("connectionrefused")
        elif self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            route.fulfill(status=401, json={"error": "a token is needed"})
        else:
            self._inform(route, path)

    def _inform(self, route: Route, path: str) -> None:
        if path == "/monitor.json" and self.forbidden:
            route.fulfill(status=403, json={"error": "the scope monitor is needed"})
        elif path == "/monitor.json" and self.monitor is not None:
            route.fulfill(json=self.monitor)
        elif path == "/monitor.json":
            route.fulfill(json={**asdict(self.snapshot), "models": self.models})
        elif route.request.method == "POST":
            route.fulfill(status=self.status, headers=dict(self.headers), json=self.answer)
        else:
            route.fulfill(json={"model": self.snapshot.engine.model, "accepts": self.accepts})

    def note(self, message: ConsoleMessage) -> None:
        # The browser itself remarks on every answer that is not 2xx; those are asked for by the tests.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            self.faults.append(message.text)


class Stage:
    """One page of one browser, opened anew for every test: a renderer of its own for each would cost most."""

    def __init__(self, browser: Browser) -> None:
        self.context = browser.new_context(reduced_motion="reduce", locale="en-GB", timezone_id="UTC")
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.network = Network(snapshots.OK)
        self.looks = 0
        self.page.on("console", lambda message: self.network.note(message))
        self.page.on("pageerror", lambda error: self.network.faults.append(str(error)))
        self.page.route("**/*", lambda route: self.network.respond(route))
        self.page.clock.install(time=snapshots.NOW)
        self.page.clock.pause_at(snapshots.NOW + 1)  # no time passes but what a test lets pass

    def open(
        self, snapshot: Snapshot = snapshots.OK, *, width: int = 1280, dark: bool = False, **options: Any
    ) -> tuple[Page, Network]:
        """Open the page and wait until it has said something."""
        self.network = Network(snapshot, **options)
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.emulate_media(color_scheme="dark" if dark else "light")
        self.page.goto(f"{HOST}/")
        self.page.locator("#word", has_not_text="Looking").wait_for()
        return self.page, self.network

    def visitor(self) -> tuple[Page, list[str]]:
        """A page with a real network and real time, and what it complained of."""
        assert self.context.browser is not None
        page, network = self.context.browser.new_page(), Network(snapshots.OK)
        page.set_default_timeout(20_000)
        page.on("console", network.note)
        page.on("pageerror", lambda error: network.faults.append(str(error)))
        return page, network.faults

    def look(self, snapshot: Snapshot) -> None:
        """Let the page that is open see another snapshot at once."""
        self.looks += 1
        engine = replace(snapshot.engine, version=f"{self.looks}.0")  # by which it is known to be shown
        self.network.snapshot = replace(snapshot, engine=engine)
        self.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        self.page.locator("#meta", has_text=f"version {self.looks}.0").wait_for()


def contrasts(page: Page) -> dict[str, float]:
    """Every text that can be seen, and its contrast over what AA asks for at its size: 1 and more will do.

    References:
        WCAG 2.2, success criterion 1.4.3, and its definition of contrast ratio.
    """
    found: dict[str, float] = {}
    for text, color, behind, size, weight in page.evaluate(_TEXTS):
        needed = 3.0 if size >= 24 or (size >= 18.66 and weight >= 600) else 4.5
        ground = next(_rgb(one) for one in behind if not one.endswith(", 0)"))
        lighter, darker = sorted((_luminance(_rgb(color)), _luminance(ground)), reverse=True)
        found[text] = min(found.get(text, 99.0), (lighter + 0.05) / (darker + 0.05) / needed)
    return found


def _rgb(color: str) -> tuple[float, ...]:
    return tuple(float(number) / 255 for number in re.findall(r"[\d.]+", color)[:3])


def _luminance(rgb: tuple[float, ...]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def drop_file(page: Page, selector: str, name: str, media_type: str, data: bytes) -> None:
    """Drop a file as a person would: a drag that enters, hovers, and lets go."""
    script = """([selector, name, type, bytes]) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([new Uint8Array(bytes)], name, { type }));
      for (const kind of ["dragenter", "dragover", "drop"]) document.querySelector(selector)
        .dispatchEvent(new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
    }"""
    page.wait_for_selector(selector)
    page.evaluate(script, [selector, name, media_type, list(data)])


def shown_json(page: Page) -> Any:
    """What the page holds under "The answer as it was sent"."""
    return json.loads(page.locator(".result pre").text_content() or "")

"""The page as a browser shows and prints it. Skipped where no Chromium is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import distilled_records
import numpy as np
import pruning_records
import pytest
import rich_records as records
from PIL import Image

from pastille.report import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="neither chromium nor google-chrome is installed")

QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
LIGHT, DARK = "--blink-settings=preferredColorScheme=1", "--blink-settings=preferredColorScheme=0"


def browse(page: Path, *arguments: str) -> None:
    assert BROWSER is not None
    profile = page.parent / "browser-profile"
    command = [BROWSER, *QUIET, f"--user-data-dir={profile}", *arguments, page.as_uri()]
    subprocess.run(command, check=True, timeout=120, capture_output=True)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    write_report(records.rich(), path)
    return path


@pytest.mark.parametrize(
    ("scheme", "width", "bright"),
    [(LIGHT, 1200, True), (DARK, 1200, False), (LIGHT, 390, True), (DARK, 390, False)],
)
def test_shown(page: Path, scheme: str, width: int, bright: bool) -> None:
    target = page.with_suffix(".png")
    browse(page, scheme, f"--screenshot={target}", f"--window-size={width},2400")
    with Image.open(target) as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.shape[1] == width
    assert (np.median(pixels) > 128) is np.bool_(bright)
    assert len(np.unique(pixels)) > 30
    written = (pixels != pixels[1, 1]).any(axis=1)
    assert written[100:].mean() > 0.5
    # Nothing sticks out on the right: the margin of the page is empty all the way down.
    assert (pixels[:, -8:] == pixels[1, 1]).all()


@pytest.mark.parametrize("kind", ["rich", "pruned", "taken apart"])
def test_on_a_phone_nothing_sticks_out_all_the_way_down(page: Path, kind: str) -> None:
    if kind == "pruned":
        record = pruning_records.pruned(pruning_records.network(30), steps=pruning_records.THREE)
        write_report(record, page)
    if kind == "taken apart":
        write_report(distilled_records.taken_apart(), page)
    target = page.with_suffix(".png")
    browse(page, LIGHT, f"--screenshot={target}", "--window-size=390,14000")
    with Image.open(target) as image:
        pixels = np.asarray(image.convert("L"))
    assert (pixels[:, -8:] == pixels[1, 1]).all()


def test_printed(page: Path) -> None:
    target = page.with_suffix(".pdf")
    browse(page, "--no-pdf-header-footer", f"--print-to-pdf={target}")
    data = target.read_bytes()
    assert data.startswith(b"%PDF")
    assert 4 <= data.count(b"/Type /Page\n") + data.count(b"/Type /Page ") + data.count(b"/Type /Page/") <= 18

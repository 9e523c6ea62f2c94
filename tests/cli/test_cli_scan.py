"""``pastille scan`` as a user meets it: in a process of its own, killed and started again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pastille.cli.app import app

sys.path.insert(0, str(Path(__file__).parents[1] / "stages"))
from scan_project import write_project

FEW = ("--technique", "quantization", "--bits", "8", "--cases", "64")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("scan-cli"))


def command(recipe: Path, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "pastille", "scan", str(recipe), *map(str, arguments)]


def pastille(recipe: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(recipe, *arguments), capture_output=True, text=True, cwd=recipe.parent)


def test_a_killed_scan_goes_on_and_shows_its_table(project: Path, tmp_path: Path) -> None:
    output, arguments = (
        tmp_path / "found.json",
        ("--technique", "pruning", "--levels", "0.5", "--cases", "700"),
    )
    process = subprocess.Popen(
        command(project, *arguments, "-o", output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    journal, deadline = tmp_path / "found.journal", time.monotonic() + 120
    while not (journal.is_file() and journal.read_bytes().count(b"\n") > 2) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not output.exists()
    before = journal.read_bytes()
    whole = before[: before.rfind(b"\n") + 1]
    result = pastille(project, *arguments, "-o", output)
    assert result.returncode == 0, result.stderr
    assert journal.read_bytes().startswith(whole)
    assert "blocks.0.conv1" in result.stdout
    assert "50 %" in result.stdout
    assert "left    head: " in result.stdout
    found = json.loads(output.read_text())
    assert {effect["technique"] for effect in found["effects"]} == {"pruning"}
    assert "&lt;f&gt;" in (tmp_path / "found.html").read_text(encoding="utf-8")
    assert "Traceback" not in result.stderr


def test_the_result_as_json(project: Path, tmp_path: Path) -> None:
    result = pastille(project, *FEW, "-o", tmp_path / "scan.json", "--json", "--quiet")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    shown = json.loads(result.stdout)
    assert shown["effects"] == json.loads((tmp_path / "scan.json").read_text())["effects"]
    assert {effect["level"] for effect in shown["effects"]} == {8.0}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--technique", "magic"), "--technique must be one of pruning, quantization, both, got 'magic'"),
        (("--levels", "0.5,1"), "--levels must be sparsities between 0 and 1"),
        (("--levels", "half"), "--levels must be numbers with commas between, got 'half'"),
        (("--bits", "16"), "--bits must be whole numbers from 2 to 8"),
        (("-o", "scan.txt"), "--output must end in .json"),
    ],
)
def test_what_cannot_be_done_is_one_line(project: Path, arguments: tuple[str, ...], words: str) -> None:
    result = CliRunner().invoke(app, ["scan", str(project), *arguments])
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1

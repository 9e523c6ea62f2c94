"""``pastille scan`` as a user meets it: in a process of its own, killed and started again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pastille.cli.app import app

sys.path.insert(0, str(Path(__file__).parents[1] / "stages"))
from scan_project import write_project

from pastille.cli.scanning import float_layers, remarks, table
from pastille.values.scanned import Effect, Scan

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


def test_a_file_of_the_users_beside_the_output_is_left_alone(project: Path, tmp_path: Path) -> None:
    (mine := tmp_path / "diary.journal").write_text("Monday\n")
    result = CliRunner().invoke(app, ["scan", str(project), *FEW, "-o", str(tmp_path / "diary.json")])
    assert result.exit_code == 2
    assert "diary.journal would be the scan's journal" in result.stderr
    assert mine.read_text() == "Monday\n"


def a_scan(*effects: Effect) -> Scan:
    return Scan(
        model_digest="",
        data_digest="",
        metric="accuracy",
        baseline_metric=1.0,
        baseline_loss=0.1,
        confidence=0.95,
        effects=effects,
        layers={},
        skipped={},
        seconds=1.0,
    )


def test_only_a_group_that_certainly_loses_more_is_called_the_worst() -> None:
    chance = Effect(
        technique="quantization",
        layer="a",
        level=8,
        loss=0.1,
        loss_low=None,
        loss_high=None,
        metric=0.0,
        group="age=80",
        group_loss=0.9,
        group_low=-0.2,
        cases=64,
    )
    certain = replace(chance, layer="b", group="sex=f", group_loss=0.4, group_low=0.3)
    assert list(remarks(a_scan(chance))) == [
        "groups  of none is it shown that its loss rises more than that of all cases"
    ]
    (line,) = remarks(a_scan(chance, certain))
    assert line == "worst   sex=f: loss +0.400 (at least +0.300) with b alone changed"
    assert list(remarks(a_scan(replace(chance, group=None, group_loss=None, group_low=None)))) == []
    assert float_layers(a_scan(chance)) == ()
    assert "+0.100 ± ?" in list(table(a_scan(chance), "quantization"))[1]


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

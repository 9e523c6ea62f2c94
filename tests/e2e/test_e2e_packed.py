"""A bundle whose sparse model is stored packed: made by a run, then judged, timed and told like any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pastille.bundle import onnx_file, read_manifest
from pastille.cli.app import app
from pastille.cli.shown import bytes_text
from pastille.record import StageFinished, read_record

pytestmark = pytest.mark.e2e

SPARSE = "{prune: {method: unstructured, sparsity: 0.8, train: {epochs: 20, batch_size: 16}}}"
JUDGED = ("--split", "test", "--json")
QUICK = ("--quiet", "--set", "requirements.risk=low", "--set", "measure={seconds: 0.05, memory: false}")


def pastille(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments])


@pytest.fixture(scope="module")
def run(new_project: Callable[[], Path]) -> tuple[Path, Path, str]:
    """The project, the run's directory, and what the run said."""
    project = new_project()
    done = pastille("run", project / "recipe.yaml", *QUICK, "--set", f"plan=[{SPARSE}]")
    assert done.exit_code == 0, done.output
    (directory,) = (project / "runs/tiny").iterdir()
    return project, directory, done.output


def test_it_is_stored_packed_and_every_size_is_that(run: tuple[Path, Path, str]) -> None:
    _, directory, said = run
    manifest = read_manifest(directory / "bundle/manifest.json")
    (packed,) = (each for each in manifest.variants if each.name != "fp32")
    assert packed.file.endswith(".xz")
    (stage,) = read_record(directory / "run.json").all(StageFinished)
    profile = stage.profile
    assert profile.bytes_on_disk == packed.size_bytes < profile.size_bytes
    on_disk = bytes_text(packed.size_bytes)
    assert f"→ {on_disk}" in " ".join(said.split())
    assert " loaded</small>" in (directory / "report.html").read_text().replace(
        "\N{NARROW NO-BREAK SPACE}", " "
    )


def test_validate_judges_what_it_holds_by_what_is_stored(run: tuple[Path, Path, str]) -> None:
    project, directory, _ = run
    manifest = read_manifest(directory / "bundle/manifest.json")
    (packed,) = (each for each in manifest.variants if each.name != "fp32")
    asked = ("-r", project / "recipe.yaml", *QUICK, *JUDGED)
    limits = [f"requirements.max_size={packed.size_bytes - less} B" for less in (0, 1)]
    fits, tight = (pastille("validate", directory / "bundle", *asked, "--set", limit) for limit in limits)
    assert (fits.exit_code, tight.exit_code) == (0, 3), fits.output
    (size,) = (check for check in json.loads(fits.stdout)["checks"] if check["metric"] == "size")
    assert size["candidate"] == packed.size_bytes
    with onnx_file(directory / "bundle", packed) as file:
        alone = pastille("validate", file, "--against", directory / "bundle", *asked)
    drops = [
        [check["drop"] for check in json.loads(said.stdout)["checks"] if check["drop"] is not None]
        for said in (fits, alone)
    ]
    assert drops[0] == drops[1]


def test_bench_times_it_and_names_both_sizes(run: tuple[Path, Path, str]) -> None:
    _, directory, _ = run
    said = pastille("bench", directory / "bundle", "--batch", "1", "--quiet")
    assert said.exit_code == 0, said.output
    assert "stored packed; " in said.output
    assert "when it is loaded" in " ".join(said.output.split())

"""The demonstrations on real data, carried out as a newcomer would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pastille.cli.app import app
from pastille.cli.demo import lay_out
from pastille.demos import DEMOS

pytestmark = pytest.mark.e2e


@pytest.fixture
def quick(tmp_path: Path) -> Path:
    """The demonstrations laid out with short measurements; what lies there already is not replaced."""
    for name, demo in DEMOS.items():
        lay_out(demo, tmp_path / name)
        recipe = yaml.safe_load((tmp_path / name / "recipe.yaml").read_text())
        recipe["measure"] = {"seconds": 0.1, "memory": False}
        (tmp_path / name / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


@pytest.mark.parametrize("name", ["breast-cancer", "diabetes"])
def test_a_demo(name: str, quick: Path) -> None:
    result = CliRunner().invoke(app, ["demo", name, "-o", str(quick), "--json", "-q"])
    assert result.exit_code in (0, 3, 4), result.output
    said = json.loads(result.stdout)
    assert said["candidate"]["size_bytes"] * 4 < said["baseline"]["size_bytes"]
    if name == "diabetes":
        assert set(said["test"]["baseline"]["groups"]) == {"sex", "age_band"}
        assert said["test"]["baseline"]["overall"]["r2"]["value"] > 0.3
    else:
        assert said["test"]["baseline"]["overall"]["auroc"]["value"] > 0.97


def test_the_last_lines_say_what_to_try_next(quick: Path) -> None:
    result = CliRunner().invoke(app, ["demo", "diabetes", "-o", str(quick), "-q"])
    tail = result.stdout.split("Try next:")[1]
    bundle = next(line.split()[-1] for line in tail.splitlines() if "verify" in line)
    assert CliRunner().invoke(app, ["verify", bundle]).exit_code == 0
    assert "pastille demo --list" in tail


def test_a_demo_into_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(app, ["demo", "diabetes", "-o", str(tmp_path / "file"), "-q"])
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "choose another with --output" in line

"""The page on serving says what is so."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import get_args

import typer
import yaml

from pastille.cli.app import app
from pastille.serve.settings import Mode, Settings

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/how-to/serving.md").read_text()


def test_the_settings_are_settings() -> None:
    (written,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    asked = Settings.model_validate(yaml.safe_load(written))
    told = {**yaml.safe_load(written), "queue": {}, "audit": None}
    assert asked.queue.rate == 50
    # What the page shows are the defaults, but for the rate and the place of the log.
    assert Settings.model_validate(told) == Settings()


def test_every_mode_is_told() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", PAGE[PAGE.index("| `--mode`") :], re.MULTILINE)
    assert rows == list(get_args(Mode))


def test_the_commands_and_options_exist() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for line in re.findall(r"^pastille (.*)$", PAGE, re.MULTILINE):
        name, *words = line.partition("#")[0].split()
        options = {o for p in commands[name].params for o in (*p.opts, *p.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= options, line


def test_the_faults_are_those_that_were_measured() -> None:
    with (ROOT / "benchmarks/faults.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))

    def total(what: str, among: str = "") -> int:
        return sum(int(row[what]) for row in rows if among in row["fault"])

    said = PAGE[PAGE.index("## What it withstands") : PAGE.index("## Settings")]
    bad = [total(what) for what in ("wrong", "unexplained", "amiss", "logged")]
    assert bad == [0, 0, 0, 0]
    assert all(float(row["growth_mb"]) <= int(row["bound_mb"]) for row in rows)
    assert f"through {len(rows) - 1} faults" in said  # the first is none
    assert f"{total('asked'):,} requests" in said
    assert f"{total('attacks'):,} hostile" in said
    assert f"({total('cut', 'killed')} requests)" in said
    assert f"{total('refused', 'bomb')} of {total('asked', 'bomb'):,} requests were pictures" in said

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


COMPARED = {  # row of the page -> model and figure of the CSV
    "server's CPU per 602 KB request": ("resnet18", "CPU per request beyond the runtime"),
    "the same, 12 KB": ("ecg", "CPU per request beyond the runtime"),
    "median time of one client": ("resnet18", "median time over the runtime's"),
    "answers per second, 8 clients, over": ("resnet18", "answers over the runtime's, 8 clients"),
    "answers per second, 8 clients, 12 KB": ("ecg", "answers, 8 clients"),
    "answers in 500 ms at 3 times": ("resnet18", "answers within 500 ms over the most"),
    "answers lost of 48": ("resnet18", "answers lost of 48 on SIGTERM"),
    "start to the first": ("resnet18", "start to first correct answer"),
    "memory when idle": ("resnet18", "memory when idle (PSS)"),
}


def test_the_comparison_is_what_was_measured() -> None:
    with (ROOT / "benchmarks/serve.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    said = PAGE[PAGE.index("## How it compares") : PAGE.index("## Settings")]
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in said.splitlines() if "|" in line
    ]
    assert len(rows) == len(COMPARED)
    for (name, (model, figure)), (what, *cells) in zip(COMPARED.items(), rows, strict=True):
        assert what.startswith(name)
        for server, cell in zip(head[1:], cells, strict=True):
            values = [
                float(row["value"])
                for row in found
                if (row["model"], row["figure"]) == (model, figure)
                and row["server"].partition(" (")[0] == server.lower()
            ]
            best = max(values)  # of several limits
            assert float(cell) == round(best, len(cell.partition(".")[2])), (what, server)

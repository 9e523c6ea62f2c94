"""``pastille power``: what is worked out, what is shown, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pastille.cli.power import (
    CasesGiven,
    CasesNeeded,
    RecipeOutlook,
    power_json,
    power_report,
    show_power,
)
from pastille.errors import UsageError
from pastille.progress import SILENT
from pastille.stats.power import exact_cases_needed

DATA = """
import numpy as np
from pastille import Split, Splits

def split(n, seed):
    rng = np.random.default_rng(seed)
    targets = np.arange(n) % 4 == 0
    groups = {"sex": np.where(np.arange(n) % 10 == 0, "female", "male")}
    return Split(inputs=Unread(n), targets=targets.astype(np.int64), groups=groups)

class Unread:
    def __init__(self, n):
        self.n = n
    def __len__(self):
        return self.n
    def __getitem__(self, index):
        raise AssertionError("inputs must stay unread")

def splits():
    return Splits(train=split(40, 0), validation=split(100, 1), test=split(2000, 2))
"""
RECIPE = """
name: power
task: {kind: binary, labels: [well, ill]}
data: {source: data.py:splits}
requirements:
  risk: medium
  max_drop: {auroc: 1 %}
  fairness: {by: [sex]}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "data.py").write_text(DATA)
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def report(recipe: Path | None = None, **options: Any) -> Any:
    return power_report(recipe, progress=SILENT, **options)


def shown(found: Any, capsys: pytest.CaptureFixture[str]) -> str:
    show_power(found)
    return capsys.readouterr().out


def test_one_figure(capsys: pytest.CaptureFixture[str]) -> None:
    found = report(limit="1 %", discordance="2 %")
    assert isinstance(found, CasesNeeded)
    assert [row.cases for row in found.rows] == [1740]
    text = shown(found, capsys)
    assert "1,740 cases show that no more than 1 % is lost, if the models disagree on 2 % of them" in text
    assert "a chance of 80 % that the 95 % interval approves a candidate as good as the baseline" in text


def test_without_anything_the_tiers_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(report(), capsys)
    for part in ("0.5 % (critical)", "1 % (high)", "2 % (medium)", "5 % (low)", "15,768", "381"):
        assert part in text


def test_a_tier_is_its_limit_and_options_count() -> None:
    found = report(tier="medium", discordance="5 %", power="90 %", confidence="90 %", drop="0.5 %")
    expected = exact_cases_needed(0.05, 0.02, confidence=0.9, power=0.9, drop=0.005)
    assert [(row.limit, row.cases) for row in found.rows] == [(0.02, expected)]


def test_where_the_true_drop_is_too_large_there_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    found = report(limit="1 %", drop="0.5 %")
    assert [row.cases for row in found.rows][:1] == [None]
    assert "–" in shown(found, capsys)
    assert "a true drop of 0.5 %" in shown(found, capsys)


def test_given_cases(capsys: pytest.CaptureFixture[str]) -> None:
    found = report(cases=1000, discordance="2 %")
    assert isinstance(found, CasesGiven)
    (row,) = found.rows
    assert row.smallest_limit == pytest.approx(0.0135, abs=1e-4)
    assert list(row.power) == ["0.5 %", "1 %", "2 %", "5 %"]
    text = shown(found, capsys)
    assert "What 1,000 cases can prove" in text
    assert "1.35 %" in text
    assert "98.3 %" in text


def test_a_recipe_is_read_without_its_inputs(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = report(recipe)
    assert isinstance(found, RecipeOutlook)
    assert [(split.split, split.cases) for split in found.splits] == [("validation", 100), ("test", 2000)]
    text = shown(found, capsys)
    assert "✗ accuracy: 100 cases cannot show a loss of at most 2 points, even if no decision changes" in text
    assert "✓ accuracy: 2000 cases can show a loss of at most 2 points" in text
    assert "? sensitivity: 500 cases of a positive class can show" in text
    assert "✗ sensitivity of sex female: 100 cases of a positive class cannot" in text
    assert "AUROC: not foretold" in text


def test_json_has_the_sentences(recipe: Path) -> None:
    found = report(recipe, discordance="1 %")
    data = json.loads(json.dumps(power_json(found)))
    assert data["discordance"] == 0.01
    test = data["splits"][1]
    assert test["split"] == "test"
    assert test["unforeseeable"] == ["auroc"]
    first = test["outlooks"][0]
    assert first["asked"]["metric"] == "accuracy"
    assert first["sentence"].startswith("accuracy: 2000 cases can show")
    assert 0 < first["bearable"] < 1
    assert power_json(report(limit="2 %", discordance="0 %"))["rows"][0]["cases"] == 189


def test_a_recipe_may_be_overridden(recipe: Path) -> None:
    found = report(recipe, overrides=["requirements.risk=low"])
    assert found.splits[0].outlooks[0].asked.limit == 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": "many"}, "--limit must be a quantity such as '1 %', got 'many'"),
        ({"limit": "0"}, "--limit must be above 0"),
        ({"limit": "101 %"}, "--limit must be between 0 and 100 %, got 101 %"),
        ({"limit": "1 %", "tier": "high"}, "give --limit or --tier, not both"),
        ({"tier": "extreme"}, "--tier must be one of critical, high, medium, low, got 'extreme'"),
        ({"power": "40 %"}, "--power must be at least 50 % and below 100 %, got 40 %"),
        ({"confidence": "100 %"}, "--confidence must be at least 50 % and below 100 %, got 100 %"),
        ({"cases": 0}, "--cases must be at least 1, got 0"),
        ({"limit": "1 %", "drop": "1 %"}, "--drop must be below the limit"),
        ({"cases": 10, "drop": "20 %"}, "--drop must not exceed the discordance"),
        ({"overrides": ["seed=1"]}, "--set changes a recipe"),
    ],
)
def test_malformed_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        report(**options)
    assert str(error.value).startswith(message)


def test_what_a_recipe_sets_itself_is_refused_beside_it(recipe: Path) -> None:
    with pytest.raises(UsageError, match="--limit, --cases do not go with a recipe: a recipe has its own"):
        report(recipe, limit="1 %", cases=5)

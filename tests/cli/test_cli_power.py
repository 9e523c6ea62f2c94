"""``pastille power``: what is worked out, what is shown, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pastille.cli.power import (
    CasesGiven,
    CasesNeeded,
    power_json,
    power_report,
    show_power,
)
from pastille.cli.power_recipe import RecipeOutlook, conclusion
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
    assert "1740 cases show that no more than 1 % is lost, if the models disagree on 2 % of them" in text
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
    assert "What 1000 cases can prove" in text
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
    assert "✗ equalized odds difference between groups of sex cannot be approved even if no" in text
    assert "not foretold, as it depends on the answers: AUROC, AUROC of every group" in text
    last = " ".join(text.splitlines()[-2:])
    assert "power: with these cases cannot be approved, even if no decision changes: on validation" in text
    assert "on test, sensitivity of sex female" in last


def test_what_is_asked_of_validation_is_said_of_validation(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["requirements.stress.max_extra_drop=10 %", "requirements.calibration.max_ece_increase=5 %"]
    found = report(recipe, overrides=overrides)
    text = shown(found, capsys)
    assert text.count("✓ accuracy under perturbed inputs can be approved within 10 points") == 1
    assert text.count("✗ sensitivity under perturbed inputs cannot be approved") == 1
    assert text.count("expected calibration error") == 2
    assert "sensitivity under perturbed inputs" in found.splits[0].hopeless


def test_a_limit_of_zero_is_shown(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(report(recipe, overrides=["requirements.max_drop.sensitivity=0"]), capsys)
    assert text.count("✗ sensitivity: no number of cases can show a loss of at most 0 points") == 2


def test_what_can_be_approved_is_said_last(recipe: Path) -> None:
    recipe.write_text(
        RECIPE.replace("  fairness: {by: [sex]}\n", "").replace("  max_drop: {auroc: 1 %}\n", "")
    )
    data = recipe.parent / "data.py"
    data.write_text(DATA.replace("validation=split(100, 1)", "validation=split(400, 1)"))
    found = report(recipe, overrides=["requirements.risk=low"])
    assert conclusion(found) == "power: every limit can be approved with these cases if few decisions change"
    beside = report(recipe, overrides=["requirements.risk=low", "requirements.max_drop.auroc=1 %"])
    assert conclusion(beside).startswith("power: every limit that is foretold can be approved")


def test_beyond_the_exact_sum_figures_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(report(limit="0.01 %", discordance="90 %"), capsys)
    assert text.startswith("about 706,399,177 cases show")
    text = shown(report(limit="1 %", cases=100_000_000, discordance="0 %"), capsys)
    assert text.startswith("What 100,000,000 cases can prove, about, by how often")
    assert "0.0000038 %" in text
    assert "What 1 case can prove" in shown(report(cases=1), capsys)


def test_json_has_the_sentences(recipe: Path) -> None:
    found = report(recipe, discordance="1 %")
    data = json.loads(json.dumps(power_json(found)))
    assert data["discordance"] == 0.01
    test = data["splits"][1]
    assert test["split"] == "test"
    assert test["unforeseeable"] == ["auroc", "AUROC of every group"]
    assert test["unchanged"][0]["sentence"].startswith("equalized odds difference between groups of sex")
    assert data["conclusion"].startswith("power: with these cases cannot be approved")
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
        ({"limit": "101 %"}, "--limit must be between 0.01 % and 50 %, got 101 %"),
        (
            {"limit": "1"},
            "--limit must be between 0.01 % and 50 %, got 1, which is 100 %; '1 %' was probably meant",
        ),
        ({"limit": "0.001 %", "discordance": "10 %"}, "--limit must be between 0.01 % and 50 %, got 0.001 %"),
        (
            {"cases": 1_000_000_000},
            "--cases must be at least 1 and at most 100,000,000, got 1,000,000,000",
        ),
        ({"limit": "1 %", "tier": "high"}, "give --limit or --tier, not both"),
        ({"tier": "extreme"}, "--tier must be one of critical, high, medium, low, got 'extreme'"),
        ({"power": "40 %"}, "--power must be at least 50 % and below 100 %, got 40 %"),
        ({"confidence": "100 %"}, "--confidence must be at least 50 % and below 100 %, got 100 %"),
        ({"cases": 0}, "--cases must be at least 1 and at most 100,000,000, got 0"),
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

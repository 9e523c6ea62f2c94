"""What the README and the docs say is so."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from pastille import policy
from pastille.cli.app import app
from pastille.recipe import METHODS, parse_recipe
from pastille.recipe.pruning import PRUNE_METHODS, UNSEEING, Criterion
from pastille.recipe.training import Distill, Hints, Student, Train

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_recipe_is_one_that_runs() -> None:
    recipe = parse_recipe(yaml.safe_load(blocks("yaml")[0]))
    policy.check(recipe)
    assert recipe.requirements.max_size == 5e6
    assert policy.limits(recipe) == {"accuracy": 0.02, "sensitivity": 0.01}


def test_the_ways_to_quantize_are_stages() -> None:
    quantizing, _, _ = blocks("yaml")[1:]
    steps = yaml.safe_load(quantizing)
    asked = yaml.safe_load(blocks("yaml")[0])
    for step in steps:
        policy.check(parse_recipe({**asked, "requirements": {"risk": "low"}, "plan": [step]}))
    methods = {step["quantize"].get("method", "ptq") for step in steps}
    assert methods == {"ptq", "qat", "auto", "mixed", "int4"}


def test_the_ways_to_prune_are_stages() -> None:
    _, pruning, _ = blocks("yaml")[1:]
    page = (ROOT / "docs" / "explain" / "pruning.md").read_text()
    (more,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    asked = yaml.safe_load(blocks("yaml")[0])
    steps = [*yaml.safe_load(pruning), *yaml.safe_load(more)["plan"]]
    for step in steps:
        policy.check(parse_recipe({**asked, "requirements": {"risk": "low"}, "plan": [step]}))
    assert {step["prune"].get("method", "structured") for step in steps} == {"structured", "unstructured"}


def test_the_page_on_pruning_lists_every_criterion_and_method() -> None:
    page = (ROOT / "docs" / "explain" / "pruning.md").read_text()
    criteria = page[page.index("| `criterion`") :].split("\n\n")[0].splitlines()[2:]
    told = {re.findall(r"`(\w+)`", row)[0]: row.split("|")[3].strip() for row in criteria}
    assert told == {name: "no" if name in UNSEEING else "yes" for name in get_args(Criterion)}
    methods = page[page.index("| `method`") :].split("\n\n")[0].splitlines()[2:]
    assert [re.findall(r"`([^`]+)`", row)[0] for row in methods] == list(PRUNE_METHODS)


def test_the_table_of_methods_is_complete_and_permits_what_the_policy_permits() -> None:
    page = (ROOT / "docs" / "explain" / "quantization.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert set(METHODS) <= named
    assert policy.TIERS["critical"].quantization == ("qat",)
    for risk in ("high", "medium"):
        assert set(METHODS) - set(policy.TIERS[risk].quantization) == {"int4"}
    assert set(policy.TIERS["low"].quantization) == set(METHODS)


def test_the_table_of_speeds_is_what_was_measured() -> None:
    page = (ROOT / "docs" / "explain" / "quantization.md").read_text()
    table = page[page.index("| network |") :].split("\n\n")[0].splitlines()[2:]
    shown = [[cell.strip() for cell in row.strip("|").split("|")] for row in table]
    with (ROOT / "benchmarks" / "int8_on_cpu.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["model"] != "digits-resnet"]
    measured: dict[str, dict[str, float]] = {}
    for row in rows:
        measured.setdefault(row["model"], {})[row["method"]] = float(row["speedup_over_fp32"])
    assert len(shown) == len(measured)
    columns = ("onnxruntime U8S8", "onnxruntime default static", "nncf", "fasterai")
    for cells, found in zip(shown, measured.values(), strict=True):
        ours = max(value for name, value in found.items() if name.startswith("pastille"))
        theirs = max(value for name, value in found.items() if name.startswith("openvino"))
        others = [f"{found[name]:.2f}" if name in found else "–" for name in columns]
        assert [cells[1], *cells[3:]] == [f"{ours:.2f}", *others, f"{theirs:.2f}"], cells[0]


def test_the_data_callable_works() -> None:
    code = next(block for block in blocks("python") if "def splits" in block)
    namespace: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), namespace)
    splits = namespace["splits"]
    assert callable(splits)
    assert [split.n for _, split in splits()] == [200, 60, 100]


def test_the_pruning_example_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    code = next(block for block in blocks("python") if "pastille.prune" in block)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() == code.rsplit("# ", 1)[1].strip()


def test_every_command_is_listed() -> None:
    named = {command.name or command.callback.__name__ for command in app.registered_commands}  # type: ignore[union-attr]
    named |= {str(group.name) for group in app.registered_groups}
    assert set(re.findall(r"^\| `pastille (\w+)", README, re.MULTILINE)) == named


@pytest.mark.parametrize(
    "file",
    [
        "README.md",
        *(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md")),
        *(str(p.relative_to(ROOT)) for p in (ROOT / "examples").rglob("README.md")),
    ],
)
def test_links_lead_somewhere(file: str) -> None:
    page = ROOT / file
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", page.read_text()) if "://" not in t]
    assert [t for t in targets if not (page.parent / t).exists()] == []


def test_the_layers_in_the_docs_are_the_contract() -> None:
    import tomllib

    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = [line.replace("pastille.", "") for line in config["contracts"][0]["layers"]]
    text = (ROOT / "docs/explain/architecture.md").read_text()
    assert "\n".join(layers) in text


DISTILLATION = (ROOT / "docs" / "explain" / "distillation.md").read_text()


def first_column(page: str, head: str) -> list[str]:
    """What is named first in each row of the table that begins with a heading."""
    rows = page[page.index(f"| {head} |") :].split("\n\n")[0].splitlines()[2:]
    return [re.findall(r"`([^`]+)`", row)[0] for row in rows]


def test_the_ways_to_distill_are_stages() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", DISTILLATION, re.DOTALL)
    asked, _, _, shown = (yaml.safe_load(block) for block in blocks("yaml"))
    for step in [*shown, *yaml.safe_load(block)["plan"]]:
        policy.check(parse_recipe({**asked, "requirements": {"risk": "medium"}, "plan": [step]}))


def test_the_page_on_distillation_lists_every_loss_and_every_key_of_training() -> None:
    assert first_column(DISTILLATION, "`method`") == list(get_args(Distill.model_fields["method"].annotation))
    assert first_column(DISTILLATION, "`loss`") == list(get_args(Hints.model_fields["loss"].annotation))
    table = DISTILLATION[DISTILLATION.index("| key |") :].split("\n\n")[0].splitlines()[2:]
    named = {name for row in table for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == set(Train.model_fields)


def test_the_page_on_distillation_names_every_key_of_a_student() -> None:
    table = DISTILLATION[DISTILLATION.index("| `student` |") :].split("\n\n")[0]
    told = [key for key in Student.model_fields if key not in ("init", "arguments", "weights")]
    assert [key for key in told if f"`{{{key}: " not in table] == []
    assert [key for key in ("init", "arguments", "weights") if f"`{key}" not in DISTILLATION] == []

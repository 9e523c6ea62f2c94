"""The house stands as designed: what is public, what is quick, and what needs no torch."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import pastille
from pastille.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_public_names_are_sorted_and_importable() -> None:
    assert pastille.__all__ == sorted(pastille.__all__)
    for name in pastille.__all__:
        assert callable(getattr(pastille, name)), name
    assert sorted(dir(pastille)) == pastille.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pastille.nothing


def test_techniques_stay_callable_whatever_was_imported_before() -> None:
    code = (
        "import pastille.runner, pastille.pruning.structured, pastille.quantization\n"
        "print(pastille.prune.__name__, pastille.quantize.__name__, pastille.run.__name__)"
    )
    assert fresh(code) == "prune quantize_static run"


@pytest.mark.parametrize(
    "module",
    [
        *("pastille", "pastille.bench", "pastille.bundle", "pastille.cli.app", "pastille.data.load"),
        *("pastille.gates", "pastille.measure.profile", "pastille.policy", "pastille.recipe"),
        *("pastille.record", "pastille.report", "pastille.runtime", "pastille.stats.metrics"),
    ],
)
def test_the_edge_needs_no_torch(module: str) -> None:
    heavy = "[m for m in ('torch', 'onnx', 'sklearn', 'transformers', 'scipy.stats') if m in sys.modules]"
    assert fresh(f"import sys, {module}; print({heavy})") == "[]"


@pytest.mark.parametrize(
    "modules",
    [
        "pastille.bench, pastille.elsewhere, pastille.report, pastille.cli.app, pastille.cli.doctor",
        "pastille.bundle, pastille.client, pastille.serve, pastille.serve.lifecycle, pastille.wire",
    ],
)
def test_timing_verifying_and_serving_need_neither_scipy_nor_torch(modules: str) -> None:
    heavy = "[m for m in ('torch', 'onnx', 'scipy', 'sklearn', 'pandas', 'transformers') if m in sys.modules]"
    assert fresh(f"import sys, {modules}; print({heavy})") == "[]"


@pytest.mark.parametrize("command", [["--help"], ["run", "--help"], ["demo", "--list"], ["--version"]])
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    code = (
        f"import sys, runpy; sys.argv = ['pastille', *{command}]\n"
        "try: runpy.run_module('pastille', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'onnxruntime', 'scipy', 'onnx') if m in sys.modules])"
    )
    assert fresh(code).splitlines()[-1] == "[]"


def test_the_published_schema_is_the_recipes() -> None:
    """If this fails, run scripts/schema and commit what it wrote."""
    published = json.loads((ROOT / "docs/schema/recipe.json").read_text())
    assert published == Recipe.model_json_schema()


def test_every_dependency_has_its_reason() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "docs/explain/dependencies.md").read_text().lower()
    extras = project["optional-dependencies"]
    shipped = ("judge", "compress", "vision", "text", "tokens", "dicom")
    named = [*project["dependencies"], *(name for extra in shipped for name in extras[extra])]
    for requirement in named:
        name = requirement.split(">")[0].split("=")[0].split("[")[0]
        assert name in text, f"{name} has no line in docs/explain/dependencies.md"


def test_constraints_pin_everything_that_is_asked() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    extras = project["optional-dependencies"]
    for requirement in [*project["dependencies"], *(r for extra in extras.values() for r in extra)]:
        name = requirement.split(">")[0].split("=")[0].split("[")[0].lower()
        assert name in pinned | {"pastille"}, f"{name} is not pinned: run make lock"


def test_no_pickle_and_no_unsafe_load_in_the_source() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and _is_unsafe(node)
    ]
    assert found == []


def _is_unsafe(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    keywords = {k.arg: ast.unparse(k.value) for k in call.keywords}
    if name == "torch.load":
        return keywords.get("weights_only") != "True"
    return name in {"torch.save", "pickle.load", "pickle.loads", "pickle.dump", "yaml.load", "eval", "exec"}

"""From a YAML file to a checked `Recipe`, and from what is wrong with it to one line."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from pastille.errors import RecipeError
from pastille.recipe.pruning import SECTION_OF as PRUNING
from pastille.recipe.pruning import Prune
from pastille.recipe.quantizing import SECTION_OF, MixedQuantize, Quantization
from pastille.recipe.sections import STEPS, DistillStep, PruneStep, QuantizeStep, Recipe, SourceData
from pastille.recipe.training import DistillTraining, Student, Teacher

MAX_RECIPE_BYTES = 1 << 20


def recipe_hash(recipe: Recipe) -> str:
    """Eight hex digits that change whenever something else is asked.

    Example:
        >>> from pastille.recipe import parse_recipe
        >>> asked = {"name": "r", "task": {"kind": "regression", "model": "m.py:f"},
        ...          "data": {"source": "d.py:s"}, "plan": [{"quantize": {}}]}
        >>> recipe_hash(parse_recipe(asked)) == recipe_hash(parse_recipe({**asked, "seed": 1}))
        False
    """
    text = json.dumps(recipe.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


class _Loader(yaml.SafeLoader):
    """YAML without its habit of letting the second of two equal keys win in silence."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        if key.value in seen:
            line = key.start_mark.line + 1
            raise yaml.YAMLError(f"key {key.value!r} stands twice, the second time in line {line}")
        seen.add(str(key.value))
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _read_yaml(text: str) -> object:
    return _Loader(text).get_single_data()


def parse_recipe(asked: object) -> Recipe:
    """Check a recipe that was read from YAML or JSON.

    Raises:
        RecipeError: With every problem in one line each, the closest known key for an unknown one.
    """
    if not isinstance(asked, dict):
        raise RecipeError("recipe must be a mapping of keys such as name, task, data and plan")
    try:
        return Recipe.model_validate(asked)
    except ValidationError as error:
        problems = [_explain(e) for e in error.errors(include_url=False)]
        first = ".".join(_path(error.errors()[0]["loc"]))
        raise RecipeError("; ".join(dict.fromkeys(problems)), key=first) from None


def parse_quantization(asked: Mapping[str, Any], overrides: Sequence[str] = ()) -> Quantization:
    """Check a section ``quantize`` that stands alone.

    Args:
        asked: Its keys.
        overrides: More of them, as ``KEY=VALUE``; the value is YAML.

    Raises:
        RecipeError: With every problem.

    Example:
        >>> parse_quantization({"method": "int4"}, ["block_size=64"]).block_size
        64
    """
    section = _override(dict(asked), overrides)
    try:
        step = QuantizeStep.model_validate({"quantize": section})
    except ValidationError as error:
        # As it would stand in a recipe, so that the keys are found; the user wrote no plan.
        problems = [_explain({**e, "loc": ("plan", "0", "quantize", *e["loc"])}) for e in _errors(error)]
        said = re.sub(r"plan\.0\.quantize[. ]", "", "; ".join(dict.fromkeys(problems)))
        raise RecipeError(said, key="quantize") from None
    return step.quantize


def _errors(error: ValidationError) -> list[Any]:
    return list(error.errors(include_url=False))


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file.

    Args:
        path: YAML, at most 1 MiB.
        overrides: ``KEY=VALUE`` with dotted keys, as in ``requirements.risk=low``; the value is YAML.

    Returns:
        The recipe, its paths still relative to the file's folder; see `resolve`.

    Raises:
        RecipeError: The file is missing, too large, not YAML, or asks for what cannot be.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise RecipeError(f"{path}: a recipe must be at most 1 MiB")
        asked = _read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot read the recipe: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        detail = " ".join(str(error).split())
        raise RecipeError(f"{path}: not valid YAML: {detail}") from None
    try:
        return parse_recipe(_override(asked, overrides))
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}", key=error.key) from None


def check_files(recipe: Recipe, base: Path) -> None:
    """See that the files which a recipe names are there, before anything slow is imported.

    Args:
        recipe: What was asked.
        base: Its folder.

    Raises:
        RecipeError: One is missing, or is a folder where a file is needed; its key is named.
    """
    for key, path, wants_folder in _named_files(recipe):
        place = base / path
        if not (place.is_dir() if wants_folder else place.is_file()):
            wanted = "folder" if wants_folder else "file"
            there = f"{place} is not a {wanted}" if place.exists() else f"there is no {wanted} {place}"
            raise RecipeError(f"{key}: {there}; paths are relative to the recipe", key=key)


def _named_files(recipe: Recipe) -> Iterator[tuple[str, Path, bool]]:
    model, _, _ = recipe.task.model.rpartition(":")
    if model.endswith(".py"):
        yield "task.model", Path(model), False
    if recipe.task.weights is not None:
        yield "task.weights", recipe.task.weights, False
    for index, step in enumerate(recipe.plan):
        if isinstance(step, PruneStep) and isinstance(step.prune, Prune) and step.prune.scan is not None:
            yield f"plan.{index}.prune.scan", step.prune.scan, False
        if isinstance(step, DistillStep):
            yield from _brought(step.distill, f"plan.{index}.distill")
        mixed = step.quantize if isinstance(step, QuantizeStep) else None
        if isinstance(mixed, MixedQuantize) and mixed.scan is not None:
            yield f"plan.{index}.quantize.scan", mixed.scan, False
    if isinstance(recipe.data, SourceData):
        source, _, _ = recipe.data.source.rpartition(":")
        if source.endswith(".py"):
            yield "data.source", Path(source), False
    else:
        yield "data.path", recipe.data.path, recipe.data.reader == "image_folder"


def _brought(asked: DistillTraining, key: str) -> Iterator[tuple[str, Path, bool]]:
    """Files of the students and teachers that are models of their own."""
    sections: dict[str, Sequence[Student | Teacher]] = {
        "student": asked.students or [],
        "teachers": asked.teachers,
    }
    for name, given in sections.items():
        for number, section in enumerate(given):
            where = f"{key}.{name}.{number}" if isinstance(getattr(asked, name), list) else f"{key}.{name}"
            file, _, _ = (section.model or "").rpartition(":")
            if file.endswith(".py"):
                yield f"{where}.model", Path(file), False
            if section.weights is not None:
                yield f"{where}.weights", section.weights, False


def _override(asked: object, overrides: Sequence[str]) -> object:
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise RecipeError(f"--set must be KEY=VALUE, such as requirements.risk=low, got {text!r}")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as error:
            detail = " ".join(str(error).split())
            raise RecipeError(f"--set {key}: not valid YAML: {detail}", key=key) from None
        asked = _replaced(asked, key.split("."), parsed, key)
    return asked


def _replaced(node: object, path: list[str], value: object, key: str) -> object:
    if not path:
        return value
    head, *rest = path
    if isinstance(node, list):
        if not head.isdigit() or int(head) >= len(node):
            raise RecipeError(f"--set {key}: {head!r} must be an index below {len(node)}", key=key)
        return [_replaced(x, rest, value, key) if i == int(head) else x for i, x in enumerate(node)]
    if node is not None and not isinstance(node, dict):
        raise RecipeError(f"--set {key}: nothing lies below {head!r}", key=key)
    inner = node or {}
    return {**inner, head: _replaced(inner.get(head), rest, value, key)}


_TAGS = frozenset({"source", "npz", "image_folder", "csv_images"})
_TAGS_OF_VALUES = frozenset({"Norm", "Banded", "Fractions", "str", "int", "float"})


def _path(location: Sequence[int | str]) -> list[str]:
    """The key as the user wrote it: pydantic adds the tags of unions, which are no keys."""
    parts = [str(part) for part in location]
    kept = [parts[0]] if parts else []
    for before, part in itertools.pairwise(parts):
        tag = (
            (before == "data" and part in _TAGS)
            or (before.isdigit() and part in STEPS)
            or (before == "quantize" and part in SECTION_OF)
            or (before == "prune" and part in PRUNING)
        )
        # A plan entry reads plan.0.prune.prune.X: the tag, then the key.
        if not tag and part not in _TAGS_OF_VALUES and not re.search(r"[\[(]", part):
            kept.append(part)
    return kept


def _explain(error: Any) -> str:
    path = _path(error["loc"])
    where = ".".join(path) or "recipe"
    if error["type"] == "extra_forbidden":
        return f"unknown key {where!r}{_instead(path, error['loc'])}"
    if error["type"] == "missing":
        return f"{where} is missing"
    if error["type"] == "union_tag_invalid":
        allowed = error["ctx"]["expected_tags"].replace("'", "")
        return f"{where}.reader must be one of {allowed}, got {error['ctx']['tag']!r}"
    if error["type"] in ("quantize_method", "prune_method"):
        return f"{where}.{error['msg']}, got {error['input'].get('method')!r}"
    if error["type"] in ("model_type", "model_attributes_type"):
        return f"{where} must be a mapping of options, such as {{}}, got {error.get('input')!r}"
    if error["type"] == "path_type":
        return f"{where} must be a path, got {error.get('input')!r}"
    if error["type"] == "too_short":
        return f"{where} must have at least one entry"
    message = str(error["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    given = error.get("input")
    shown = f", got {given!r}" if isinstance(given, str | int | float) and "got" not in message else ""
    lead = (
        ""
        if message.startswith(("plan ", "labels", "positive", "validation", "batch_sizes"))
        else f"{where} "
    )
    return f"{lead}{message}{shown}"


def _instead(path: Sequence[str], location: Sequence[int | str]) -> str:
    """What to write in place of an unknown key."""
    key, known = path[-1], _known_keys(path[:-1])
    method = str(location[-2]) if len(location) > 1 else ""
    methods = _METHODS.get(path[-2], {}) if len(path) > 1 else {}
    if method in methods:
        if key in known:
            owners = [_BOTH.get(name, name) for name, own in methods.items() if key in own.model_fields]
            return f" with method {_BOTH.get(method, method)}; it belongs to {', '.join(owners)}"
        known = sorted(methods[method].model_fields)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; allowed: {', '.join(sorted(known))}"


# Sections whose keys depend on their method: its tag -> what it takes.
_METHODS: Mapping[str, Mapping[str, type[BaseModel]]] = {"quantize": SECTION_OF, "prune": PRUNING}
# Methods that share a section.
_BOTH = {"int4": "int4 or int8-weights", "fp16": "fp16 or bf16", "sparse": "unstructured or 2:4"}


def _known_keys(path: Sequence[str]) -> list[str]:
    """The keys allowed at ``path``, found by walking the models."""
    found: set[str] = set()
    for model in _models_at(path):
        found |= set(model.model_fields)
    return sorted(found)


def _models_at(path: Sequence[str]) -> list[type[BaseModel]]:
    models: list[type[BaseModel]] = [Recipe]
    for part in path:
        if part.isdigit():
            continue
        fields = [m.model_fields[part] for m in models if part in m.model_fields]
        models = [m for field in fields for m in _models_in(field.annotation)] or models
    return models


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)

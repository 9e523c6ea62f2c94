"""What was asked: one YAML file, every key checked, unknown keys refused.

Sizes are in bytes, times in milliseconds, shares in [0, 1] once read; in the file they may carry a
unit (``1 %``, ``25 MB``, ``50 ms``). Paths are relative to the recipe.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from pastille.errors import RecipeError

MAX_RECIPE_BYTES = 1 << 20

Risk = Literal["critical", "high", "medium", "low"]
TaskKind = Literal["binary", "multiclass", "regression"]
Criterion = Literal["l1", "l2"]
Calibrator = Literal["minmax", "percentile"]

_SHARE = {"": 1.0, "%": 0.01}
_BYTES = {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_MILLISECONDS = {"": 1.0, "ms": 1.0, "s": 1e3, "us": 1e-3, "µs": 1e-3}


def parse_quantity(value: object, units: Mapping[str, float], example: str) -> float:
    """Read a number with an optional unit.

    Args:
        value: A number, or a string such as ``"1 %"``.
        units: Lower-case unit -> factor; the empty unit is a bare number.
        example: Shown in the error.

    Raises:
        ValueError: It is neither a number nor a number with one of ``units``.

    Example:
        >>> parse_quantity("25 MB", _BYTES, "25 MB")
        25000000.0
    """
    match = re.fullmatch(r"\s*([+-]?\d+(?:\.\d*)?(?:e[+-]?\d+)?)\s*([a-zµ%]*)\s*", str(value).lower())
    if isinstance(value, bool) or not match or match[2] not in units:
        raise ValueError(f"must be a quantity such as {example!r}, got {value!r}")
    # Rounded: 0.1 % is meant as 0.001, not as 0.1 * 0.01.
    return float(f"{float(match[1]) * units[match[2]]:.12g}")


def _quantity(units: Mapping[str, float], example: str) -> tuple[BeforeValidator, WithJsonSchema]:
    read = BeforeValidator(lambda value: parse_quantity(value, units, example))
    schema = {"anyOf": [{"type": "number"}, {"type": "string", "examples": [example]}]}
    return read, WithJsonSchema(schema, mode="validation")


Share = Annotated[float, *_quantity(_SHARE, "1 %"), Field(ge=0, le=1)]
Bytes = Annotated[float, *_quantity(_BYTES, "25 MB"), Field(gt=0)]
Milliseconds = Annotated[float, *_quantity(_MILLISECONDS, "50 ms"), Field(gt=0)]


class Section(BaseModel):
    """A part of the recipe: frozen, and closed to keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class TaskSection(Section):
    """The trained model, and what its answers mean."""

    kind: TaskKind
    model: str = Field(
        description="FILE.py:CALLABLE | package.module:CALLABLE | torchvision:NAME | timm:NAME | hf:DIR",
        min_length=1,
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of the model's callable"
    )
    weights: Path | None = Field(
        None, description=".safetensors, or .pt/.pth/.bin loaded with weights_only=True"
    )
    labels: list[str] = Field(default_factory=list, description="class names, in the order of the outputs")
    positive: list[str] = Field(default_factory=list, description="labels that must not be missed")
    threshold: Share = Field(0.5, description="binary: probability from which a case is called positive")

    @model_validator(mode="after")
    def _labels_fit_kind(self) -> TaskSection:
        least = {"binary": 2, "multiclass": 2, "regression": 0}[self.kind]
        if len(self.labels) < least or (self.kind == "binary" and len(self.labels) != 2):
            raise ValueError(f"labels must name every class of a {self.kind} task, got {self.labels}")
        if self.kind == "regression" and (self.labels or self.positive):
            raise ValueError("labels and positive must be left out of a regression task")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels must differ from each other, got {self.labels}")
        unknown = [name for name in self.positive if name not in self.labels]
        if unknown:
            raise ValueError(f"positive must be among the labels {self.labels}, got {unknown}")
        if self.labels and len(self.positive) == len(self.labels):
            raise ValueError("positive must leave at least one label out")
        return self

    @property
    def positive_classes(self) -> tuple[int, ...]:
        """Indices of the labels that must not be missed; a binary task means its second label."""
        names = self.positive or (self.labels[1:] if self.kind == "binary" else [])
        return tuple(self.labels.index(name) for name in names)


class Fractions(Section):
    """How one table is cut into train, validation and test."""

    validation: Annotated[Share, Field(gt=0, lt=1)] = 0.15
    test: Annotated[Share, Field(gt=0, lt=1)] = 0.2
    by: str | None = Field(None, description="column of the subject: no subject is in two splits")
    stratify: Literal["label"] | None = "label"

    @model_validator(mode="after")
    def _leaves_training_data(self) -> Fractions:
        if self.validation + self.test >= 1:
            raise ValueError("validation and test together must leave something to train on")
        return self


class Norm(Section):
    """Per-channel mean and standard deviation, on the [0, 1] scale of a decoded image."""

    mean: list[float]
    std: list[Annotated[float, Field(gt=0)]]


class Banded(Section):
    """A group made by cutting a numeric column into bands: ``bins: [45, 65]`` gives three."""

    column: str
    bins: list[float] = Field(min_length=1)


Normalize = Literal["auto", "none", "imagenet"] | Norm
Groups = dict[str, str | Banded]


def _require_one_subject(split: Fractions | str, subject: str | None) -> None:
    if subject is not None and isinstance(split, Fractions):
        raise ValueError(
            "takes subject only where split names a column; with fractions, write the subject as split.by"
        )


class SourceData(Section):
    """A callable of the user's that returns `pastille.Splits`."""

    source: str = Field(description="FILE.py:CALLABLE or package.module:CALLABLE", min_length=1)
    arguments: dict[str, Any] = Field(default_factory=dict)


class NpzData(Section):
    """Arrays of one ``.npz`` file."""

    reader: Literal["npz"]
    path: Path
    inputs: str | list[str] = "x"
    target: str = "y"
    groups: Groups = Field(default_factory=dict)
    strata: str | None = None
    split: Fractions | str = Field(
        Fractions(),
        description="fractions, or the array that holds train/validation/test",
    )
    subject: str | None = Field(None, description="array of the subject, where split names an array")
    normalize: Normalize = "none"

    @model_validator(mode="after")
    def _one_subject(self) -> NpzData:
        _require_one_subject(self.split, self.subject)
        return self


class ImageFolderData(Section):
    """``path/LABEL/*.png``, or ``path/{train,validation,test}/LABEL/*.png``."""

    reader: Literal["image_folder"]
    path: Path
    size: int | tuple[int, int] = Field(description="pixels, or [height, width]")
    channels: Literal[1, 3] = 3
    split: Fractions = Fractions()
    normalize: Normalize = "auto"


class CsvImagesData(Section):
    """A table with one row per image file."""

    reader: Literal["csv_images"]
    path: Path = Field(description="the table, CSV with a header")
    images: Path | list[Path] = Field(description="the folder(s) that hold the image files")
    image: str = Field("image_id", description="column of the file name, with or without its ending")
    target: str = Field(description="column of the label, or of the number for regression")
    label_map: dict[str, str] = Field(
        default_factory=dict, description="value in the table -> label; 'other' stands for the rest"
    )
    groups: Groups = Field(default_factory=dict)
    strata: str | None = None
    size: int | tuple[int, int] = Field(description="pixels, or [height, width]")
    channels: Literal[1, 3] = 3
    split: Fractions | str = Field(
        Fractions(),
        description="fractions, or the column that holds train/validation/test",
    )
    subject: str | None = Field(None, description="column of the subject, where split names a column")
    normalize: Normalize = "auto"

    @model_validator(mode="after")
    def _one_subject(self) -> CsvImagesData:
        _require_one_subject(self.split, self.subject)
        return self


def _data_tag(value: Any) -> str:
    reader = value.get("reader") if isinstance(value, dict) else getattr(value, "reader", None)
    return str(reader or "source")


DataSection = Annotated[
    Annotated[SourceData, Tag("source")]
    | Annotated[NpzData, Tag("npz")]
    | Annotated[ImageFolderData, Tag("image_folder")]
    | Annotated[CsvImagesData, Tag("csv_images")],
    Discriminator(_data_tag),
]


class Train(Section):
    """One training, by the standard names."""

    epochs: int = Field(ge=1, le=10_000)
    learning_rate: float = Field(0.01, gt=0)
    batch_size: int = Field(64, ge=1)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    class_weights: Literal["balanced", "none"] = "none"
    augment: str | None = Field(
        None, description="FILE.py:CALLABLE taking (inputs, generator), a batch at a time"
    )


class Prune(Section):
    """Remove whole channels, a few at a time, fine-tuning in between."""

    method: Literal["structured"] = "structured"
    criterion: Criterion = "l1"
    sparsity: Share = Field(description="fraction of each layer's channels to remove", gt=0, le=0.95)
    steps: int = Field(1, ge=1, le=100)
    round_to: int = Field(8, ge=1, description="widths kept are multiples of this")
    protect: list[str] = Field(default_factory=list, description="modules left whole; * matches any")
    finetune: Train | None = Field(None, description="after every step")


class Quantize(Section):
    """Static post-training quantization of the exported file: U8 activations, S8 weights per channel."""

    method: Literal["ptq"] = "ptq"
    calibration: Calibrator = "minmax"
    percentile: float = Field(99.99, gt=50, le=100)
    samples: int = Field(256, ge=1, description="taken from train, balanced over label and stratum")
    weight_bits: Literal[7, 8] = Field(
        7, description="7 cannot saturate on x86 without VNNI and costs no speed"
    )


class PruneStep(Section):
    """Plan entry."""

    prune: Prune


class FinetuneStep(Section):
    """Plan entry."""

    finetune: Train


class QuantizeStep(Section):
    """Plan entry."""

    quantize: Quantize


def _step_tag(value: Any) -> str | None:
    keys = list(value) if isinstance(value, dict) else list(type(value).model_fields)
    return keys[0] if len(keys) == 1 and keys[0] in STEPS else None


STEPS = ("prune", "finetune", "quantize")
PlanStep = Annotated[
    Annotated[PruneStep, Tag("prune")]
    | Annotated[FinetuneStep, Tag("finetune")]
    | Annotated[QuantizeStep, Tag("quantize")],
    Discriminator(
        _step_tag,
        custom_error_type="plan_step",
        custom_error_message=f"must be one stage with its options, one of: {', '.join(STEPS)}",
    ),
]


class MaxLatency(Section):
    """Largest permitted percentile of the latency at batch 1."""

    p50: Milliseconds | None = None
    p90: Milliseconds | None = None
    p95: Milliseconds | None = None
    p99: Milliseconds | None = None

    def limits(self) -> Iterator[tuple[float, float]]:
        """Percentile in (0, 1) and its limit in milliseconds, for those that are given."""
        for name in type(self).model_fields:
            limit = getattr(self, name)
            if limit is not None:
                yield int(name[1:]) / 100, limit


class Requirements(Section):
    """The bar: what may be lost, and what must be reached."""

    risk: Risk = "high"
    max_drop: dict[str, Share] = Field(
        default_factory=dict, description="metric -> largest absolute drop; the tier sets the rest"
    )
    max_size: Bytes | None = None
    max_latency: MaxLatency = Field(default_factory=MaxLatency)
    confidence: Annotated[Share, Field(ge=0.5, lt=1)] = 0.95


class Measure(Section):
    """How speed and memory are measured on the target."""

    threads: int = Field(1, ge=1, description="that the runtime may use")
    batch_sizes: list[Annotated[int, Field(ge=1)]] = Field([1, 8, 32], min_length=1)
    seconds: float = Field(3.0, gt=0, le=600, description="spent on timing one file at batch 1")
    memory: bool = Field(True, description="start fresh processes for peak memory and cold start")

    @model_validator(mode="after")
    def _begins_with_one(self) -> Measure:
        if self.batch_sizes != sorted({1, *self.batch_sizes}):
            raise ValueError(f"batch_sizes must be ascending and begin with 1, got {self.batch_sizes}")
        return self


class Recipe(Section):
    """Everything that was asked of one run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    task: TaskSection
    data: DataSection
    requirements: Requirements = Field(default_factory=Requirements)
    target: Literal["this-machine"] = "this-machine"
    measure: Measure = Measure()
    plan: list[PlanStep] = Field(min_length=1)
    seed: int = Field(0, ge=0)
    output: Path = Path("runs")

    @model_validator(mode="after")
    def _quantization_is_last(self) -> Recipe:
        names = [step_name(step) for step in self.plan]
        if "quantize" in names[:-1]:
            after = names[names.index("quantize") + 1]
            raise ValueError(
                f"plan must quantize last, but {after!r} comes after it: {after} changes the weights, "
                "which would void the ranges that quantization measured; move quantize to the end"
            )
        return self


def step_name(step: PruneStep | FinetuneStep | QuantizeStep) -> str:
    """The stage that a plan entry asks for, e.g. ``"prune"``."""
    return next(iter(type(step).model_fields))


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


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file.

    Args:
        path: YAML, at most 1 MiB.
        overrides: ``KEY=VALUE`` with dotted keys, as in ``requirements.risk=low``; the value is YAML.

    Returns:
        The recipe, its paths still relative to the file's folder; see `resolve`.

    Raises:
        RecipeError: The file is missing, too large, not YAML, or asks for what cannot be.
    """
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise RecipeError(f"{path}: a recipe must be at most 1 MiB")
        asked = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot read the recipe: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        detail = " ".join(str(error).split())
        raise RecipeError(f"{path}: not valid YAML: {detail}") from None
    try:
        return parse_recipe(_override(asked, overrides))
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}", key=error.key) from None


def _override(asked: object, overrides: Sequence[str]) -> object:
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise RecipeError(f"--set must be KEY=VALUE, such as requirements.risk=low, got {text!r}")
        asked = _replaced(asked, key.split("."), yaml.safe_load(value), key)
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
        tag = (before == "data" and part in _TAGS) or (before.isdigit() and part in STEPS)
        # A plan entry reads plan.0.prune.prune.X: the tag, then the key.
        if not tag and part not in _TAGS_OF_VALUES and not re.search(r"[\[(]", part):
            kept.append(part)
    return kept


def _explain(error: Any) -> str:
    path = _path(error["loc"])
    where = ".".join(path) or "recipe"
    if error["type"] == "extra_forbidden":
        known = _known_keys(path[:-1])
        close = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join(sorted(known))}"
        return f"unknown key {where!r}; {hint}"
    if error["type"] == "missing":
        return f"{where} is missing"
    if error["type"] == "union_tag_invalid":
        allowed = error["ctx"]["expected_tags"].replace("'", "")
        return f"{where}.reader must be one of {allowed}, got {error['ctx']['tag']!r}"
    message = str(error["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    given = error.get("input")
    shown = f", got {given!r}" if isinstance(given, str | int | float) and "got" not in message else ""
    lead = (
        ""
        if message.startswith(("plan ", "labels", "positive", "validation", "batch_sizes"))
        else f"{where} "
    )
    return f"{lead}{message}{shown}"


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

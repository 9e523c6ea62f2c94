"""Every key that a recipe may have, its type, its default and its bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from pastille.recipe.limits import MaxLatency
from pastille.recipe.pruning import Pruning
from pastille.recipe.quantities import Bytes, Share
from pastille.recipe.quantizing import Quantization
from pastille.recipe.section import Section
from pastille.recipe.training import DistillTraining, Finetune

Risk = Literal["critical", "high", "medium", "low"]
TaskKind = Literal["binary", "multiclass", "multilabel", "regression", "segmentation", "custom"]


class ThresholdGoal(Section):
    """What the threshold is chosen for, on validation: exactly one of these."""

    sensitivity: Annotated[Share, Field(gt=0, lt=1)] | None = Field(
        None, description="the highest threshold that reaches this sensitivity, half way to the next"
    )
    specificity: Annotated[Share, Field(gt=0, lt=1)] | None = Field(
        None, description="the lowest threshold that reaches this specificity, half way to the next"
    )

    @model_validator(mode="after")
    def _one_goal(self) -> ThresholdGoal:
        if (self.sensitivity is None) == (self.specificity is None):
            raise ValueError("must name exactly one of sensitivity and specificity")
        return self


def _threshold_tag(value: Any) -> str:
    return "goal" if isinstance(value, dict | ThresholdGoal) else "rule" if value == "youden" else "share"


Threshold = Annotated[
    Annotated[Share, Tag("share")]
    | Annotated[Literal["youden"], Tag("rule")]
    | Annotated[ThresholdGoal, Tag("goal")],
    Discriminator(_threshold_tag),
]
_LEAST_LABELS = {"binary": 2, "multiclass": 2, "segmentation": 2, "multilabel": 1}


class TaskSection(Section):
    """The trained model, and what its answers mean."""

    kind: TaskKind
    model: str = Field(
        "",
        description="FILE.py:CALLABLE | package.module:CALLABLE | torchvision:NAME | timm:NAME | hf:DIR; "
        "needed by every command that runs or profiles it",
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of the model's callable"
    )
    weights: Path | None = Field(
        None, description=".safetensors, or .pt/.pth/.bin loaded with weights_only=True"
    )
    outputs: Literal["logits", "probabilities"] = Field(
        "logits", description="what the model answers with; probabilities if a softmax or sigmoid ends it"
    )
    labels: list[str] = Field(
        default_factory=list,
        description="class names, in the order of the outputs; of a segmentation, the background first",
    )
    positive: list[str] = Field(default_factory=list, description="labels that must not be missed")
    threshold: Threshold = Field(
        0.5,
        description="binary and multilabel: probability from which a case is called positive; binary: or a "
        "goal that it is chosen for on validation, 'youden', {sensitivity: 95 %} or {specificity: 90 %}",
    )
    metric: str | None = Field(
        None,
        description="FILE.py:CALLABLE taking (outputs, targets): a metric of your own; custom tasks need one",
    )

    @model_validator(mode="after")
    def _labels_fit_kind(self) -> TaskSection:
        least = _LEAST_LABELS.get(self.kind, 0)
        if len(self.labels) < least or (self.kind == "binary" and len(self.labels) != 2):
            raise ValueError(f"labels must name every class of a {self.kind} task, got {self.labels}")
        if not least and (self.labels or self.positive):
            raise ValueError(f"labels and positive must be left out of a {self.kind} task")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels must differ from each other, got {self.labels}")
        unknown = [name for name in self.positive if name not in self.labels]
        if unknown:
            raise ValueError(f"positive must be among the labels {self.labels}, got {unknown}")
        if self.labels and len(self.positive) == len(self.labels) and self.kind != "multilabel":
            raise ValueError("positive must leave at least one label out")
        return self

    @model_validator(mode="after")
    def _threshold_and_metric_fit_kind(self) -> TaskSection:
        if self.kind != "binary" and not isinstance(self.threshold, float):
            raise ValueError(f"threshold must be a number for a {self.kind} task; only a binary one chooses")
        if self.kind == "custom" and self.metric is None:
            raise ValueError("metric must name a callable for a custom task: nothing else can judge it")
        return self

    @property
    def positive_classes(self) -> tuple[int, ...]:
        """Indices of the labels that must not be missed; a binary task means its second label."""
        names = self.positive or (self.labels[1:] if self.kind == "binary" else [])
        return tuple(self.labels.index(name) for name in names)

    @property
    def fixed_threshold(self) -> float:
        """The threshold, or 0.5 until one is chosen on validation."""
        return self.threshold if isinstance(self.threshold, float) else 0.5


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


def _image_size(value: object) -> object:
    sizes = value if isinstance(value, list | tuple) else [value]
    whole = all(isinstance(s, int) and not isinstance(s, bool) for s in sizes)
    if not whole or (isinstance(value, list | tuple) and len(sizes) != 2):
        raise ValueError(f"must be pixels or [height, width], whole numbers, got {value!r}")
    return value


ImageSize = Annotated[int | tuple[int, int], BeforeValidator(_image_size)]
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
    id: str | None = Field(
        None, description="array of what each case is called, each different; else its row, counted from 0"
    )
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
    size: ImageSize = Field(description="pixels, or [height, width]")
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
    size: ImageSize = Field(description="pixels, or [height, width]")
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


class Calibrate(Section):
    """Make the probabilities mean what they say, without changing a multiclass decision."""

    method: Literal["temperature"] = "temperature"


class PruneStep(Section):
    """Plan entry."""

    prune: Pruning


class FinetuneStep(Section):
    """Plan entry."""

    finetune: Finetune


class DistillStep(Section):
    """Plan entry."""

    distill: DistillTraining


class QuantizeStep(Section):
    """Plan entry."""

    quantize: Quantization


class CalibrateStep(Section):
    """Plan entry."""

    calibrate: Calibrate


def _step_tag(value: Any) -> str | None:
    keys = list(value) if isinstance(value, dict) else list(getattr(type(value), "model_fields", ()))
    return keys[0] if len(keys) == 1 and keys[0] in STEPS else None


STEPS = ("prune", "finetune", "distill", "quantize", "calibrate")
PlanStep = Annotated[
    Annotated[PruneStep, Tag("prune")]
    | Annotated[FinetuneStep, Tag("finetune")]
    | Annotated[DistillStep, Tag("distill")]
    | Annotated[QuantizeStep, Tag("quantize")]
    | Annotated[CalibrateStep, Tag("calibrate")],
    Discriminator(
        _step_tag,
        custom_error_type="plan_step",
        custom_error_message=f"must be one stage with its options, one of: {', '.join(STEPS)}",
    ),
]


class FairnessLimits(Section):
    """What no patient group may lose, and how far groups may drift apart."""

    by: list[str] = Field(min_length=1, description="attributes of data.groups")
    max_drop: dict[str, Share] = Field(
        default_factory=dict, description="metric -> largest drop of any group; as overall, if left out"
    )
    max_gap_increase: Share = Field(
        0.02, description="by how much the equalized odds difference (else the accuracy gap) may grow"
    )
    min_group: int = Field(30, ge=2, description="groups with fewer cases are inconclusive, never passed")
    intersections: bool = Field(True, description="also groups of two attributes, e.g. women over 65")
    undecided: Literal["inconclusive", "report"] = Field(
        "inconclusive",
        description="whether a group that the cases cannot decide keeps the verdict open, or is only "
        "reported; the latter at risk tiers medium and low",
    )


class CalibrationLimits(Section):
    """How much less the probabilities may mean what they say."""

    max_ece_increase: Share = 0.02
    max_brier_increase: Share | None = None


class StressLimits(Section):
    """The same comparison under perturbed inputs."""

    max_extra_drop: Share = Field(
        0.02, description="how much faster than the baseline the candidate may degrade, absolute"
    )
    perturbations: list[str] | Literal["auto"] = Field(
        "auto",
        description="names, FILE.py:CALLABLE taking (input, severity, generator), or auto: what fits",
    )
    severities: list[Annotated[int, Field(ge=1, le=5)]] = Field([1, 3], min_length=1)
    cases: int = Field(500, ge=20, description="of validation, taken at random")


class Override(Section):
    """Who takes it upon themselves to be looser than the risk tier, and why; printed in every document."""

    by: str = Field(min_length=2, max_length=200)
    reason: str = Field(min_length=10, max_length=1000)


class Requirements(Section):
    """The bar: what may be lost, and what must be reached."""

    risk: Risk = "high"
    max_drop: dict[str, Share] = Field(
        default_factory=dict,
        description="metric -> largest absolute drop; of rmse, mae and bias in standard deviations of the "
        "targets; the tier sets the rest",
    )
    max_class_drop: dict[str, Share] = Field(
        default_factory=dict, description="metric -> largest absolute drop of any one class"
    )
    fairness: FairnessLimits | None = None
    calibration: CalibrationLimits | None = None
    stress: StressLimits | None = None
    max_size: Bytes | None = Field(None, description="as a bundle stores the file")
    max_latency: MaxLatency = Field(default_factory=MaxLatency)
    min_int8_share: Annotated[Share, Field(gt=0)] | None = Field(
        None, description="least share of the multiply-accumulates that the runtime executes in int8"
    )
    confidence: Annotated[Share, Field(ge=0.5, lt=1)] = 0.95
    override: Override | None = None


class Measure(Section):
    """How speed and memory are measured on the target."""

    threads: int = Field(1, ge=1, description="that the runtime may use")
    batch_sizes: list[Annotated[int, Field(ge=1)]] = Field([1, 8, 32], min_length=1)
    seconds: float = Field(3.0, gt=0, le=600, description="spent on timing one file at batch 1")
    memory: bool = Field(True, description="start fresh processes for peak memory and cold start")
    isas: list[Literal["avx2", "sse4", "aarch64"]] = Field(
        default_factory=list,
        description="other CPUs that the bundle's files must decide alike on; emulated by QEMU, slowly, on "
        "up to 100 cases of validation",
    )

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
    golden: Literal["validation", "synthetic"] = Field(
        "validation",
        description="what the bundle's golden cases are: real inputs, or made-up ones of the same range "
        "where real inputs may not leave the building",
    )
    plan: list[PlanStep] = Field(
        default_factory=list, description="stages in their order; a run needs at least one"
    )
    seed: int = Field(0, ge=0)
    output: Path = Path("runs")

    @model_validator(mode="after")
    def _quantization_is_last(self) -> Recipe:
        names = [step_name(step) for step in self.plan]
        if names.count("quantize") > 1:
            raise ValueError("plan must quantize once: nothing can start from an int8 file; leave one out")
        late = names[names.index("quantize") + 1 :] if "quantize" in names else []
        after = next((name for name in late if name != "calibrate"), None)
        if after is not None:
            raise ValueError(
                f"plan must quantize last, but {after!r} comes after it: {after} changes the weights, "
                "which would void the ranges that quantization measured; move quantize to the end"
            )
        if "calibrate" in names[:-1]:
            raise ValueError("plan must calibrate once and last: whatever follows would undo it")
        return self

    @model_validator(mode="after")
    def _zeros_are_set_last(self) -> Recipe:
        methods = [step.prune.method for step in self.plan if isinstance(step, PruneStep)]
        sparse = next((method for method in methods if method != "structured"), None)
        if sparse is not None and "structured" in methods[methods.index(sparse) :]:
            raise ValueError(
                f"plan must prune {sparse} after structured: removing channels breaks up the zeros, and what "
                "trains then would fill them; swap the two"
            )
        return self

    @model_validator(mode="after")
    def _zeros_are_not_lost(self) -> Recipe:
        sparse = ""
        for step in self.plan:
            if isinstance(step, PruneStep) and step.prune.method != "structured":
                sparse = step.prune.method
            if sparse and isinstance(step, DistillStep) and step.distill.students is not None:
                raise ValueError(
                    f"plan must distill into another student before it prunes {sparse}: a student of its own "
                    "has none of the zeros; swap the two, or distill with student: same"
                )
        return self


def step_name(step: PlanStep) -> str:
    """The stage that a plan entry asks for, e.g. ``"prune"``."""
    return next(iter(type(step).model_fields))

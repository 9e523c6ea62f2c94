"""How something is trained, and how it learns from a teacher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    model_serializer,
    model_validator,
)

from pastille.recipe.limits import MaxLatency
from pastille.recipe.quantities import Bytes, Share
from pastille.recipe.section import Section

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["cosine", "constant", "linear", "step", "one_cycle"]
Precision = Literal["fp32", "bf16", "fp16", "auto"]
_STEPS_AT: Final = [0.5, 0.75]
_GAMMA: Final = 2.0


class Train(Section):
    """One training, by the standard names."""

    epochs: int = Field(ge=1, le=10_000)
    learning_rate: float = Field(0.01, gt=0)
    batch_size: int = Field(64, ge=1, description="of all processes together")
    optimizer: Optimizer = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    schedule: Schedule = Field(
        "cosine", description="of the learning rate, over all steps; step: see steps_at"
    )
    warmup: Share = Field(0.0, lt=1, description="share of all steps in which the rate rises from near zero")
    steps_at: list[Annotated[Share, Field(gt=0, lt=1)]] = Field(
        _STEPS_AT,
        min_length=1,
        description="schedule step: shares of all steps after which the rate is a tenth",
    )
    clip_norm: float | None = Field(None, gt=0, description="longest gradient of all weights together")
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of a moving average of the weights, which is what is kept"
    )
    precision: Precision = Field(
        "fp32", description="of the arithmetic; auto: bf16 where this machine has instructions for it"
    )
    loss: Literal["cross_entropy", "focal"] = Field(
        "cross_entropy", description="focal: cases that are right already count less (arXiv:1708.02002)"
    )
    focal_gamma: float = Field(_GAMMA, ge=0, le=10)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    class_weights: Literal["balanced", "none"] = "none"
    patience: int | None = Field(None, ge=1, description="epochs without a better one after which it ends")
    augment: str | None = Field(
        None, description="FILE.py:CALLABLE taking (inputs, generator), a batch at a time"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Train:
        if self.schedule == "one_cycle" and self.warmup:
            raise ValueError("takes warmup only with another schedule: one_cycle begins with its own")
        if self.steps_at != _STEPS_AT and self.schedule != "step":
            raise ValueError(f"takes steps_at only with schedule: step, not {self.schedule}")
        if self.focal_gamma != _GAMMA and self.loss != "focal":
            raise ValueError(f"takes focal_gamma only with loss: focal, not {self.loss}")
        if self.loss == "focal" and self.label_smoothing:
            raise ValueError("takes label_smoothing only with loss: cross_entropy")
        return self


def _ends(value: object) -> object:
    """A number stands for two that are equal."""
    if isinstance(value, dict) and set(value) == {"from", "to"}:
        return {"start": value["from"], "end": value["to"]}
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return {"start": value, "end": value} if number else value


class Annealed(Section):
    """A number that moves evenly from its first to its last value over a training.

    Example:
        >>> Annealed(start=8, end=2).at(0.5)
        5.0
    """

    start: float
    end: float

    def at(self, done: float) -> float:
        """Its value once a share of all steps is done."""
        return self.start + (self.end - self.start) * done

    @model_serializer
    def _as_written(self) -> float | dict[str, float]:
        return self.start if self.start == self.end else {"from": self.start, "to": self.end}


def _between(value: object, low: float, high: float, *, above: bool) -> bool:
    return isinstance(value, int | float) and (low < value if above else low <= value) and value <= high


def _within(low: float, high: float, *, above: bool = False) -> tuple[BeforeValidator, WithJsonSchema]:
    """Told as one thing, whichever of the two ends is out of range."""

    def check(value: object) -> object:
        found = _ends(value)
        ends: object = [found.start, found.end] if isinstance(found, Annealed) else found
        ends = list(ends.values()) if isinstance(ends, dict) else ends
        misspelt = isinstance(value, dict) and set(value) != {"from", "to"}
        if (
            misspelt
            or not isinstance(ends, list)
            or not all(_between(x, low, high, above=above) for x in ends)
        ):
            least = f"above {low:g}" if above else f"from {low:g}"
            raise ValueError(
                f"must be a number {least} to {high:g}, or {{from: NUMBER, to: NUMBER}}, got {value!r}"
            )
        return found

    number = {"type": "number", "maximum": high, "exclusiveMinimum" if above else "minimum": low}
    both = {"type": "object", "properties": {"from": number, "to": number}, "required": ["from", "to"]}
    schema = {"anyOf": [number, {**both, "additionalProperties": False}]}
    return BeforeValidator(check), WithJsonSchema(schema)


Temperature = Annotated[Annealed, *_within(0, 100, above=True)]
Alpha = Annotated[Annealed, *_within(0, 1)]


def _word_or(other: str, *kinds: type) -> Callable[[Any], str | None]:
    """Tells a word from a section, so that an error speaks of the one that was meant; see `Discriminator`."""

    def tag(value: object) -> str | None:
        return "(word)" if isinstance(value, str) else other if isinstance(value, (dict, *kinds)) else None

    return tag


Layers = Annotated[
    Annotated[Literal["auto"], Tag("(word)")] | Annotated[dict[str, str], Tag("(named)")],
    Discriminator(
        _word_or("(named)"),
        custom_error_type="layers",
        custom_error_message="must be auto, or pairs of modules such as {layer1: layer2}",
    ),
]


class Hints(Section):
    """Beside its answers, what the teacher computes on the way to them."""

    loss: Literal["fitnets", "attention", "relational", "similarity", "minilm", "hidden"] = Field(
        "fitnets",
        description="fitnets: features through a learned projection; attention: where they are large; "
        "relational: distances and angles between cases; similarity: which cases are alike; minilm: "
        "self-attention relations of transformers; hidden: their hidden states",
    )
    weight: float = Field(1.0, gt=0, description="over that of the answers")
    layers: Layers = Field(
        "auto", description="module of the student -> of the teacher; auto: by resolution and depth"
    )


class Distill(Section):
    """Learn to answer like a teacher, beside the labels."""

    alpha: Alpha = Field(
        Annealed(start=0.5, end=0.5),
        description="share of the loss; the labels have the rest. A number, or {from: 0.9, to: 0.5}",
    )
    temperature: Temperature = Field(
        Annealed(start=2.0, end=2.0),
        description="what both answers are divided by. A number, or {from: 8, to: 2}",
    )
    method: Literal["kl", "dkd", "dist"] = Field(
        "kl",
        description="what the answers are compared by. kl: arXiv:1503.02531; dkd, decoupled: "
        "arXiv:2203.08679; dist, correlations: arXiv:2205.10536. The latter two: of several classes",
    )
    hints: Hints | None = None


class CacheLimits(Section):
    """What a teacher answers, kept on disk instead of computed in each epoch."""

    max_size: Bytes = Field(4e9, description="on disk; more is not kept")
    views: int = Field(4, ge=1, le=1000, description="of each case, where an augmentation makes them differ")


class Student(Section):
    """What is taught: a fraction of the model before it, or a model of its own."""

    width: Share | None = Field(None, gt=0, lt=1, description="share of each layer's channels that it has")
    depth: Share | None = Field(None, gt=0, lt=1, description="share of the residual blocks that it has")
    model: str | None = Field(
        None, description="as task.model: FILE.py:CALLABLE, torchvision:NAME, timm:NAME or hf:DIR"
    )
    arguments: dict[str, Any] = Field(default_factory=dict, description="keywords for model's CALLABLE")
    weights: Path | None = Field(None, description="to begin from, of model; .safetensors, .pt or .pth")
    init: Literal["teacher", "random"] = Field(
        "teacher",
        description="of width and depth: begin from the channels and blocks that matter most, or anew",
    )
    max_size: Bytes | None = Field(
        None, description="in place of width: the widest that fits, as a bundle stores it"
    )
    max_latency: MaxLatency = Field(
        default_factory=MaxLatency, description="in place of width: the widest that is as fast, at batch 1"
    )

    @model_validator(mode="after")
    def _is_one_thing(self) -> Student:
        fraction = self.width is not None or self.depth is not None
        budget = self.max_size is not None or any(self.max_latency.limits())
        if [fraction, self.model is not None, budget].count(True) != 1:
            raise ValueError(
                "must be one of: {width: 0.5}, {depth: 0.5} or both; {model: torchvision:resnet18}; "
                "{max_size: 5 MB} or {max_latency: {p95: 5 ms}}"
            )
        if self.model is None and (self.arguments or self.weights is not None):
            raise ValueError("takes arguments and weights only with model")
        return self


def _student_tag(value: object) -> str | None:
    if isinstance(value, list):
        return "(several)"
    unknown = isinstance(value, str) and value != "same"
    return None if unknown else _word_or("(one)", Student)(value)


Students = Annotated[
    Annotated[Literal["same"], Tag("(word)")]
    | Annotated[Student, Tag("(one)")]
    | Annotated[list[Student], Field(min_length=1), Tag("(several)")],
    Discriminator(
        _student_tag,
        custom_error_type="student",
        custom_error_message="must be same, a student such as {width: 0.5}, or a list of students",
    ),
]
Cache = Annotated[
    Annotated[Literal["auto", "off"], Tag("(word)")] | Annotated[CacheLimits, Tag("(limits)")],
    Discriminator(
        _word_or("(limits)", CacheLimits),
        custom_error_type="cache",
        custom_error_message="must be auto, off, or limits such as {max_size: 4 GB, views: 4}",
    ),
    BeforeValidator(lambda value: "off" if value is False else value),  # YAML reads off as false
]


class Teacher(Section):
    """Who teaches."""

    model: str = Field(
        "baseline",
        description="baseline: as it was brought; before: as it comes to the stage; else as task.model",
    )
    arguments: dict[str, Any] = Field(default_factory=dict, description="keywords for model's CALLABLE")
    weights: Path | None = Field(None, description="of a model of its own; .safetensors, .pt or .pth")
    weight: float = Field(1.0, gt=0, description="among several teachers")

    @model_validator(mode="after")
    def _is_one_thing(self) -> Teacher:
        if self.model in ("baseline", "before") and (self.arguments or self.weights is not None):
            raise ValueError(f"takes arguments and weights only with a model of its own, not {self.model}")
        return self


class Finetune(Train):
    """Train on, from the weights at hand."""

    distill: Distill | None = Field(None, description="learn to answer like the model as it was brought too")


class DistillTraining(Train, Distill):
    """Train a smaller model to answer like a larger one."""

    student: Students = Field(
        description="same: the model as the stage finds it; several: one after the other, each taught by the "
        "one before it as well"
    )
    teachers: list[Teacher] = Field(
        [Teacher()], min_length=1, description="several: the weighted mean of their logits"
    )
    cache: Cache = Field(
        "auto",
        description="of what the teachers answer; auto: where that is cheaper, with augment one view of each "
        "case for every four epochs, at least four",
    )
    accept_poor_teacher: bool = Field(
        False,
        description="go on with a teacher that is worse than its student already is, no better than one "
        "constant answer, or badly calibrated",
    )
    compare_to_scratch: bool = Field(
        False, description="also train the last student from the same start on the labels alone; show both"
    )

    @property
    def students(self) -> list[Student] | None:
        """One after the other; None for the model as it is."""
        match self.student:
            case "same":
                return None
            case Student():
                return [self.student]
            case _:
                return self.student

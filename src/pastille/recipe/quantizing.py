"""The ways to fewer bits, one section each, told apart by ``method``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)

from pastille.recipe.section import Section
from pastille.recipe.training import Distill, Train

Calibrator = Literal["minmax", "moving_average", "percentile", "entropy", "mse"]
Technique = Literal["equalization", "smoothquant", "rounding", "bias_correction"]
Scheme = Literal["auto", "x86", "arm", "tensorrt"]
Goal = Literal["fastest", "smallest"]
AutoCandidate = Literal["bf16", "int8", "mixed", "dynamic"]


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


Names = Annotated[list[str], BeforeValidator(_as_list, json_schema_input_type=str | list[str])]


class StaticRanges(Section):
    """What every method shares whose activations have fixed ranges."""

    calibration: Calibrator = "minmax"
    percentile: float = Field(99.99, gt=50, le=100, description="of the calibration of that name")
    samples: int = Field(256, ge=16, description="taken from train, balanced over label and stratum")
    weight_bits: Literal[7, 8, "auto"] = Field(
        7,
        description="7 cannot saturate on x86 without VNNI and costs no speed; auto: 8, with a coarser step "
        "only for the channels that could saturate",
    )
    scheme: Scheme = Field(
        "auto",
        description="of whose kernels: x86 (unsigned activations), arm (signed), tensorrt (symmetric); "
        "auto: of this machine",
    )
    keep_float: Names = Field(
        default_factory=list,
        description="layers that stay float, by name (* matches any), or first and last",
    )

    @model_validator(mode="after")
    def _heeds_what_is_asked(self) -> Self:
        asked = self.model_fields_set & self._idle()
        if "percentile" in asked:
            raise ValueError(
                f"takes percentile only with calibration 'percentile', got calibration {self.calibration!r}; "
                "set calibration: percentile, or leave percentile out"
            )
        if "weight_bits" in asked:
            raise ValueError(
                f"takes no weight_bits but 8 with scheme {self.scheme!r}, got {self.weight_bits!r}; "
                "leave weight_bits out"
            )
        return self

    @model_serializer(mode="wrap")
    def _in_force(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # What is not heeded is not written: read back, it would be refused as if it had been asked for.
        return {key: value for key, value in handler(self).items() if key not in self._idle()}

    def _idle(self) -> set[str]:
        """Keys that say nothing beside the others."""
        idle = {"percentile"} if self.calibration != "percentile" else set()
        in_eight = self.scheme in ("arm", "tensorrt") and self.weight_bits != 8
        return idle | ({"weight_bits"} if in_eight else set())


def _require_this_machine(section: StaticRanges) -> None:
    if section.scheme != "auto":
        raise ValueError(
            f"measures on this machine, so it takes scheme 'auto' alone, got {section.scheme!r}; for another "
            "one use method: ptq, or run it there"
        )


def _techniques(value: object) -> object:
    """Told as one thing: of the two kinds that it may be, pydantic would say what is wrong with each."""
    entries = value if isinstance(value, list) else [value]
    wrong = [x for x in entries if x not in get_args(Technique)]
    if (wrong or not isinstance(value, list)) and value not in ("auto", "none"):
        known, given = ", ".join(get_args(Technique)), (wrong or [value])[0]
        raise ValueError(f"must be auto, none, or a list of {known}, got {given!r}")
    return value


class Quantize(StaticRanges):
    """Static post-training quantization of the exported file to int8."""

    method: Literal["ptq"] = "ptq"
    recover: Annotated[Literal["auto", "none"] | list[Technique], BeforeValidator(_techniques)] = Field(
        "auto",
        description="what wins accuracy back; auto: nothing while the plain file loses next to none of the "
        "validation metric, else what brings its answers nearest to the float ones",
    )
    draws: int = Field(
        3, ge=1, le=10, description="calibration samples whose files are compared; the first one ships"
    )


class QatQuantize(StaticRanges):
    """Quantize, then train the weights under the file's own rounding."""

    method: Literal["qat"]
    train: Train = Field(description="a tenth of its learning rate is taken")
    freeze_observers_after: float = Field(
        0.6, ge=0, le=1, description="share of the epochs after which ranges stay as they are"
    )
    distill: Distill | None = None

    @model_validator(mode="after")
    def _bits_are_fixed(self) -> QatQuantize:
        if self.weight_bits == "auto":
            raise ValueError("needs weight_bits 7 or 8 with method 'qat': trained weights move")
        return self


class MixedQuantize(StaticRanges):
    """int8 where it is faster and accurate enough, float elsewhere, as measured layer by layer."""

    method: Literal["mixed"]
    goal: Goal = "fastest"
    scan: Path | None = Field(
        None,
        description="what `pastille scan` wrote: which layers mind int8 most, in place of measuring it here",
    )

    @model_validator(mode="after")
    def _is_timed_here(self) -> MixedQuantize:
        _require_this_machine(self)
        return self


class AutoQuantize(StaticRanges):
    """Make several files, measure each on this machine, and keep the best that passes on validation."""

    method: Literal["auto"]
    goal: Goal = "fastest"
    candidates: list[AutoCandidate] = Field(
        ["bf16", "int8", "mixed", "dynamic"],
        min_length=1,
        description="what is tried beside the float file, which may always win; what this machine or model "
        "cannot have is passed over and said",
    )

    @model_validator(mode="after")
    def _is_timed_here_and_once(self) -> AutoQuantize:
        _require_this_machine(self)
        if len(set(self.candidates)) < len(self.candidates):
            raise ValueError(f"needs candidates that differ from each other, got {self.candidates}")
        return self


class DynamicQuantize(Section):
    """Linear layers and LSTMs in int8, whose activations are rounded while the model runs."""

    method: Literal["dynamic"]
    ranges: Literal["batch", "row"] = Field(
        "batch",
        description="of an input: over the batch, or per row, so that no case depends on another; an "
        "LSTM's are over the batch with either",
    )
    embeddings: bool = Field(False, description="also store tables of embeddings in 8 bits")
    keep_float: Names = Field(default_factory=list, description="layers that stay float, by name")


class WeightQuantize(Section):
    """Weights of linear layers in 4 or 8 bits, in blocks; activations stay float."""

    method: Literal["int4", "int8-weights"]
    rounding: Literal["rtn", "gptq"] = Field(
        "gptq", description="to the nearest, or so that the layer's answers to calibration data stay"
    )
    block_size: Literal[16, 32, 64, 128, 256] = 32
    symmetric: bool = False
    activations: Literal["float", "int8"] = Field(
        "int8", description="int8: rounded block by block in the kernel, which is faster"
    )
    embeddings: bool = Field(False, description="also store tables of embeddings in 8 bits")
    keep_float: Names = Field(default_factory=list, description="layers that stay float, by name")
    mask: str | None = Field(None, description="input that is 0 where a token is padding, left out of gptq")
    samples: int = Field(128, ge=16, description="taken from train for gptq")


class HalfPrecision(Section):
    """Weights in 16 bits."""

    method: Literal["fp16", "bf16"]
    compute: bool = Field(False, description="also compute in fp16, for targets that have kernels for it")

    @model_validator(mode="after")
    def _computes_in_fp16_only(self) -> HalfPrecision:
        if self.compute and self.method == "bf16":
            raise ValueError(
                "takes compute only with method 'fp16': there are no bf16 kernels to compute with"
            )
        return self


METHODS = ("ptq", "qat", "mixed", "auto", "dynamic", "int4", "int8-weights", "fp16", "bf16")
SECTION_OF: Mapping[str, type[Section]] = MappingProxyType(
    {
        "ptq": Quantize,
        "qat": QatQuantize,
        "mixed": MixedQuantize,
        "auto": AutoQuantize,
        "dynamic": DynamicQuantize,
        "int4": WeightQuantize,
        "fp16": HalfPrecision,
    }
)  # those of a section that serves two methods go by the first


def _method(value: Any) -> str:
    method = value.get("method", "ptq") if isinstance(value, dict) else getattr(value, "method", "ptq")
    return {"int8-weights": "int4", "bf16": "fp16"}.get(str(method), str(method))


Quantization = Annotated[
    Annotated[Quantize, Tag("ptq")]
    | Annotated[QatQuantize, Tag("qat")]
    | Annotated[MixedQuantize, Tag("mixed")]
    | Annotated[AutoQuantize, Tag("auto")]
    | Annotated[DynamicQuantize, Tag("dynamic")]
    | Annotated[WeightQuantize, Tag("int4")]
    | Annotated[HalfPrecision, Tag("fp16")],
    Discriminator(
        _method,
        custom_error_type="quantize_method",
        custom_error_message=f"method must be one of {', '.join(METHODS)}",
    ),
]

"""How a model is pruned: one section for each method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from pastille.recipe.limits import MaxLatency
from pastille.recipe.quantities import Bytes, Count, Share, parse_share
from pastille.recipe.section import Section
from pastille.recipe.training import Distill, Train

Criterion = Literal[
    "l1", "l2", "bn_scale", "taylor", "fisher", "fpgm", "activation", "apoz", "lamp", "random"
]
Allocation = Literal["uniform", "global", "sensitivity"]
MOST: Final = 0.95  # of anything
TUNED: Final = 0.25  # of the original training
UNSEEING: Final = frozenset({"l1", "l2", "bn_scale", "fpgm", "lamp", "random"})  # criteria that need no data


def _multiple(value: object) -> object:
    """Told as one thing: of the two kinds that it may be, pydantic would say what is wrong with each."""
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if not whole and value != "auto":
        raise ValueError(f"must be auto, or a whole number from 1 on, e.g. 8, got {value!r}")
    return value


def _removable(value: object) -> object:
    """Told as one thing, whichever bound is broken."""
    share = parse_share(value)
    if not 0 < share <= MOST:
        raise ValueError(f"must be a fraction above 0 and at most {MOST:g}, e.g. 0.5, got {value!r}")
    return share


Removed = Annotated[Share, Field(gt=0, le=MOST), BeforeValidator(_removable)]


class Budget(Section):
    """What the pruned file must reach, in place of a sparsity."""

    max_latency: MaxLatency = Field(default_factory=MaxLatency, description="on this machine, at batch 1")
    max_size: Bytes | None = None
    max_macs: Count | None = Field(None, description="multiply-accumulates for one input, e.g. 300 M")
    precision: Literal["fp32", "int8"] = Field(
        "fp32", description="which file's latency and size: the pruned one, or the int8 one made of it"
    )

    @model_validator(mode="after")
    def _asks_for_something(self) -> Budget:
        if not any(self.max_latency.limits()) and self.max_size is None and self.max_macs is None:
            raise ValueError("must name max_latency, max_size or max_macs, e.g. {max_latency: {p95: 5 ms}}")
        return self


class Regularize(Section):
    """Before removal, train with a penalty that makes the channels which will go small (arXiv:2012.09243)."""

    epochs: int = Field(ge=1, le=10_000)
    shrink: Share = Field(
        0.05, gt=0, lt=1, description="of its size, that the penalty alone would leave of such a channel"
    )
    learning_rate: float = Field(1e-3, gt=0)


class Prune(Section):
    """Remove whole channels, attention heads or blocks, a few at a time, fine-tuning in between."""

    method: Literal["structured"] = "structured"
    criterion: Criterion = Field(
        "taylor",
        description="what makes a channel important; taylor, fisher, activation and apoz look at cases of "
        "train",
    )
    sparsity: Removed | None = Field(None, description="fraction of the channels to remove")
    budget: Budget | None = Field(
        None, description="in place of sparsity, heads and layers; takes heads where it needs them"
    )
    allocation: Allocation = Field(
        "uniform",
        description="the same fraction of every layer, the least important of all layers, or as the "
        "sensitivity scan allows",
    )
    layers: dict[str, Annotated[Share, Field(le=0.95)]] = Field(
        default_factory=dict, description="module (* matches any) -> a sparsity of its own"
    )
    protect: list[str] = Field(default_factory=list, description="modules left whole; * matches any")
    heads: Removed | None = Field(None, description="fraction of each layer's attention heads to remove")
    blocks: Removed | None = Field(None, description="fraction of the residual blocks to leave out")
    round_to: Annotated[int | Literal["auto"], BeforeValidator(_multiple)] = Field(
        8, description="widths kept are multiples of this; auto: as measured on this machine"
    )
    scan: Path | None = Field(None, description="what `pastille scan` wrote, for allocation: sensitivity")
    samples: int = Field(512, ge=16, description="cases of train that criteria which look at data take")
    fairness: Literal["none", "protect"] = Field(
        "none",
        description="protect: cases of patient groups that fare worse count more, in what is important and "
        "in fine-tuning",
    )
    steps: int = Field(1, ge=1, le=100)
    regularize: Regularize | None = Field(None, description="before the first removal")
    finetune: Train | None = Field(None, description="after every step")
    slower: float = Field(
        0.5, gt=0, le=1, description="learning rate of each step's fine-tuning over the step before"
    )
    original_epochs: int | None = Field(
        None,
        ge=1,
        description="that the model was trained for: where finetune is not given, a quarter of them are "
        "spent on fine-tuning over all steps",
    )
    distill: Distill | None = Field(
        None,
        description="fine-tune to answer like the unpruned model too, for all cases alike: "
        "fairness: protect weighs the labels",
    )

    @model_validator(mode="after")
    def _says_how_much(self) -> Prune:
        if self.sparsity is not None and self.budget is not None:
            raise ValueError("takes sparsity or budget, not both")
        if self.budget is not None:
            self._leaves_the_rest_to_the_budget()
        asked = (self.sparsity, self.budget, self.heads, self.blocks, self.layers or None)
        if all(share is None for share in asked):
            raise ValueError("must say how much: sparsity: 0.5, or budget: {max_latency: {p95: 5 ms}}")
        if not any([*asked[:-1], *self.layers.values()]):
            raise ValueError("takes layers at 0 only beside a sparsity: alone they leave all as it is")
        if self.scan is not None and self.allocation != "sensitivity":
            raise ValueError("takes scan only with allocation: sensitivity")
        if self.distill is not None and self.tuning is None:
            raise ValueError("takes distill only with finetune, which learns from it")
        if self.fairness == "protect" and self.tuning is None and not self.looks_at_data:
            raise ValueError(
                "takes fairness: protect only with finetune or with criterion: taylor, since "
                f"{self.criterion} looks at no cases"
            )
        return self

    def _leaves_the_rest_to_the_budget(self) -> None:
        if self.layers:
            raise ValueError("takes layers only with sparsity: a budget decides for every layer")
        if self.heads is not None:
            raise ValueError("takes heads only with sparsity: a budget takes heads where it needs them")
        if self.blocks is not None:
            raise ValueError(
                "takes blocks only with sparsity: leave them out in an entry of their own before that of "
                "the budget, - prune: {blocks: 0.25}"
            )

    @property
    def looks_at_data(self) -> bool:
        """Whether the criterion needs cases."""
        return self.criterion not in UNSEEING

    @property
    def tuning(self) -> Train | None:
        """The training after every step."""
        if self.finetune is not None or self.original_epochs is None:
            return self.finetune
        return Train(epochs=max(1, round(TUNED * self.original_epochs / self.steps)))


class SparsePrune(Section):
    """Set single weights to zero: smaller when stored, and faster only where the hardware can skip them."""

    method: Literal["unstructured", "2:4"]
    score: Literal["magnitude", "movement"] = Field(
        "magnitude", description="weights near zero go, or those that training moves towards zero"
    )
    sparsity: Removed | None = Field(None, description="fraction of the weights; of 2:4 always a half")
    scope: Literal["layer", "global"] = "layer"
    protect: list[str] = Field(default_factory=list, description="modules left whole; * matches any")
    train: Train | None = Field(
        None, description="the zeros are set during this training, by a cubic schedule (arXiv:1710.01878)"
    )
    distill: Distill | None = Field(None, description="train to answer like the unpruned model too")

    @model_validator(mode="after")
    def _says_how_much(self) -> SparsePrune:
        if self.method == "2:4" and self.sparsity not in (None, 0.5):
            raise ValueError("takes no sparsity with method 2:4: two of four weights go, always")
        if self.method == "2:4" and self.scope == "global":
            raise ValueError("takes scope: global only with method unstructured")
        if self.method == "unstructured" and self.sparsity is None:
            raise ValueError("must have sparsity, e.g. 0.8")
        if self.train is None and (self.score == "movement" or self.distill is not None):
            raise ValueError("needs train: movement is measured, and a teacher followed, while training")
        return self

    @property
    def share(self) -> float:
        """Fraction of the weights that go."""
        return 0.5 if self.sparsity is None else self.sparsity


PRUNE_METHODS = ("structured", "unstructured", "2:4")
SECTION_OF: Mapping[str, type[Section]] = MappingProxyType({"structured": Prune, "sparse": SparsePrune})


def _method(value: Any) -> str:
    default = "structured"
    method = value.get("method", default) if isinstance(value, dict) else getattr(value, "method", default)
    return "sparse" if method in ("unstructured", "2:4") else str(method)


Pruning = Annotated[
    Annotated[Prune, Tag("structured")] | Annotated[SparsePrune, Tag("sparse")],
    Discriminator(
        _method,
        custom_error_type="prune_method",
        custom_error_message=f"method must be one of {', '.join(PRUNE_METHODS)}",
    ),
]

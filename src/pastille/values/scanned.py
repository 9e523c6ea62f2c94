"""What a sensitivity scan found: how much each layer minds being pruned or quantized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Technique = Literal["pruning", "quantization"]


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What one change to one layer alone costs, on cases of validation, against the model as it was.

    Attributes:
        technique: What was done.
        layer: The channel group's name, or the layer's.
        level: Sparsity in (0, 1), or bits (8, 4).
        loss: Mean rise of the loss, in nats (of a regression: of the squared error in target variances).
        loss_low: Lower end of its interval over cases; None where it has none: too few cases, or subjects.
        loss_high: Upper end, likewise.
        metric: Drop of the metric; positive is worse.
        group: The patient group whose loss rises most, ``"sex=female"``, of those that certainly lose more
            than all cases if there are any; None where there are no groups.
        group_loss: That group's rise.
        group_low: Lower end of its interval, which holds for all groups together.
        cases: How many cases were looked at.
    """

    technique: Technique
    layer: str
    level: float
    loss: float
    loss_low: float | None
    loss_high: float | None
    metric: float
    group: str | None = None
    group_loss: float | None = None
    group_low: float | None = None
    cases: int

    @property
    def is_unequal(self) -> bool:
        """Whether the group certainly loses more than all cases do: the worst of many always seems to."""
        return self.group_low is not None and self.group_low > self.loss

    @property
    def harm(self) -> float:
        """Rise of the loss, or of the group's where that is certainly more."""
        return self.group_loss if self.is_unequal and self.group_loss is not None else self.loss


@dataclass(frozen=True, kw_only=True)
class Scan:
    """The file that ``pastille scan`` writes.

    Attributes:
        schema: Version of this form.
        model_digest: SHA-256 over the tensors of the model that was scanned.
        data_digest: SHA-256 over the data.
        metric: What `Effect.metric` is a drop of.
        baseline_metric: Of the model as it was, on all of validation.
        baseline_loss: Likewise.
        confidence: Of the intervals.
        effects: One for each layer and level that was looked at.
        layers: Every layer in the order of the model: name -> its parameters.
        skipped: Layer -> why it was not scanned.
        criterion: By which the least important channels were chosen; empty where none were.
        stopped: Technique and layer -> the levels that were not tried, since a milder one leaves nothing of
            the model.
        seconds: That the scan took.
    """

    schema: int = 1
    model_digest: str
    data_digest: str
    metric: str
    baseline_metric: float
    baseline_loss: float
    confidence: float
    effects: tuple[Effect, ...]
    layers: Mapping[str, int]
    skipped: Mapping[str, str]
    seconds: float
    criterion: str = ""
    stopped: Mapping[str, str] = field(default_factory=dict)

    def harm(self, technique: Technique) -> Mapping[str, Sequence[tuple[float, float]]]:
        """Layer -> (level, `Effect.harm`), ascending by level."""
        found: dict[str, list[tuple[float, float]]] = {}
        for effect in sorted(self.effects, key=lambda e: e.level):
            if effect.technique == technique:
                found.setdefault(effect.layer, []).append((effect.level, effect.harm))
        return found

    def levels(self, technique: Technique) -> tuple[float, ...]:
        """What was tried, the mildest first: sparsities rise, bits fall."""
        found = {effect.level for effect in self.effects if effect.technique == technique}
        return tuple(sorted(found, reverse=technique == "quantization"))

    def ranking(self, technique: Technique) -> tuple[str, ...]:
        """Layers, the most sensitive first: by the rise of the loss, on average over the levels.

        A level that was not tried, because a milder one leaves nothing of the model, counts like that one.
        """
        known = {(e.layer, e.level): e.loss for e in self.effects if e.technique == technique}
        layers, sums = dict.fromkeys(layer for layer, _ in known), dict[str, float]()
        for layer in layers:
            last = 0.0
            for level in self.levels(technique):
                last = known.get((layer, level), last)
                sums[layer] = sums.get(layer, 0.0) + last
        return tuple(sorted(layers, key=lambda layer: -sums[layer]))

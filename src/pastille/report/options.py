"""What a stage was told, in one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

import pastille.report.text as text
from pastille.recipe import DistillTraining

# Of a training, told only where they are not as in any recipe.
_QUIET = (
    *("momentum", "weight_decay", "warmup", "precision", "loss", "focal_gamma", "label_smoothing"),
    *("optimizer", "schedule", "class_weights", "cache", "accept_poor_teacher", "compare_to_scratch"),
)


def options_line(options: Mapping[str, Any]) -> str:
    """What a stage was told, in one line, its method or student first; empty options are left to the recipe.

    Example:
        >>> options_line({"criterion": "l1", "sparsity": 0.5, "finetune": {"epochs": 3}, "protect": []})
        'criterion l1, sparsity 0.5, finetune 3 epochs'
        >>> options_line({"calibration": "minmax", "percentile": 99.99, "method": "ptq"})
        'method ptq, calibration minmax'
        >>> options_line({"epochs": 9, "temperature": {"from": 8, "to": 2}, "student": {"width": 0.5}})
        'student width 0.5, epochs 9, temperature 8 to 2'
    """
    idle = set(_idle(options))
    first = ("method", "student")
    ordered = sorted(options.items(), key=lambda item: item[0] not in first)
    words = [_option(str(name), value) for name, value in ordered if name not in idle]
    return text.clean(", ".join(word for word in words if word), 200)


def _idle(options: Mapping[str, Any]) -> Iterator[str]:
    """What changes nothing."""
    if options.get("calibration") != "percentile":
        yield "percentile"
    if options.get("fairness") == "none":
        yield "fairness"
    defaults = {name: DistillTraining.model_fields[name].default for name in _QUIET}
    yield from (name for name, default in defaults.items() if options.get(name) == default)


def _option(name: str, value: object) -> str:
    if isinstance(value, Mapping):
        return _section(name, value)
    if name == "student" and isinstance(value, list):
        return f"students {', '.join(_student(one) for one in value if isinstance(one, Mapping))}"
    if value is None or value == "" or isinstance(value, list | tuple):
        return ""
    spoken = name.replace("_", " ")
    return spoken if value is True else f"{spoken} {value}"


def _section(name: str, value: Mapping[str, Any]) -> str:
    """Settings of a part of a stage, where one word can stand for them."""
    match value:
        case {"from": start, "to": end}:
            return f"{name} {start} to {end}"
        case {"loss": loss} if name == "hints":
            return f"hints {loss}"
        case {"epochs": epochs} if epochs:
            return f"{name} {epochs} epochs"
        case _ if name == "student":
            return f"student {_student(value)}"
        case _:
            return _budget(value) if name == "budget" else ""


def _student(asked: Mapping[str, Any]) -> str:
    """What is taught, by what sets it apart."""
    said = [f"{key} {asked[key]}" for key in ("width", "depth", "model") if asked.get(key)]
    return " ".join(said) or _budget(asked).removeprefix("budget ")


def _budget(asked: Mapping[str, Any]) -> str:
    """What a pruned file must reach, in place of a sparsity."""
    times = asked.get("max_latency")
    limits = times if isinstance(times, Mapping) else {}
    said = [f"{text.clean(q, 4)} {text.milliseconds(ms)}" for q, ms in limits.items() if _is_number(ms)]
    size, macs = asked.get("max_size"), asked.get("max_macs")
    said += [f"size {text.size(size)}"] if _is_number(size) else []
    said += [f"{text.amount(macs)} MACs"] if _is_number(macs) else []
    return f"budget {', '.join(said)}" if said else ""


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)

"""``pastille doctor``: what this machine and this installation can do, without importing torch."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pastille.cli.console import out
from pastille.cli.shown import bytes_text, conditions_text
from pastille.devices import memory_bytes, this_machine
from pastille.runtime import ONNXRUNTIME
from pastille.vocabulary import many, spoken

if TYPE_CHECKING:
    from pastille.progress import Progress

_NEEDS = {
    "core": ("numpy", "onnxruntime", "pydantic", "pillow", "jinja2", "typer", "starlette", "uvicorn"),
    "judge": ("scipy",),
    "compress": ("torch", "onnx", "onnxscript", "safetensors", "scikit-learn"),
    "vision": ("torchvision", "timm"),
    "text": ("transformers",),
    "tokens": ("tokenizers",),
    "dicom": ("pydicom",),
}
_VNNI = ("vnni", "amx", "dotprod", "i8mm")


def examine() -> dict[str, Any]:
    """Look at the machine and at what is installed."""
    machine = this_machine(threads=1, runtime=ONNXRUNTIME.name, runtime_version=ONNXRUNTIME.version)
    return {
        "pastille": metadata.version("pastille"),
        "python": platform.python_version(),
        "device": machine.device,
        "isa": machine.isa,
        "cores": machine.cores,
        "memory_bytes": memory_bytes(),
        "os": machine.os,
        "disk_free_bytes": shutil.disk_usage(".").free,
        "int8": int8_note(machine.isa),
        "summary": conditions_text(machine),
        "packages": {extra: {name: _version(name) for name in names} for extra, names in _NEEDS.items()},
    }


def diagnose(recipe: Path, overrides: Sequence[str], progress: Progress) -> dict[str, Any]:
    """Read a recipe and its targets, and say which limits its cases cannot prove.

    Raises:
        PastilleError: The recipe or its data cannot be read.
    """
    from pastille import policy
    from pastille.data.attributes import check_attributes
    from pastille.data.cases import cases
    from pastille.data.checks import check_targets
    from pastille.data.load import read_splits
    from pastille.elsewhere import check_isas
    from pastille.recipe import read_recipe
    from pastille.stats.provable import provable, unforeseeable
    from pastille.stats.unchanged import stressed_by

    asked = read_recipe(recipe, overrides)
    policy.check(asked)
    check_isas(asked)
    splits = read_splits(asked, recipe.parent, progress=progress)
    check_targets(splits, asked.task)
    check_attributes(splits, asked.requirements.fairness)
    bar = policy.bar(asked)
    test = cases(splits.test, "test", asked.task)
    stress = stressed_by(asked, cases(splits.validation, "validation", asked.task), bar.max_drop)
    cautions = provable(
        test,
        max_drop=bar.max_drop,
        max_class_drop=bar.max_class_drop,
        fairness=bar.fairness,
        stress=stress,
        confidence=bar.confidence,
    )
    rest = unforeseeable(
        test,
        bar.max_drop,
        max_class_drop=bar.max_class_drop,
        fairness=bar.fairness,
        calibration=bar.calibration,
        stress=stress,
        confidence=bar.confidence,
    )
    return {
        "name": asked.name,
        "test_cases": splits.test.n,
        "cautions": list(cautions),
        "unforeseeable": list(rest),
    }


def show_diagnosis(found: dict[str, Any]) -> None:
    """What a recipe's data cannot prove, or that it can."""
    rest = ", ".join(spoken(name) for name in found["unforeseeable"])
    if not found["cautions"]:
        cases = found["test_cases"]
        proven = (
            f"{found['name']}: {many(cases)} test case{'' if cases == 1 else 's'} can prove every limit "
            f"{'that is foretold ' if rest else ''}if few decisions change"
        )
        out.print("[green]✓[/] ", end="")
        out.print(f"{proven}; see pastille power for how few", markup=False)
    for caution in found["cautions"]:
        out.print("[yellow]![/] ", end="")
        out.print(caution, markup=False)
    if rest:
        out.print(f"– not foretold, as it depends on the answers: {rest}", markup=False)


def int8_note(isa: str) -> str:
    """What the CPU's widest int8 path means for quantized models.

    Example:
        >>> int8_note("avx2").startswith("no int8 dot product")
        True
    """
    if any(mark in isa for mark in _VNNI):
        return "int8 dot products run in one instruction; quantized models are fast and exact"
    return (
        "no int8 dot product instruction: quantized models gain less, and 8-bit weights may saturate; "
        "Pastille's 7-bit weights do not"
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def show_examination(found: dict[str, Any]) -> None:
    """The examination as text."""
    out.print(f"Pastille {found['pastille']}, Python {found['python']}", markup=False)
    out.print(f"{found['summary']}, {bytes_text(found['memory_bytes'])} of memory", markup=False)
    out.print(found["int8"], markup=False)
    for extra, packages in found["packages"].items():
        missing = [name for name, version in packages.items() if version is None]
        listed = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
        out.print(f"[{'yellow' if missing else 'green'}]{'–' if missing else '✓'}[/] {extra}: ", end="")
        out.print(listed or "nothing installed", markup=False)
        if missing:
            hint = "pip install pastille" if extra == "core" else f"pip install 'pastille[{extra}]'"
            out.print(f"  missing {', '.join(missing)}; run: {hint}", markup=False)

"""What ``pastille scan`` does and shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from pastille.cli.console import out
from pastille.errors import UsageError
from pastille.files import write_atomic
from pastille.progress import Progress
from pastille.recipe import Prune, Recipe
from pastille.report.heatmap import signed, write_heat_map
from pastille.values import to_json
from pastille.values.scanned import Effect, Scan, Technique

if TYPE_CHECKING:
    from pastille.stages.scanning import ScanSettings

_TECHNIQUES: Final[Mapping[str, tuple[Technique, ...]]] = MappingProxyType(
    {
        "pruning": ("pruning",),
        "quantization": ("quantization",),
        "both": ("pruning", "quantization"),
    }
)
_MOST, _LEAST = 10, 5  # layers that are listed
_BITS = range(2, 9)
_SHARE = 0.1  # of all that int8 costs: a layer that costs as much alone is worth keeping in float
_NAMED = 5


def checked_settings(
    recipe: Recipe, *, technique: str, levels: str, bits: str, cases: int | None
) -> ScanSettings:
    """What the options ask for, with what the recipe's own pruning says of protected modules.

    Raises:
        UsageError: An option cannot be read.
    """
    if technique not in _TECHNIQUES:
        raise UsageError(f"--technique must be one of {', '.join(_TECHNIQUES)}, got {technique!r}")
    sparsities, widths = _numbers("--levels", levels), _numbers("--bits", bits)
    if not all(0 < level < 1 for level in sparsities):
        raise UsageError(f"--levels must be sparsities between 0 and 1, e.g. 0.25,0.5, got {levels!r}")
    if not all(each in _BITS for each in widths):
        raise UsageError(f"--bits must be whole numbers from 2 to 8, e.g. 8,4, got {bits!r}")
    from pastille.pruning.criteria import NEEDS
    from pastille.stages.scanning import ScanSettings

    own = next((s for step in recipe.plan if isinstance(s := getattr(step, "prune", None), Prune)), None)
    return ScanSettings(
        techniques=_TECHNIQUES[technique],
        levels=tuple(sorted(sparsities)),
        bits=tuple(int(each) for each in sorted(widths, reverse=True)),
        cases=cases,
        criterion="l1" if own is None or own.criterion in NEEDS else own.criterion,
        protect=() if own is None else tuple(own.protect),
    )


def _numbers(option: str, given: str) -> set[float]:
    try:
        return {float(part) for part in given.split(",")}
    except ValueError:
        raise UsageError(f"{option} must be numbers with commas between, got {given!r}") from None


def scanned(
    recipe: Recipe,
    base: Path,
    settings: ScanSettings,
    output: Path,
    *,
    allow_leakage: bool,
    progress: Progress,
) -> Scan:
    """Scan the recipe's model, and write the result as JSON and as a page.

    Args:
        recipe: Names the model and the data.
        base: The recipe's folder.
        settings: From `checked_settings`.
        output: The JSON file; the page and the journal lie beside it.
        allow_leakage: Take data in which a case is in two splits.
        progress: Shown for each change.

    Raises:
        UsageError: The recipe, the data or the model cannot be used.
        OutputError: Nothing can be written there.
    """
    from pastille.runner.run import reproducible
    from pastille.stages.scanning import scan
    from pastille.task import load_task

    if output.suffix != ".json":
        raise UsageError(f"--output must end in .json, got {output}")
    with reproducible(recipe.seed):
        task = load_task(recipe, base, allow_leakage=allow_leakage, progress=progress)
        journal = output.with_suffix(".journal")
        found = scan(task.model, task, settings, journal=journal, progress=progress)
    write_atomic(output, to_json(found) + b"\n")
    write_heat_map(found, output.with_suffix(".html"), name=recipe.name)
    return found


def show_scan(found: Scan, output: Path) -> None:
    """The most and the least sensitive layers, and where the rest stands."""
    out.print(
        f"loss {found.baseline_loss:.4f}, {found.metric.replace('_', ' ')} {found.baseline_metric:.4f}; "
        "rises of the loss with one layer changed:",
        markup=False,
    )
    for technique in _TECHNIQUES["both"]:
        if found.levels(technique):
            for line in table(found, technique):
                out.print(line, markup=False)
    for line in (*remarks(found), f"scan    {output}", f"page    {output.with_suffix('.html')}"):
        out.print(line, markup=False)


def table(found: Scan, technique: Technique) -> Iterator[str]:
    """The layers of one technique, the most sensitive first."""
    levels, ranking = found.levels(technique), found.ranking(technique)
    known = {(e.layer, e.level): e for e in found.effects if e.technique == technique}
    wide = max(12, *(len(layer) for layer in ranking))
    heads = (f"{level:g} bits" if technique == "quantization" else f"{100 * level:g} %" for level in levels)
    yield f"{technique:<{wide}}  " + "".join(f"{head:>20}" for head in heads)
    left = len(ranking) - _MOST - _LEAST
    for place, layer in enumerate(ranking):
        if place < _MOST or place >= len(ranking) - _LEAST:
            cells = (_cell(known.get((layer, level))) for level in levels)
            yield f"{layer or '(model)':<{wide}}  " + "".join(f"{cell:>20}" for cell in cells)
        elif place == _MOST and left:
            yield f"… {left} more"


def _cell(effect: Effect | None) -> str:
    if effect is None:
        return "not tried"
    if effect.loss_low is None or effect.loss_high is None:
        return f"{signed(effect.loss)} ± ?"
    return f"{signed(effect.loss)} ± {(effect.loss_high - effect.loss_low) / 2:.3f}"


def remarks(found: Scan) -> Iterator[str]:
    """What follows from a scan."""
    if worst := _worst(found):
        rise, low = signed(worst.group_loss or 0.0), signed(worst.group_low or 0.0)
        yield f"worst   {worst.group}: loss {rise} (at least {low}) with {worst.layer} alone changed"
    elif any(effect.group is not None for effect in found.effects):
        yield "groups  of none is it shown that its loss rises more than that of all cases"
    if names := float_layers(found):
        yield f"try     quantize: {{keep_float: [{', '.join(names)}]}}"
    for what, why in found.stopped.items():
        yield f"note    {what} {why}"
    for layer, why in found.skipped.items():
        yield f"left    {layer}: {why}"


def _worst(found: Scan) -> Effect | None:
    """Where a patient group loses most beyond what all cases lose, if one certainly loses more."""
    return max((e for e in found.effects if e.is_unequal), key=lambda e: e.harm - e.loss, default=None)


def float_layers(found: Scan) -> tuple[str, ...]:
    """Layers to keep in float: those whose rise in int8 is certain, and a large part of all rises."""
    effects = [e for e in found.effects if e.technique == "quantization" and e.level == max(_BITS)]
    whole = sum(max(0.0, e.loss) for e in effects)
    named = [e for e in effects if (e.loss_low or 0.0) > 0 and e.loss >= _SHARE * whole]
    return tuple(e.layer for e in sorted(named, key=lambda e: -e.loss)[:_NAMED])

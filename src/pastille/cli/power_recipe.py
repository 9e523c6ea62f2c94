"""``pastille power RECIPE``: what the data at hand can prove of a recipe's limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pastille import policy
from pastille.cli.console import out
from pastille.cli.power_words import Assumed, about, coloured, footnote, percent
from pastille.recipe import Recipe
from pastille.stats.provable import Outlook, outlooks, sentence, subject, unforeseeable
from pastille.stats.unchanged import Stressed, Unchanged, hopeless_sentence, points, stressed_by, unchanged
from pastille.values import Cases, SplitName
from pastille.vocabulary import counted, many, spoken

if TYPE_CHECKING:
    from pastille.progress import Progress

_NAMED = 6  # limits that the last sentence names of a split before it counts the rest
_JUDGED_SPLITS: tuple[SplitName, ...] = ("validation", "test")


@dataclass(frozen=True, kw_only=True)
class SplitOutlook:
    """What one split of a recipe's data can prove."""

    split: SplitName
    cases: int
    outlooks: tuple[Outlook, ...]
    unchanged: tuple[Unchanged, ...]  # gaps and stress tests, of a candidate that decides as its baseline
    unforeseeable: tuple[str, ...]  # what has a limit that no formula foretells

    @property
    def hopeless(self) -> tuple[str, ...]:
        """What cannot be approved with these cases, even if no decision changes."""
        limits = (subject(each) for each in self.outlooks if each.bearable is None)
        return (*limits, *(each.subject for each in self.unchanged if each.hopeless))


@dataclass(frozen=True, kw_only=True)
class RecipeOutlook:
    """What a recipe's data can prove of its limits."""

    name: str
    assumed: Assumed
    discordance: float
    splits: tuple[SplitOutlook, ...]


def of_recipe(
    recipe: Recipe, base: Path, discordance: float, power: float, progress: Progress
) -> RecipeOutlook:
    """Read the targets of a recipe and work out what they can prove.

    Args:
        recipe: One that `pastille.policy.check` accepts.
        base: Its folder.
        discordance: Share of cases on which the models disagree who is right.
        power: Chance of approval that is wanted.
        progress: Shown while data are read.

    Raises:
        PastilleError: The data cannot be read.
    """
    from pastille.data.cases import cases
    from pastille.data.checks import check_targets
    from pastille.data.load import read_splits

    splits = read_splits(recipe, base, progress=progress)
    check_targets(splits, recipe.task)
    bar = policy.bar(recipe)
    known = {name: cases(getattr(splits, name), name, recipe.task) for name in _JUDGED_SPLITS}
    stress = stressed_by(recipe, known["validation"], bar.max_drop)
    return RecipeOutlook(
        name=recipe.name,
        assumed=Assumed(confidence=bar.confidence, power=power),
        discordance=discordance,
        splits=tuple(
            _of_split(answers, bar, stress if name == "validation" else None, discordance, power)
            for name, answers in known.items()
        ),
    )


def _of_split(
    answers: Cases, bar: policy.Bar, stress: Stressed | None, discordance: float, power: float
) -> SplitOutlook:
    foretold = outlooks(
        answers,
        max_drop=bar.max_drop,
        max_class_drop=bar.max_class_drop,
        fairness=bar.fairness,
        confidence=bar.confidence,
        discordance=discordance,
        power=power,
    )
    rest = unforeseeable(
        answers,
        bar.max_drop,
        max_class_drop=bar.max_class_drop,
        fairness=bar.fairness,
        calibration=bar.calibration,
        stress=stress,
        confidence=bar.confidence,
    )
    return SplitOutlook(
        split=answers.split,
        cases=len(answers.targets),
        outlooks=foretold,
        unchanged=tuple(
            each
            for each in unchanged(answers, fairness=bar.fairness, stress=stress, confidence=bar.confidence)
            if each.foretold
        ),
        unforeseeable=rest,
    )


def show_recipe(found: RecipeOutlook) -> None:
    """Every limit of each split, and what cannot be approved."""
    for split in found.splits:
        out.print(f"[bold]{split.split}[/], {counted(split.cases)}")
        for outlook in split.outlooks:
            sign = "✓" if outlook.sure else "✗" if outlook.bearable is None else "?"
            out.print(f"  {coloured(sign, outlook.sure, outlook.bearable is not None)} ", end="")
            out.print(f"{sentence(outlook)}{_chance(outlook, found)}", markup=False)
        for each in split.unchanged:
            sign = "[red]✗[/]" if each.hopeless else "[green]✓[/]"
            out.print(f"  {sign} ", end="")
            out.print(sentence_of_unchanged(each), markup=False)
        if split.unforeseeable:
            names = ", ".join(spoken(name) for name in split.unforeseeable)
            out.print(f"  – not foretold, as it depends on the answers: {names}", markup=False)
    out.print(footnote(found.assumed, counted=True), markup=False)
    out.print(conclusion(found), markup=False)


def conclusion(found: RecipeOutlook) -> str:
    """Which limits cannot be approved with these cases, or that all can be."""
    short = {split.split: split.hopeless for split in found.splits if split.hopeless}
    if not short:
        beside = any(split.unforeseeable for split in found.splits)
        which = "every limit that is foretold" if beside else "every limit"
        return f"{found.name}: {which} can be approved with these cases if few decisions change"
    listed = "; ".join(f"on {split}, {_named(names)}" for split, names in short.items())
    return f"{found.name}: with these cases cannot be approved, even if no decision changes: {listed}"


def _named(names: Sequence[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def sentence_of_unchanged(found: Unchanged) -> str:
    """What can be proven of a gap or under perturbed inputs, in words."""
    if found.hopeless:
        return hopeless_sentence(found)
    return f"{found.subject} can be approved within {points(found.limit)}, if few decisions change"


def _chance(outlook: Outlook, found: RecipeOutlook) -> str:
    if outlook.bearable is None:
        return ""
    chance = f"at {percent(found.discordance)} it is approved with a chance of {100 * outlook.power:.0f} %"
    if outlook.sure:
        return f" ({chance})"
    needed = outlook.needed or 0
    return f" ({chance}; {percent(found.assumed.power)} takes {about(needed)}{many(needed)})"

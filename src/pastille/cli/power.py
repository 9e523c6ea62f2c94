"""``pastille power``: how many cases a limit needs, and what the present ones can prove. No model is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from pastille import policy
from pastille.cli.console import out
from pastille.cli.shown import as_data
from pastille.errors import UsageError
from pastille.recipe import Recipe, read_recipe
from pastille.recipe.quantities import parse_quantity
from pastille.stats.power import exact_cases_needed, power_of, smallest_provable_limit
from pastille.stats.provable import DISCORDANCE, POWER, Outlook, outlooks, sentence, unforeseeable
from pastille.values import SplitName
from pastille.vocabulary import spoken

if TYPE_CHECKING:
    from pastille.progress import Progress

_UNITS = {"": 1.0, "%": 0.01}
_DISCORDANCES = (0.0, 0.01, 0.02, 0.05, 0.1)
_JUDGED_SPLITS: tuple[SplitName, ...] = ("validation", "test")


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """What the figures rest on."""

    confidence: float  # of the two-sided interval
    power: float  # chance of approval that is wanted
    drop: float = 0.0  # the candidate's true one


@dataclass(frozen=True, kw_only=True)
class Needed:
    """Cases for one limit at one discordance."""

    discordance: float
    limit: float
    cases: int | None  # None: no number of cases, as the true drop is not below the limit


@dataclass(frozen=True, kw_only=True)
class CasesNeeded:
    """Without data: how many cases would do."""

    assumed: Assumed
    rows: tuple[Needed, ...]


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What a number of cases can prove at one discordance."""

    discordance: float
    smallest_limit: float  # proven with the power wanted; 1 if none
    power: Mapping[str, float]  # limit, as text -> chance of approval


@dataclass(frozen=True, kw_only=True)
class CasesGiven:
    """Without data: what so many cases can prove."""

    assumed: Assumed
    cases: int
    rows: tuple[Proof, ...]


@dataclass(frozen=True, kw_only=True)
class SplitOutlook:
    """What one split of a recipe's data can prove."""

    split: SplitName
    cases: int
    outlooks: tuple[Outlook, ...]
    unforeseeable: tuple[str, ...]  # metrics with a limit that no formula foretells


@dataclass(frozen=True, kw_only=True)
class RecipeOutlook:
    """What a recipe's data can prove of its limits."""

    name: str
    assumed: Assumed
    discordance: float
    splits: tuple[SplitOutlook, ...]


PowerReport = CasesNeeded | CasesGiven | RecipeOutlook


def power_report(
    recipe: Path | None,
    *,
    limit: str | None = None,
    discordance: str | None = None,
    drop: str | None = None,
    power: str | None = None,
    confidence: str | None = None,
    tier: str | None = None,
    cases: int | None = None,
    overrides: Sequence[str] = (),
    progress: Progress,
) -> PowerReport:
    """Work out what was asked on the command line.

    Args:
        recipe: Whose data and limits to look at; None: figures without data.
        limit: E.g. ``"1 %"``; the limits of all tiers if neither it nor ``tier`` is given.
        discordance: Share of cases on which the models disagree who is right; several, or 2 % of a recipe,
            if left out.
        drop: The candidate's true drop; 0 if left out.
        power: Chance of approval that is wanted; 80 % if left out.
        confidence: Of the two-sided interval; 95 % if left out.
        tier: Risk tier, whose limit is meant.
        cases: What so many cases can prove, instead of how many are needed.
        overrides: ``KEY=VALUE`` for the recipe.
        progress: Shown while a recipe's data are read.

    Raises:
        UsageError: An option is malformed, or does not go with a recipe.
        PastilleError: The recipe or its data cannot be read.
    """
    wanted = _share("--power", power, POWER)
    if not 0.5 <= wanted < 1:
        raise UsageError(f"--power must be at least 50 % and below 100 %, got {power}")
    if recipe is not None:
        _refuse_beside_recipe(limit=limit, drop=drop, confidence=confidence, tier=tier, cases=cases)
        asked = read_recipe(recipe, overrides)
        policy.check(asked)
        assumed_discordance = _share("--discordance", discordance, DISCORDANCE)
        return _of_recipe(asked, recipe.parent, assumed_discordance, wanted, progress)
    if overrides:
        raise UsageError("--set changes a recipe; give one, or leave it out")
    assumed = Assumed(confidence=_confidence(confidence), power=wanted, drop=_share("--drop", drop, 0.0))
    limits = _limits(limit, tier)
    discordances = _DISCORDANCES if discordance is None else (_share("--discordance", discordance, 0.0),)
    if cases is None:
        return _needed(assumed, limits, discordances)
    if cases < 1:
        raise UsageError(f"--cases must be at least 1, got {cases}")
    return _given(assumed, limits, discordances, cases)


def _share(option: str, text: str | None, default: float) -> float:
    if text is None:
        return default
    try:
        share = parse_quantity(text, _UNITS, "1 %")
    except ValueError as error:
        raise UsageError(f"{option} {error}") from error
    if not 0 <= share <= 1:
        raise UsageError(f"{option} must be between 0 and 100 %, got {text}")
    return share


def _confidence(text: str | None) -> float:
    confidence = _share("--confidence", text, 0.95)
    if not 0.5 <= confidence < 1:
        raise UsageError(f"--confidence must be at least 50 % and below 100 %, got {text}")
    return confidence


def _refuse_beside_recipe(**options: object) -> None:
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if given:
        verb = "does" if len(given) == 1 else "do"
        hint = "a recipe has its own limits and data; use --set to change them"
        raise UsageError(f"{', '.join(given)} {verb} not go with a recipe: {hint}")


def _limits(limit: str | None, tier: str | None) -> tuple[float, ...]:
    if limit is not None and tier is not None:
        raise UsageError("give --limit or --tier, not both: a tier sets the limit")
    if tier is not None:
        if tier not in policy.TIERS:
            raise UsageError(f"--tier must be one of {', '.join(policy.TIERS)}, got {tier!r}")
        return tuple(each.max_drop for risk, each in policy.TIERS.items() if risk == tier)
    if limit is None:
        return tuple(each.max_drop for each in policy.TIERS.values())
    share = _share("--limit", limit, 0.0)
    if share == 0:
        raise UsageError("--limit must be above 0: no number of cases proves that nothing at all is lost")
    return (share,)


def _needed(assumed: Assumed, limits: Sequence[float], discordances: Sequence[float]) -> CasesNeeded:
    rows = [
        Needed(discordance=discordance, limit=limit, cases=_cases_needed(assumed, limit, discordance))
        for discordance in discordances
        for limit in limits
    ]
    if all(row.cases is None for row in rows):
        raise UsageError(
            f"--drop must be below the limit and not exceed the discordance, got {_percent(assumed.drop)}"
        )
    return CasesNeeded(assumed=assumed, rows=tuple(rows))


def _cases_needed(assumed: Assumed, limit: float, discordance: float) -> int | None:
    if not assumed.drop < limit or assumed.drop > discordance:
        return None
    return exact_cases_needed(
        discordance, limit, confidence=assumed.confidence, power=assumed.power, drop=assumed.drop
    )


def _given(
    assumed: Assumed, limits: Sequence[float], discordances: Sequence[float], cases: int
) -> CasesGiven:
    possible = [each for each in discordances if each >= assumed.drop]
    if not possible:
        raise UsageError(f"--drop must not exceed the discordance, got {_percent(assumed.drop)}")
    rows = tuple(_proof(assumed, limits, discordance, cases) for discordance in possible)
    return CasesGiven(assumed=assumed, cases=cases, rows=rows)


def _proof(assumed: Assumed, limits: Sequence[float], discordance: float, cases: int) -> Proof:
    confidence, drop = assumed.confidence, assumed.drop
    return Proof(
        discordance=discordance,
        smallest_limit=smallest_provable_limit(
            cases, discordance, confidence=confidence, power=assumed.power, drop=drop
        ),
        power={
            _percent(limit): power_of(cases, discordance, limit, confidence=confidence, drop=drop)
            for limit in limits
        },
    )


def _of_recipe(
    recipe: Recipe, base: Path, discordance: float, power: float, progress: Progress
) -> RecipeOutlook:
    from pastille.data.cases import cases
    from pastille.data.checks import check_targets
    from pastille.data.load import read_splits

    splits = read_splits(recipe, base, progress=progress)
    check_targets(splits, recipe.task)
    bar = policy.bar(recipe)
    found = []
    for name in _JUDGED_SPLITS:
        answers = cases(getattr(splits, name), name, recipe.task)
        foretold = outlooks(
            answers,
            max_drop=bar.max_drop,
            max_class_drop=bar.max_class_drop,
            fairness=bar.fairness,
            confidence=bar.confidence,
            discordance=discordance,
            power=power,
        )
        rest = unforeseeable(answers, bar.max_drop)
        n = len(answers.targets)
        found.append(SplitOutlook(split=name, cases=n, outlooks=foretold, unforeseeable=rest))
    assumed = Assumed(confidence=bar.confidence, power=power)
    return RecipeOutlook(name=recipe.name, assumed=assumed, discordance=discordance, splits=tuple(found))


def power_json(found: PowerReport) -> dict[str, Any]:
    """The report for a program; of a recipe with the sentence of each limit."""
    data: dict[str, Any] = as_data(found)
    if isinstance(found, RecipeOutlook):
        for split, shown in zip(found.splits, data["splits"], strict=True):
            for outlook, entry in zip(split.outlooks, shown["outlooks"], strict=True):
                entry["sentence"] = sentence(outlook)
    return data


def show_power(found: PowerReport) -> None:
    """The report for a person."""
    match found:
        case CasesNeeded():
            _show_needed(found)
        case CasesGiven():
            _show_given(found)
        case RecipeOutlook():
            _show_recipe(found)


def _show_needed(found: CasesNeeded) -> None:
    if len(found.rows) == 1:
        (row,) = found.rows
        what = f"{row.cases:,} cases show that no more than {_percent(row.limit)} is lost"
        out.print(f"[bold]{what}[/], if the models disagree on {_percent(row.discordance)} of them")
    else:
        out.print(
            "Cases needed to show that no more is lost than the limit, by how often the models disagree:"
        )
        out.print(_needed_table(found))
    out.print(_footnote(found.assumed), markup=False)


def _needed_table(found: CasesNeeded) -> Table:
    limits = tuple(dict.fromkeys(row.limit for row in found.rows))
    names = {tier.max_drop: f" ({risk})" for risk, tier in policy.TIERS.items()}
    table = _table("disagree", *(f"{_percent(limit)}{names.get(limit, '')}" for limit in limits))
    for discordance in dict.fromkeys(row.discordance for row in found.rows):
        cells = [row.cases for row in found.rows if row.discordance == discordance]
        table.add_row(_percent(discordance), *("–" if n is None else f"{n:,}" for n in cells))
    return table


def _show_given(found: CasesGiven) -> None:
    out.print(f"What {found.cases:,} cases can prove, by how often the models disagree:")
    heads = (f"approved at {limit}" for limit in found.rows[0].power)
    table = _table("disagree", "smallest limit", *heads)
    for row in found.rows:
        shown = (_coloured(f"{100 * p:.1f} %", p >= found.assumed.power, p > 0) for p in row.power.values())
        smallest = f"{100 * row.smallest_limit:.2f} %" if row.smallest_limit < 1 else "none"
        table.add_row(_percent(row.discordance), smallest, *shown)
    out.print(table)
    out.print(_footnote(found.assumed), markup=False)


def _show_recipe(found: RecipeOutlook) -> None:
    for split in found.splits:
        out.print(f"[bold]{split.split}[/], {split.cases:,} cases")
        for outlook in split.outlooks:
            sign = "✓" if outlook.sure else "✗" if outlook.bearable is None else "?"
            out.print(f"  {_coloured(sign, outlook.sure, outlook.bearable is not None)} ", end="")
            out.print(f"{sentence(outlook)}{_chance(outlook, found)}", markup=False)
        if split.unforeseeable:
            names = ", ".join(spoken(name) for name in split.unforeseeable)
            out.print(f"  – {names}: not foretold; how wide its interval is depends on the answers")
    out.print(_footnote(found.assumed, counted=True), markup=False)


def _chance(outlook: Outlook, found: RecipeOutlook) -> str:
    if outlook.bearable is None:
        return ""
    chance = f"at {_percent(found.discordance)} it is approved with a chance of {100 * outlook.power:.0f} %"
    if outlook.sure:
        return f" ({chance})"
    return f" ({chance}; {_percent(found.assumed.power)} takes {outlook.needed:,})"


def _coloured(text: str, good: bool, possible: bool) -> str:
    return f"[{'green' if good else 'yellow' if possible else 'red'}]{text}[/]"


def _footnote(assumed: Assumed, *, counted: bool = False) -> str:
    """What the figures rest on; ``counted`` where it is already known which cases a metric rests on."""
    truth = (
        f"a true drop of {_percent(assumed.drop)}" if assumed.drop else "a candidate as good as the baseline"
    )
    chance = (
        f"a chance of {_percent(assumed.power)} that the {_percent(assumed.confidence)} interval approves"
    )
    count = (
        "" if counted else "; count the positive cases alone for sensitivity, and a group's own for a group"
    )
    return f"for {chance} {truth}{count}"


def _percent(share: float) -> str:
    return f"{100 * share:.6g} %"


def _table(*heads: str) -> Table:
    table = Table(box=None, padding=(0, 2), show_edge=False)
    for head in heads:
        table.add_column(head, justify="right")
    return table

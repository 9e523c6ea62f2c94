"""``pastille power``: how many cases a limit needs, and what the present ones can prove. No model is run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from pastille import policy
from pastille.cli.console import out
from pastille.cli.power_recipe import (
    RecipeOutlook,
    conclusion,
    of_recipe,
    sentence_of_unchanged,
    show_recipe,
)
from pastille.cli.power_words import Assumed, about, coloured, footnote, percent
from pastille.cli.shown import as_data
from pastille.errors import UsageError
from pastille.recipe import read_recipe
from pastille.recipe.quantities import parse_quantity
from pastille.stats.power import exact_cases_needed, power_of, smallest_provable_limit
from pastille.stats.provable import DISCORDANCE, POWER, sentence
from pastille.vocabulary import counted, many

if TYPE_CHECKING:
    from pastille.progress import Progress

_LEAST_LIMIT, _MOST_LIMIT = 0.0001, 0.5
_MOST_CASES = 100_000_000
_UNITS = {"": 1.0, "%": 0.01}
_DISCORDANCES = (0.0, 0.01, 0.02, 0.05, 0.1)


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
        return of_recipe(asked, recipe.parent, assumed_discordance, wanted, progress)
    if overrides:
        raise UsageError("--set changes a recipe; give one, or leave it out")
    assumed = Assumed(confidence=_confidence(confidence), power=wanted, drop=_share("--drop", drop, 0.0))
    limits = _limits(limit, tier)
    discordances = _DISCORDANCES if discordance is None else (_share("--discordance", discordance, 0.0),)
    if cases is None:
        return _needed(assumed, limits, discordances)
    if not 1 <= cases <= _MOST_CASES:
        raise UsageError(f"--cases must be at least 1 and at most {many(_MOST_CASES)}, got {many(cases)}")
    return _given(assumed, limits, discordances, cases)


def _share(option: str, text: str | None, default: float) -> float:
    if text is None:
        return default
    share = _quantity(option, text)
    if not 0 <= share <= 1:
        raise UsageError(f"{option} must be between 0 and 100 %, got {text}")
    return share


def _quantity(option: str, text: str) -> float:
    try:
        return parse_quantity(text, _UNITS, "1 %")
    except ValueError as error:
        raise UsageError(f"{option} {error}") from error


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
    return (_limit(limit),)


def _limit(text: str) -> float:
    share = _quantity("--limit", text)
    if share == 0:
        raise UsageError("--limit must be above 0: no number of cases proves that nothing at all is lost")
    if not _LEAST_LIMIT <= share <= _MOST_LIMIT:
        allowed = f"must be between {percent(_LEAST_LIMIT)} and {percent(_MOST_LIMIT)}"
        bare = "" if "%" in text else f", which is {percent(share)}"
        meant = f"; '{text.strip()} %' was probably meant" if bare and share > _MOST_LIMIT else ""
        raise UsageError(f"--limit {allowed}, got {text}{bare}{meant}")
    return share


def _needed(assumed: Assumed, limits: Sequence[float], discordances: Sequence[float]) -> CasesNeeded:
    rows = [
        Needed(discordance=discordance, limit=limit, cases=_cases_needed(assumed, limit, discordance))
        for discordance in discordances
        for limit in limits
    ]
    if all(row.cases is None for row in rows):
        raise UsageError(
            f"--drop must be below the limit and not exceed the discordance, got {percent(assumed.drop)}"
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
        raise UsageError(f"--drop must not exceed the discordance, got {percent(assumed.drop)}")
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
            percent(limit): power_of(cases, discordance, limit, confidence=confidence, drop=drop)
            for limit in limits
        },
    )


def power_json(found: PowerReport) -> dict[str, Any]:
    """The report for a program; of a recipe with the sentence of each limit."""
    data: dict[str, Any] = as_data(found)
    if isinstance(found, RecipeOutlook):
        for split, shown in zip(found.splits, data["splits"], strict=True):
            for outlook, entry in zip(split.outlooks, shown["outlooks"], strict=True):
                entry["sentence"] = sentence(outlook)
            for each, entry in zip(split.unchanged, shown["unchanged"], strict=True):
                entry["sentence"] = sentence_of_unchanged(each)
        data["conclusion"] = conclusion(found)
    return data


def show_power(found: PowerReport) -> None:
    """The report for a person."""
    match found:
        case CasesNeeded():
            _show_needed(found)
        case CasesGiven():
            _show_given(found)
        case RecipeOutlook():
            show_recipe(found)


def _show_needed(found: CasesNeeded) -> None:
    if len(found.rows) == 1:
        (row,) = found.rows
        assert row.cases is not None  # else refused
        shows = "shows" if row.cases == 1 else "show"
        size = f"{about(row.cases)}{counted(row.cases)}"
        what = f"{size} {shows} that no more than {percent(row.limit)} is lost"
        out.print(f"[bold]{what}[/], if the models disagree on {percent(row.discordance)} of them")
    else:
        out.print(
            "Cases needed to show that no more is lost than the limit, by how often the models disagree:"
        )
        out.print(_needed_table(found))
    out.print(footnote(found.assumed), markup=False)


def _needed_table(found: CasesNeeded) -> Table:
    limits = tuple(dict.fromkeys(row.limit for row in found.rows))
    names = {tier.max_drop: f" ({risk})" for risk, tier in policy.TIERS.items()}
    table = _table("disagree", *(f"{percent(limit)}{names.get(limit, '')}" for limit in limits))
    for discordance in dict.fromkeys(row.discordance for row in found.rows):
        cells = [row.cases for row in found.rows if row.discordance == discordance]
        table.add_row(percent(discordance), *("–" if n is None else f"{about(n)}{n:,}" for n in cells))
    return table


def _show_given(found: CasesGiven) -> None:
    rough = ", about" if about(found.cases) else ""
    out.print(f"What {counted(found.cases)} can prove{rough}, by how often the models disagree:")
    heads = (f"approved at {limit}" for limit in found.rows[0].power)
    table = _table("disagree", "smallest limit", *heads)
    for row in found.rows:
        shown = (coloured(f"{100 * p:.1f} %", p >= found.assumed.power, p > 0) for p in row.power.values())
        smallest = _limit_shown(row.smallest_limit) if row.smallest_limit < 1 else "none"
        table.add_row(percent(row.discordance), smallest, *shown)
    out.print(table)
    out.print(footnote(found.assumed), markup=False)


def _limit_shown(share: float) -> str:
    """Two decimals, or as many as show two digits."""
    return f"{100 * share:.{max(2, 1 - math.floor(math.log10(100 * share)))}f} %"


def _table(*heads: str) -> Table:
    table = Table(box=None, padding=(0, 2), show_edge=False)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table

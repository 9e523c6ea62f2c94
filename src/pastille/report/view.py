"""Everything the page shows, formatted, with the numbers that its plots need. Pure: no file is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pastille.report.text as text
from pastille.record import Record
from pastille.report.ablation import Ablation, ablation
from pastille.report.account import Account, account
from pastille.report.banner import Banner, banner
from pastille.report.changes import Change, changes
from pastille.report.comparison import Comparison, Tradeoff, comparison, tradeoffs
from pastille.report.evidence import Evidence, evidence
from pastille.report.judgement import Caution, Judgement, judgement, reservations
from pastille.report.provenance import Data, Origin, data, origin
from pastille.report.spending import Spending, spending
from pastille.report.timing import Timing, timing


@dataclass(frozen=True, kw_only=True)
class View:
    """The page."""

    name: str
    kind: str  # "binary", "multiclass", "regression", or empty
    risk: str
    begun: str
    threads: str
    banner: Banner
    warnings: tuple[Caution, ...]
    judgement: Judgement
    comparison: Comparison
    tradeoffs: tuple[Tradeoff, ...]
    evidence: Evidence
    spending: Spending
    ablation: Ablation | None  # where the run was taken apart
    timing: Timing
    changes: tuple[Change, ...]
    data: Data
    origin: Origin


def view(record: Record) -> View:
    """Arrange and format a record for the page.

    Args:
        record: Of a run that is finished or not; its text is not trusted.

    Returns:
        The page's contents. Text is bounded in length but not escaped; that is the renderer's part.

    Example:
        >>> view(Record(name="digits")).banner.word
        'Not finished'
    """
    run = account(record)
    shown = data(run)
    return View(
        name=text.clean(record.name, 80),
        kind=_word(run.recipe.get("task"), "kind"),
        risk=_word(run.recipe.get("requirements"), "risk"),
        begun=text.when(record.events[0].at) if record.events else "",
        threads=_threads(run),
        banner=banner(run),
        warnings=(*reservations(run), *_warnings(run, shown)),
        judgement=judgement(run),
        comparison=comparison(run),
        tradeoffs=tradeoffs(run),
        evidence=evidence(run),
        spending=spending(run),
        ablation=ablation(run),
        timing=timing(run),
        changes=changes(run),
        data=shown,
        origin=origin(run, record),
    )


def _word(section: object, key: str) -> str:
    return text.clean(section.get(key, ""), 40) if isinstance(section, Mapping) else ""


def _threads(run: Account) -> str:
    if run.started is None:
        return ""
    where = run.started.environment.machine
    return text.clean(f"{where.device}, {text.plural(where.threads, 'thread')}", 160)


def _warnings(run: Account, shown: Data) -> Iterator[Caution]:
    cautions = run.baseline.details.notes if run.baseline else ()
    if cautions:
        yield Caution(
            title="What this run can show is limited",
            text="Found before any stage was carried out.",
            items=tuple(text.sentence(note.removeprefix("caution: "), 400) for note in cautions),
        )
    if shown.leakage:
        more = (f"and {shown.more_leakage} more",) if shown.more_leakage else ()
        yield Caution(
            title="The splits leak, and the run was told to go on (--allow-leakage)",
            text="The same subject or an identical input is in two splits. The metrics below are flattering "
            "to an unknown degree, and no verdict that rests on them is evidence for a patient.",
            items=(*shown.leakage, *more),
        )
    if len(run.opened) > 1:
        yield Caution(
            title=f"The test split was opened {len(run.opened)} times",
            text="A verdict is sound only if the test split was read once. After an interruption a second "
            "reading of the same candidate changes nothing; any other second look spends the evidence.",
            items=tuple(f"{at} – {reason}" for at, reason in shown.openings),
        )
    if len(_machines(run)) > 1:
        yield Caution(
            title="The run was resumed on another machine",
            text="Times measured before and after the interruption are not comparable.",
            items=_machines(run),
        )


def _machines(run: Account) -> tuple[str, ...]:
    seen = [event.environment.machine for event in (*((run.started,) if run.started else ()), *run.resumed)]
    return tuple(dict.fromkeys(text.clean(f"{m.device} ({m.isa}, {m.os})", 200) for m in seen))

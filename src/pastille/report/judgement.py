"""What both models were compared in, and what came of it: the sections between verdict and conditions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pastille.report.text as text
from pastille.openings import Opening
from pastille.report.account import Account
from pastille.report.banner import OVERRIDE, override
from pastille.report.calibration import Calibrated, calibrated
from pastille.report.changed import Changed, changed
from pastille.report.fairness import Fair, fair
from pastille.report.forest import Forest, forest
from pastille.report.stress import Stressed, stressed
from pastille.values import Invariance

_MAX_ITEMS = 12
_HARM, _UNDECIDED = "a group is harmed", "undecided, reported only"
_LOOKED = "test cases were opened"
_GENERAL = "What qualifies this verdict"
_TITLES = {
    OVERRIDE: "The limits are looser than the risk tier permits",
    _HARM: "A group is harmed, though no fairness limit was asked for",
    _UNDECIDED: "Groups that these cases cannot decide were left out of the verdict",
    _LOOKED: "These test cases were looked at before",
}


@dataclass(frozen=True, kw_only=True)
class Caution:
    """Something that weakens the evidence, and that nobody may overlook."""

    title: str
    text: str
    items: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The evidence behind the verdict; what was not compared is None."""

    split: str
    forest: Forest
    fairness: Fair
    calibration: Calibrated | None
    disagreement: Changed | None
    stress: Stressed | None
    invariance: str  # one sentence, or empty
    threshold: str  # one sentence, or empty where none was chosen


def judgement(run: Account) -> Judgement:
    """Arrange the evidence of the verdict on test; before that, of the newest kept stage's."""
    found = run.evidence
    return Judgement(
        split=run.verdict.split if run.verdict else "",
        forest=forest(run),
        fairness=fair(run),
        calibration=calibrated(found.calibration) if found.calibration else None,
        disagreement=(changed(found.disagreement, decisions=_decides(run)) if found.disagreement else None),
        stress=stressed(run) if found.stress else None,
        invariance=_invariance(found.invariance) if found.invariance else "",
        threshold=_threshold(run),
    )


def _decides(run: Account) -> bool:
    """Whether the task has right and wrong answers; a regression has more and less."""
    task = run.recipe.get("task")
    kind = task.get("kind") if isinstance(task, Mapping) else None
    metrics = {comparison.metric for comparison in run.evidence.comparisons}
    return kind != "regression" and not metrics & {"rmse", "mae", "r2"}


def _threshold(run: Account) -> str:
    if run.threshold is None:
        return ""
    reason = text.sentence(run.threshold.reason, 400)
    fixed = (
        f"The operating threshold, {text.significant(run.threshold.threshold)}, is the same for every model."
    )
    return f"{reason} {fixed}".strip()


def _invariance(found: Invariance) -> str:
    flipped = [f"{text.count(n)} with {text.clean(way, 40)}" for way, n in found.changed.items() if n]
    sizes, threads = (_listed([text.count(x) for x in xs[:12]]) for xs in (found.batch_sizes, found.threads))
    ways = f"in batches of {sizes} and with {threads} threads"
    cases = text.plural(found.cases, "case")
    alike = f"all of {cases} are decided alike {ways}"
    said = f"of {cases}, asked {ways}, {_listed(flipped[:12])} are decided differently" if flipped else alike
    differ = f"its numbers differ by {text.significant(found.max_abs_error, 2)} at most"
    return f"However the file is asked: {said}; {differ}.{_mixing(found)}"


def _mixing(found: Invariance) -> str:
    if not found.batch_statistics:
        return ""
    named = _listed([text.clean(name, 80) for name in found.batch_statistics[:5]])
    more = len(found.batch_statistics) - 5
    rest = f" (and {more} more)" if more > 0 else ""
    return f" These nodes compute over the whole batch: {named}{rest}."


def _listed(parts: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]])) or text.ABSENT


def reservations(run: Account) -> Iterator[Caution]:
    """What qualifies the verdict: an override, an earlier look at the test split, a harm nobody asked for."""
    notes = list(run.verdict.notes if run.verdict else ())
    if override(run) and not any(note.startswith(OVERRIDE) for note in notes):
        notes.insert(0, override(run))
    looks = [look for opened in run.opened for look in opened.earlier]
    grouped: dict[str, list[str]] = {}
    for note in notes:
        grouped.setdefault(_title(note), []).append(text.sentence(note, 1500))
    if looks:
        grouped.setdefault(_TITLES[_LOOKED], [])
    for title, said in grouped.items():
        yield _reservation(title, said, looks if title == _TITLES[_LOOKED] else [])


def _title(note: str) -> str:
    return next((title for mark, title in _TITLES.items() if mark in note), _GENERAL)


def _reservation(title: str, said: list[str], looks: list[Opening]) -> Caution:
    """One note is the text; several are its list, as are earlier looks."""
    items = [*(said if len(said) > 1 else []), *(_look(look) for look in looks)]
    more = [f"and {len(items) - _MAX_ITEMS} more"] if len(items) > _MAX_ITEMS else []
    return Caution(
        title=title,
        text=said[0] if len(said) == 1 else "This qualifies the verdict above.",
        items=(*items[:_MAX_ITEMS], *more),
    )


def _look(look: Opening) -> str:
    words = f"{text.when(look.at)} – {look.purpose} of {look.by}, {text.plural(look.cases, 'case')}"
    return text.clean(words, 240)

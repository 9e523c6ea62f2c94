"""What is read first: the verdict, why, what was gained, and each limit that was held against it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pastille.report.text as text
from pastille.report.account import Account
from pastille.report.checks import Checks, Tone, check_row, checks, weight
from pastille.values import Check, Speedup, Verdict

Standing = Literal["approved", "rejected", "inconclusive", "unfinished"]

_WORDS: dict[Standing, str] = {
    "approved": "Approved",
    "rejected": "Rejected",
    "inconclusive": "Inconclusive",
    "unfinished": "Not finished",
}
_VARIANTS = {
    "int8": "the int8 model",
    "int4": "the int4 model",
    "fp16": "the fp16 model",
    "bf16": "the bf16 model",
    "compressed": "the compressed float model",
    "fp32": "the unchanged fp32 model",
}
_MAX_DROPS = 3
_MAX_REASONS = 4
_MAX_SERVES = 400  # characters
OVERRIDE = "Override by "  # how the note of one begins


@dataclass(frozen=True, kw_only=True)
class Gain:
    """One headline number."""

    value: str
    what: str
    detail: str
    tone: Tone


@dataclass(frozen=True, kw_only=True)
class Banner:
    """The verdict of the run, in words."""

    standing: Standing
    word: str
    reason: str
    reasons: tuple[str, ...]  # of a verdict with very many; else all are in ``reason``
    headline: str  # the gains in one sentence; empty where none were measured
    gains: tuple[Gain, ...]
    gains_title: str
    serves: str  # empty before the final verdict
    serves_reason: str
    meaning: str
    judged_on: str  # "the test split", and what was judged elsewhere
    override: str  # who loosened what the tier permits; empty where nobody did
    checks: Checks


def banner(run: Account) -> Banner:
    """What the top of the page says."""
    verdict = run.final.verdict if run.final else None
    standing: Standing = verdict.status.value if verdict else "unfinished"
    gains = tuple(_gains(run))
    held = verdict.checks if verdict else ()
    return Banner(
        standing=standing,
        word=_WORDS[standing],
        reason=_reason(verdict) if verdict else _how_far(run),
        reasons=_reasons(held) if _many(held) else (),
        headline=", ".join(_spoken(gain) for gain in gains),
        gains=gains,
        gains_title=_gains_title(run, standing),
        serves=_serves(run),
        serves_reason=text.sentence(run.final.selection_reason, _MAX_SERVES) if run.final else "",
        meaning=_meaning(standing, held, _cases_judged(run)),
        judged_on=_judged_on(verdict) if verdict else "",
        override=override(run),
        checks=checks(held),
    )


def _reason(verdict: Verdict) -> str:
    """As the gate gave it, without the notes at its end, which are warnings; of very many, how many."""
    if not _many(verdict.checks):
        tail = "; " + "; ".join(verdict.notes)
        return text.sentence(verdict.reason.removesuffix(tail) if verdict.notes else verdict.reason, 2500)
    counts = Counter(check.status.value for check in verdict.checks)
    told = [f"{text.count(counts[name])} {name}" for name in ("rejected", "inconclusive", "approved")]
    listed = ", ".join(words for words in told if not words.startswith("0 "))
    total = text.count(len(verdict.checks))
    return f"Of {total} checks on {_judged_on(verdict)}: {listed}. First of all:"


def _judged_on(verdict: Verdict) -> str:
    """Stress and invariance are always asked of validation cases."""
    elsewhere = {
        "stress": any("perturbation" in check.where for check in verdict.checks),
        "invariance": any(check.metric == "invariance" for check in verdict.checks),
    }
    named = " and ".join(name for name, held in elsewhere.items() if held)
    aside = f" ({named} on the validation split)" if named and verdict.split != "validation" else ""
    return f"the {verdict.split} split{aside}"


def _cases_judged(run: Account) -> str:
    """Whose answers the verdict rests on."""
    split = run.verdict.split if run.verdict else ""
    if split == "test" and run.stages:
        return "cases that no stage had seen"
    return f"the cases of the {split} split" if split else "the cases"


def _many(held: Sequence[Check]) -> bool:
    return len(held) > _MAX_REASONS


def _reasons(held: Sequence[Check]) -> tuple[str, ...]:
    return tuple(text.sentence(check.reason, 600) for check in sorted(held, key=weight)[:_MAX_REASONS])


def override(run: Account) -> str:
    """Who took it upon themselves to be looser than the tier, and why; empty where nobody did."""
    notes = run.verdict.notes if run.verdict else ()
    asked = run.requirements.get("override")
    said = next((note for note in notes if note.startswith(OVERRIDE)), "")
    if not said and isinstance(asked, Mapping):
        said = f"{OVERRIDE}{asked.get('by', text.ABSENT)}. Reason given: {asked.get('reason', text.ABSENT)}"
    return text.sentence(said, 1500)


def _how_far(run: Account) -> str:
    planned = len(run.recipe.get("plan") or ())
    stages = f"{len(run.stages)} of {text.plural(planned, 'planned stage')} done"
    begun = stages if run.baseline else "the baseline has not been measured yet"
    tested = (
        "the test split was opened but nothing was judged on it"
        if run.opened
        else "the test split is unopened"
    )
    return f"This run has no final verdict: {begun}, and {tested}. Nothing on this page is an approval."


def _serves(run: Account) -> str:
    if run.final is None:
        return ""
    return _VARIANTS.get(run.final.selected, "")


def _gains_title(run: Account, standing: Standing) -> str:
    if standing == "unfinished":
        return "Measured so far, on validation"
    if run.final and run.final.selected == "fp32":
        return "What the judged candidate measured; it is not what is served"
    return "What changed"


def _gains(run: Account) -> Iterator[Gain]:
    if run.before and run.after and run.after.bytes_on_disk and run.before.bytes_on_disk:
        yield _size_gain(run.before.bytes_on_disk, run.after.bytes_on_disk)
    if run.speedup:
        yield _speed_gain(run.speedup)
    held = run.verdict.checks if run.verdict else ()
    drops = [check for check in held if check.drop is not None and not check.where]
    yield from (_drop_gain(check) for check in drops[:_MAX_DROPS])


def _size_gain(before: int, after: int) -> Gain:
    smaller = after <= before
    ratio = before / after if smaller else after / before
    return Gain(
        value=text.times(ratio),
        what="smaller" if after < before else "larger" if after > before else "the same size",
        detail=f"{text.size(before)} → {text.size(after)}",
        tone="good" if after < before else "bad" if after > before else "plain",
    )


def pace(speedup: Speedup) -> tuple[str, Tone]:
    """Whether a speedup is one, in a word; an interval that holds 1 shows no difference.

    A model that is slower is called slower, however small it is.
    """
    if speedup.faster:
        return "faster", "good"
    if speedup.slower:
        return "slower", "bad"
    return "no difference shown", "unsure"


def paired_medians(speedup: Speedup) -> str:
    """The medians of the calls that a ratio is from, before and after, where they were kept."""
    if speedup.baseline_ms is None or speedup.candidate_ms is None:
        return ""
    return f"{text.milliseconds(speedup.baseline_ms)} → {text.milliseconds(speedup.candidate_ms)}"


def _speed_gain(speedup: Speedup) -> Gain:
    word, tone = pace(speedup)
    what = word if word == "faster" else f"the speed: {word}"
    medians = paired_medians(speedup)
    span = f"{text.confidence(speedup.interval.confidence)} CI {text.ratio_span(speedup.interval)}"
    return Gain(
        value=text.times(speedup.ratio),
        what=f"{what} at batch {text.count(speedup.batch)}",
        detail=f"{span}; {medians}" if medians else span,
        tone=tone,
    )


def _drop_gain(check: Check) -> Gain:
    row = check_row(check)
    known = f"{row.interval}; " if row.interval else ""
    return Gain(
        value=row.drop,
        what=f"{row.metric} drop",
        detail=f"{known}limit {text.drop_limit(check.metric, check.limit)}",
        tone=row.tone,
    )


def _spoken(gain: Gain) -> str:
    if gain.what.endswith(" drop"):
        return f"{gain.what} {gain.value} ({gain.detail})"
    span = gain.detail.partition(";")[0]
    return f"{gain.value} {gain.what}" + (f" ({span})" if "CI" in span else "")


def _meaning(standing: Standing, checks: tuple[Check, ...], cases: str) -> str:
    more = max((check.more_cases or 0 for check in checks), default=0)
    enough = f" About {text.count(more)} more labelled cases would probably decide." if more else ""
    return {
        "approved": (
            f"Approved means that the exported file itself was held against every limit above, on {cases}. "
            "For each drop the whole confidence interval lies within its limit: not only the measured drop, "
            "but every drop that the data leave plausible."
        ),
        "rejected": (
            "Rejected means that a requirement is broken: a drop that is beyond its limit, a size or latency "
            "above what was asked, or a technique that the risk tier does not permit. The compressed model "
            "must not be used under these requirements; loosening a limit after seeing this result would "
            "void the test."
        ),
        "inconclusive": (
            "Inconclusive is not an approval, and is treated like a rejection. The interval of at least one "
            "drop reaches across its limit: the loss may be tolerable or not, and these cases are too few to "
            f"tell.{enough} Otherwise compress less, so that the two models disagree on fewer cases."
        ),
        "unfinished": (
            "Stages are judged on the validation split only, to decide whether to go on. The verdict comes "
            "last, from the test split, which is opened once."
        ),
    }[standing]

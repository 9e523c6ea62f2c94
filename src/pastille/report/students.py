"""What a distillation came to: its teachers, its students, and what teaching was worth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import pastille.report.text as text
from pastille.report.checks import Tone
from pastille.values import Estimate, Interval, StudentTaught, TeacherSeen

_MAX_ROWS = 8
_MAX_GROUPS = 6

LearnedKind = Literal["teacher", "taught", "scratch", "gain"]


@dataclass(frozen=True, kw_only=True)
class TeacherRow:
    """One teacher, as it was before it taught."""

    name: str
    parameters: str
    metric: str
    span: str
    ece: str
    worse: str  # the groups that it is worse on, and by how much; empty where it is on none


@dataclass(frozen=True, kw_only=True)
class StudentRow:
    """One student."""

    name: str
    teachers: str  # with their weights, where there are several
    parameters: str
    share: str  # of its largest teacher
    metric: str
    span: str
    scratch: str  # the same student without a teacher
    scratch_span: str
    gain: str
    gain_span: str
    tone: Tone
    asked: str


@dataclass(frozen=True, kw_only=True)
class LearnedMark:
    """One row of a plot, in the unit that is printed."""

    label: str
    kind: LearnedKind
    value: float
    low: float | None
    high: float | None
    tone: Tone
    printed: str
    words: str  # the same, to be read aloud


@dataclass(frozen=True, kw_only=True)
class LearnedPanel:
    """Rows that share an axis."""

    title: str
    rows: tuple[LearnedMark, ...]
    low: float
    high: float
    from_zero: bool  # whether zero is a line of its own


@dataclass(frozen=True, kw_only=True)
class Students:
    """A distillation."""

    metric: str
    teachers: tuple[TeacherRow, ...]
    rows: tuple[StudentRow, ...]
    more: int
    compared: bool  # whether a student was trained on the labels alone too
    panels: tuple[LearnedPanel, ...]
    inherits: bool  # whether a teacher is worse on a group, which its student will learn
    verdict: str  # what teaching was worth, in a sentence; empty where it was not compared


def students(found: Sequence[StudentTaught]) -> Students | None:
    """Arrange what a distillation came to.

    Args:
        found: The students, in the order they were taught.

    Returns:
        None where none was taught.
    """
    if not found:
        return None
    shown, teachers = found[:_MAX_ROWS], _teachers(found)
    return Students(
        metric=text.metric_name(found[-1].metric),
        teachers=tuple(_teacher_row(teacher) for teacher in teachers),
        rows=tuple(_student_row(student) for student in shown),
        more=len(found) - len(shown),
        compared=any(student.scratch is not None for student in shown),
        panels=tuple(_panels(shown, teachers)),
        inherits=any(teacher.worse for teacher in teachers),
        verdict=_verdict(found[-1]),
    )


def _teachers(found: Sequence[StudentTaught]) -> tuple[TeacherSeen, ...]:
    """Each once, however many students it taught."""
    named = {teacher.name: teacher for student in reversed(found) for teacher in reversed(student.teachers)}
    return tuple(reversed(list(named.values())))[:_MAX_ROWS]


def _teacher_row(teacher: TeacherSeen) -> TeacherRow:
    metric, span = text.estimate(teacher.metric, teacher.estimate)
    return TeacherRow(
        name=text.clean(teacher.name, 60),
        parameters=text.amount(teacher.parameters),
        metric=metric,
        span=span,
        ece=text.fixed(teacher.ece, 3),
        worse="; ".join(_groups(teacher)),
    )


def _groups(teacher: TeacherSeen) -> Iterator[str]:
    worst = sorted(teacher.worse.items(), key=lambda item: -item[1])
    for group, by in worst[:_MAX_GROUPS]:
        yield f"{text.attribute_name(group)} (by {text.drop(teacher.metric, by)})"
    if len(worst) > _MAX_GROUPS:
        yield f"and {len(worst) - _MAX_GROUPS} more"


def _student_row(student: StudentTaught) -> StudentRow:
    metric, span = text.estimate(student.metric, student.estimate)
    scratch, scratch_span = text.estimate(student.metric, student.scratch)
    gain = _gain(student)
    return StudentRow(
        name=text.clean(student.name, 60),
        teachers=", ".join(_weighed(student.teachers[:_MAX_ROWS])),
        parameters=text.amount(student.parameters),
        share=f"{text.significant(100 * student.share, 2)}{text.UNIT_SPACE}%",
        metric=metric,
        span=span,
        scratch=scratch,
        scratch_span=scratch_span,
        gain=text.drop(student.metric, gain) if gain is not None else "",
        gain_span=text.drop_span(student.metric, student.gain),
        tone=_tone(student.gain),
        asked=text.clean(student.asked, 120),
    )


def _weighed(teachers: Sequence[TeacherSeen]) -> Iterator[str]:
    for teacher in teachers:
        weight = f" ({text.fixed(100 * teacher.weight, 0)}{text.UNIT_SPACE}%)" if len(teachers) > 1 else ""
        yield f"{text.clean(teacher.name, 40)}{weight}"


def _gain(student: StudentTaught) -> float | None:
    """How much better the taught one is, whichever way the metric points."""
    if student.scratch is None:
        return None
    sign = -1 if text.lower_is_better(student.metric) else 1
    return sign * (student.estimate.value - student.scratch.value)


def _tone(gain: Interval | None) -> Tone:
    """An interval that holds zero shows nothing."""
    if gain is None:
        return "plain"
    return "good" if gain.low > 0 else "bad" if gain.high < 0 else "unsure"


def _verdict(student: StudentTaught) -> str:
    gain = _gain(student)
    if gain is None:
        return ""
    name, metric = text.clean(student.name, 60), text.metric_name(student.metric)
    same = "the same student, trained on the labels alone from the same start"
    match _tone(student.gain):
        case "good":
            return text.sentence(
                f"{name}: its {metric} is {text.drop(student.metric, gain)} better than that of {same}"
            )
        case "bad":
            return text.sentence(
                f"{name}: its {metric} is {text.drop(student.metric, -gain)} worse than that of {same}"
            )
        case _:
            return text.sentence(f"{name}: these cases do not show that it is better or worse than {same}")


def _panels(shown: Sequence[StudentTaught], teachers: Sequence[TeacherSeen]) -> Iterator[LearnedPanel]:
    metric = shown[-1].metric
    unit = ", %" if text.is_share(metric) else ""
    taught = {
        f"student {student.name}" for student in shown
    }  # of those that teach the next one, once is enough
    apart = [t for t in teachers if t.metric == metric and t.name not in taught]
    marks = [_model_mark(t.name, "teacher", metric, t.estimate) for t in apart]
    for student in shown:
        marks.append(_model_mark(student.name, "taught", metric, student.estimate))
        if student.scratch is not None:
            marks.append(_model_mark(student.name, "scratch", metric, student.scratch))
    yield panel_of(f"{text.metric_name(metric)} on validation{unit}", marks, from_zero=False)
    gains = [mark for student in shown for mark in _gain_mark(student)]
    if gains:
        points = ", points" if text.is_share(metric) else ""
        yield panel_of(f"better than on the labels alone{points} →", gains, from_zero=True)


def _model_mark(name: str, kind: LearnedKind, metric: str, found: Estimate) -> LearnedMark:
    said = {"teacher": "teacher", "taught": "taught", "scratch": "on labels alone"}[kind]
    value, span = text.estimate(metric, found)
    shown = text.clean(name, 40)
    ends = _ends(found.interval, text.scale(metric))
    return LearnedMark(
        label="the same, labels alone" if kind == "scratch" else shown,  # stands below it
        kind=kind,
        value=found.value * text.scale(metric),
        low=ends[0],
        high=ends[1],
        tone="plain",
        printed=value,
        words=f"{shown}, {said}: {value}{f' ({span})' if span else ''}",
    )


def _gain_mark(student: StudentTaught) -> Iterator[LearnedMark]:
    gain = _gain(student)
    if gain is None:
        return
    ends = _ends(student.gain, text.scale(student.metric))
    printed = text.bare_drop(student.metric, gain)
    yield LearnedMark(
        label=text.clean(student.name, 40),
        kind="gain",
        value=gain * text.scale(student.metric),
        low=ends[0],
        high=ends[1],
        tone=_tone(student.gain),
        printed=printed,
        words=f"{text.clean(student.name, 40)}: {printed} ({text.drop_span(student.metric, student.gain)})",
    )


def _ends(interval: Interval | None, factor: float) -> tuple[float | None, float | None]:
    if interval is None or not all(map(math.isfinite, (interval.low, interval.high))):
        return None, None
    return interval.low * factor, interval.high * factor


def panel_of(title: str, marks: Sequence[LearnedMark], *, from_zero: bool) -> LearnedPanel:
    """Rows on an axis that is wide enough for all of their intervals.

    Args:
        title: Of the axis.
        marks: The rows; those that are not finite are left out.
        from_zero: Whether zero is on the axis.
    """
    sound = [mark for mark in marks if math.isfinite(mark.value)]
    ends = [x for mark in sound for x in (mark.value, mark.low, mark.high) if x is not None]
    low, high = (
        (min([0.0, *ends]), max([0.0, *ends])) if from_zero else (min(ends, default=0), max(ends, default=1))
    )
    pad = 0.06 * (high - low) or 0.5
    return LearnedPanel(title=title, rows=tuple(sound), low=low - pad, high=high + pad, from_zero=from_zero)

"""Where the numbers come from: data, conditions, the course of the run, and how to do it again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import yaml

import pastille.report.text as text
from pastille.record import (
    Ablated,
    BaselineProfiled,
    BundleWritten,
    Environment,
    Event,
    FinalJudged,
    Record,
    Resumed,
    SplitSummary,
    StageFinished,
    Started,
    TaskLoaded,
    TestOpened,
    ThresholdChosen,
)
from pastille.report.account import Account
from pastille.values import Preprocessing, TensorSpec

_MAX_RECIPE = 16_000
_MAX_COUNT_ROWS = 40
_MAX_TABLES = 12
_MAX_EVENTS = 40
_MAX_LEAKS = 20

Facts = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class CountRow:
    """One class or group, over the splits."""

    label: str
    cells: tuple[tuple[str, str], ...]  # (cases, share) per split


@dataclass(frozen=True, kw_only=True)
class CountTable:
    """How the cases of each split divide."""

    title: str
    rows: tuple[CountRow, ...]
    more_rows: int


@dataclass(frozen=True, kw_only=True)
class Data:
    """The data, without its rows."""

    splits: tuple[str, ...]
    sizes: tuple[tuple[str, str], ...]  # (cases, subjects) per split
    has_subjects: bool
    counts: tuple[CountTable, ...]
    facts: Facts
    openings: Facts  # (time, reason)
    leakage: tuple[str, ...]
    more_leakage: int


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Conditions, course and recipe."""

    machine: Facts
    software: Facts
    run: Facts
    course: Facts  # (time, what happened)
    more_course: int
    recipe: str
    recipe_cut: bool
    commands: tuple[tuple[str, str], ...]  # (command, what it does)


def data(run: Account) -> Data:
    """The splits, what is in them, and every opening of the test split."""
    loaded = run.loaded
    splits = loaded.splits if loaded else {}
    leakage = loaded.leakage if loaded else ()
    return Data(
        splits=tuple(text.clean(name, 40) for name in splits),
        sizes=tuple((text.count(s.n), text.count(s.subjects)) for s in splits.values()),
        has_subjects=any(s.subjects is not None for s in splits.values()),
        counts=tuple(_count_tables(splits)),
        facts=tuple(_data_facts(run.loaded)) if run.loaded else (),
        openings=tuple((text.when(o.at), text.clean(o.reason, 400)) for o in run.opened),
        leakage=tuple(text.clean(pair, 200) for pair in leakage[:_MAX_LEAKS]),
        more_leakage=max(0, len(leakage) - _MAX_LEAKS),
    )


def _count_tables(splits: Mapping[str, SplitSummary]) -> Iterator[CountTable]:
    if any(split.classes for split in splits.values()):
        yield _count_table("class", [(s.n, s.classes) for s in splits.values()])
    names = list(dict.fromkeys(name for split in splits.values() for name in split.groups))
    for name in names[:_MAX_TABLES]:
        title = text.clean(name, 60).replace("_", " ")
        yield _count_table(title, [(s.n, s.groups.get(name, {})) for s in splits.values()])


def _count_table(title: str, splits: list[tuple[int, Mapping[str, int]]]) -> CountTable:
    labels = list(dict.fromkeys(label for _, counts in splits for label in counts))
    if title != "class":
        labels.sort(key=text.group_order)
    rows = tuple(
        CountRow(
            label=text.clean(label, 80) or "(empty)",
            cells=tuple(_cases(counts.get(label, 0), n) for n, counts in splits),
        )
        for label in labels[:_MAX_COUNT_ROWS]
    )
    return CountTable(title=title, rows=rows, more_rows=max(0, len(labels) - _MAX_COUNT_ROWS))


def _cases(cases: int, n: int) -> tuple[str, str]:
    return text.count(cases), f"{text.fixed(100 * cases / n, 1)}{text.UNIT_SPACE}%" if n else ""


def _data_facts(loaded: TaskLoaded) -> Iterator[tuple[str, str]]:
    yield "inputs", "; ".join(_tensor(spec) for spec in loaded.inputs) or text.ABSENT
    yield "prepared by", _preparation(loaded.preprocessing)
    yield "data digest (SHA-256 over every input and target)", text.clean(loaded.data_digest, 80)
    if loaded.model_digest:
        yield "model digest (SHA-256 over every tensor, as brought)", text.clean(loaded.model_digest, 80)


def _tensor(spec: TensorSpec) -> str:
    shape = " × ".join(str(size) for size in spec.shape) or "scalar"
    return f"{text.clean(spec.name, 60)}: {shape}, {text.clean(spec.dtype, 20)}"


def _preparation(preprocessing: Preprocessing | None) -> str:
    if preprocessing is None:
        return "nothing: inputs are fed as they are"
    steps = []
    if preprocessing.image:
        image = preprocessing.image
        steps.append(f"decode to {image.channels} × {image.height} × {image.width}, {image.resize} resize")
    steps += _decoded(preprocessing)
    if preprocessing.normalization:
        mean, std = (
            ", ".join(f"{x:.4g}" for x in values[:8])
            for values in (preprocessing.normalization.mean, preprocessing.normalization.std)
        )
        steps.append(f"(x − mean) / std with mean {mean} and std {std}")
    return "; ".join(steps) or "nothing: inputs are fed as they are"


def _decoded(preprocessing: Preprocessing) -> Iterator[str]:
    if preprocessing.signal:
        signal = preprocessing.signal
        yield (
            f"windows of {signal.samples} samples of {len(signal.channels)} channels at {signal.rate_hz:g} "
            f"per second, in {text.clean(signal.unit, 20)}"
        )
    if preprocessing.table:
        yield f"{len(preprocessing.table.columns)} columns of a row, encoded"
    if preprocessing.text:
        name = text.clean(preprocessing.text.tokenizer, 60)
        yield f"{preprocessing.text.length} tokens by {name}"


def origin(run: Account, record: Record) -> Origin:
    """Everything that a second run needs, and what came to pass in this one."""
    recipe, cut = recipe_yaml(run.recipe)
    course = [(text.when(event.at), _told(event)) for event in record.events]
    return Origin(
        machine=tuple(_machine(run.started.environment)) if run.started else (),
        software=tuple(_software(run.started.environment)) if run.started else (),
        run=tuple(_run_facts(run, record)),
        course=tuple(course[:_MAX_EVENTS]),
        more_course=max(0, len(course) - _MAX_EVENTS),
        recipe=recipe,
        recipe_cut=cut,
        commands=tuple(_commands(run)),
    )


def _machine(environment: Environment) -> Iterator[tuple[str, str]]:
    where = environment.machine
    yield "device", text.clean(where.device, 120)
    yield "widest int8 path (ISA)", text.clean(where.isa, 60)
    yield "threads", f"{text.count(where.threads)} of {text.plural(where.cores, 'usable core')}"
    yield "runtime", text.clean(f"{where.runtime} {where.runtime_version}", 80)
    yield "operating system", text.clean(where.os, 120)


def _software(environment: Environment) -> Iterator[tuple[str, str]]:
    yield "pastille", text.clean(environment.pastille, 40)
    yield "Python", text.clean(environment.python, 40)
    yield "platform", text.clean(environment.platform, 120)
    for name, version in list(environment.packages.items())[:30]:
        yield text.clean(name, 40), text.clean(version, 40)


def _run_facts(run: Account, record: Record) -> Iterator[tuple[str, str]]:
    yield "name", text.clean(run.name, 80)
    if run.started:
        yield "recipe hash", text.clean(run.started.recipe_hash, 80)
    yield "seed", text.clean(run.recipe.get("seed", text.ABSENT), 40)
    requirements = run.recipe.get("requirements")
    if isinstance(requirements, Mapping) and "risk" in requirements:
        yield "risk tier", text.clean(requirements["risk"], 40)
    yield "target", text.clean(run.recipe.get("target", text.ABSENT), 80)
    its_own = [event for event in record.events if not isinstance(event, Ablated)]
    if len(its_own) > 1:
        yield "lasted", _span(its_own[0].at, its_own[-1].at) + _interruptions(run)
    for variant, seen in list(run.final.validated.items())[:4] if run.final else ():
        words = "; ".join(one.words for one in seen[:8])
        yield f"{text.clean(variant, 20)} decides on", text.clean(words, 300)
    if run.bundle:
        yield "bundle content (SHA-256)", text.clean(run.bundle.content, 80)


def _interruptions(run: Account) -> str:
    return f", resumed {text.plural(len(run.resumed), 'time')}" if run.resumed else ""


def _span(first: str, last: str) -> str:
    try:
        seconds = (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds()
    except (ValueError, TypeError):  # the record is not trusted to hold times that agree
        return text.ABSENT
    return text.duration(seconds)


def _told(event: Event) -> str:
    match event:
        case Started():
            return "run started"
        case Resumed():
            where = event.environment
            return text.clean(f"resumed after an interruption, on {where.machine.device}", 160)
        case TaskLoaded():
            return "model and data loaded and checked"
        case BaselineProfiled():
            return "baseline exported and measured"
        case ThresholdChosen():
            return f"operating threshold {event.threshold:.4g} chosen on validation"
        case StageFinished():
            fate = "kept" if event.kept else "dropped"
            name = text.clean(event.name, 40)
            return (
                f"stage {event.index} {name}: {event.verdict.status.value} on {event.verdict.split}, {fate}"
            )
        case TestOpened():
            return f"test split opened: {text.clean(event.reason, 200)}"
        case FinalJudged() | BundleWritten() | Ablated():
            return _told_last(event)


def _told_last(event: FinalJudged | BundleWritten | Ablated) -> str:
    match event:
        case FinalJudged():
            return f"judged on the test split: {event.verdict.status.value}"
        case BundleWritten():
            return f"bundle written to {text.clean(event.path, 120)}"
        case Ablated():
            return _left_out(event)


def _left_out(event: Ablated) -> str:
    stage = text.clean(event.left_out.stage, 60)
    return f"carried out without {stage}, on validation" if stage else "taken apart, on validation"


def recipe_yaml(asked: Mapping[str, Any]) -> tuple[str, bool]:
    r"""The recipe as YAML, and whether it was too long to be shown whole.

    Example:
        >>> recipe_yaml({"name": "digits", "plan": [{"quantize": {}}]})
        ('name: digits\nplan:\n- quantize: {}\n', False)
    """
    plain = json.loads(json.dumps(dict(asked), default=str))
    written = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100) if plain else ""
    return text.clean(written, _MAX_RECIPE), len(written) > _MAX_RECIPE


def _commands(run: Account) -> Iterator[tuple[str, str]]:
    bundle = text.clean(run.bundle.path, 120).rstrip("/") if run.bundle else "bundle"
    yield "pastille run recipe.yaml", "carry out this recipe again (saved from below)"
    if not run.final:
        yield "pastille run recipe.yaml --resume", "go on where this run ended"
    if run.final and len(run.stages) > 1:
        yield (
            "pastille ablate recipe.yaml",
            "what each stage contributed: the plan without one after the other",
        )
    yield f"pastille verify {bundle}", "check the bundle’s hashes and replay its golden cases"
    yield f"pastille bench {bundle}", "time it on another machine"
    yield "pastille report .", "write this page again, in the folder that holds run.json"

"""What pruning left of each layer: its width, parameters and MACs, or why it was left whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import pastille.report.text as text
from pastille.record import StageDetails, WidthChange
from pastille.values import LayerCost, Profile

_FOLDED_FROM = 40  # layers of one stage: more are grouped by the block that they stand in
_REST = "all others"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One figure before and after, for a bar."""

    before: int
    after: int
    words: str


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One layer, or a block that was left out."""

    module: str
    kind: str  # "channels", "heads", "blocks"; empty for a layer whose width is not known
    width: Pair | None
    removed: str
    note: str  # e.g. why the width is not rounded as asked
    why: str  # it was left whole
    parameters: Pair | None
    macs: Pair | None


@dataclass(frozen=True, kw_only=True)
class LayerBlock:
    """Layers of one block of the network."""

    name: str
    words: str
    bar: Pair | None  # what is left of its multiply-accumulates; where they are not known, of its channels
    rows: tuple[LayerRow, ...]  # bounded
    more: int


@dataclass(frozen=True, kw_only=True)
class Layers:
    """All layers of one stage."""

    blocks: tuple[LayerBlock, ...]  # one without a name where the layers are few
    widest: Mapping[str, int]  # kind -> the longest bar
    dearest: int  # the longest bar of multiply-accumulates
    largest: int  # the longest bar of a block
    with_costs: bool  # whether parameters and MACs are known layer by layer


def layers(details: StageDetails, before: Profile | None, after: Profile, most: int) -> Layers | None:
    """Arrange what a pruning stage did, in the order of the network.

    Args:
        details: Of the stage.
        before: The file that the stage began with.
        after: Its own.
        most: Layers that are listed; the sums of blocks are over all.

    Returns:
        None for a stage that removed nothing.
    """
    if not details.widths:
        return None
    costs = _costs(before, after)
    rows = [_row(name, *_facts(name, details), costs.get(name)) for name in _order(details, costs)]
    widest: dict[str, int] = {}
    for row in rows:
        widest[row.kind] = max(widest.get(row.kind, 1), row.width.before if row.width else 1)
    blocks = tuple(_blocks(rows, most))
    return Layers(
        blocks=blocks,
        largest=max([1, *(block.bar.before for block in blocks if block.bar)]),
        widest=widest,
        dearest=max([1, *(row.macs.before for row in rows if row.macs)]),
        with_costs=bool(costs),
    )


def _costs(before: Profile | None, after: Profile) -> Mapping[str, tuple[LayerCost, LayerCost]]:
    """Layer -> before and after; a layer that is gone costs nothing, and a file not looked at has none."""
    if before is None or not before.layers or not after.layers:
        return {}
    old, new = ({layer.name: layer for layer in profile.layers} for profile in (before, after))
    names = sorted(dict.fromkeys([*old, *new]), key=lambda name: not name)
    return {name: (old.get(name, _nothing(name)), new.get(name, _nothing(name))) for name in names}


def _nothing(name: str) -> LayerCost:
    return LayerCost(name=name, macs=0, parameters=0)


def _order(details: StageDetails, costs: Mapping[str, object]) -> list[str]:
    """As the file has its layers; a module that is none of them stands before its own, else last."""
    known = [name for name in costs if name]
    extra = [*(change.module for change in details.widths), *details.left_whole]
    ordered = [(_place(name, known), name) for name in dict.fromkeys([*known, *extra])]
    return [name for _, name in sorted(ordered, key=lambda item: item[0])] + ([""] if "" in costs else [])


def _place(name: str, known: list[str]) -> tuple[int, int]:
    first = next((i for i, other in enumerate(known) if f"{other}.".startswith(f"{name}.")), len(known))
    return first, 0 if first < len(known) and known[first] != name else 1


def _facts(name: str, details: StageDetails) -> tuple[WidthChange | None, str]:
    change = next((w for w in details.widths if w.module == name), None)
    return change, "" if change else details.left_whole.get(name, "")


def _row(
    name: str, change: WidthChange | None, why: str, cost: tuple[LayerCost, LayerCost] | None
) -> LayerRow:
    return LayerRow(
        module=text.clean(name, 80) or _REST,
        kind=change.kind if change else "",
        width=_pair(change.before, change.after, text.count) if change else None,
        removed=_removed(change),
        note=text.sentence(change.note, 100) if change else "",
        why=text.clean(why, 160),
        parameters=_pair(cost[0].parameters, cost[1].parameters, text.amount) if cost else None,
        macs=_pair(cost[0].macs, cost[1].macs, text.amount) if cost else None,
    )


def _pair(before: int, after: int, words: Callable[[int], str]) -> Pair:
    said = words(before) if before == after else f"{words(before)} → {words(after)}"
    return Pair(before=before, after=after, words=said)


def _removed(change: WidthChange | None) -> str:
    if change is None or not change.before:
        return text.ABSENT if change else ""
    if not change.after:
        return "left out"
    return f"{text.fixed(100 * (1 - change.after / change.before), 0)}{text.UNIT_SPACE}%"


def _blocks(rows: list[LayerRow], most: int) -> Iterator[LayerBlock]:
    grouped: dict[str, list[LayerRow]] = {}
    folded = len(rows) > _FOLDED_FROM
    for row in rows:
        grouped.setdefault(block_of(row.module) if folded else "", []).append(row)
    left = most
    for name, found in grouped.items():
        shown = found[: max(0, left)]
        left -= len(shown)
        more = len(found) - len(shown)
        yield LayerBlock(name=name, words=_summary(found), bar=_bar(found), rows=tuple(shown), more=more)


def _bar(rows: list[LayerRow]) -> Pair | None:
    costs = [row.macs for row in rows if row.macs]
    widths = [row.width for row in rows if row.kind == "channels" and row.width]
    found = costs or widths
    return _pair(*_sums(found), text.amount) if found else None


def block_of(module: str) -> str:
    """The block of the network that a layer stands in: its name up to the first part with a number.

    Example:
        >>> block_of("layer1.0.conv1"), block_of("encoder.layer.3.attention.self"), block_of("stem.conv")
        ('layer1', 'encoder.layer.3', 'stem')
    """
    parts = module.split(".")
    numbered = next((i for i, part in enumerate(parts) if any(c.isdigit() for c in part)), 0)
    return ".".join(parts[: numbered + 1])


def _summary(rows: list[LayerRow]) -> str:
    said = [text.plural(len(rows), "layer")]
    for kind in ("channels", "heads", "blocks"):
        widths = [row.width for row in rows if row.kind == kind and row.width]
        if widths:
            said.append(_sum_of_widths(widths, kind))
    if any(row.macs for row in rows):
        macs = _pair(*_sums(row.macs for row in rows if row.macs), text.amount)
        said.append(f"{macs.words} MACs")
    return ", ".join(said)


def _sums(pairs: Iterable[Pair]) -> tuple[int, int]:
    found = list(pairs)
    return sum(pair.before for pair in found), sum(pair.after for pair in found)


def _sum_of_widths(pairs: list[Pair], kind: str) -> str:
    before, after = _sums(pairs)
    if kind == "blocks":
        return f"{text.plural(before - after, 'block')} left out"
    return f"{text.count(before)} → {text.count(after)} {kind}"

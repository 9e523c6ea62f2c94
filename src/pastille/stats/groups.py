"""Who belongs to which demographic group, and to which intersection of two."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from pastille.errors import DataError
from pastille.values import Cases

MOST_GROUPS = 200  # of one attribute; more look like an id
UNKNOWN = "unknown"
_CROSS = " × "
_MISSING_LAST = frozenset({UNKNOWN, "nan", "none", "na", "n/a", "missing"})


@dataclass(frozen=True, kw_only=True)
class Group:
    """The cases of one group."""

    name: str  # "female", or "female × 65+"
    where: Mapping[str, str]  # {"sex": "female", "age_band": "65+"}
    rows: np.ndarray  # (n,) int64, ascending


def groups_of(cases: Cases, by: Sequence[str], *, intersections: bool = True) -> dict[str, tuple[Group, ...]]:
    """The groups of each attribute, and of every two.

    A missing value is a group like any other; an empty one is called ``unknown``, as the readers do.

    Args:
        cases: Whose ``groups`` hold the attributes.
        by: Attributes.
        intersections: Whether to add every two attributes, e.g. ``"sex × age_band"``.

    Returns:
        Attribute -> its groups that occur, in natural order ("<45", "45-64", ">=65"; missing ones last).

    Raises:
        DataError: An attribute does not exist, has not one entry per case, or has more than 200 groups.

    Example:
        >>> sex, age = np.array(["f", "m", "f"]), np.array([">=65", "<65", "<65"])
        >>> cases = Cases(kind="binary", split="test", targets=np.array([0, 1, 1]), labels=("a", "b"),
        ...               groups={"sex": sex, "age": age})
        >>> found = groups_of(cases, ["sex", "age"])
        >>> {name: [group.name for group in groups] for name, groups in found.items()}
        {'sex': ['f', 'm'], 'age': ['<65', '>=65'], 'sex × age': ['f × <65', 'f × >=65', 'm × <65']}
        >>> found["sex × age"][0].where, found["sex × age"][0].rows
        ({'sex': 'f', 'age': '<65'}, array([2]))
    """
    columns = {name: _coded(cases, name) for name in dict.fromkeys(by)}
    found = {
        name: _split((name,), [(value,) for value in values], codes)
        for name, (values, codes) in columns.items()
    }
    pairs = combinations(columns, 2) if intersections else ()
    return found | {_CROSS.join(pair): _cross(pair, columns) for pair in pairs}


def usable_attributes(cases: Cases) -> tuple[str, ...]:
    """Attributes that have at least two groups and not so many that they look like an id.

    Example:
        >>> cases = Cases(kind="binary", split="test", targets=np.zeros(300, int), labels=("a", "b"),
        ...               groups={"sex": np.tile(["f", "m"], 150), "case": np.arange(300).astype(str),
        ...                       "site": np.full(300, "north")})
        >>> usable_attributes(cases)
        ('sex',)
    """
    return tuple(name for name, column in cases.groups.items() if 2 <= len(np.unique(column)) <= MOST_GROUPS)


def natural_key(name: str) -> tuple[object, ...]:
    """Order names as a reader would: numbers by size, "<45" before "45-64", missing ones last.

    Example:
        >>> sorted(["unknown", "100-", "5-9", "10-99", "<5"], key=natural_key)
        ['<5', '5-9', '10-99', '100-', 'unknown']
    """
    below = re.match(r"\s*(<|≤|under |below )", name, re.IGNORECASE) is not None
    parts = re.split(r"([0-9]+(?:\.[0-9]+)?)", name.casefold().lstrip("<≤>≥= "))
    tokens = [(0, float(part), "") if i % 2 else (1, 0.0, part) for i, part in enumerate(parts) if part]
    return (name.casefold() in _MISSING_LAST, not below, tokens, name)


def _coded(cases: Cases, name: str) -> tuple[list[str], np.ndarray]:
    """The values of an attribute in natural order, and the number of each case's, ``(N,)``."""
    _check_attribute(cases, name)
    values, codes = np.unique(np.asarray(cases.groups[name]).astype(str), return_inverse=True)
    if len(values) > MOST_GROUPS:
        raise DataError(
            f"attribute {name!r} has {len(values)} groups, more than {MOST_GROUPS}: it looks like an id; "
            "name another, or cut a number into bands"
        )
    named = [str(value).strip() or UNKNOWN for value in values]
    ordered = sorted(set(named), key=natural_key)
    number = {value: index for index, value in enumerate(ordered)}
    return ordered, np.array([number[value] for value in named], np.int64)[codes]


def _check_attribute(cases: Cases, name: str) -> None:
    if name not in cases.groups:
        known = list(cases.groups)
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"the data has {', '.join(known) or 'none'}"
        raise DataError(f"fairness.by must name attributes of data.groups, got {name!r}; {hint}")
    if np.shape(cases.groups[name]) != np.shape(cases.targets)[:1]:
        raise DataError(
            f"attribute {name!r} must have one entry per case, got {np.shape(cases.groups[name])} for "
            f"{len(cases.targets)} cases"
        )


def _cross(pair: tuple[str, str], columns: Mapping[str, tuple[list[str], np.ndarray]]) -> tuple[Group, ...]:
    """The groups that two attributes make together."""
    (firsts, first), (seconds, second) = (columns[name] for name in pair)
    occurring, codes = np.unique(first * len(seconds) + second, return_inverse=True)
    if len(occurring) > MOST_GROUPS:
        raise DataError(
            f"attributes {pair[0]!r} and {pair[1]!r} have {len(occurring)} intersections, more than "
            f"{MOST_GROUPS}: cut them into coarser bands, or set fairness.intersections to false"
        )
    values = [(firsts[code // len(seconds)], seconds[code % len(seconds)]) for code in occurring]
    return _split(pair, values, codes)


def _split(
    attributes: tuple[str, ...], values: Sequence[tuple[str, ...]], codes: np.ndarray
) -> tuple[Group, ...]:
    """Sort the rows by group once, and cut."""
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=len(values)))[:-1]
    return tuple(
        Group(name=_CROSS.join(value), where=dict(zip(attributes, value, strict=True)), rows=rows)
        for value, rows in zip(values, np.split(order, ends), strict=True)
    )

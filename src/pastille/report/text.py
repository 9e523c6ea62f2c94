"""Numbers and untrusted words, as the report prints them.

Lengths of time have three significant digits, sizes an SI prefix, shares one decimal of a percent and
their differences percentage points. A true minus sign is used, and a dash where nothing was measured.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence

from pastille import vocabulary
from pastille.values import Estimate, Interval

ABSENT = "–"
MINUS = "−"
_TINY, _HUGE = 1e-9, 1e15  # outside of these, digits are not read but counted
UNIT_SPACE = "\N{NARROW NO-BREAK SPACE}"


def clean(text: object, limit: int = 2000) -> str:
    r"""Text of the record made fit to print: no control or direction characters, bounded in length.

    Args:
        text: Anything; untrusted.
        limit: Characters kept at most.

    Example:
        >>> clean("a\x00b\u202ec", limit=10)
        'a\ufffdb\ufffdc'
        >>> clean("dermatofibroma", limit=8)
        'dermato…'
    """
    words = str(text)
    cut = words if len(words) <= limit else words[: limit - 1] + "…"
    return "".join(_printable(c) for c in cut)


def sentence(words: object, limit: int = 2000) -> str:
    """A remark of the record as a sentence; a file name that it begins with stays as it is.

    Example:
        >>> sentence("kept: it passes on validation"), sentence("b2.onnx is served")
        ('Kept: it passes on validation.', 'b2.onnx is served.')
    """
    said = clean(words, limit).strip()
    stop = "" if not said or said.endswith((".", "!", "?", "…")) else "."
    return (said if re.match(r"\S*\w[./]\w", said) else said[:1].upper() + said[1:]) + stop


def _printable(character: str) -> str:
    # Cc control, Cf format (direction overrides among them), Cs lone surrogates, Co and Cn unassigned.
    if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Cn", "Co"} and character not in "\n\t\u200d":
        return "\N{REPLACEMENT CHARACTER}"
    return character


def fixed(value: float | None, decimals: int) -> str:
    """A number with a fixed count of decimals.

    Example:
        >>> fixed(-1234.56, 1), fixed(-0.01, 1), fixed(float("nan"), 1)
        ('−1,234.6', '0.0', '–')
    """
    if value is None or not math.isfinite(value):
        return ABSENT
    if abs(value) >= _HUGE:
        return f"{value:.2e}".replace("-", MINUS)
    text = f"{value:,.{decimals}f}"
    if float(text.replace(",", "")) == 0:
        text = text.removeprefix("-")
    return text.replace("-", MINUS)


def significant(value: float | None, digits: int = 3) -> str:
    """A number with a count of significant digits; whole digits are never rounded away.

    Example:
        >>> significant(0.08421), significant(12.34), significant(1234.5), significant(0)
        ('0.0842', '12.3', '1,234', '0')
    """
    if value is None or not math.isfinite(value):
        return ABSENT
    if value == 0:
        return "0"
    if not _TINY <= abs(value) < _HUGE:
        return f"{value:.{digits - 1}e}".replace("-", MINUS)
    # Rounded first: 9.996 is 10.0, not 10.00.
    rounded = float(f"{value:.{digits}g}")
    return fixed(value, min(12, max(0, digits - 1 - math.floor(math.log10(abs(rounded))))))


def count(value: int | None) -> str:
    """A whole number.

    Example:
        >>> count(1797)
        '1,797'
    """
    return ABSENT if value is None else f"{value:,}".replace("-", MINUS)


def _prefixed(value: float, prefixes: tuple[str, ...]) -> tuple[str, str]:
    if value == int(value) and abs(value) < 1000:
        return fixed(value, 0), prefixes[0]
    for prefix in prefixes[:-1]:
        if abs(value) < 999.5:
            return significant(value), prefix
        value /= 1000
    return significant(value), prefixes[-1]


def size(value: float | None) -> str:
    r"""Bytes with an SI prefix.

    Example:
        >>> size(842), size(86_400), size(1_130_000)
        ('842\u202fB', '86.4\u202fkB', '1.13\u202fMB')
    """
    if value is None or not math.isfinite(value):
        return ABSENT
    number, unit = _prefixed(value, ("B", "kB", "MB", "GB"))
    return f"{number}{UNIT_SPACE}{unit}"


def amount(value: float | None) -> str:
    r"""A large count, such as parameters, in thousands, millions or billions.

    Example:
        >>> amount(270_896), amount(12)
        ('271\u202fk', '12')
    """
    if value is None or not math.isfinite(value):
        return ABSENT
    number, unit = _prefixed(value, ("", "k", "M", "G"))
    return f"{number}{UNIT_SPACE}{unit}" if unit else number


def milliseconds(value: float | None) -> str:
    r"""A duration, with its unit.

    Example:
        >>> milliseconds(0.8421), milliseconds(0.000471)
        ('0.842\u202fms', '0.471\u202fµs')
    """
    small = value is not None and 0 < abs(value) < 0.00995
    number = significant(value * 1000 if small and value else value)
    return number if number == ABSENT else f"{number}{UNIT_SPACE}{'µs' if small else 'ms'}"


def duration(seconds: float | None) -> str:
    r"""A longer duration.

    Example:
        >>> duration(4.21), duration(75), duration(7384)
        ('4.2\u202fs', '1\u202fmin 15\u202fs', '2\u202fh 3\u202fmin')
    """
    if seconds is None or not math.isfinite(seconds):
        return ABSENT
    if seconds < 59.95:
        return f"{fixed(seconds, 1)}{UNIT_SPACE}s"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours}{UNIT_SPACE}h {minutes}{UNIT_SPACE}min"
    return f"{minutes}{UNIT_SPACE}min {rest}{UNIT_SPACE}s"


def times(ratio: float | None) -> str:
    """A ratio.

    Example:
        >>> times(13.21), times(4.13), times(0.834)
        ('13.2×', '4.1×', '0.83×')
    """
    if ratio is None or not math.isfinite(ratio):
        return ABSENT
    return f"{fixed(ratio, 2 if ratio < 2 else 1)}×"


def confidence(value: float) -> str:
    r"""How sure an interval is.

    Example:
        >>> confidence(0.95)
        '95\u202f%'
    """
    return f"{value * 100:g}{UNIT_SPACE}%"


def metric_name(name: str) -> str:
    """A metric as it is spoken of.

    Example:
        >>> metric_name("auroc"), metric_name("balanced_accuracy")
        ('AUROC', 'balanced accuracy')
    """
    return vocabulary.spoken(clean(name, 60))


def is_share(name: str) -> bool:
    """Whether a metric prints as percent."""
    return vocabulary.is_share(name)


def lower_is_better(name: str) -> bool:
    """Whether a smaller value of a metric is the better one."""
    return name in vocabulary.LOWER_IS_BETTER


def place(where: Mapping[str, str]) -> str:
    """Which cases a figure speaks of, as in `pastille.values.Comparison.where`; empty for all of them.

    Example:
        >>> place({"sex": "female", "age_band": "65+"}), place({"between": "sex"})
        ('sex female and age band 65+', 'between groups of sex')
    """
    known = {clean(name, 60): clean(value, 80) for name, value in list(where.items())[:4]}
    match known:
        case {"between": attribute}:
            return f"between groups of {attribute_name(attribute)}"
        case {"perturbation": perturbation, "severity": severity}:
            return f"under {perturbation}, severity {severity}"
        case _:
            return vocabulary.place(known)


def attribute_name(attribute: str) -> str:
    """A demographic attribute, or two of them, as it is spoken of."""
    return clean(attribute, 80).replace("_", " ")


def p_value(value: float | None) -> str:
    """A p-value with its sign of equality.

    Example:
        >>> p_value(0.0321), p_value(4e-7), p_value(1.0)
        ('p = 0.032', 'p < 0.001', 'p = 1.000')
    """
    if value is None or not math.isfinite(value):
        return ""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def metric(name: str, value: float | None) -> str:
    r"""A metric's value.

    Example:
        >>> metric("accuracy", 0.9721), metric("auroc", 0.9124), metric("rmse", 54.31)
        ('97.2\u202f%', '91.2\u202f%', '54.3')
    """
    number = bare_metric(name, value)
    return f"{number}{UNIT_SPACE}%" if is_share(name) and number != ABSENT else number


def bare_metric(name: str, value: float | None) -> str:
    """A metric's value without its unit, as it stands on an axis or in an interval."""
    if value is None:
        return ABSENT
    if is_share(name):
        return fixed(value * 100, 1)
    return significant(value) if abs(value) >= 10 else fixed(value, 3)


def metric_span(name: str, interval: Interval | None) -> str:
    """An interval of a metric.

    Example:
        >>> metric_span("accuracy", Interval(low=0.951, high=0.984, confidence=0.95))
        '95.1–98.4'
    """
    if interval is None:
        return ""
    low, high = bare_metric(name, interval.low), bare_metric(name, interval.high)
    return f"{low} to {high}" if MINUS in low + high else f"{low}–{high}"


def estimate(name: str, found: Estimate | None) -> tuple[str, str]:
    """A metric's value and its interval, either absent where nothing was measured."""
    return (ABSENT, "") if found is None else (metric(name, found.value), metric_span(name, found.interval))


def drop(name: str, value: float | None, *, decimals: int | None = None) -> str:
    """A drop of a metric with its unit; positive is worse.

    Example:
        >>> drop("accuracy", 0.004), drop("auroc", -0.01), drop("brier", 0.002)
        ('0.4 points', '−1.0 points', '0.002')
    """
    number = bare_drop(name, value, decimals=decimals)
    return points(name, number)


def points(name: str, number: str) -> str:
    """A difference that is already a number, with its unit if it has one.

    Example:
        >>> points("accuracy", "1"), points("accuracy", "0.5"), points("r2", "0.02")
        ('1 point', '0.5 points', '0.02')
    """
    if not is_share(name) or number == ABSENT:
        return number
    return f"{number} point" if number == "1" else f"{number} points"


def bare_drop(name: str, value: float | None, *, decimals: int | None = None) -> str:
    """A drop without its unit."""
    scaled = None if value is None else value * scale(name)
    return fixed(scaled, drop_decimals(name) if decimals is None else decimals)


def drop_span(name: str, interval: Interval | None, *, decimals: int | None = None) -> str:
    """An interval of a drop.

    Example:
        >>> drop_span("accuracy", Interval(low=-0.004, high=0.012, confidence=0.95))
        '−0.4 to 1.2'
    """
    if interval is None:
        return ""
    low, high = (bare_drop(name, x, decimals=decimals) for x in (interval.low, interval.high))
    return f"{low} to {high}"


def scale(name: str) -> float:
    """What a metric is multiplied by to be printed."""
    return 100.0 if is_share(name) else 1.0


def drop_decimals(name: str, *, limit: float | None = None, beside: Sequence[float] = ()) -> int:
    """Decimals that a drop needs, so that no number beside a limit looks equal to it by rounding.

    Example:
        >>> drop_decimals("accuracy"), drop_decimals("accuracy", limit=0.005, beside=[0.0052])
        (1, 2)
    """
    least = 1 if is_share(name) else 3
    for decimals in range(least, least + 3):
        if limit is None or all(_apart(x, limit, scale(name), decimals) for x in beside):
            return decimals
    return least + 3


def _apart(value: float, limit: float, factor: float, decimals: int) -> bool:
    return value == limit or fixed(value * factor, decimals) != fixed(limit * factor, decimals)


def drop_limit(name: str, value: float) -> str:
    """The largest permitted drop, without its unit and without needless digits.

    Example:
        >>> drop_limit("accuracy", 0.02), drop_limit("accuracy", 0.0025), drop_limit("r2", 0.05)
        ('2', '0.25', '0.05')
    """
    return f"{value * scale(name):.6g}" if math.isfinite(value) else ABSENT


def ratio_span(interval: Interval) -> str:
    """An interval of a ratio.

    Example:
        >>> ratio_span(Interval(low=3.91, high=4.32, confidence=0.95))
        '3.9–4.3'
    """
    decimals = 2 if interval.low < 2 else 1
    return f"{fixed(interval.low, decimals)}–{fixed(interval.high, decimals)}"


def when(stamp: str) -> str:
    """A UTC time of the record, as it is read.

    Example:
        >>> when("2026-11-20T09:30:05+00:00")
        '2026-11-20 09:30:05 UTC'
    """
    return clean(stamp, 40).replace("T", " ").replace("+00:00", " UTC")


def group_order(label: str) -> tuple[float, int]:
    """Sorts bands of a number by that number, before groups that have only a name.

    Example:
        >>> sorted(["unknown", "45-64", ">=65", "<45"], key=group_order)
        ['<45', '45-64', '>=65', 'unknown']
    """
    found = re.search(r"\d+(\.\d+)?", label)
    below = label.lstrip().lower().startswith(("<", "under", "below", "up to"))
    return (float(found[0]), 0 if below else 1) if found else (math.inf, 0)


def plural(number: int, one: str, many: str = "") -> str:
    """A count with its noun.

    Example:
        >>> plural(1, "case"), plural(1200, "case")
        ('1 case', '1,200 cases')
    """
    return f"{count(number)} {one if number == 1 else many or one + 's'}"

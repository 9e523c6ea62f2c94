"""The page: a view and a style sheet poured into a template, nothing fetched and nothing run."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path

from jinja2 import Template
from markupsafe import Markup

import pastille.report.svg as svg
from pastille.files import write_atomic
from pastille.record import Record
from pastille.report.pages import page_environment
from pastille.report.text import clean
from pastille.report.view import View, view

_CSS = "report.css"
_MAX_TEXT = 30_000


def render(view: View) -> str:
    """Write the page.

    Args:
        view: What `pastille.report.view.view` made; all of its text is escaped here.

    Returns:
        One HTML document: no script, no address, no font and no image outside of it.

    Example:
        >>> from pastille.report.view import view as view_of
        >>> render(view_of(Record(name="a<b"))).count("<title>a&lt;b")
        1
    """
    return _template().render(view=view, svg=svg, css=_style_sheet())


def write_report(record: Record, path: Path) -> None:
    """Write the report of a run, finished or not, whole or not at all.

    Raises:
        OutputError: It cannot be written; ``path`` is as it was.
    """
    write_atomic(path, render(view(record)).encode())


@cache
def _template() -> Template:
    environment = page_environment(finalize=_bounded)
    environment.filters["capitalize_first"] = _capitalized
    return environment.get_template("report.html.j2")


def _capitalized(words: str) -> str:
    """Unlike ``str.capitalize``, leaves the rest as it is: AUROC stays AUROC."""
    return words[:1].upper() + words[1:]


def _bounded(value: object) -> object:
    return clean(value, _MAX_TEXT) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _style_sheet() -> Markup:
    style = resources.files("pastille.report").joinpath(_CSS).read_text(encoding="utf-8")
    return Markup(style)  # noqa: S704 - ours, and no word of the record is in it

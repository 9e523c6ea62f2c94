"""How every page is made from its template: escaped, and with nothing undefined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def page_environment(finalize: Callable[[Any], Any] | None = None) -> Environment:
    """Templates of this package.

    Args:
        finalize: What every value goes through before it is shown.
    """
    return Environment(
        loader=PackageLoader("pastille.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=finalize,
    )

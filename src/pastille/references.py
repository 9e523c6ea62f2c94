"""``FILE.py:CALLABLE`` and ``package.module:CALLABLE``: how a recipe names the user's own code."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from pastille.errors import UsageError


def load_callable(reference: str, base: Path, *, key: str) -> Callable[..., Any]:
    """Import what a recipe names. This runs the user's own code, with the user's own rights.

    Args:
        reference: ``FILE.py:CALLABLE``, the file relative to ``base``, or ``package.module:CALLABLE``.
        base: Folder of the recipe.
        key: The recipe's key, for the error: ``"task.model"``.

    Returns:
        The callable.

    Raises:
        UsageError: The reference is malformed, the file or module is missing or fails to import, or
            it has no such callable (the closest name is shown).
    """
    where, colon, name = reference.rpartition(":")
    if not colon or not where or not name:
        raise UsageError(f"{key} must be FILE.py:CALLABLE or package.module:CALLABLE, got {reference!r}")
    module = _from_file(base / where, key) if where.endswith(".py") else _from_package(where, base, key)
    found = getattr(module, name, None)
    if not callable(found):
        own = {n: v for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__}
        names = [n for n, v in own.items() if callable(v) and not n.startswith("_")]
        close = difflib.get_close_matches(name, names, n=1) or names[:5]
        raise UsageError(f"{key}: {where} has no callable {name!r}; it has: {', '.join(close) or 'none'}")
    return found  # type: ignore[no-any-return]


def _from_file(path: Path, key: str) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise UsageError(f"{key}: there is no file {path}")
    # Under a name of its own: two recipes may both bring a model.py.
    name = f"pastille_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{key}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))  # so that it can import its neighbours
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UsageError(f"{key}: importing {path} failed: {one_line(error)}") from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def _from_package(name: str, base: Path, key: str) -> ModuleType:
    sys.path.insert(0, str(base.resolve()))
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise UsageError(f"{key}: importing {name} failed: {one_line(error)}") from error
    finally:
        sys.path.remove(str(base.resolve()))


def one_line(error: BaseException, limit: int = 300) -> str:
    """An exception as ``Type: message`` on one line.

    Example:
        >>> one_line(KeyError("a"))
        "KeyError: 'a'"
    """
    text = f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
    return text if len(text) <= limit else text[: limit - 1] + "…"

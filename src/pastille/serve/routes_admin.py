"""Changing what is served, over the network: only where the server was started with ``--admin``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pastille.errors import UsageError
from pastille.serve import logs
from pastille.serve.endpoint import Asked
from pastille.serve.errors import Refused
from pastille.serve.http_answers import Outcome, as_json
from pastille.serve.routes_about import small_json


async def load(asked: Asked) -> Outcome:
    """``POST /v2/repository/models/M/load``: read the model's folder anew."""
    _allowed(asked)
    await small_json(asked)
    models, model = asked.standing.models, asked.path["model"]
    if model not in models.directories:
        raise Refused("not_found", "no such model was ever served here; POST /admin/swap takes new ones")
    await _swapped(asked, models.directories[model])
    return as_json({})


async def unload(asked: Asked) -> Outcome:
    """``POST /v2/repository/models/M/unload``."""
    _allowed(asked)
    await small_json(asked)
    await asked.standing.models.unload(asked.path["model"])
    _noted(asked, "unload asked for", asked.path["model"])
    return as_json({})


async def swap(asked: Asked) -> Outcome:
    """``POST /admin/swap`` with ``{"bundle": FOLDER}``: verified beside what answers, then in its place."""
    _allowed(asked)
    folder = _one(await small_json(asked), "bundle")
    return await _swapped(asked, Path(folder))


async def rollback(asked: Asked) -> Outcome:
    """``POST /admin/rollback`` with ``{"model": M}``: the version before answers again."""
    _allowed(asked)
    model = _one(await small_json(asked), "model")
    status = await asked.standing.models.roll_back(model)
    _noted(asked, "rollback asked for", status.model)
    return as_json(asdict(status))


async def _swapped(asked: Asked, folder: Path) -> Outcome:
    if not folder.is_dir():
        raise UsageError("the bundle must be a folder on the server")
    status = await asked.standing.models.load(folder)
    _noted(asked, "swap asked for", status.model)
    return as_json(asdict(status))


def _allowed(asked: Asked) -> None:
    if not asked.standing.settings.admin:
        raise Refused("forbidden", "models are not changed over the network; start with --admin to allow it")


def _one(told: dict[str, Any], name: str) -> str:
    if set(told) != {name} or not isinstance(told[name], str) or not told[name] or "\0" in told[name]:
        raise Refused("malformed", f'the body must be {{"{name}": "…"}}, and nothing else')
    return str(told[name])


def _noted(asked: Asked, what: str, model: str) -> None:
    """Who asked for it; what came of it the registry tells."""
    logs.event(what, model=model, by=asked.caller.name)
    if asked.standing.audit is not None:
        asked.standing.audit.note(what, model=model, by=asked.caller.name)

"""What the server and its models say of themselves: the protocol's metadata, health and statistics."""

from __future__ import annotations

import json
from functools import cache
from importlib import metadata
from typing import Any

from pastille.serve.endpoint import Asked
from pastille.serve.errors import Refused
from pastille.serve.http_answers import Outcome, as_json
from pastille.serve.oip import (
    health,
    model_config,
    model_metadata,
    model_ready,
    repository_index,
    server_metadata,
)
from pastille.serve.openapi import description
from pastille.serve.seams import Engine

_MOST_JSON = 64 << 10  # of the small bodies that these routes read


@cache
def version() -> str:
    """Of Pastille."""
    return metadata.version("pastille")


async def server(_asked: Asked) -> Outcome:
    """``GET /v2``."""
    return as_json(server_metadata(version()))


async def live(asked: Asked) -> Outcome:
    """The process answers: a broken model is no reason to kill it, but one that took every thread is."""
    registry = asked.standing.registry
    if registry is not None and (hung := [s.reason for s in registry.statuses() if s.hung]):
        return as_json(health(live=False, ready=False) | {"error": hung[0]}, status=503)
    return as_json(health(live=True, ready=not asked.standing.problem))


async def ready(asked: Asked) -> Outcome:
    """Every model can be asked, and what is decided can be logged."""
    problem = asked.standing.problem
    if problem:
        return as_json(health(live=True, ready=False) | {"error": problem}, status=503)
    return as_json(health(live=True, ready=True))


async def started(asked: Asked) -> Outcome:
    """Opening the models is over; from then on an orchestrator looks at liveness."""
    if asked.standing.phase == "starting":
        return as_json({"started": False, "error": asked.standing.problem}, status=503)
    return as_json({"started": True})


async def model(asked: Asked) -> Outcome:
    """``GET /v2/models/M``."""
    engine = _engine(asked)
    served = [s.version for s in asked.standing.models.statuses() if s.model == engine.status.model]
    return as_json(model_metadata(engine.manifest, engine.status, served))


async def model_is_ready(asked: Asked) -> Outcome:
    """``GET /v2/models/M/ready``."""
    status = _engine(asked).status
    told = model_ready(status)
    return as_json(told) if status.ready else as_json(told | {"error": status.reason}, status=503)


async def config(asked: Asked) -> Outcome:
    """``GET /v2/models/M/config``."""
    engine = _engine(asked)
    rows = asked.standing.settings.limits.rows
    return as_json(model_config(engine.manifest, engine.status, rows=rows))


async def statistics(asked: Asked) -> Outcome:
    """``GET /v2/models/M/stats``, or of all models where none is named."""
    standing, wanted = asked.standing, asked.path.get("model")
    if wanted is None:
        return as_json(standing.statistics.body(standing.models.statuses()))
    statuses = [s for s in standing.models.statuses() if s.model == wanted]
    chosen = asked.path.get("version")
    if chosen is not None or not statuses:
        statuses = [_engine(asked).status]
    return as_json(standing.statistics.body(statuses))


async def index(asked: Asked) -> Outcome:
    """``POST /v2/repository/index``."""
    told = await small_json(asked)
    wanted = told.get("ready", False)
    if not isinstance(wanted, bool):
        raise Refused("malformed", "ready must be true or false")
    return as_json(repository_index(asked.standing.models.statuses(), ready_only=wanted))


async def openapi(asked: Asked) -> Outcome:
    """``GET /openapi.json``."""
    return as_json(description(version(), secured=bool(asked.standing.settings.tokens)))


async def small_json(asked: Asked) -> dict[str, Any]:
    """The body of a request that is a small JSON object; ``{}`` where there is none.

    Raises:
        Refused: It is larger, or something else.
    """
    body = await asked.body()
    if len(body) > _MOST_JSON:
        raise Refused("too_large", f"this body may have at most {_MOST_JSON} bytes")
    if not body.strip():
        return {}
    try:
        found = json.loads(bytes(body))
    except (ValueError, RecursionError):
        raise Refused("malformed", "the body must be a JSON object") from None
    if not isinstance(found, dict):
        raise Refused("malformed", "the body must be a JSON object")
    return found


def _engine(asked: Asked) -> Engine:
    return asked.standing.models.engine(asked.path["model"], asked.path.get("version"))

"""The application: which path is answered by what. Routing is Starlette's, everything else raw ASGI."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from starlette.routing import Route, Router
from starlette.types import ASGIApp

from pastille.serve import routes_about as about
from pastille.serve import routes_admin as admin
from pastille.serve import routes_infer as asking
from pastille.serve import routes_watch as watching
from pastille.serve.auth import Scope
from pastille.serve.endpoint import Asked, Endpoint, Handler
from pastille.serve.errors import Refused
from pastille.serve.http_answers import Outcome, Receive, Send
from pastille.serve.page import page_files
from pastille.serve.standing import Standing

Table = tuple[tuple[str, Scope | None, Mapping[str, Handler]], ...]

_MODEL: Final = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")


def application(standing: Standing) -> ASGIApp:
    """What answers every request.

    Args:
        standing: How the server stands; until its models are open, what needs them is refused with 503.
    """
    routes = [
        Route(path, Endpoint(standing=standing, handlers=handlers, scope=scope, name=path))
        for path, scope, handlers in TABLE
    ]
    pages = [Route(path, _file(standing, path)) for path in page_files()]
    healths = [Route(path, _probe(standing, path, handler)) for path, handler in PROBES.items()]
    nowhere = Endpoint(standing=standing, handlers=_ANY, scope=None, name="unknown")
    return Router([*routes, *healths, *pages], redirect_slashes=False, default=_default(nowhere))


def _file(standing: Standing, path: str) -> Endpoint:
    return Endpoint(
        standing=standing, handlers={"GET": partial(_page, path)}, scope=None, name="page", limited=False
    )


async def _page(path: str, _asked: Asked) -> Outcome:
    return await watching.page(path)


def _probe(standing: Standing, path: str, handler: Handler) -> Endpoint:
    return Endpoint(standing=standing, handlers={"GET": handler}, scope=None, name=path, limited=False)


async def _not_found(_asked: Asked) -> Outcome:
    raise Refused("not_found", "nothing is served at this address; GET /openapi.json lists what is")


_METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY")
_ANY: Final = dict.fromkeys(_METHODS, _not_found)


def _default(nowhere: Endpoint) -> Any:
    async def default(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        scope.setdefault("path_params", {})
        await nowhere(scope, receive, send)

    return default


PROBES: Final[Mapping[str, Handler]] = {
    "/v2/health/live": about.live,
    "/v2/health/ready": about.ready,
    "/healthz/live": about.live,
    "/healthz/ready": about.ready,
    "/healthz/startup": about.started,
}

TABLE: Final[Table] = (  # what is asked most comes first
    *((f"{model}/infer", "infer", {"POST": asking.infer}) for model in _MODEL),
    ("/predict", "infer", {"POST": asking.predict, "GET": asking.describe}),
    ("/predict/{model}", "infer", {"POST": asking.predict, "GET": asking.describe}),
    ("/metrics", "monitor", {"GET": watching.metrics}),
    ("/monitor.json", "monitor", {"GET": watching.monitor}),
    ("/feedback", "feedback", {"POST": watching.feedback}),
    ("/v2", "infer", {"GET": about.server}),
    ("/v2/models/stats", "infer", {"GET": about.statistics}),
    *((model, "infer", {"GET": about.model}) for model in _MODEL),
    *((f"{model}/ready", "infer", {"GET": about.model_is_ready}) for model in _MODEL),
    *((f"{model}/config", "infer", {"GET": about.config}) for model in _MODEL),
    *((f"{model}/stats", "infer", {"GET": about.statistics}) for model in _MODEL),
    ("/v2/repository/index", "infer", {"POST": about.index}),
    ("/v2/repository/models/{model}/load", "admin", {"POST": admin.load}),
    ("/v2/repository/models/{model}/unload", "admin", {"POST": admin.unload}),
    ("/admin/swap", "admin", {"POST": admin.swap}),
    ("/admin/rollback", "admin", {"POST": admin.rollback}),
    ("/openapi.json", None, {"GET": about.openapi}),
)

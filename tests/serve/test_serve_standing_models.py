from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, cast

from registry_parts import bundle, in_a_loop, serving

from pastille.bundle import Manifest
from pastille.bundle.manifest import sealed
from pastille.serve.auth import ANYBODY
from pastille.serve.endpoint import Asked
from pastille.serve.routes_about import live
from pastille.serve.seams import Engine
from pastille.serve.settings import Settings
from pastille.serve.standing import Standing
from pastille.values import InputReference, Reference, Spread


@in_a_loop
async def test_a_server_without_a_model_is_not_ready_and_says_so() -> None:
    async with serving(bundle(1)) as (registry, watcher):
        standing = Standing(settings=Settings(), monitor=watcher)
        assert standing.problem.startswith("the server is starting")
        standing.registry, standing.phase = registry, "serving"
        assert standing.problem == ""
        await registry.unload("tiny")
        assert standing.problem == "no model is loaded"


@in_a_loop
async def test_where_a_model_took_every_thread_only_a_restart_helps_and_liveness_says_so() -> None:
    async with serving(bundle(1)) as (registry, watcher):
        standing = Standing(settings=Settings(), monitor=watcher, registry=registry, phase="serving")
        assert (await live(asked(standing))).status == 200
        places = registry.engine("tiny")._places  # type: ignore[attr-defined]
        places.live, restored = 0, places.live
        outcome = await live(asked(standing))
        assert (outcome.status, json.loads(bytes(outcome.body))["live"]) == (503, False)
        assert "restart the server" in json.loads(bytes(outcome.body))["error"]
        places.live = restored


@in_a_loop
async def test_only_what_a_full_engine_would_answer_is_refused_at_the_head() -> None:
    async with serving(bundle(1)) as (registry, watcher):
        standing = Standing(settings=Settings(), monitor=watcher)
        assert standing.crowded(b"/predict") is None  # starting: that has a reason of its own
        standing.registry = registry
        assert standing.crowded(b"/predict") is None
        places = registry.engine("tiny")._places  # type: ignore[attr-defined]
        places.live, restored = 0, places.live
        for target in (b"/predict", b"/predict/tiny?x=1", b"/v2/models/tiny/infer"):
            assert standing.crowded(target) == registry.engine("tiny").retry_after_s
        for target in (b"/feedback", b"/v2/models/tiny/versions/1/infer", b"/admin/swap", b"/v2/models/tiny"):
            assert standing.crowded(target) is None
        places.live = restored


def asked(standing: Standing) -> Asked:
    async def nothing() -> Any:
        raise AssertionError("a probe has no body")

    return Asked(
        standing=standing,
        method="GET",
        path={},
        headers={},
        query_string=b"",
        caller=ANYBODY,
        receive=nothing,
        take=lambda _: None,
    )


@in_a_loop
async def test_bundles_that_answer_alike_are_guarded_by_their_own_reference() -> None:
    """The digest of their content does not cover what validation saw."""
    async with serving(bundle(1)) as (registry, watcher):
        standing, engine = Standing(settings=Settings(), monitor=watcher), registry.engine("tiny")
        assert standing.guard(engine).bounds == ()
        seen = Spread(low=(0.0,), median=(0.5,), high=(1.0,))
        of = InputReference(name="input", channels=1, mean=seen, std=seen)
        known = Reference(cases=9, inputs=(of,), variants=())
        other = Known(sealed(replace(engine.manifest, reference=known)))
        assert other.manifest.content == engine.manifest.content
        assert len(standing.guard(cast("Engine", other)).bounds) == 1


@dataclass(frozen=True)
class Known:
    manifest: Manifest

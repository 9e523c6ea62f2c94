from __future__ import annotations

from registry_parts import bundle, in_a_loop, serving

from pastille.serve.settings import Settings
from pastille.serve.standing import Standing


@in_a_loop
async def test_a_server_without_a_model_is_not_ready_and_says_so() -> None:
    async with serving(bundle(1)) as (registry, watcher):
        standing = Standing(settings=Settings(), monitor=watcher)
        assert standing.problem.startswith("the server is starting")
        standing.registry, standing.phase = registry, "serving"
        assert standing.problem == ""
        await registry.unload("tiny")
        assert standing.problem == "no model is loaded"

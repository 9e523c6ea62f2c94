from __future__ import annotations

import asyncio

import pytest
from registry_parts import Watcher, bundle, call, copied, in_a_loop, serving, until
from serving_bundles import cases

from pastille.errors import IntegrityError, UsageError
from pastille.serve.errors import Refused
from pastille.serve.registry import OpenedRegistry, open_registry
from pastille.serve.settings import Settings
from pastille.serve.swapping import Served
from pastille.serve.values import Call


async def answering(registry: OpenedRegistry, model: str = "tiny") -> str:
    """The version that answers who asks for none."""
    return (await registry.answer(model, None, call())).version


@in_a_loop
async def test_a_new_version_answers_and_the_one_before_can_come_back() -> None:
    async with serving(bundle(1)) as (registry, watcher):
        assert (registry.default, registry.ready) == ("tiny", True)
        assert await answering(registry) == "1"
        assert (await registry.load(bundle(2))).version == "2"
        assert await answering(registry) == "2"
        assert (await registry.answer("tiny", "1", call())).version == "1"  # kept, and answers who asks
        assert [s.version for s in registry.statuses()] == ["2", "1"]
        assert registry.directories == {"tiny": bundle(2)}

        assert (await registry.roll_back("tiny")).version == "1"
        assert await answering(registry) == "1"
        assert registry.directories == {"tiny": bundle(1)}
        await until(lambda: watcher.forgotten == ["tiny:2"])
        with pytest.raises(Refused, match="no version before 1 is kept") as refused:
            await registry.roll_back("tiny")
        assert refused.value.cause == "not_found"
        assert (await registry.load(bundle(2))).version == "3"  # a number is never given twice
    assert [(c.what, c.version) for c in watcher.changes[:5]] == [
        ("loaded", "1"),
        ("loaded", "2"),
        ("rolled_back", "1"),
        ("closed", "2"),
        ("loaded", "3"),
    ]
    assert sorted(watcher.forgotten) == ["tiny:1", "tiny:2", "tiny:3"]


@in_a_loop
async def test_at_most_the_version_before_stays_open() -> None:
    async with serving(bundle(1), bundle(2)) as (registry, watcher):
        assert await answering(registry) == "2"  # of one name, the last is the newest
        await registry.load(bundle(3))
        await until(lambda: watcher.forgotten == ["tiny:1"])
        assert [s.version for s in registry.statuses()] == ["3", "2"]
        with pytest.raises(Refused, match="those that are served: 3, 2"):
            registry.engine("tiny", "1")


@in_a_loop
async def test_a_bundle_that_is_served_already_is_left_as_it_is() -> None:
    async with serving(bundle(1)) as (registry, watcher):
        engine = registry.engine("tiny")
        assert (await registry.load(copied(bundle(1)))).version == "1"
        assert registry.engine("tiny") is engine
        assert len(watcher.changes) == 1


@in_a_loop
async def test_a_load_that_fails_changes_nothing() -> None:
    broken = copied(bundle(2))
    golden = broken / "golden" / "cases.npz"
    golden.write_bytes(golden.read_bytes()[:-1] + b"!")
    worse = copied(bundle(2))
    int8 = worse / "models" / "int8.onnx"
    int8.write_bytes(int8.read_bytes()[:-1] + b"!")  # fp32 could answer, but what is served does better
    async with serving(bundle(1)) as (registry, watcher):
        engine, status = registry.engine("tiny"), registry.statuses()
        with pytest.raises(IntegrityError):
            await registry.load(broken)
        with pytest.raises(IntegrityError, match=r"int8\.onnx was changed"):
            await registry.load(worse)
        with pytest.raises(IntegrityError):
            await registry.load(broken.parent / "missing")
        with pytest.raises(UsageError, match=r"differs in kind, labels.*another name"):
            await registry.load(bundle(1, "multiclass"))
        assert registry.engine("tiny") is engine
        assert [s.version for s in registry.statuses()] == [s.version for s in status]
        assert (await registry.load(bundle(2))).version == "2"  # nor was a number used up
        assert set(watcher.events) == {"tiny:1", "tiny:2"}


@in_a_loop
async def test_no_answer_is_lost_while_versions_change() -> None:
    async with serving(bundle(1), queue={"wait_s": 20}) as (registry, _):
        versions: list[str] = []
        stop = False

        async def client(seed: int) -> None:
            while not stop:
                versions.append((await registry.answer("tiny", None, call(cases(1, seed=seed)))).version)

        clients = [asyncio.create_task(client(i)) for i in range(3)]
        await until(lambda: "1" in versions)
        for number in (2, 3):
            await registry.load(bundle(number))
            await until(lambda now=str(number): versions[-1] == now)  # type: ignore[misc]
        await registry.roll_back("tiny")
        await until(lambda: versions[-1] == "2")
        stop = True
        await asyncio.gather(*clients)  # raises what any of them was refused
        assert versions.index("1") < versions.index("2") < versions.index("3")


@in_a_loop
async def test_a_version_that_goes_gives_the_answers_it_owes() -> None:
    async with serving(bundle(1)) as (registry, watcher):
        slow = asyncio.create_task(registry.answer("tiny", None, call(cases(1, slow=0.3))))
        await until(lambda: not registry.engine("tiny").idle)
        await registry.unload("tiny")
        assert not registry.ready
        with pytest.raises(Refused, match="those that are served: none"):
            await registry.answer("tiny", None, call())
        assert watcher.forgotten == []  # not closed before it has answered
        reply = await slow
        assert (reply.version, reply.fallback) == ("1", None)
        await until(lambda: watcher.forgotten == ["tiny:1"])


@in_a_loop
async def test_models_come_and_go_by_name() -> None:
    async with serving(bundle(1), bundle(1, name="other")) as (registry, _):
        assert [(s.model, s.version) for s in registry.statuses()] == [("tiny", "1"), ("other", "1")]
        assert (await registry.answer("other", None, call())).model == "other"
        await registry.unload("tiny")
        assert (registry.default, registry.ready) == ("other", True)
        with pytest.raises(Refused):
            await registry.unload("tiny")
        assert (await registry.load(registry.directories["tiny"])).version == "2"
        assert registry.default == "other"
        await registry.load(bundle(2, name="other"))
        await registry.unload("other", "2")  # the one before answers again
        assert await answering(registry, "other") == "1"
        with pytest.raises(Refused) as refused:
            await registry.unload("other", "9")
        assert refused.value.cause == "not_found"


@in_a_loop
async def test_a_load_goes_on_where_whoever_asked_goes_away() -> None:
    async with serving(bundle(1)) as (registry, _):
        asked = asyncio.create_task(registry.load(bundle(2)))
        await asyncio.sleep(0)
        asked.cancel()
        await until(lambda: registry.engine("tiny").status.version == "2")


@in_a_loop
async def test_a_bundle_can_be_served_under_another_name() -> None:
    async with serving(bundle(1), name="ward") as (registry, watcher):
        assert registry.default == "ward"
        assert (await registry.answer("ward", None, call())).model == "ward"
        assert registry.statuses()[0].model == "ward"
        assert set(watcher.events) == {"ward:1"}
        with pytest.raises(Refused):
            registry.engine("tiny")
    with pytest.raises(UsageError, match="one bundle must be served where it gets a name, got 2"):
        async with serving(bundle(1), bundle(2), name="ward"):
            pass


@in_a_loop
async def test_what_stops_loads_nothing_and_a_start_that_fails_leaves_nothing_open() -> None:
    async with serving(bundle(1)) as (registry, watcher):
        await registry.close()
        assert (registry.ready, watcher.forgotten) == (False, ["tiny:1"])
        with pytest.raises(Refused) as refused:
            await registry.load(bundle(2))
        assert refused.value.cause == "not_ready"
    watcher = Watcher()
    with pytest.raises(UsageError):
        await open_registry([bundle(1), bundle(1, "multiclass")], Settings(), monitor=watcher)
    assert watcher.forgotten == ["tiny:1"]


class Owing:
    """An engine that gives each answer when told to, and knows what it still owed when it was closed."""

    def __init__(self) -> None:
        self.told = {"first": asyncio.Event(), "second": asyncio.Event()}
        self.owed_at_close: int | None = None

    async def answer(self, call: Call, *, prefer: str | None = None) -> None:
        await self.told[call.request_id].wait()
        del self.told[call.request_id]

    async def close(self) -> None:
        self.owed_at_close = len(self.told)


@in_a_loop
async def test_an_engine_is_closed_when_it_owes_nothing_or_the_time_is_up() -> None:
    for drain_s, in_time in ((20.0, True), (0.01, False)):
        engine = Owing()
        served = Served(engine, version="1", directory=bundle(1), observe=print)  # type: ignore[arg-type]
        first, second = engine.told.values()
        owed = [asyncio.create_task(served.answer(call(request_id=name))) for name in engine.told]
        await asyncio.sleep(0)
        closing = asyncio.create_task(served.close(drain_s=drain_s))
        first.set()
        await asyncio.sleep(0.03)
        assert engine.owed_at_close == (None if in_time else 1)
        second.set()
        assert await closing is in_time
        assert engine.owed_at_close == (0 if in_time else 1)
        await asyncio.gather(*owed)


@in_a_loop
async def test_after_an_alarm_the_same_bundle_is_opened_anew_and_int8_answers_again() -> None:
    async with serving(bundle(1)) as (registry, _):
        engine = registry.engine("tiny")
        assert (await registry.load(bundle(1))).version == "1"
        engine.alarm("they disagree")
        assert (await registry.answer("tiny", None, call())).answer.variant == "fp32"
        assert (await registry.load(bundle(1))).version == "2"
        reply = await registry.answer("tiny", None, call())
        assert (reply.answer.variant, reply.version, reply.fallback) == ("int8", "2", None)


@in_a_loop
async def test_what_is_read_beside_the_model_is_of_the_version_that_answers() -> None:
    async with serving(bundle(1)) as (registry, _):
        await registry.load(bundle(2))
        await registry.unload("tiny", "2")
        assert (await answering(registry), registry.directories["tiny"]) == ("1", bundle(1))
        await registry.load(bundle(3))
        await registry.roll_back("tiny")
        assert (await answering(registry), registry.directories["tiny"]) == ("1", bundle(1))

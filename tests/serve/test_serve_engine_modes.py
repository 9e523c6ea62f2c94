"""Mode validate, the cache, batches and deadlines, as the engine puts them together."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from serving_bundles import cases, tiny_bundle
from serving_engines import call_of, with_engine

from pastille.serve.engine.engine import OpenedEngine
from pastille.serve.engine.machine import this_machine
from pastille.serve.engine.validating import pair_of, validated
from pastille.serve.errors import Refused
from pastille.serve.settings import Batching, Breaker, Queue, Settings
from pastille.serve.values import Compared, Event, Fallback, Faulted

VALIDATE = Settings(mode="validate")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("modes") / "bundle")


def test_variants_that_agree(bundle: Path) -> None:
    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        reply = await engine.answer(call_of(cases(4)))
        assert reply.answer.variant == "int8"
        assert reply.fallback is None
        assert reply.disagreement is not None
        assert reply.disagreement.tolist() == [False] * 4
        [compared] = events
        assert isinstance(compared, Compared)
        assert (compared.served, compared.other) == ("int8", "fp32")
        assert not compared.disagree.any()

    with_engine(bundle, ask, VALIDATE)


@pytest.mark.parametrize(("trigger", "lost"), [("lost", True), ("gained", False)])
def test_fp32_wins_where_they_disagree(bundle: Path, trigger: str, lost: bool) -> None:
    x = cases(40)
    plain = x.copy()
    x[:, 4 + ["nan", "raise", "slow", "rows", "lost", "gained"].index(trigger)] = 1.0

    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        truth = (await engine.answer(call_of(plain), prefer="fp32")).answer.decisions
        changed = [(label == "no tumour") != lost for label in truth]  # by what the switch does to int8
        reply = await engine.answer(call_of(x))
        assert reply.answer.variant == "fp32"
        assert reply.answer.decisions == truth
        assert reply.fallback is not None
        assert (reply.fallback.preferred, reply.fallback.why) == ("int8", "disagreement")
        [compared] = events
        assert isinstance(compared, Compared)
        assert compared.disagree.tolist() == changed
        assert (compared.lost if lost else compared.gained).tolist() == changed
        assert not (compared.gained if lost else compared.lost).any()

    with_engine(bundle, ask, VALIDATE)


def test_validate_answers_with_the_other_where_one_fails(bundle: Path) -> None:
    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        reply = await engine.answer(call_of(nan=1.0))
        assert reply.answer.variant == "fp32"
        assert reply.fallback is not None
        assert reply.fallback.why == "non_finite"
        assert reply.disagreement is None

    with_engine(bundle, ask, VALIDATE)


def test_validate_says_what_was_not_validated(tmp_path: Path) -> None:
    folder = tiny_bundle(tmp_path / "bundle", faulty=("fp32",))

    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        reply = await engine.answer(call_of(nan=1.0))
        assert reply.answer.variant == "int8"
        assert reply.fallback is None
        assert reply.warnings == ("not validated: fp32 did not answer",)

    with_engine(folder, ask, VALIDATE)


def test_validate_leaves_a_resting_fp32_alone_and_says_so(tmp_path: Path) -> None:
    """A stall costs the time-out once, not on every request, and not a thread each."""
    folder = tiny_bundle(tmp_path / "bundle", faulty=("fp32",))
    settings = Settings(mode="validate", queue=Queue(timeout_s=0.05), breaker=Breaker(failures=1))

    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        first, second = [await engine.answer(call_of(slow=60.0)) for _ in range(2)]
        assert (first.answer.variant, second.answer.variant) == ("int8", "int8")
        assert first.warnings == ("not validated: fp32 did not answer",)
        assert second.warnings == ("not validated: fp32 failed several times in a row and rests",)
        assert [event.variant for event in events if isinstance(event, Faulted)] == ["fp32"]

    with_engine(folder, ask, settings)


def test_validate_lets_the_second_wait_for_the_first(bundle: Path) -> None:
    """On one place the second cannot start within `wait_s` of a first that takes longer."""
    cores = this_machine().cores
    settings = Settings(mode="validate", threads=cores, queue=Queue(wait_s=0.02))

    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        assert engine.status.places == 1
        reply = await engine.answer(call_of(slow=0.1))
        assert (reply.disagreement is not None, reply.warnings) == (True, ())

    with_engine(bundle, ask, settings)


def test_validate_tells_why_the_wanted_variant_is_missing_and_pairs_without_fp32(bundle: Path) -> None:
    standing = Fallback(preferred="fp16", why="load", detail="it could not be loaded on this server")

    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        variants, served = engine._variants, engine._served
        reply = await validated(variants, served, call_of(), ("int8", "fp32"), standing)
        assert (reply.answer.variant, reply.fallback) == ("int8", standing)

    with_engine(bundle, ask, VALIDATE)
    assert pair_of(("int8", "fp16")) == ("int8", "fp16")


def test_validate_refuses_where_both_fail(tmp_path: Path) -> None:
    folder = tiny_bundle(tmp_path / "bundle", faulty=("int8", "fp32"))

    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        with pytest.raises(Refused) as refused:
            await engine.answer(call_of(nan=1.0))
        assert refused.value.cause == "fault"

    with_engine(folder, ask, VALIDATE)


def test_a_task_without_decisions_is_answered_by_fp32(tmp_path: Path) -> None:
    folder = tiny_bundle(tmp_path / "bundle", "regression")

    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        reply = await engine.answer(call_of())
        assert reply.answer.variant == "fp32"
        assert "decides nothing" in reply.warnings[0]

    with_engine(folder, ask, VALIDATE)


def test_the_cache_answers_the_same_input_again_and_never_with_a_fallback(bundle: Path) -> None:
    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        x = cases(2)
        first, second = await engine.answer(call_of(x)), await engine.answer(call_of(x.copy()))
        assert (first.cached, second.cached) == (False, True)
        assert second.answer.outputs.tobytes() == first.answer.outputs.tobytes()
        for _ in range(2):
            assert not (await engine.answer(call_of(x), prefer="fp32")).cached
        for _ in range(2):
            failed = await engine.answer(call_of(nan=1.0))
            assert (failed.cached, failed.answer.variant) == (False, "fp32")
        assert engine.status.cache_hits == 1
        engine.alarm("they disagree")
        after = await engine.answer(call_of(x))
        assert (after.cached, after.answer.variant) == (False, "fp32")

    with_engine(bundle, ask, Settings(cache_bytes=1 << 20))


def test_batched_answers_are_those_of_single_calls(bundle: Path) -> None:
    given = [cases(1, seed=i) for i in range(12)]

    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        alone = [await engine.answer(call_of(x)) for x in given]
        engine._variants.batch("int8", 4)
        together = await asyncio.gather(*(engine.answer(call_of(x)) for x in given))
        assert max(reply.batch for reply in together) > 1
        for one, other in zip(alone, together, strict=True):
            assert np.array_equal(one.answer.outputs, other.answer.outputs)
            assert one.answer.decisions == other.answer.decisions
        mixed = await asyncio.gather(
            *(engine.answer(call_of(x)) for x in given[:4]), engine.answer(call_of(nan=1.0))
        )
        assert [reply.answer.variant for reply in mixed] == ["int8"] * 4 + ["fp32"]

    with_engine(bundle, ask, Settings(batching=Batching(use="on", wait_s=0.01)))


def test_a_batch_that_stalls_fails_once_and_takes_one_thread(bundle: Path) -> None:
    settings = Settings(
        threads=this_machine().cores,
        batching=Batching(use="on", rows=4, wait_s=0.5),
        queue=Queue(timeout_s=0.2, wait_s=5.0),
        breaker=Breaker(failures=2),
    )

    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        engine._variants.batch("int8", 4)
        slow = [call_of(cases(1, seed=i, slow=60.0)) for i in range(4)]
        replies = await asyncio.gather(*(engine.answer(call) for call in (call_of(), *slow)))
        assert [reply.fallback and reply.fallback.why for reply in replies] == [None, *["timeout"] * 4]
        assert len([event for event in events if isinstance(event, Faulted)]) == 1
        assert engine._variants.breakers["int8"].state == "closed"

    with_engine(bundle, ask, settings)


def test_batching_is_measured_once_the_engine_rests(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pastille.serve.engine.engine._LOOK_S", 0.01)

    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        await engine.answer(call_of())
        for _ in range(1000):
            if "not measured yet" not in engine.status.batching:
                break
            await asyncio.sleep(0.01)
        assert "times the throughput here" in engine.status.batching

    with_engine(bundle, ask)


def test_nothing_is_answered_after_the_clients_own_deadline(bundle: Path) -> None:
    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        with pytest.raises(Refused) as refused:
            await engine.answer(call_of(slow=60.0, within_s=0.05))
        assert refused.value.cause == "deadline"
        for _ in range(1000):
            if engine.idle:
                break
            await asyncio.sleep(0.01)
        assert engine.idle, "the run was asked to end"
        assert (await engine.answer(call_of())).answer.variant == "int8"

    with_engine(bundle, ask)


def test_a_full_queue_refuses_at_once_and_later_answers(bundle: Path) -> None:
    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        running = [
            asyncio.create_task(engine.answer(call_of(slow=60.0))) for _ in range(engine.status.places)
        ]
        await asyncio.sleep(0)
        assert engine.full
        with pytest.raises(Refused) as refused:
            await engine.answer(call_of())
        assert refused.value.status == 503
        assert refused.value.retry_after_s is not None
        assert refused.value.retry_after_s > 0
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for _ in range(1000):
            if engine.idle:
                break
            await asyncio.sleep(0.005)
        assert (await engine.answer(call_of())).answer.variant == "int8"

    with_engine(bundle, ask, Settings(queue=Queue(depth=0)))


def test_a_quick_model_runs_on_the_event_loop_and_falls_back_likewise(tmp_path: Path) -> None:
    folder = tiny_bundle(tmp_path / "bundle", shape=(1, 8, 8), slow=())
    x = cases(2, shape=(1, 8, 8))

    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        names = [await engine.answer(call_of(x), prefer=name) for name in ("int8", "fp32")]
        assert [reply.answer.variant for reply in names] == ["int8", "fp32"]
        assert engine._places._threads == [], "no thread was needed"
        many = await engine.answer(call_of(cases(4096, shape=(1, 8, 8))))
        assert len(many.answer.decisions) == 4096
        assert engine._places._threads != [], "many cases are no quick call"

    with_engine(folder, ask)


def test_what_the_input_can_slow_down_never_runs_on_the_event_loop(bundle: Path) -> None:
    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        await engine.answer(call_of())
        assert engine._places._threads != []

    with_engine(bundle, ask)

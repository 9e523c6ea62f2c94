"""What an engine does when a variant fails on a request, with real models that do."""

from __future__ import annotations

import asyncio
import math
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from serving_bundles import cases, tiny_bundle
from serving_engines import call_of, with_engine

from pastille.bundle import load_bundle
from pastille.runtime import load
from pastille.serve.engine.engine import OpenedEngine
from pastille.serve.engine.fallback import FaultError
from pastille.serve.engine.fallback import ask as ask_variant
from pastille.serve.errors import Refused
from pastille.serve.settings import Breaker, Queue, Settings
from pastille.serve.values import Event, Faulted, Moved

TRIGGERS = {"nan": "non_finite", "raise": "exception", "rows": "shape"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("fallback") / "bundle")


@pytest.fixture(scope="module")
def hopeless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("hopeless") / "bundle", faulty=("int8", "fp32"))


def test_the_preferred_variant_answers_as_the_bundle_does(bundle: Path) -> None:
    x = cases(3, seed=7)
    expected = load_bundle(bundle).predict(x)

    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        reply = await engine.answer(call_of(x))
        assert reply.answer.variant == "int8"
        assert reply.fallback is None
        assert reply.answer.outputs.tobytes() == expected.outputs.tobytes()
        assert reply.answer.decisions == expected.decisions
        assert reply.model_sha256 == engine.manifest.variant("int8").model.sha256
        assert expected.probabilities is not None
        assert reply.confidence is not None
        assert reply.confidence.tolist() == expected.probabilities.max(axis=1).tolist()
        assert engine.status.ready
        assert not engine.status.degraded
        assert engine.idle

    assert with_engine(bundle, ask) == []


@pytest.mark.parametrize(("trigger", "why"), TRIGGERS.items())
def test_fp32_answers_where_int8_fails(bundle: Path, trigger: str, why: str) -> None:
    x = cases(2, seed=0, shape=None, **{trigger: 1.0})
    expected = load(bundle / "models/fp32.onnx", threads=1)({"input": x})["logits"]

    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        reply = await engine.answer(call_of(x))
        assert reply.answer.variant == "fp32"
        assert reply.fallback is not None
        assert reply.fallback.preferred == "int8"
        assert reply.fallback.why == why
        assert reply.answer.outputs.tobytes() == expected.tobytes()
        assert [(e.variant, e.why) for e in events if isinstance(e, Faulted)] == [("int8", why)]
        assert (await engine.answer(call_of())).answer.variant == "int8"

    with_engine(bundle, ask)


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_nothing_wrong_is_answered_where_both_fail(hopeless: Path, trigger: str) -> None:
    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        with pytest.raises(Refused) as refused:
            await engine.answer(call_of(None, **{trigger: 1.0}))
        assert refused.value.status == 500
        assert (await engine.answer(call_of())).fallback is None

    with_engine(hopeless, ask)


def test_a_stalled_variant_is_left_and_fp32_answers(bundle: Path) -> None:
    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        reply = await engine.answer(call_of(slow=60.0))
        assert reply.answer.variant == "fp32"
        assert reply.fallback is not None
        assert reply.fallback.why == "timeout"
        for _ in range(200):
            await asyncio.sleep(0.01)
            if not engine._places.stuck:
                break
        assert engine._places.stuck == 0, "the run was asked to end, and its place came back"
        assert (await engine.answer(call_of())).answer.variant == "int8"

    with_engine(bundle, ask, Settings(queue=Queue(timeout_s=0.2)))


def test_both_stalled_is_a_503(hopeless: Path) -> None:
    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        with pytest.raises(Refused) as refused:
            await engine.answer(call_of(slow=60.0))
        assert refused.value.cause == "deadline"
        assert refused.value.status == 503

    with_engine(hopeless, ask, Settings(queue=Queue(timeout_s=0.1)))


def test_the_breaker_leaves_int8_alone_and_probes_it(bundle: Path) -> None:
    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        for _ in range(2):
            await engine.answer(call_of(nan=1.0))
        assert engine.status.degraded
        assert "rests" in engine.status.reason
        reply = await engine.answer(call_of())
        assert reply.answer.variant == "fp32"
        assert reply.fallback is not None
        assert reply.fallback.why == "breaker"
        await asyncio.sleep(0.25)
        reply = await engine.answer(call_of())
        assert reply.answer.variant == "int8"
        assert reply.fallback is None
        restored = engine.status
        assert not restored.degraded
        assert restored.degraded_since is None
        moved = [(e.variant, e.state) for e in events if isinstance(e, Moved)]
        assert moved == [("int8", "open"), ("int8", "half_open"), ("int8", "closed")]

    with_engine(bundle, ask, Settings(breaker=Breaker(failures=2, rest_s=0.2)))


def test_the_last_variant_is_asked_whatever_its_breaker_says(hopeless: Path) -> None:
    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        for _ in range(3):
            with pytest.raises(Refused):
                await engine.answer(call_of(nan=1.0))
        assert {v.breaker for v in engine.status.variants} == {"open"}
        assert (await engine.answer(call_of())).answer.variant == "fp32"

    with_engine(hopeless, ask, Settings(breaker=Breaker(failures=1, rest_s=600)))


def test_the_alarm_takes_int8_out_of_service(bundle: Path) -> None:
    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        await engine.answer(call_of())
        engine.alarm("they disagree on 12 % of cases")
        reply = await engine.answer(call_of())
        assert reply.answer.variant == "fp32"
        assert reply.fallback is not None
        assert reply.fallback.why == "alarm"
        status = engine.status
        assert status.ready
        assert status.degraded
        assert "12 %" in status.reason
        assert status.degraded_since
        assert (status.preferred, status.answering) == ("int8", "fp32")
        assert {v.name: v.usable for v in status.variants} == {"int8": False, "fp32": True}
        assert [e.why for e in events if isinstance(e, Faulted)] == ["alarm"]

    with_engine(bundle, ask)


def test_the_alarm_is_only_reported_where_so_set(bundle: Path) -> None:
    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        engine.alarm("they disagree")
        assert (await engine.answer(call_of())).answer.variant == "int8"

    with_engine(bundle, ask, Settings.model_validate({"alarm": {"action": "report"}}))


def test_without_fp32_the_alarm_leaves_nobody(bundle: Path) -> None:
    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        engine.alarm("they disagree")
        with pytest.raises(Refused) as refused:
            await engine.answer(call_of())
        assert refused.value.cause == "not_ready"
        assert "they disagree" in str(refused.value)
        assert not engine.status.ready
        assert engine.status.degraded

    with_engine(bundle, ask, Settings(variant="int8"))


def test_a_forced_variant_is_asked_alone(bundle: Path) -> None:
    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        with pytest.raises(Refused) as refused:
            await engine.answer(call_of(nan=1.0))
        assert refused.value.cause == "fault"

    with_engine(bundle, ask, Settings(variant="int8"))


def test_another_variant_may_be_asked_first(bundle: Path) -> None:
    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        reply = await engine.answer(call_of(), prefer="fp32")
        assert reply.answer.variant == "fp32"
        assert reply.fallback is None

    with_engine(bundle, ask)


@pytest.mark.parametrize("kind", ["binary", "multilabel", "regression", "custom", "segmentation"])
def test_every_kind_of_task_is_answered(tmp_path: Path, kind: str) -> None:
    shape = (1, 8, 8) if kind == "segmentation" else None
    folder = tiny_bundle(tmp_path / "bundle", kind, shape=shape)  # type: ignore[arg-type]
    x = cases(3, shape=shape)
    expected = load_bundle(folder).predict(x)

    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        reply = await engine.answer(call_of(x))
        assert reply.answer.decisions == expected.decisions
        assert np.array_equal(reply.answer.outputs, expected.outputs)
        assert (reply.threshold is None) == (kind not in ("binary", "multilabel"))
        assert (reply.confidence is None) == (kind not in ("binary", "multilabel"))
        if reply.confidence is not None:
            assert ((reply.confidence >= 0.5) & (reply.confidence <= 1)).all()

    with_engine(folder, ask)


def test_probabilities_that_are_none_are_a_fault(tmp_path: Path) -> None:
    folder = tiny_bundle(tmp_path / "bundle", "custom")

    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        manifest = replace(engine.manifest, kind="multiclass", outputs="probabilities")
        session = engine._variants.sessions["int8"]
        with pytest.raises(FaultError, match="did not sum to 1"):
            ask_variant(session, {"input": cases(2)}, manifest)

    with_engine(folder, ask)


def test_a_probe_that_found_no_place_is_made_by_the_next_call(bundle: Path) -> None:
    """Else fp32, which is slower, would keep the server full, and so keep int8 out."""
    settings = Settings(queue=Queue(wait_s=0.02, depth=100), breaker=Breaker(failures=1, rest_s=0.3))

    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        await engine.answer(call_of(nan=1.0))
        await asyncio.sleep(0.31)
        gate, places = threading.Event(), engine._places
        held = [places.run(lambda _: gate.wait(30), start_by=math.inf) for _ in range(places.places)]
        holding = asyncio.gather(*held)
        await asyncio.sleep(0)
        with pytest.raises(Refused) as refused:
            await engine.answer(call_of())
        assert refused.value.cause == "overload"
        gate.set()
        await holding
        assert (await engine.answer(call_of())).answer.variant == "int8"

    with_engine(bundle, ask, settings)


def test_a_variant_that_hangs_is_left_though_no_client_waits_for_the_time_out(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pastille.serve.engine.asking._FAIR_S", 0.1)

    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        with pytest.raises(Refused):
            await engine.answer(call_of(slow=60.0, within_s=0.02))  # too little to say anything
        assert not [event for event in events if isinstance(event, Faulted)]
        with pytest.raises(Refused):
            await engine.answer(call_of(slow=60.0, within_s=0.15))
        (fault,) = (event for event in events if isinstance(event, Faulted))
        assert (fault.variant, fault.why) == ("int8", "timeout")
        reply = await engine.answer(call_of(slow=60.0, within_s=5.0))
        assert (reply.answer.variant, reply.fallback and reply.fallback.why) == ("fp32", "breaker")

    with_engine(bundle, ask, Settings(breaker=Breaker(failures=1)))


def test_the_last_variant_rests_no_longer_for_what_nobody_can_answer(hopeless: Path) -> None:
    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        for _ in range(4):
            with pytest.raises(Refused):
                await engine.answer(call_of(nan=1.0))
        fp32 = engine._variants.breakers["fp32"]
        assert (fp32.state, fp32.rest_s) == ("open", 100.0)
        reply = await engine.answer(call_of())
        assert (reply.answer.variant, reply.fallback and reply.fallback.why) == ("fp32", "breaker")
        assert engine._variants.breakers["fp32"].state == "closed"

    with_engine(hopeless, ask, Settings(breaker=Breaker(failures=1, rest_s=100.0)))

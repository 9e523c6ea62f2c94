from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from registry_parts import in_a_loop
from serving_bundles import cases, tiny_bundle

from pastille.bundle import Bundle, load_bundle
from pastille.errors import InferenceError
from pastille.runtime import Session
from pastille.serve.engine.batching import Batched, Batcher, Inputs, Ran
from pastille.serve.engine.batching_plan import WORTH, BatchingPlan, likeness, plan_batching
from pastille.serve.engine.fallback import FaultError
from pastille.serve.engine.places import NoPlaceError
from pastille.serve.errors import Refused
from pastille.serve.settings import Batching
from pastille.values import TensorSpec

LATER = 1e9  # a deadline that never comes


@cache
def bundle() -> Bundle:
    return load_bundle(tiny_bundle(Path(mkdtemp(prefix="pastille-batching-")) / "bundle"))


@dataclass
class Place:
    """One place for a real model; `gate` holds back what runs, `sizes` says how many ran together."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    sizes: list[int] = field(default_factory=list)
    deadlines: list[float] = field(default_factory=list)

    async def run(self, inputs: Inputs, deadline: float) -> Ran:
        self.sizes.append(len(inputs["input"]))
        self.deadlines.append(deadline)
        await self.gate.wait()
        return Ran(outputs=bundle().session(inputs)["logits"], compute_s=0.25)


def batcher(place: Place, *, rows: int = 4, wait_s: float = 30.0, **others: Any) -> Batcher:
    return Batcher(place.run, rows=rows, wait_s=wait_s, **others)


def start(to: Batcher, x: np.ndarray, deadline: float = LATER) -> asyncio.Task[Batched]:
    return asyncio.get_running_loop().create_task(to.answer({"input": x}, deadline))


def switched(n: int, *, seed: int, what: str) -> np.ndarray:
    """Cases that make the model misbehave, if ``what`` is not empty."""
    triggers: dict[str, Any] = {what: 1.0} if what else {}
    return cases(n, seed=seed, **triggers)


def alone(x: np.ndarray) -> bytes:
    return bundle().session({"input": x})["logits"].tobytes()


async def settle() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


@in_a_loop
async def test_one_call_runs_at_once_and_alone() -> None:
    place = Place()
    place.gate.set()
    answered = await batcher(place).answer({"input": cases(2)}, LATER)
    assert answered.outputs.tobytes() == alone(cases(2))
    assert (answered.rows, answered.compute_s, place.sizes) == (2, 0.25, [2])


@in_a_loop
async def test_calls_that_arrive_while_the_place_is_taken_run_together() -> None:
    place = Place()
    to = batcher(place)
    calls = [start(to, cases(1, seed=i)) for i in range(5)]
    await settle()
    assert (place.sizes, to.waiting) == ([1, 4], 0)  # the first at once, then a full batch
    place.gate.set()
    for i, call in enumerate(calls):
        answered = await call
        assert answered.outputs.tobytes() == alone(cases(1, seed=i))
        assert answered.rows == (1 if i == 0 else 4)


@in_a_loop
async def test_a_batch_that_is_not_full_starts_when_the_place_is_free() -> None:
    place = Place()
    to = batcher(place)
    calls = [start(to, cases(1, seed=i)) for i in range(3)]
    await settle()
    assert (place.sizes, to.waiting) == ([1], 2)
    place.gate.set()
    await asyncio.gather(*calls)
    assert place.sizes == [1, 2]


@in_a_loop
async def test_a_call_waits_for_others_no_longer_than_it_may() -> None:
    place = Place()
    to = batcher(place, wait_s=0.01)
    calls = [start(to, cases(1)), start(to, cases(1))]
    await settle()
    assert place.sizes == [1]
    while len(place.sizes) < 2:  # the place is still taken: only the bound can start it
        await asyncio.sleep(0.005)
    place.gate.set()
    await asyncio.gather(*calls)


@in_a_loop
async def test_as_many_run_at_once_as_there_are_places() -> None:
    place = Place()
    to = batcher(place, places=2)
    calls = [start(to, cases(1)) for _ in range(4)]
    await settle()
    assert (place.sizes, to.waiting) == ([1, 1], 2)
    place.gate.set()
    await asyncio.gather(*calls)


@in_a_loop
async def test_a_place_that_others_take_is_not_free() -> None:
    place, taken = Place(), True
    place.gate.set()
    to = batcher(place, idle=lambda: not taken)
    first = start(to, cases(1, seed=1))
    await settle()
    assert to.waiting == 1
    taken = False
    second = await to.answer({"input": cases(1, seed=2)}, LATER)
    assert (second.rows, (await first).rows, place.sizes) == (2, 2, [2])


@in_a_loop
async def test_a_batch_is_never_larger_than_it_may_be() -> None:
    place = Place()
    to = batcher(place, rows=4)
    calls = [start(to, cases(n, seed=n)) for n in (1, 3, 2, 9, 1)]
    await settle()
    place.gate.set()
    for n, call in zip((1, 3, 2, 9, 1), calls, strict=True):
        assert (await call).outputs.tobytes() == alone(cases(n, seed=n))
    assert place.sizes == [1, 3, 2, 9, 1]  # what would not fit starts what waits


@in_a_loop
async def test_one_call_that_fails_does_not_fail_its_neighbours() -> None:
    place = Place()
    to = batcher(place)
    calls = [start(to, switched(1, seed=i, what="raise" if i == 2 else "")) for i in range(4)]
    await settle()
    place.gate.set()
    given = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(given[2], InferenceError)
    for i in (0, 1, 3):
        answered = given[i]
        assert isinstance(answered, Batched)
        assert (answered.outputs.tobytes(), answered.rows) == (alone(cases(1, seed=i)), 1)
    assert place.sizes == [1, 3, 1, 1, 1]


@in_a_loop
async def test_a_model_that_swallows_a_row_does_not_shift_the_answers() -> None:
    place = Place()
    to = batcher(place)
    calls = [start(to, cases(2, seed=i, rows=float(i == 1))) for i in range(3)]
    await settle()
    place.gate.set()
    given = await asyncio.gather(*calls)
    assert [len(answered.outputs) for answered in given] == [2, 1, 2]  # alone, the engine sees it
    assert given[2].outputs.tobytes() == alone(cases(2, seed=2))


@in_a_loop
async def test_a_non_finite_case_leaves_its_neighbours_alone() -> None:
    place = Place()
    to = batcher(place)
    calls = [start(to, cases(1, seed=i, nan=float(i == 1))) for i in range(3)]
    await settle()
    place.gate.set()
    finite = [bool(np.isfinite((await call).outputs).all()) for call in calls]
    assert finite == [True, False, True]


# After a stall each would hang again, for as long and with a thread of its own: four are all that there are.
@pytest.mark.parametrize(
    "error", [Refused("overload", "full"), NoPlaceError(), FaultError("timeout", "it did not answer")]
)
def test_what_is_refused_together_is_not_asked_again(error: Exception) -> None:
    asked = []

    async def run(inputs: Inputs, deadline: float) -> Ran:
        asked.append(len(inputs["input"]))
        raise error

    async def test() -> None:
        to = Batcher(run, rows=4, wait_s=30)
        given = await asyncio.gather(*(start(to, cases(1)) for _ in range(5)), return_exceptions=True)
        assert {type(each) for each in given} == {type(error)}
        assert asked == [1, 4]

    asyncio.run(test())


@in_a_loop
async def test_each_call_has_its_own_deadline() -> None:
    place = Place()
    to = batcher(place)
    soon, later = time.monotonic() + 0.02, time.monotonic() + 1000
    calls = [
        start(to, cases(1), later),
        start(to, cases(1, seed=1), soon),
        start(to, cases(1, seed=2), later),
    ]
    with pytest.raises(Refused) as refused:
        await calls[1]
    assert refused.value.cause == "deadline"
    assert to.waiting == 1
    place.gate.set()
    assert (await calls[2]).outputs.tobytes() == alone(cases(1, seed=2))
    assert place.sizes == [1, 1]  # what is worth nothing any more is not run
    assert place.deadlines == [later, later]


@in_a_loop
async def test_a_call_that_is_given_up_takes_no_row() -> None:
    place = Place()
    to = batcher(place)
    calls = [start(to, cases(1, seed=i)) for i in range(3)]
    await settle()
    calls[1].cancel()
    await settle()
    assert to.waiting == 1
    place.gate.set()
    assert (await calls[2]).rows == 1


@given(st.lists(st.tuples(st.integers(1, 5), st.sampled_from(["", "raise", "rows"])), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_every_call_gets_what_it_would_have_got_alone(asked: list[tuple[int, str]]) -> None:
    inputs = [switched(n, seed=i, what=what) for i, (n, what) in enumerate(asked)]

    async def together() -> list[Batched | BaseException]:
        place = Place()
        to = batcher(place, places=2)
        calls = [start(to, x) for x in inputs]
        await settle()
        place.gate.set()
        return await asyncio.gather(*calls, return_exceptions=True)

    for x, (_, what), answered in zip(inputs, asked, asyncio.run(together()), strict=True):
        if what == "raise":
            assert isinstance(answered, InferenceError)
        else:
            assert isinstance(answered, Batched)
            assert answered.outputs.tobytes() == alone(x)


# -- whether it is worth it


@dataclass
class Timed:
    """A real model whose calls take ``fixed + per_row * rows`` on a clock of its own."""

    fixed: float
    per_row: float
    session: Session
    now: float = 0.0
    fixed_batch: int | None = None
    shift: float = 0.0  # that each case of a batch of three moves by

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.session.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.session.outputs

    @property
    def threads(self) -> int:
        return 1

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = len(inputs["input"])
        self.now += self.fixed + self.per_row * rows
        logits = self.session(inputs)["logits"]
        return {"logits": logits + np.float32(self.shift * (rows == 3))}


def planned(session: Timed, **asked: Any) -> BatchingPlan:
    opened = bundle()
    return plan_batching(
        session,
        opened.manifest,
        opened.manifest.variant(opened.variant),
        {"input": cases(5)},
        Batching(**asked),
        clock=lambda: session.now,
    )


def timed(fixed: float = 1e-3, per_row: float = 1e-3, **others: Any) -> Timed:
    return Timed(fixed=fixed, per_row=per_row, session=bundle().session, **others)


def test_it_is_on_where_it_was_measured_to_help() -> None:
    plan = planned(timed())  # 8 * 2 ms against 9 ms
    assert plan.rows == 8
    assert plan.speedup == pytest.approx(16 / 9)
    assert plan.words == "up to 8 within 2 ms: 1.77 times the throughput here, answers equal bit for bit"


def test_it_is_off_where_it_does_not_help() -> None:
    plan = planned(timed(fixed=1e-4))  # 8 * 1.1 ms against 8.1 ms: 1.086
    assert plan.rows == 1
    assert plan.words == f"off: 8 together give 1.08 times the throughput here, and {WORTH} is asked"
    assert planned(timed(fixed=1e-4), use="on").rows == 8
    plan = planned(timed(fixed=1e-4, per_row=1e-4))  # 1.78 times, but 0.0875 ms per case
    assert plan.rows == 1
    assert plan.words.endswith("1.77 times the throughput here, and that is too little time to be worth it")


def test_a_long_hopeless_measurement_ends_early() -> None:
    session = timed(fixed=0.0, per_row=0.2)
    assert planned(session).rows == 1
    assert session.now < 6  # warm-up and one round, not three


def test_it_is_off_by_setting_and_where_the_batch_is_fixed() -> None:
    assert planned(timed(), use="off").words == planned(timed(), rows=1).words == "off, by setting"
    assert planned(timed(fixed_batch=1)).words == "off: the model takes batches of 1 alone"


def test_it_is_off_where_answers_would_change() -> None:
    assert planned(timed(shift=1e4)).words.startswith("off: cases that run together are answered otherwise")
    within = planned(timed(shift=1e-3))
    assert within.rows == 8
    assert within.words.endswith("within the golden tolerance, with equal decisions")


def test_a_decision_that_moves_within_the_tolerance_turns_it_off() -> None:
    opened = bundle()
    fp32 = opened.manifest.variant("int8")
    x = cases(3)
    logits = opened.session({"input": x})["logits"]
    close = replace_logits(opened.session, logits, gap=1e-3)
    assert likeness(close, opened.manifest, fp32, {"input": x}) is None


def replace_logits(session: Session, logits: np.ndarray, *, gap: float) -> Session:
    """A model that is undecided by ``gap``, one way alone and the other way in a batch."""

    class Undecided(Timed):
        def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            rows = len(inputs["input"])
            answer = np.repeat(np.array([[10.0, 10.0, -10.0]], np.float32), rows, axis=0)
            answer[:, 0] += gap if rows == 1 else -gap
            return {"logits": answer}

    return Undecided(fixed=0, per_row=0, session=session)


def test_a_model_that_fails_on_batches_is_never_batched() -> None:
    class Fails(Timed):
        def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            if len(inputs["input"]) > 1:
                raise InferenceError("int8.onnx cannot run: one at a time")
            return super().__call__(inputs)

    plan = planned(Fails(fixed=1, per_row=1, session=bundle().session))
    assert plan.rows == 1
    assert plan.words == "off: the model fails on a batch: int8.onnx cannot run: one at a time"


def test_a_real_model_gets_a_plan() -> None:
    opened = bundle()
    variant = opened.manifest.variant(opened.variant)
    inputs = {"input": cases(8)}
    plan = plan_batching(opened.session, opened.manifest, variant, inputs, Batching(use="on"), budget_s=0.01)
    assert plan.rows == 8
    assert "answers equal bit for bit" in plan.words or "within the golden tolerance" in plan.words

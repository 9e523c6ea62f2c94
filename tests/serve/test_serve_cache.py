from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from serving_bundles import cases, tiny_bundle

from pastille.bundle import Answer, load_bundle
from pastille.serve.engine.cache import (
    ENTRY_BYTES,
    Identity,
    Question,
    ResponseCache,
    identity_of,
    question,
)
from pastille.serve.values import Fallback, Reply

IDENTITY = Identity(content="c" * 64, version="1", variant="int8", sha256="5" * 64)


def asked(value: float, *, n: int = 1, identity: Identity = IDENTITY) -> Question:
    return question(identity, {"x": np.full((n, 4), value, np.float32)})


def reply(value: float = 0.0, n: int = 1) -> Reply:
    outputs = np.full((n, 3), value, np.float32)
    answer = Answer(outputs=outputs, probabilities=outputs / 2, decisions=("a",) * n, variant="int8")
    return Reply(
        answer=answer,
        model="tiny",
        version="1",
        model_sha256="5" * 64,
        threshold=None,
        confidence=np.ones(n),
        compute_s=0.5,
        queue_s=0.5,
        batch=4,
        warnings=("of the first call",),
    )


def size(n: int) -> int:
    """Inputs, outputs, probabilities and confidence of `asked` and `reply`, counted by hand."""
    return n * (4 * 4 + 3 * 4 + 3 * 4 + 8) + ENTRY_BYTES


def test_the_same_input_is_answered_from_the_cache_as_if_it_had_run() -> None:
    cache = ResponseCache(1 << 20)
    assert cache.get(asked(1)) is None
    assert cache.put(asked(1), reply(7))
    found = cache.get(asked(1), warnings=("of this call",))
    assert found is not None
    assert found.cached
    assert (found.compute_s, found.queue_s, found.batch) == (0, 0, 1)
    assert found.answer.outputs.tolist() == [[7, 7, 7]]
    assert found.answer.decisions == ("a",)
    assert found.warnings == ("of this call",)
    assert cache.stats.hits == cache.stats.misses == cache.stats.entries == 1
    assert cache.stats.bytes == size(1)


def test_what_is_kept_cannot_be_changed_from_outside() -> None:
    cache, inputs, given = ResponseCache(1 << 20), np.ones((1, 4), np.float32), reply(7)
    cache.put(question(IDENTITY, {"x": inputs}), given)
    inputs[:], given.answer.outputs[:] = 5, 5
    found = cache.get(asked(1))
    assert found is not None
    assert found.answer.outputs.tolist() == [[7, 7, 7]]
    assert cache.get(asked(5)) is None
    with pytest.raises(ValueError, match="read-only"):
        found.answer.outputs[:] = 1


@pytest.mark.parametrize(
    "changes",
    [
        {"fallback": Fallback(preferred="int8", why="timeout", detail="slow")},
        {"disagreement": np.array([False])},
        {"cached": True},
        {"version": "2"},
        {"model_sha256": "6" * 64},
        {"answer": replace(reply().answer, variant="fp32")},
        {"answer": replace(reply().answer, outputs=np.array([[np.nan, 0, 0]]))},
    ],
)
def test_what_must_not_be_said_again_is_not_kept(changes: dict[str, object]) -> None:
    cache = ResponseCache(1 << 20)
    assert not cache.put(asked(1), replace(reply(), **changes))  # type: ignore[arg-type]
    assert cache.get(asked(1)) is None
    assert cache.stats.bytes == 0


def test_an_answer_belongs_to_one_version_variant_and_bundle() -> None:
    cache = ResponseCache(1 << 20)
    cache.put(asked(1), reply())
    for other in ({"version": "2"}, {"variant": "fp32"}, {"content": "d" * 64}, {"sha256": "6" * 64}):
        assert cache.get(asked(1, identity=replace(IDENTITY, **other))) is None  # type: ignore[arg-type]


def test_equal_hashes_prove_nothing() -> None:
    cache, first, second = ResponseCache(1 << 20), asked(1), asked(2)
    second.__dict__["digest"] = first.digest  # as if SHA-256 had been broken
    cache.put(first, reply(1))
    assert cache.get(second) is None
    cache.put(second, reply(2))
    found = cache.get(second)
    assert found is not None
    assert found.answer.outputs[0, 0] == 2
    assert cache.get(first) is None
    assert cache.stats.bytes == size(1)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (np.zeros((1, 2), np.float32), -np.zeros((1, 2), np.float32)),  # equal numbers, other bytes
        (np.zeros((2, 1), np.float32), np.zeros((1, 2), np.float32)),
        (np.zeros((1, 2), np.float32), np.zeros((1, 2), np.int32)),
        (np.zeros((1, 2), "<f4"), np.zeros((1, 2), ">f4")),
    ],
)
def test_another_byte_shape_or_type_is_another_question(one: np.ndarray, two: np.ndarray) -> None:
    a, b = question(IDENTITY, {"x": one}), question(IDENTITY, {"x": two})
    assert a != b
    assert a.digest != b.digest


def test_the_order_of_the_tensors_does_not_matter_but_their_names_do() -> None:
    x, y = np.zeros((1, 2)), np.ones((1, 2))
    assert question(IDENTITY, {"x": x, "y": y}) == question(IDENTITY, {"y": y, "x": x})
    assert question(IDENTITY, {"x": x, "y": y}).digest != question(IDENTITY, {"x": y, "y": x}).digest


@given(arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(0, 5), st.integers(1, 2))))
@settings(max_examples=30, deadline=None)
def test_memory_layout_does_not_matter(array: np.ndarray) -> None:
    plain = question(IDENTITY, {"x": np.ascontiguousarray(array)})
    assert question(IDENTITY, {"x": np.asfortranarray(array)}) == plain
    assert question(IDENTITY, {"x": np.repeat(array, 2, axis=0)[::2]}).digest == plain.digest


def test_an_answer_larger_than_the_cache_is_not_kept() -> None:
    cache = ResponseCache(size(1))
    assert cache.put(asked(1), reply())
    assert not cache.put(asked(2, n=2), reply(n=2))
    assert cache.get(asked(1)) is not None


def test_it_belongs_to_one_thread() -> None:
    cache, raised = ResponseCache(1 << 20), []
    cache.get(asked(1))

    def elsewhere() -> None:
        try:
            cache.get(asked(1))
        except RuntimeError as error:
            raised.append(str(error))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert raised == ["a response cache must be used by one thread, the event loop's"]


def test_a_real_bundle_answers_the_same_from_the_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    bundle = load_bundle(tiny_bundle(tmp_path_factory.mktemp("cache") / "bundle"))
    identity = identity_of(bundle.manifest, bundle.variant, "1")
    cache = ResponseCache(1 << 20)
    for seed in (0, 1, 0):
        inputs = {"input": cases(2, seed=seed)}
        answer = bundle.predict(inputs)
        given = replace(reply(), answer=answer, model_sha256=identity.sha256)
        found = cache.get(question(identity, inputs))
        assert (found is not None) == (seed == 0 and cache.stats.entries == 2)
        if found is not None:
            assert found.answer.outputs.tobytes() == answer.outputs.tobytes()
            assert found.answer.decisions == answer.decisions
        cache.put(question(identity, inputs), given)


KEYS = st.tuples(st.integers(0, 1), st.sampled_from([1, 20, 300]))  # which input, and how many rows


class CacheMachine(RuleBasedStateMachine):
    """Against a list of (key, answer), the last used at its end."""

    CAPACITY = 3 * size(20)

    def __init__(self) -> None:
        super().__init__()
        self.cache = ResponseCache(self.CAPACITY)
        self.model: list[tuple[tuple[int, int], float]] = []
        self.hits = self.misses = 0

    @rule(key=KEYS, value=st.integers(0, 99))
    def put(self, key: tuple[int, int], value: float) -> None:
        kept = self.cache.put(asked(key[0], n=key[1]), reply(value, key[1]))
        assert kept == (size(key[1]) <= self.CAPACITY)
        if kept:
            self.model = [(k, v) for k, v in self.model if k != key] + [(key, value)]
            while self.bytes() > self.CAPACITY:
                del self.model[0]

    @rule(key=KEYS)
    def get(self, key: tuple[int, int]) -> None:
        found = self.cache.get(asked(key[0], n=key[1]))
        expected = [v for k, v in self.model if k == key]
        assert ([found.answer.outputs[0, 0]] if found else []) == expected
        self.hits, self.misses = self.hits + len(expected), self.misses + (not expected)
        if expected:
            self.model = [(k, v) for k, v in self.model if k != key] + [(key, expected[0])]

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.model = []

    def bytes(self) -> int:
        return sum(size(n) for (_, n), _ in self.model)

    @invariant()
    def counts(self) -> None:
        stats = self.cache.stats
        assert (stats.bytes, stats.entries) == (self.bytes(), len(self.model))
        assert (stats.hits, stats.misses) == (self.hits, self.misses)


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from registry_parts import bundle, call, comparing, in_a_loop, serving
from serving_bundles import cases

from pastille.errors import UsageError
from pastille.serve.assignment import NO_SUBJECT, arm_of, is_sampled
from pastille.serve.errors import Refused
from pastille.serve.seams import Registry
from pastille.serve.values import Faulted

SUBJECTS = [f"patient {i}" for i in range(4000)]


@given(st.text(), st.text(), st.floats(0, 1))
def test_a_subject_stays_in_its_arm(subject: str, salt: str, share: float) -> None:
    assert arm_of(subject, salt=salt, share=share) == arm_of(subject, salt=salt, share=share)
    assert arm_of(subject, salt=salt, share=0.0) == "a"
    assert arm_of(subject, salt=salt, share=1.0) == "b"


@given(st.text(st.characters(codec=None, exclude_categories=[]), max_size=9))
def test_any_key_is_assigned(subject: str) -> None:
    assert arm_of(subject, salt="s", share=0.5) in ("a", "b")


def test_the_assignment_is_the_one_of_every_release() -> None:
    """Computed with OpenSSL: printf 'patient N' | openssl dgst -sha256 -hmac 'arm trial'."""
    first = {"patient 0": 0x1A301019, "patient 1": 0x0388B9D7, "patient 2": 0xAE36088A}
    for subject, word in first.items():
        fraction = word / 2**32
        assert arm_of(subject, salt="trial", share=fraction - 1e-6) == "a"
        assert arm_of(subject, salt="trial", share=fraction + 1e-6) == "b"


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_arms_have_the_size_that_was_asked_for(share: float) -> None:
    n = len(SUBJECTS)
    in_b = sum(arm_of(s, salt="trial", share=share) == "b" for s in SUBJECTS)
    assert abs(in_b - n * share) < 4 * math.sqrt(n * share * (1 - share))


def test_the_hash_is_uniform() -> None:
    """Chi-squared over twenty bins, found by moving the share."""
    edges = [i / 20 for i in range(21)]
    counts = [0] * 20
    for subject in SUBJECTS:
        counts[sum(arm_of(subject, salt="u", share=edge) == "a" for edge in edges[1:])] += 1
    expected = len(SUBJECTS) / 20
    assert sum((c - expected) ** 2 / expected for c in counts) < 43.8  # the 99.9 % point with 19 degrees


def test_more_share_moves_nobody_back_to_a() -> None:
    for subject in SUBJECTS[:500]:
        arms = [arm_of(subject, salt="trial", share=share / 10) for share in range(11)]
        assert arms == sorted(arms)


def test_another_salt_is_an_independent_assignment_and_so_is_the_shadow() -> None:
    n = len(SUBJECTS)
    in_b = [arm_of(s, salt="trial", share=0.5) == "b" for s in SUBJECTS]
    in_other_b = [arm_of(s, salt="trial 2", share=0.5) == "b" for s in SUBJECTS]
    in_shadow = [is_sampled(s, salt="trial", share=0.5) for s in SUBJECTS]
    for other in (in_other_b, in_shadow):
        alike = sum(one == two for one, two in zip(in_b, other, strict=True))
        assert abs(alike - n / 2) < 4 * math.sqrt(n / 4)


# -- in the registry


async def asked(registry: Registry, subject: str | None, **triggers: float) -> tuple[str | None, str, str]:
    x = cases(1, **triggers)  # type: ignore[arg-type]
    reply = await registry.answer("tiny", None, call(x, subject=subject))
    return reply.arm, reply.version, reply.answer.variant


@in_a_loop
async def test_each_subject_is_answered_by_its_arm_every_time() -> None:
    async with serving(bundle(1), mode="ab", comparison=comparing(share=0.4, salt="trial")) as (registry, _):
        for subject in SUBJECTS[:30]:
            arm = arm_of(subject, salt="trial", share=0.4)
            variant = {"a": "int8", "b": "fp32"}[arm]
            assert {await asked(registry, subject) for _ in range(2)} == {(arm, "1", variant)}


@in_a_loop
async def test_b_may_be_another_bundle() -> None:
    against = comparing(share=0.4, salt="trial", bundle=bundle(2))
    async with serving(bundle(1), mode="ab", comparison=against) as (registry, _):
        found = Counter([await asked(registry, subject) for subject in SUBJECTS[:30]])
        in_b = sum(arm_of(s, salt="trial", share=0.4) == "b" for s in SUBJECTS[:30])
        assert found == {("a", "1", "int8"): 30 - in_b, ("b", "candidate", "int8"): in_b}
        await registry.load(bundle(3))
        assert await asked(registry, B) == ("b", "candidate", "int8")
        assert await asked(registry, A) == ("a", "2", "int8")


@in_a_loop
async def test_without_a_subject_a_answers_and_says_so() -> None:
    async with serving(bundle(1), mode="ab", comparison=comparing(share=1.0)) as (registry, _):
        reply = await registry.answer("tiny", None, call())
        assert (reply.arm, reply.answer.variant, reply.warnings) == ("a", "int8", (NO_SUBJECT,))


@in_a_loop
async def test_who_asks_for_a_version_is_not_in_the_test() -> None:
    async with serving(bundle(1), mode="ab", comparison=comparing()) as (registry, _):
        reply = await registry.answer("tiny", "1", call(subject=B))
        assert (reply.arm, reply.answer.variant) == (None, "int8")


@in_a_loop
async def test_what_b_cannot_answer_a_does_and_it_counts_for_b() -> None:
    against = comparing(bundle=bundle(2, faulty=("int8", "fp32")))
    async with serving(bundle(1, faulty=()), mode="ab", comparison=against) as (registry, _):
        reply = await registry.answer("tiny", None, call(cases(1, nan=1), subject=B))
        assert (reply.arm, reply.version, reply.answer.variant) == ("b", "1", "int8")
        assert reply.fallback is not None
        assert (reply.fallback.preferred, reply.fallback.why) == ("int8", "exception")
        assert reply.fallback.detail.startswith("arm b could not answer: ")


@in_a_loop
async def test_what_no_variant_of_one_bundle_can_answer_is_a_fault() -> None:
    bad = bundle(2, faulty=("int8", "fp32"))
    async with serving(bad, mode="ab", comparison=comparing()) as (registry, watcher):
        with pytest.raises(Refused) as refused:
            await registry.answer("tiny", None, call(cases(1, nan=1), subject=B))
        assert refused.value.cause == "fault"
        assert len(watcher.heard(Faulted)) == 2  # each variant was asked once


def test_an_arm_must_have_a_variant() -> None:
    @in_a_loop
    async def start() -> None:
        async with serving(bundle(1), mode="ab", variant="fp32"):
            pass

    with pytest.raises(UsageError, match="mode ab needs two variants, but of tiny only fp32 can be used"):
        start()


A = next(s for s in SUBJECTS if arm_of(s, salt="trial", share=0.4) == "a")
B = next(s for s in SUBJECTS if arm_of(s, salt="trial", share=0.4) == "b")

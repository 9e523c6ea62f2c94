from __future__ import annotations

import asyncio
import weakref
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from registry_parts import bundle, call, comparing, in_a_loop, serving, until
from serving_bundles import cases, tiny_parts

from pastille.bundle import Answer, Manifest, read_manifest, write_bundle
from pastille.errors import UsageError
from pastille.serve import shadow
from pastille.serve.assignment import is_sampled
from pastille.serve.comparing import compare, positive_labels
from pastille.serve.engine.machine import this_machine
from pastille.serve.errors import Refused
from pastille.serve.seams import Engine
from pastille.serve.values import Compared, Dropped
from pastille.values import Status


@in_a_loop
async def test_a_reply_is_compared_with_the_other_variant_after_it_was_given() -> None:
    async with serving(bundle(1), mode="shadow", comparison=comparing()) as (registry, watcher):
        reply = await registry.answer("tiny", None, call(cases(2, lost=1)))
        assert registry.engine("tiny").idle  # nothing runs beside what was answered, and
        assert not watcher.events["tiny:1"]  # nothing has run: the reply is out first
        await until(lambda: bool(watcher.events["tiny:1"]))
        (event,) = watcher.heard(Compared)
        assert (event.served, event.other) == ("int8", "fp32") == (reply.answer.variant, "fp32")
        assert reply.answer.decisions == ("healthy", "healthy")
        expected = fp32_says_ill()
        assert expected.any()
        assert event.disagree.tolist() == event.lost.tolist() == expected.tolist()
        assert not event.gained.any()


def fp32_says_ill() -> np.ndarray:
    from pastille.bundle.verify import open_variant

    manifest = read_manifest(bundle(1) / "manifest.json")
    session = open_variant(bundle(1), manifest, manifest.variant("fp32"), threads=1)
    said: np.ndarray = session({"input": cases(2, lost=1)})["logits"][:, 0] > 0
    return said


@in_a_loop
async def test_a_share_of_the_requests_is_compared_whatever_ids_they_have() -> None:
    sampled = [i for i in range(40) if is_sampled(f"{i + 1} one id", salt="pastille", share=0.3)]
    assert 4 <= len(sampled) <= 20
    for _ in range(2):
        async with serving(bundle(1), mode="shadow", comparison=comparing(share=0.3, queue=99)) as opened:
            registry, watcher = opened
            for i in range(40):
                x = cases(1 + i, seed=i)
                await registry.answer("tiny", None, call(x, request_id="one id"))
            await until(lambda w=watcher: len(w.heard(Compared)) == len(sampled))  # type: ignore[misc]
            assert [len(event.disagree) - 1 for event in watcher.heard(Compared)] == sampled


@in_a_loop
async def test_it_waits_until_nothing_else_runs_and_drops_what_is_too_much() -> None:
    async with serving(bundle(1), mode="shadow", comparison=comparing(queue=2), threads=1) as opened:
        registry, watcher = opened
        busy = asyncio.create_task(registry.answer("tiny", "1", call(cases(1, slow=0.4))))
        compared_before: list[int] = []
        busy.add_done_callback(lambda _: compared_before.append(len(watcher.heard(Compared))))
        await until(lambda: not registry.engine("tiny").idle)
        held = []
        for _ in range(3):
            x = cases(1)
            held.append(weakref.ref(x))
            await registry.answer("tiny", None, call(x))
            del x
        assert len(watcher.heard(Dropped)) == 1
        await busy
        await until(lambda: len(watcher.heard(Compared)) == 2)
        assert compared_before == [0]
        await until(lambda: all(ref() is None for ref in held))  # no input is kept any longer


def test_inputs_are_not_held_for_ever_nor_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    @in_a_loop
    async def compare_three() -> None:
        async with serving(bundle(1), mode="shadow", comparison=comparing()) as (registry, watcher):
            for done in (1, 2, 3):
                await registry.answer("tiny", None, call())
                await until(lambda n=done: len(watcher.events["tiny:1"]) == n)  # type: ignore[misc]
            kinds.append({type(event) for event in watcher.events["tiny:1"]})

    kinds: list[set[type]] = []
    one = cases(1).nbytes
    for most_bytes, patience_s in ((one, 30.0), (one - 1, 30.0), (one, -1.0)):
        monkeypatch.setattr(shadow, "MOST_BYTES", most_bytes)
        monkeypatch.setattr(shadow, "PATIENCE_S", patience_s)
        compare_three()
    assert kinds == [{Compared}, {Dropped}, {Dropped}]


@in_a_loop
async def test_a_comparison_makes_way_for_a_request_and_is_begun_anew() -> None:
    both, one_place = bundle(1, faulty=("int8", "fp32")), this_machine().cores
    async with serving(both, mode="shadow", comparison=comparing(), threads=one_place) as (registry, watcher):
        engine = registry.engine("tiny")
        assert engine.status.places == 1
        await registry.answer("tiny", None, call(cases(3, slow=0.2)))  # in the shadow as well
        await until(lambda: not engine.idle)
        reply = await registry.answer("tiny", "1", call())
        assert reply.answer.variant == "int8"
        assert not watcher.events["tiny:1"]  # it did not wait for the comparison
        await until(lambda: bool(watcher.events["tiny:1"]))
        (event,) = watcher.heard(Compared)
        assert len(event.disagree) == 3


@in_a_loop
async def test_a_variant_is_never_compared_with_itself() -> None:
    odd = bundle(1, faulty=("fp32",))
    async with serving(odd, mode="shadow", comparison=comparing()) as (registry, watcher):
        reply = await registry.answer("tiny", None, call(cases(1, nan=1)))
        assert (reply.answer.variant, reply.fallback) == ("int8", None)  # in the shadow fp32 fails on it
        await until(lambda: bool(watcher.heard(Dropped)))
        assert not watcher.heard(Compared)


@in_a_loop
async def test_what_says_nothing_about_the_variant_is_not_compared() -> None:
    async with serving(bundle(1), mode="shadow", comparison=comparing(), cache_bytes=1 << 20) as opened:
        registry, watcher = opened
        fallen = await registry.answer("tiny", None, call(cases(1, nan=1)))
        assert fallen.fallback is not None
        first = await registry.answer("tiny", None, call(cases(3)))
        again = await registry.answer("tiny", None, call(cases(3)))
        assert (first.cached, again.cached) == (False, True)
        pinned = await registry.answer("tiny", "1", call(cases(4)))
        assert not pinned.cached
        await until(lambda: bool(watcher.heard(Compared)))
        await asyncio.sleep(5 * shadow.PAUSE_S)
        assert [len(event.disagree) for event in watcher.heard(Compared)] == [3]


@in_a_loop
async def test_another_bundle_is_compared_even_where_it_was_not_approved() -> None:
    parts = tiny_parts("binary", requirements={"note": "rejected"})
    parts = replace(
        parts,
        variants=tuple(v if v.name == "fp32" else replace(v, status=Status.REJECTED) for v in parts.variants),
        selected="fp32",
    )
    rejected = bundle(1).parent / "rejected"
    write_bundle(rejected, parts)
    against = comparing(bundle=rejected, variant="int8")
    async with serving(bundle(1, faulty=()), mode="shadow", comparison=against) as (registry, watcher):
        assert [s.version for s in registry.statuses()] == ["1", "candidate"]
        await registry.answer("tiny", None, call(cases(2, lost=1)))  # here the candidate obeys the switch
        await until(lambda: bool(watcher.heard(Compared)))
        (event,) = watcher.heard(Compared)
        assert (event.served, event.other) == ("tiny:1/int8", "tiny:candidate/int8")
        assert event.gained.tolist() == event.disagree.tolist()
        assert event.gained.any()
        with pytest.raises(Refused, match="no such version"):  # it did not pass the gate: nobody is answered
            await registry.answer("tiny", "candidate", call())
        await registry.answer("tiny", None, call(cases(1, nan=1)))  # the candidate cannot answer
        await until(lambda: len(watcher.heard(Dropped)) == 1)
    assert set(watcher.forgotten) == {"tiny:1", "tiny:candidate"}


@pytest.mark.parametrize(
    ("kind", "asked", "message"),
    [
        ("regression", {}, "mode shadow compares decisions, and a regression task has none"),
        ("binary", {"variant": "int8"}, "mode shadow needs two variants, but of tiny only int8 can be used"),
        ("binary", {"comparison": comparing(bundle=bundle(1, "multiclass"))}, "differs in kind, labels"),
    ],
)
def test_what_cannot_be_compared_is_refused_at_the_start(
    kind: str, asked: dict[str, object], message: str
) -> None:
    @in_a_loop
    async def start() -> None:
        async with serving(bundle(1, kind), mode="shadow", **asked):
            pass

    with pytest.raises(UsageError, match=message):
        start()


# -- what differs


def manifest(of: str, **changes: object) -> Manifest:
    found = read_manifest(bundle(1, of) / "manifest.json")
    return replace(found, **changes)  # type: ignore[arg-type]


def decided(*decisions: object) -> Answer:
    return Answer(
        outputs=np.zeros((len(decisions), 1)),
        probabilities=None,
        decisions=decisions,  # type: ignore[arg-type]
        variant="int8",
    )


def found(served: Answer, other: Answer, of: Manifest) -> list[str]:
    given = compare(served, other, of)
    flags = zip(given.disagree, given.lost, given.gained, strict=True)
    return ["".join(letter for letter, on in zip("dlg", each, strict=True) if on) for each in flags]


def test_binary_and_multiclass_cases_are_lost_where_a_positive_is_called_negative() -> None:
    three = ("glioma", "meningioma", "no tumour")
    classes = manifest("multiclass")
    assert set(classes.positive) == {"glioma", "meningioma"}
    served = decided("glioma", "glioma", "no tumour", "glioma", three[2])
    other = decided("glioma", "meningioma", "glioma", "no tumour", three[2])
    assert found(served, other, classes) == ["", "d", "dl", "dg", ""]
    two = manifest("binary")
    assert found(decided("healthy", "ill"), decided("ill", "healthy"), two) == ["dl", "dg"]


def test_a_multilabel_case_can_lose_one_label_and_gain_another() -> None:
    several = manifest("multilabel", positive=())
    assert positive_labels(several) == set(several.labels)
    a, b, _ = several.labels
    assert found(decided((a,), (a, b), ()), decided((b,), (a,), ()), several) == ["dlg", "dg", ""]
    one = replace(several, positive=(b,))
    assert found(decided((a,), ()), decided((b,), (a,)), one) == ["dl", "d"]


def test_a_mask_is_lost_where_nothing_of_the_positive_is_left() -> None:
    masks = np.zeros((3, 40, 50), np.int64) + 2  # of "no tumour"
    other = masks.copy()
    other[0, 0, 0] = 0  # one pixel of 2000: as good as equal
    other[1, :5] = 0
    other[2, :5] = 1
    masks[2, :5] = 0  # another tumour, but a tumour
    kind = manifest("multiclass", kind="segmentation")
    answers = [replace(decided(), outputs=np.zeros((3, 1)), masks=m) for m in (masks, other)]
    assert found(answers[0], answers[1], kind) == ["", "dl", "d"]


def test_a_task_that_decides_nothing_has_nothing_to_compare() -> None:
    numbers = [replace(decided(), outputs=np.full((2, 1), value)) for value in (0.0, 9.0)]
    assert found(numbers[0], numbers[1], manifest("regression")) == ["", ""]
    with pytest.raises(ValueError, match="one length"):
        compare(decided("ill"), decided("ill", "ill"), manifest("binary"))


@in_a_loop
async def test_of_three_variants_the_preferred_one_is_held_against_fp32() -> None:
    """The alarm takes it out of service for deciding otherwise than fp32, not than another compressed one."""
    async with serving(bundle(1), mode="shadow") as (registry, _):
        engine = registry.engine("tiny")
        int8, fp32 = engine.status.variants
        status = replace(engine.status, variants=(int8, replace(int8, name="fp16"), fp32))
        known = cast("Engine", SimpleNamespace(manifest=engine.manifest, status=status))
        assert registry._variant_to_compare(known) == "fp32"

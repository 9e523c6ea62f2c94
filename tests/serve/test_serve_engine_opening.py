"""A bundle is opened with what of it is valid here, and refused where nothing is."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from serving_bundles import cases, tiny_bundle, tiny_parts
from serving_engines import call_of, with_engine

from pastille.bundle import Golden, write_bundle
from pastille.errors import IntegrityError, UsageError
from pastille.serve.engine.engine import OpenedEngine, open_engine
from pastille.serve.engine.machine import Machine
from pastille.serve.engine.opening import open_bundle
from pastille.serve.errors import Refused
from pastille.serve.settings import Settings
from pastille.serve.values import Event, Faulted
from pastille.values import Status

HERE = Machine(isa="avx512-vnni", cores=2, memory_bytes=16 << 30)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("opening") / "bundle")


@pytest.fixture
def bundle(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "bundle"))


def corrupt(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(("broken", "other"), [("int8", "fp32"), ("fp32", "int8")])
@pytest.mark.parametrize("how", ["changed", "cut", "gone"])
def test_one_broken_file_leaves_the_other_variant(bundle: Path, broken: str, other: str, how: str) -> None:
    path = bundle / f"models/{broken}.onnx"
    if how == "changed":
        corrupt(path)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:100])
    else:
        path.unlink()

    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        reply = await engine.answer(call_of())
        assert reply.answer.variant == other
        status = engine.status
        assert status.ready
        assert {v.name: (v.usable, v.why) for v in status.variants} == {
            broken: (False, "load"),
            other: (True, None),
        }
        assert str(bundle) not in status.reason + str(reply.fallback), "where it lies is nobody's business"
        assert [(e.variant, e.why) for e in events if isinstance(e, Faulted)] == [(broken, "load")]
        if broken == "int8":
            assert status.degraded
            assert "int8 cannot be loaded: models/int8.onnx" in status.reason
            assert reply.fallback is not None
            assert (reply.fallback.preferred, reply.fallback.why) == ("int8", "load")
        else:
            assert reply.fallback is None

    with_engine(bundle, ask)


def test_two_broken_files_are_refused_with_both_reasons(bundle: Path) -> None:
    corrupt(bundle / "models/int8.onnx")
    (bundle / "models/fp32.onnx").unlink()
    with pytest.raises(IntegrityError, match=r"no variant is valid here: int8 .*changed.*; fp32 .*missing"):
        open_bundle(bundle, Settings(), HERE)


@pytest.mark.parametrize("file", ["manifest.json", "golden/cases.npz"])
def test_what_is_answered_with_must_be_whole(bundle: Path, file: str) -> None:
    corrupt(bundle / file)
    with pytest.raises(IntegrityError, match=file):
        open_bundle(bundle, Settings(), HERE)


def test_a_file_that_does_not_belong_is_refused(bundle: Path) -> None:
    (bundle / "models/extra.onnx").write_bytes(b"x")
    with pytest.raises(IntegrityError, match="does not belong"):
        open_bundle(bundle, Settings(), HERE)


def test_changed_evidence_is_named_loudly_and_nothing_else(bundle: Path) -> None:
    corrupt(bundle / "evidence/report.html")
    engine = open_engine(bundle, Settings(), version="1", observe=lambda event: None)
    assert engine.status.ready
    assert "WARNING: evidence/report.html was changed" in engine.status.reason


def test_golden_cases_that_are_answered_otherwise_here(tmp_path: Path) -> None:
    parts = tiny_parts()
    outputs = {name: np.array(given) for name, given in parts.golden.outputs.items()}
    outputs["int8"] = outputs["int8"][:, ::-1].copy()  # as if another CPU had answered
    golden = Golden(inputs=parts.golden.inputs, outputs=outputs)
    write_bundle(tmp_path / "bundle", dataclasses.replace(parts, golden=golden))

    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        reply = await engine.answer(call_of())
        assert reply.answer.variant == "fp32"
        assert reply.fallback is not None
        assert reply.fallback.why == "golden"
        assert engine.status.degraded
        assert "does not answer the golden cases as validated" in engine.status.reason

    with_engine(tmp_path / "bundle", ask)


def test_one_that_was_not_approved_is_never_served(tmp_path: Path) -> None:
    parts = tiny_parts(selected="fp32")
    rejected = dataclasses.replace(parts.variants[0], status=Status.REJECTED)
    folder = tmp_path / "bundle"
    write_bundle(folder, dataclasses.replace(parts, variants=(rejected, parts.variants[1])))

    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        reply = await engine.answer(call_of())
        assert reply.answer.variant == "fp32"
        assert reply.fallback is None
        assert {v.name: v.why for v in engine.status.variants} == {"int8": "rejected", "fp32": None}
        assert not engine.status.degraded

    with_engine(folder, ask)
    with pytest.raises(UsageError, match=r"int8 .*was not approved"):
        open_bundle(folder, Settings(variant="int8"), HERE)
    assert open_bundle(folder, Settings(variant="int8"), HERE, judged=False).selection.order == ("int8",)


def test_an_unknown_variant_is_named(bundle: Path) -> None:
    with pytest.raises(UsageError, match="must be one of int8, fp32 of bundle tiny, got 'int3'"):
        open_bundle(bundle, Settings(variant="int3"), HERE)


def test_a_slower_int8_is_not_preferred_and_both_figures_are_said(tmp_path: Path) -> None:
    folder = tiny_bundle(tmp_path / "bundle", slow=("int8",))
    opened = open_bundle(folder, Settings(), HERE)
    assert opened.selection.order == ("fp32", "int8")
    int8, fp32 = (v.latency_ms for v in opened.variants)
    assert (
        opened.selection.reason == f"fp32 answers: int8 is slower here, {int8:.3g} ms against {fp32:.3g} ms"
    )


def test_a_small_machine_takes_the_other_variant_where_int8_is_broken(bundle: Path) -> None:
    board = dataclasses.replace(HERE, memory_bytes=100_000)
    assert open_bundle(bundle, Settings(), board).selection.order == ("int8",)
    corrupt(bundle / "models/int8.onnx")
    assert open_bundle(bundle, Settings(), board).selection.order == ("fp32",)


def test_a_packed_model_is_served(tmp_path: Path) -> None:
    folder = tiny_bundle(tmp_path / "bundle", shape=(1, 64, 64), sparse=True)
    assert (folder / "models/int8.onnx.xz").exists()
    x = cases(2, shape=(1, 64, 64))

    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        assert (await engine.answer(call_of(x))).answer.variant == "int8"

    with_engine(folder, ask)


def test_a_closed_engine_refuses(bundle: Path) -> None:
    async def ask(engine: OpenedEngine, events: list[Event]) -> None:
        await engine.close()
        assert not engine.status.ready
        with pytest.raises(Refused) as refused:
            await engine.answer(call_of())
        assert refused.value.cause == "not_ready"

    with_engine(bundle, ask)


def test_a_variant_that_nobody_judged_is_not_served(tmp_path: Path) -> None:
    parts = tiny_parts()
    variants = tuple(dataclasses.replace(v, status=None) for v in parts.variants)
    write_bundle(tmp_path / "bundle", dataclasses.replace(parts, variants=variants, selected="fp32"))
    opened = open_bundle(tmp_path / "bundle", Settings(), HERE)
    assert opened.selection.order == ("fp32",)
    assert "int8 is not judged, not approved" in [v.reason for v in opened.variants]

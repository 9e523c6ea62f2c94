"""Which variant is chosen, from figures alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pastille.serve.engine.machine import Machine
from pastille.serve.engine.selecting import Candidate, fitting, select

INT8 = Candidate(name="int8", approved=True, model_bytes=12 << 20, latency_ms=5.0)
FP32 = Candidate(name="fp32", approved=True, model_bytes=47 << 20, latency_ms=18.0)
ARM = Machine(isa="neon-dotprod", cores=4, memory_bytes=(2 << 30) - (150 << 20))
SERVER = Machine(isa="avx512-vnni", cores=16, memory_bytes=64 << 30)


def test_the_fastest_answers_and_fp32_stands_in() -> None:
    found = select([INT8, FP32], selected="int8")
    assert found.order == ("int8", "fp32")
    assert "5 ms" in found.reason
    assert "18 ms" in found.reason


def test_int8_that_is_slower_here_does_not_answer() -> None:
    found = select([replace(INT8, latency_ms=21.5), FP32], selected="int8")
    assert found.order == ("fp32", "int8")
    assert found.reason == "fp32 answers: int8 is slower here, 21.5 ms against 18 ms"


@pytest.mark.parametrize("other", [16.5, 19.0])
def test_what_is_about_as_fast_does_not_replace_the_bundles_choice(other: float) -> None:
    assert select([INT8, replace(FP32, latency_ms=5.0 * other / 18)], selected="int8").preferred == "int8"
    assert select([replace(INT8, latency_ms=other), FP32], selected="fp32").preferred == "fp32"


def test_what_is_not_valid_is_not_asked() -> None:
    broken = replace(
        INT8, usable=False, why="golden", reason="int8 is not valid here: 3 of 8", latency_ms=None
    )
    found = select([broken, FP32], selected="int8")
    assert found.order == ("fp32",)
    assert "int8 is not valid here: 3 of 8" in found.reason


def test_no_valid_variant_says_why_for_each() -> None:
    broken = [replace(c, usable=False, why="load", reason=f"{c.name} is gone") for c in (INT8, FP32)]
    found = select(broken, selected="int8")
    assert found.preferred is None
    assert "int8 is gone" in found.reason
    assert "fp32 is gone" in found.reason


def test_one_that_was_asked_for_answers_alone() -> None:
    assert select([INT8, FP32], selected="int8", forced="fp32").order == ("fp32",)


def test_fp32_stands_in_before_a_faster_one() -> None:
    fp16 = Candidate(name="fp16", approved=True, model_bytes=1, latency_ms=9.0)
    assert select([INT8, fp16, FP32], selected="int8").order == ("int8", "fp32", "fp16")


def test_a_small_board_gets_int8_alone_and_a_server_both() -> None:
    assert fitting([INT8, FP32], ARM, selected="int8") == ("int8",)
    assert fitting([INT8, FP32], ARM, selected="fp32") == ("int8",)
    assert fitting([INT8, FP32], SERVER, selected="int8") == ("int8", "fp32")


def test_tiny_models_both_fit_on_a_small_board() -> None:
    small = [replace(c, model_bytes=100_000) for c in (INT8, FP32)]
    assert fitting(small, ARM, selected="int8") == ("int8", "fp32")


def test_one_that_is_not_approved_is_not_loaded() -> None:
    assert fitting([replace(INT8, approved=False), FP32], SERVER, selected="fp32") == ("fp32",)
    assert fitting([replace(INT8, approved=False), FP32], ARM, selected="fp32") == ("fp32",)


def test_unknown_memory_is_no_reason_to_leave_one_out() -> None:
    assert fitting([INT8, FP32], replace(ARM, memory_bytes=0), selected="int8") == ("int8", "fp32")

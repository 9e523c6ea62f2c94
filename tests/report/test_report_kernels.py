"""What runs in int8, on the page."""

from __future__ import annotations

import re
from dataclasses import replace

import report_records as records

from pastille.record import Record, StageFinished
from pastille.report.checks import check_row
from pastille.report.html import render
from pastille.report.kernels import Kernels, percent
from pastille.report.view import view
from pastille.values import (
    Check,
    FloatKernel,
    KernelProof,
    KernelUse,
    Precision,
    Profile,
    Status,
    from_json,
    to_json,
)


def use(op: str, kind: Precision, count: int, macs: int, share: float) -> KernelUse:
    return KernelUse(operator=op, precision=kind, count=count, macs=macs, share=share, family="")


def in_float(op: str, name: str, reason: str, share: float) -> FloatKernel:
    return FloatKernel(operator=op, name=name, reason=reason, macs=0, share=share, conversions=share / 2)


PROOF = KernelProof(
    uses=(
        use("QLinearConv", "int8", 18, 900, 0.7),
        use("HardSigmoid", "float", 2, 100, 0.2),
        use("QuantizeLinear", "conversion", 3, 0, 0.1),
    ),
    floats=(
        in_float(
            "HardSigmoid", "HardSwish act.1", "no int8 kernel for HardSwish in ONNX Runtime 1.31.1", 0.15
        ),
        in_float("HardSigmoid", "HardSigmoid act.2", "its output is the model's answer, kept float", 0.05),
    ),
    more_floats=0,
    batch=1,
    calls=20,
    conditions=records.HERE,
)


def with_proof(proof: KernelProof | None) -> Record:
    record = records.skin()
    events = tuple(
        replace(e, profile=replace(e.profile, kernels=proof))
        if isinstance(e, StageFinished) and e.name == "quantize"
        else e
        for e in record.events
    )
    return replace(record, events=events)


def shown(proof: KernelProof) -> Kernels:
    (found,) = [change.kernels for change in view(with_proof(proof)).changes if change.kernels]
    return found


def test_bars_tell_shares_by_macs_by_operators_and_by_time() -> None:
    bars = {bar.of: bar for bar in shown(PROOF).bars}
    plain = {of: bar.value.replace("\u202f", " ") for of, bar in bars.items()}
    assert plain == {"multiply-accumulates": "90.0 %", "operators": "90.0 %", "time": "70.0 %"}
    for bar in bars.values():
        assert abs(sum(part.share for part in bar.parts) - 1) < 1e-9
    assert "10.0\u202f% conversions between them" in bars["time"].words


def test_the_dearest_stand_first_with_reason_and_cost() -> None:
    found = shown(PROOF)
    assert [(row.name, row.operator) for row in found.rows] == [
        ("HardSwish act.1", "HardSigmoid"),
        ("HardSigmoid act.2", ""),
    ]
    page = render(view(with_proof(PROOF)))
    assert "no int8 kernel for HardSwish" in page
    assert "executed as HardSigmoid" in page
    assert page.index("HardSwish act.1") < page.index("HardSigmoid act.2")
    assert "20 calls at batch 1" in page


def test_the_list_is_bounded_and_what_is_left_out_is_counted() -> None:
    row = PROOF.floats[0]
    found = shown(replace(PROOF, floats=(row,) * 90, more_floats=7))
    assert len(found.rows) + found.more == 97
    assert len(found.rows) <= 48


def test_untrusted_names_are_escaped_and_cut() -> None:
    name = records.MARKUP * 20
    evil = replace(PROOF, floats=(in_float(name, name, name, 0.1),), note=name)
    page = render(view(with_proof(evil)))
    assert "<script" not in page
    assert "<img" not in page


def test_without_times_only_the_counts_are_drawn() -> None:
    untimed = replace(PROOF, calls=0, note="the graph has too many operators to be timed")
    found = shown(untimed)
    assert [bar.of for bar in found.bars] == ["multiply-accumulates", "operators"]
    assert found.note == "The graph has too many operators to be timed."
    assert found.conditions == ""


def test_a_float_file_and_an_old_record_have_no_proof_to_show() -> None:
    plain = replace(PROOF, uses=(use("Conv", "float", 2, 5, 1.0),))
    assert not any(change.kernels for change in view(with_proof(plain)).changes)
    page = render(view(with_proof(None)))
    assert "run in int8" in page, "the counts of operators, as before"


def test_a_profile_from_before_there_were_proofs_reads() -> None:
    event = next(e for e in records.skin().events if isinstance(e, StageFinished))
    text = to_json(event.profile)
    old = re.sub(rb',\s*"kernels": null', b"", text)
    assert old != text
    assert from_json(Profile, old) == event.profile
    with_one = replace(event.profile, kernels=PROOF)
    assert from_json(Profile, to_json(with_one)) == with_one


def test_part_of_it_is_never_all_of_it() -> None:
    assert percent(0.99999).startswith("99.9")
    assert percent(0.00001).startswith("0.1")
    assert percent(1.0).startswith("100")


def test_the_limit_is_a_least_share() -> None:
    check = Check(
        metric="int8 share",
        status=Status.REJECTED,
        limit=0.9,
        baseline=None,
        candidate=0.5,
        drop=None,
        interval=None,
        n=None,
        method="multiply-accumulates of the graph that is executed",
        more_cases=None,
        reason="50.0 % of the multiply-accumulates run in int8",
    )
    row = check_row(check)
    assert row.limit.replace("\u202f", " ") == "at least 90.0 %"
    assert row.candidate.replace("\u202f", " ") == "50.0 %"
    assert row.mark is None

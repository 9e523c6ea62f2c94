"""What runs in int8, held against the least that was asked."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import parser

from pastille.data.split import Split, Splits
from pastille.gates import judge_int8_share
from pastille.recipe import Recipe, parse_recipe
from pastille.validation import int8_checks
from pastille.values import Conditions, KernelProof, KernelUse, Precision, Status

HERE = Conditions(device="", isa="", cores=1, threads=1, runtime="", runtime_version="", os="")


def use(op: str, kind: Precision, count: int, macs: int | None, share: float, family: str = "") -> KernelUse:
    return KernelUse(operator=op, precision=kind, count=count, macs=macs, share=share, family=family)


def proof(*uses: KernelUse, calls: int = 20) -> KernelProof:
    return KernelProof(uses=uses, floats=(), more_floats=0, batch=1, calls=calls, conditions=HERE)


def recipe_asking(share: object) -> Recipe:
    return parse_recipe(
        {
            "name": "asked",
            "task": {"kind": "regression"},
            "data": {"reader": "npz", "path": "x.npz"},
            "requirements": {} if share is None else {"min_int8_share": share},
        }
    )


RESNET = proof(
    use("QLinearConv", "int8", 52, 940, 0.8, "conv"),
    use("Conv", "float", 1, 60, 0.1, "conv"),
    use("QGemm", "int8", 1, 2, 0.02, "linear"),
    use("QuantizeLinear", "conversion", 2, 0, 0.08),
)


def test_the_reason_tells_what_was_counted() -> None:
    said = judge_int8_share(RESNET, 0.9)
    assert said.status is Status.APPROVED
    assert said.reason == (
        "94.0 % of the multiply-accumulates run in int8 (conv 52 of 53, linear 1 of 1, 82 % of the time), "
        "at least 90 % asked"
    )
    assert (said.metric, said.limit, said.candidate) == ("int8 share", 0.9, 942 / 1002)


def test_what_stays_float_rejects() -> None:
    said = judge_int8_share(RESNET, 0.95)
    assert said.status is Status.REJECTED
    assert "94.0 % of" in said.reason
    assert "at least 95 % asked" in said.reason


def test_all_of_it_can_be_asked() -> None:
    whole = proof(use("QLinearConv", "int8", 1, 5, 1.0, "conv"))
    assert judge_int8_share(whole, 1.0).status is Status.APPROVED


def test_what_was_not_measured_decides_nothing() -> None:
    said = judge_int8_share(None, 0.9)
    assert (said.status, said.candidate) == (Status.INCONCLUSIVE, None)
    unknown = judge_int8_share(proof(use("Einsum", "float", 1, None, 0.5, "einsum")), 0.9)
    assert unknown.status is Status.INCONCLUSIVE
    assert unknown.reason.startswith("the multiply-accumulates of Einsum cannot be counted, so at least 90 %")
    nothing = judge_int8_share(proof(use("Relu", "float", 1, 0, 1.0)), 0.9)
    assert nothing.status is Status.INCONCLUSIVE
    assert nothing.reason.startswith("the file multiplies no matrices, so")


def test_without_times_they_are_not_told() -> None:
    assert "of the time" not in judge_int8_share(proof(*RESNET.uses, calls=0), 0.9).reason


@given(st.integers(0, 10**6), st.integers(1, 10**6), st.floats(0.0001, 1.0))
def test_the_number_shown_lies_on_the_side_that_was_decided(eight: int, plain: int, limit: float) -> None:
    found = proof(
        use("QGemm", "int8", 1, eight, 0.5, "linear"), use("Gemm", "float", 1, plain, 0.5, "linear")
    )
    said = judge_int8_share(found, limit)
    shown = float(said.reason.split(" %", 1)[0])
    assert math.isclose(shown, 100 * eight / (eight + plain), abs_tol=0.051)
    if abs(eight / (eight + plain) - limit) > 1e-8:
        assert (said.status is Status.APPROVED) == (shown >= 100 * limit - 1e-7)


@pytest.mark.parametrize(("asked", "share"), [("90 %", 0.9), (1, 1.0), (None, None)])
def test_a_recipe_asks_for_a_share(asked: object, share: float | None) -> None:
    assert recipe_asking(asked).requirements.min_int8_share == share


def test_a_file_from_anywhere_is_held_to_it(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 18]>
        g (float[3, 2] any_name) => (float[3, 2] y)
        <float[2, 2] w = {1, 0, 0, 1}> { y = MatMul(any_name, w) }"""
    path = tmp_path / "m.onnx"
    path.write_bytes(parser.parse_model(text).SerializeToString())
    split = Split(inputs=[{"x": np.zeros(2, np.float32)}] * 2, targets=np.zeros(2))
    splits = Splits(train=split, validation=split, test=split)
    (said,) = int8_checks(path, splits, recipe_asking("50 %"))
    assert said.status is Status.REJECTED
    assert said.reason.startswith("0.0 % of the multiply-accumulates run in int8 (matmul 0 of 1, ")
    assert list(int8_checks(path, splits, recipe_asking(None))) == []

"""Faults of ONNX Runtime as one line that names what is wrong: no paths of its sources, no C++."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from pastille.errors import InferenceError
from pastille.runtime import load
from pastille.runtime.faults import reason

HEAD = '<ir_version: {ir}, opset_import: ["" : {opset}]> g (float[n, 4] x) => (float[a, b] y) '
W = "<float[4, 4] w = {" + ", ".join(["1.0"] * 16) + "}> "


@pytest.mark.parametrize(
    ("ir", "opset", "body", "words"),
    [
        (10, 99, W + "{ y = MatMul(x, w) }", "opset 99 of ai.onnx is newer than "),
        (99, 18, W + "{ y = MatMul(x, w) }", "Unsupported model IR version: 99, max supported IR version: "),
        (10, 18, "{ y = Dropout <unheard = 2> (x) }", "Dropout '': Unrecognized attribute: unheard for "),
        (10, 18, "{ y = And(x, x) }", "Type Error: Type 'tensor(float)' of input parameter (x) of operator"),
        (10, 18, "{ y = MatMul(x, lost) }", "Invalid model. Node input 'lost' is not a graph input"),
    ],
    ids=["opset", "ir", "attribute", "type", "input"],
)
def test_a_file_that_cannot_be_loaded(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], ir: int, opset: int, body: str, words: str
) -> None:
    onnx.save(parser.parse_model(HEAD.format(ir=ir, opset=opset) + body), tmp_path / "m.onnx")
    with pytest.raises(InferenceError) as error:
        load(tmp_path / "m.onnx")
    assert str(error.value).startswith(f"m.onnx cannot be loaded: {words}")
    for internal in ("onnxruntime", "ONNXRuntimeError", "::", str(tmp_path), "\n"):
        assert internal not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_call_that_fails(tmp_path: Path) -> None:
    body = "<int64[2] s = {3, 5}> { y = Reshape(x, s) }"
    onnx.save(parser.parse_model(HEAD.format(ir=10, opset=18) + body), tmp_path / "m.onnx")
    with pytest.raises(InferenceError) as error:
        load(tmp_path / "m.onnx")({"x": np.zeros((2, 4), np.float32)})
    assert str(error.value).startswith("m.onnx cannot run: Reshape '': ")
    assert "The input tensor cannot be reshaped to the requested shape" in str(error.value)
    assert "::" not in str(error.value)
    assert ".h:" not in str(error.value)


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("", "RuntimeError"),
        ("nothing to strip (here): a/b.c", "nothing to strip (here): a/b.c"),
        ("Load model from /a/b c.onnx failed:Protobuf parsing failed.", "Protobuf parsing failed."),
        ("/o/a.cc:12 void f(std::function<int(int)>, bool) const [with T = float] No.", "No."),
        ("Status Message: helper.h:59 Compute mismatch", "Status Message: mismatch"),
    ],
)
def test_what_is_stripped(said: str, left: str) -> None:
    assert reason(RuntimeError(said)) == left


def test_it_is_never_long() -> None:
    assert len(reason(RuntimeError("word " * 1000))) == 300

"""Files asked on other CPUs; where QEMU or an ARM root is absent, that half is skipped and says so."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from runtime_models import linear_model, quantized_model, saved
from typer.testing import CliRunner

from pastille.cli.app import app
from pastille.elsewhere import CaseFile, largest, read_cases, replay_on
from pastille.errors import InferenceError, UsageError
from pastille.runtime import emulated as emulated_module
from pastille.runtime import load
from pastille.runtime.emulated import ARM_ROOT, Isa, answers_on
from pastille.runtime.self_check import CHECK_INPUT, CHECK_MODEL, saturated, saturates_here

QEMU = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
needs_qemu = pytest.mark.skipif(QEMU is None, reason="no QEMU here: apt-get install qemu-user-static")
needs_arm = pytest.mark.skipif(
    not os.environ.get(ARM_ROOT), reason=f"no ARM root here: scripts/aarch64-root FOLDER, {ARM_ROOT}=FOLDER"
)


def heavy_model(level: int) -> onnx.ModelProto:
    """A convolution whose weights are all ``level``, between Q/DQ pairs, and its mean as the output."""
    arrays = {
        "scale": np.float32(1 / 255),
        "zero": np.uint8(0),
        "w_q": np.full((16, 16, 1, 1), level, np.int8),
        "w_scale": np.full(16, 0.01, np.float32),
        "w_zero": np.zeros(16, np.int8),
        "y_scale": np.float32(0.1),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["x_q"]),
        helper.make_node("DequantizeLinear", ["x_q", "scale", "zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["w_q", "w_scale", "w_zero"], ["w"], axis=0),
        helper.make_node("Conv", ["x", "w"], ["conv"]),
        helper.make_node("QuantizeLinear", ["conv", "y_scale", "zero"], ["y_q"]),
        helper.make_node("DequantizeLinear", ["y_q", "y_scale", "zero"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "heavy",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 16, 2, 2])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 16, 2, 2])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_the_check_model_is_sound_and_tells_the_two_sums_apart(tmp_path: Path) -> None:
    model = onnx.load_from_string(CHECK_MODEL)
    onnx.checker.check_model(model, full_check=True)
    weights = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "weights"))
    pairs = (weights.astype(int) * CHECK_INPUT["input"]).reshape(16, 2, 2).sum(axis=2)
    assert set(np.rint(pairs.sum(axis=1) / 910)) == {71}
    assert set(np.rint(np.clip(pairs, -32768, 32767).sum(axis=1) / 910)) == {36}
    assert saturates_here() in {True, False}


def test_another_answer_of_the_check_is_an_error() -> None:
    assert saturated(np.full((1, 16), 36))
    assert not saturated(np.full((1, 16), 71))
    with pytest.raises(InferenceError, match=r"must answer 71 .* got \[36, 71\]"):
        saturated(np.array([36, 71]))


def test_a_fresh_process_here_answers_as_this_one_does(tmp_path: Path) -> None:
    path = saved(quantized_model(), tmp_path / "q.onnx")
    inputs = {"input": np.random.default_rng(0).normal(size=(5, 4, 8, 8)).astype(np.float32)}
    there = answers_on("native", path, inputs)
    np.testing.assert_array_equal(there.outputs["output"], load(path)(inputs)["output"])
    assert there.saturates == saturates_here()


def test_a_fixed_batch_is_filled_up_and_cut_again(tmp_path: Path) -> None:
    path = saved(linear_model(batch="2"), tmp_path / "two.onnx")
    x = np.arange(15, dtype=np.float32).reshape(5, 3)
    found = answers_on("native", path, {"input": x}).outputs["output"]
    np.testing.assert_array_equal(found, x[:, :2] * [1, 2])


def test_after_the_budget_no_further_case_is_asked(tmp_path: Path) -> None:
    path = saved(linear_model(), tmp_path / "linear.onnx")
    x = np.arange(15, dtype=np.float32).reshape(5, 3)
    for budget_s, rows in ((0.0, 1), (60.0, 5), (None, 5)):
        found = answers_on("native", path, {"input": x}, budget_s=budget_s).outputs["output"]
        np.testing.assert_array_equal(found, x[:rows, :2] * [1, 2])
    recorded = (x[:, :2] * [1, 2]).astype(np.float32)
    cases = CaseFile(inputs={"input": x}, recorded=recorded)
    assert replay_on("native", path, cases, budget_s=0.0).cases == 1


@needs_qemu
def test_avx2_saturates_heavy_weights_and_not_seven_bits(tmp_path: Path) -> None:
    inputs = {"input": np.ones((2, 16, 2, 2), np.float32)}
    heavy = saved(heavy_model(127), tmp_path / "heavy.onnx")
    there = answers_on("avx2", heavy, inputs)
    assert there.saturates
    # 8 pairs of 32767 instead of 64770, times 0.01 / 255
    np.testing.assert_allclose(there.outputs["output"], 8 * 32767 / 25500, atol=0.06)
    found = replay_on("avx2", saved(heavy_model(64), tmp_path / "seven.onnx"), CaseFile(inputs=inputs))
    assert (found.equal_decisions, found.identical, found.cases) == (2, 2, 2)
    assert found.max_abs_difference == 0.0
    assert (found.isa, found.against, found.saturates) == ("avx2", "native", True)


@needs_qemu
def test_sse_adds_exactly(tmp_path: Path) -> None:
    inputs = {"input": np.ones((1, 16, 2, 2), np.float32)}
    there = answers_on("sse4", saved(heavy_model(127), tmp_path / "heavy.onnx"), inputs)
    assert not there.saturates
    np.testing.assert_allclose(there.outputs["output"], 8 * 64770 / 25500, atol=0.06)


@needs_qemu
@needs_arm
def test_arm_adds_exactly(tmp_path: Path) -> None:
    inputs = {"input": np.ones((1, 16, 2, 2), np.float32)}
    there = answers_on("aarch64", saved(heavy_model(127), tmp_path / "heavy.onnx"), inputs)
    assert (there.machine, there.saturates) == ("aarch64", False)
    np.testing.assert_allclose(there.outputs["output"], 8 * 64770 / 25500, atol=0.06)


@needs_qemu
def test_a_process_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    path = saved(linear_model(), tmp_path / "linear.onnx")
    with pytest.raises(InferenceError, match=r"isa avx2: no answer within 0.01 s"):
        answers_on("avx2", path, {"input": np.ones((1, 3), np.float32)}, timeout_s=0.01)


@pytest.mark.parametrize("isa", ["avx2", "sse4", "aarch64"])
def test_without_qemu_the_message_says_what_to_install(
    isa: Isa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    path = saved(linear_model(), tmp_path / "linear.onnx")
    with pytest.raises(UsageError, match="apt-get install qemu-user-static"):
        answers_on(isa, path, {"input": np.ones((1, 3), np.float32)})


@needs_qemu
@pytest.mark.parametrize(
    ("root", "words"), [(None, f"set {ARM_ROOT}=FOLDER"), ("here", "no usr/bin/python3")]
)
def test_without_an_arm_root_the_message_says_how_to_make_one(
    root: str | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ARM_ROOT, raising=False)
    path = saved(linear_model(), tmp_path / "linear.onnx")
    inputs = {"input": np.ones((1, 3), np.float32)}
    with pytest.raises(UsageError, match=words):
        answers_on("aarch64", path, inputs, root=tmp_path if root else None)


def test_a_failing_process_is_named_with_its_reason(tmp_path: Path) -> None:
    path = saved(linear_model(), tmp_path / "linear.onnx")
    with pytest.raises(InferenceError, match=r"isa native: the process failed: .*Got invalid dimensions"):
        answers_on("native", path, {"input": np.ones((1, 4), np.float32)})
    with pytest.raises(ValueError, match="at least one case"):
        answers_on("native", path, {"input": np.ones((0, 3), np.float32)})


def test_native_is_held_against_what_was_recorded(tmp_path: Path) -> None:
    path = saved(linear_model(), tmp_path / "linear.onnx")
    x = np.array([[1, 0, 0], [0, 1, 0], [2, 1.5, 0]], np.float32)
    recorded = (x[:, :2] * [1, 2]).astype(np.float32)
    recorded[2] = [5, 3]  # another decision
    found = replay_on("native", path, CaseFile(inputs={"input": x}, recorded=recorded))
    assert (found.equal_decisions, found.identical, found.against) == (2, 2, "recorded")
    assert found.max_abs_difference == 3.0
    with pytest.raises(UsageError, match="recorded answers, and there are none"):
        replay_on("native", path, CaseFile(inputs={"input": x}))
    with pytest.raises(UsageError, match=r"no output 'other', but \['output'\]"):
        replay_on("native", path, CaseFile(inputs={"input": x}, recorded=recorded), output="other")


def test_what_is_no_number_is_never_equal(tmp_path: Path) -> None:
    path = saved(linear_model(), tmp_path / "linear.onnx")
    x = np.array([[1, 0, 0], [np.nan, 1, 0]], np.float32)
    cases = CaseFile(inputs={"input": x}, recorded=np.array([[1, 0], [0, 2]], np.float32))
    found = replay_on("native", path, cases)
    assert found.equal_decisions == 1
    assert found.max_abs_difference == np.inf


@pytest.mark.parametrize(
    ("shape", "decided"),
    [((5,), (5,)), ((5, 1), (5, 1)), ((5, 3), (5,)), ((5, 7, 3), (5, 7)), ((5, 3, 4, 4), (5, 4, 4))],
)
def test_decisions_follow_the_shape_of_the_output(shape: tuple[int, ...], decided: tuple[int, ...]) -> None:
    raw = np.random.default_rng(0).normal(size=shape)
    assert largest(raw).shape == decided
    if raw.size == 5:
        np.testing.assert_array_equal(largest(raw), raw > 0)
        np.testing.assert_array_equal(largest(1 / (1 + np.exp(-raw))), raw > 0)


def test_cases_are_read_by_either_name(tmp_path: Path) -> None:
    specs = load(saved(linear_model(), tmp_path / "linear.onnx")).inputs
    x, y = np.ones((2, 3), np.float32), np.ones((2, 2), np.float32)
    np.savez(tmp_path / "plain.npz", input=x)
    both: dict[str, Any] = {"input.input": x, "output.int8": y}
    np.savez(tmp_path / "golden.npz", **both)
    assert read_cases(tmp_path / "plain.npz", specs).recorded is None
    golden = read_cases(tmp_path / "golden.npz", specs)
    np.testing.assert_array_equal(golden.inputs["input"], x)
    assert golden.recorded is not None


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.ones((2, 3), np.float32)}, r"must hold an array 'input', got \['x'\]"),
        ({"input": np.ones((2, 4), np.float32)}, r"'input' as float32 \(N, \*\(3,\)\)"),
        ({"input": np.ones((2, 3))}, "got float64"),
        ({"input": np.ones((0, 3), np.float32)}, r"got float32 \(0, 3\)"),
        ({"input": np.ones((2, 3), np.float32), "output.y": np.ones(3)}, "differ in length"),
        ({"input": np.array([{}])}, "plain arrays"),
    ],
)
def test_cases_that_do_not_fit_are_refused(arrays: dict[str, np.ndarray], words: str, tmp_path: Path) -> None:
    specs = load(saved(linear_model(), tmp_path / "linear.onnx")).inputs
    np.savez(tmp_path / "cases.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=words):
        read_cases(tmp_path / "cases.npz", specs)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04broken", b"\x93NUMPY\x01\x00"])
def test_a_file_of_cases_that_is_no_npz_is_refused(content: bytes | None, tmp_path: Path) -> None:
    specs = load(saved(linear_model(), tmp_path / "linear.onnx")).inputs
    if content is not None:
        (tmp_path / "cases.npz").write_bytes(content)
    with pytest.raises(UsageError, match="must be an npz of plain arrays"):
        read_cases(tmp_path / "cases.npz", specs)


@needs_qemu
def test_the_command_reports_as_text_and_json(tmp_path: Path) -> None:
    path = saved(heavy_model(64), tmp_path / "seven.onnx")
    np.savez(tmp_path / "cases.npz", input=np.ones((3, 16, 2, 2), np.float32))
    asked = ["bench", str(path), "--isa", "avx2", "--cases", str(tmp_path / "cases.npz"), "-q"]
    text = CliRunner().invoke(app, asked)
    assert text.exit_code == 0
    assert "3 of 3 decisions as on this machine, 3 answers identical" in text.stdout
    assert "saturates 16-bit sums" in text.stdout


def test_the_command_prints_json_of_recorded_cases(tmp_path: Path) -> None:
    path = saved(linear_model(), tmp_path / "linear.onnx")
    cases: dict[str, Any] = {"input": np.eye(3, dtype=np.float32), "output.y": np.zeros((3, 2), np.float32)}
    np.savez(tmp_path / "cases.npz", **cases)
    asked = ["bench", str(path), "--isa", "native", "--cases", str(tmp_path / "cases.npz"), "-q", "--json"]
    (found,) = json.loads(CliRunner().invoke(app, asked).stdout).values()
    assert (found["equal_decisions"], found["cases"], found["against"]) == (2, 3, "recorded")
    assert found["max_abs_difference"] == 2.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--isa", "z80"], "--isa must be one of native, avx2, sse4, aarch64, got 'z80'"),
        (["--cases", "x.npz"], "--cases is for --isa"),
        (["--isa", "native"], "recorded answers"),
        (["--isa", "native", "--cases", "absent.npz"], "must be an npz"),
    ],
)
def test_the_command_refuses_in_one_line(options: list[str], words: str, tmp_path: Path) -> None:
    path = saved(linear_model(), tmp_path / "linear.onnx")
    done = CliRunner().invoke(app, ["bench", str(path), "-q", *options])
    assert done.exit_code == 2
    assert words in " ".join(done.output.split())


def test_the_script_of_the_process_needs_no_pastille() -> None:
    text = Path(str(emulated_module.__file__)).with_name("answering.py").read_text(encoding="utf-8")
    assert "import pastille" not in text
    assert "from pastille" not in text

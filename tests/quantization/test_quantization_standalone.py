"""A bare ONNX file and an npz to an int8 file, through the command; and each refusal in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import parser
from quantization_nets import built, to_tensors
from typer.testing import CliRunner

from pastille.cli.app import app
from pastille.export import export_onnx
from pastille.quantization.standalone import readable

FLOAT = '<ir_version: 10, opset_import: ["" : 18]> g (float[n, 2] x) => (float[n, 2] y) '


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["quantize", *map(str, arguments), "--quiet"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and inputs of it: scanner B, every tenth, is brighter."""
    path = tmp_path_factory.mktemp("bare")
    net, data = built("residual")
    export_onnx(net, to_tensors(data), path / "model.onnx")
    x = np.random.default_rng(0).normal(size=(80, 3, 8, 8)).astype(np.float32)
    scanner = np.where(np.arange(80) % 4 == 0, "B", "A")
    np.savez(path / "calib.npz", pixels=x)
    np.savez(path / "strata.npz", input=x, scanner=scanner)
    np.savez(path / "tiny.npz", x[:19])
    np.savez(path / "empty.npz", x[:0])
    np.savez(path / "shape.npz", x[:, :2])
    np.savez(path / "integers.npz", x.astype(np.int64))
    np.savez(path / "two.npz", a=x, b=x)
    np.savez(path / "huge.npz", np.where(np.arange(80)[:, None, None, None] == 7, 1e30 * x, x))
    np.savez(path / "named.npz", input=x)
    np.savez(path / "labelled.npz", scan=x, y=np.arange(80) % 2)
    np.savez(path / "nan.npz", np.where(np.arange(80)[:, None, None, None] == 7, np.nan, x))
    np.savez(path / "same.npz", np.repeat(x[:1], 80, axis=0))
    np.save(path / "array.npy", x)
    return path


def test_a_file_is_quantized_and_told_of(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "int8.onnx"
    said = run(folder / "model.onnx", "--data", folder / "calib.npz", "-o", target, "--json")
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    made = found["quantized"]
    assert found["file"] == str(target)
    assert made["bytes_after"] == target.stat().st_size
    assert sum(made["operators"]["int8"].values()) >= 5
    assert (made["calibrated"], made["deviation"]["cases"]) == (60, 20)
    assert made["deviation"]["sqnr_db"] > 15
    assert made["recovery"]["trials"][0]["what"] == "plain"
    assert found["speedup"]["pairs"] > 1
    assert any(n.op_type == "QuantizeLinear" for n in onnx.load(target).graph.node)


def test_strata_are_covered_and_shown(folder: Path, tmp_path: Path) -> None:
    arguments = ("--data", folder / "strata.npz", "--strata", "scanner", "--recover", "equalization")
    said = run(folder / "model.onnx", *arguments, "-o", tmp_path / "i.onnx", "--json")
    assert said.exit_code == 0, said.output
    made = json.loads(said.stdout)["quantized"]
    assert {part["label"] for part in made["coverage"]["worst"]} == {"A", "B"}
    assert made["choice"]["techniques"] == ["equalization"]
    assert made["recovery"] is None
    shown = run(folder / "model.onnx", *arguments, "-o", tmp_path / "i.onnx").stdout
    assert {"size", "error", "speed", "made"} <= set(shown.split())


def told(folder: Path, data: str, target: Path, *options: object) -> tuple[dict[str, Any], str]:
    arguments = (folder / "model.onnx", "--data", folder / data, "-o", target, *options)
    said, shown = run(*arguments, "--json"), run(*arguments)
    assert (said.exit_code, shown.exit_code) == (0, 0), said.output
    return json.loads(said.stdout)["quantized"], " ".join(shown.stdout.split())


def test_a_file_that_collapsed_is_not_passed_in_silence(folder: Path, tmp_path: Path) -> None:
    made, shown = told(folder, "huge.npz", tmp_path / "i.onnx", "--recover", "none")
    assert made["deviation"]["sqnr_db"] < 15
    lost, far = made["warnings"]
    assert "try recover: auto, keep_float for the layers" in lost
    assert "input 'input' of case 7 reaches" in far
    assert "e+30, a typical one" in far
    made_by, rest = shown.split("made by", 1)
    assert "WARNING" not in made_by
    assert rest.split("cases", 1)[1].startswith(f" WARNING {lost} WARNING {far}")


def test_a_file_that_did_not_is_told_of_as_ever(folder: Path, tmp_path: Path) -> None:
    made, shown = told(folder, "named.npz", tmp_path / "i.onnx", "--recover", "none")
    assert (made["warnings"], made["notes"]) == ([], [])
    assert "WARNING" not in shown


def test_a_single_array_of_another_name_is_taken_and_told(folder: Path, tmp_path: Path) -> None:
    made, shown = told(folder, "calib.npz", tmp_path / "i.onnx", "--recover", "none")
    assert made["notes"] == ["array 'pixels' of the data is taken for input 'input' of the model"]
    assert f"note {made['notes'][0]}" in shown


@pytest.mark.parametrize("inputs", ["scan", "[scan]"])
def test_so_is_the_single_input_of_a_recipe(folder: Path, tmp_path: Path, inputs: str) -> None:
    recipe = f"""
        name: r
        task: {{kind: binary, model: m.py:f, labels: [a, b]}}
        data: {{reader: npz, path: {folder / "labelled.npz"}, inputs: {inputs}, target: y}}
    """
    (tmp_path / "recipe.yaml").write_text(recipe)
    renamed = onnx.load(folder / "model.onnx")
    renamed.graph.input[0].name = "pixels"
    for node in renamed.graph.node:
        node.input[:] = ["pixels" if name == "input" else name for name in node.input]
    onnx.save(renamed, tmp_path / "renamed.onnx")
    options = ("--recover", "none", "--json")
    said = run(tmp_path / "renamed.onnx", "--data", tmp_path / "recipe.yaml", *options)
    assert said.exit_code == 0, said.output
    (note,) = json.loads(said.stdout)["quantized"]["notes"]
    assert note.endswith("is taken for input 'pixels' of the model")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("tiny.npz", "at least 20 cases"),
        ("empty.npz", "holds none"),
        ("shape.npz", "must have shape (3, 8, 8)"),
        ("integers.npz", "must be float32, got int64"),
        ("two.npz", "has no array 'input'"),
        ("nan.npz", "of case 7 must be finite"),
        ("same.npz", "cases must differ, but all 60 hold the same numbers"),
        ("array.npy", "neither an npz"),
        ("missing.npz", "there is no file"),
    ],
)
def test_unfit_data_is_one_line(folder: Path, tmp_path: Path, data: str, words: str) -> None:
    said = run(folder / "model.onnx", "--data", folder / data, "-o", tmp_path / "int8.onnx")
    assert said.exit_code == 2
    assert words in said.stderr
    assert said.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def external(model: Any, path: Path) -> None:
    (weight,) = model.graph.initializer
    weight.CopyFrom(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight), weight.name)
    )  # raw bytes
    onnx.save(model, path, save_as_external_data=True, size_threshold=0, location="weights")


def with_domain(model: Any, path: Path) -> None:
    model.graph.node[0].domain = "my.company"
    model.opset_import.append(onnx.helper.make_opsetid("my.company", 1))
    onnx.save(model, path)


def broken(model: Any, value: float) -> Any:
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight[0, 1] = value
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "w"))
    return model


W = "<float[2, 2] w = {1.0, 2.0, 3.0, 4.0}> "
LOOSE = '<ir_version: 10, opset_import: ["" : 18]> g (float[n, 2] x, bool c) => (float[n, 2] y) '


@pytest.mark.parametrize(
    ("body", "save", "code", "words"),
    [
        (W + "{ y = MatMul(x, w) }", external, 5, "external data"),
        (W + "{ y = MatMul(x, w) }", with_domain, 2, "unknown domain 'my.company'"),
        (
            "<float s = {1.0}> { q = QuantizeLinear(x, s)  y = DequantizeLinear(q, s) }",
            onnx.save,
            2,
            "already",
        ),
        ("{ y = Erf(x) }", onnx.save, 2, "no operator with an int8 kernel"),
        (
            "<float[2] s = {1.0, 1.0}> { y, m, v = BatchNormalization <training_mode = 1> (x, s, s, s, s) }",
            onnx.save,
            2,
            "batch normalization in training mode",
        ),
        (
            "{ y = Dropout <seed = 1, unheard = 2> (x) }",
            onnx.save,
            2,
            "cannot be loaded: Dropout '': Unrecognized attribute: unheard for operator Dropout; export the",
        ),
        (
            W + "{ y = MatMul(x, w) }",
            lambda model, path: onnx.save(broken(model, np.nan), path),
            2,
            "weight 'w' holds NaN: the file is broken",
        ),
        (
            W + "{ y = MatMul(x, w) }",
            lambda model, path: onnx.save(broken(model, -np.inf), path),
            2,
            "weight 'w' holds infinity: the file is broken",
        ),
    ],
)
def test_an_unfit_model_is_one_line(tmp_path: Path, body: str, save: Any, code: int, words: str) -> None:
    save(parser.parse_model(FLOAT + body), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32))
    said = run(tmp_path / "m.onnx", "--data", tmp_path / "x.npz")
    assert said.exit_code == code, said.output
    assert words in said.stderr
    assert said.stderr.count("\n") == 1


def test_infinity_may_stand_in_a_mask(tmp_path: Path) -> None:
    model = parser.parse_model(FLOAT + W + "{ h = Add(x, w)  y = Softmax(h) }")
    onnx.save(broken(model, -np.inf), tmp_path / "m.onnx")
    assert [node.op_type for node in readable(tmp_path / "m.onnx").graph.node] == ["Add", "Softmax"]


def test_control_flow_is_one_line(tmp_path: Path) -> None:
    body = "{ y = If(c) <then_branch = a () => (float[n, 2] t) { t = Relu(x) },"
    body += " else_branch = b () => (float[n, 2] e) { e = Neg(x) }> }"
    onnx.save(parser.parse_model(LOOSE + body), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.zeros((40, 2), np.float32), c=np.zeros((40, 1), bool))
    said = run(tmp_path / "m.onnx", "--data", tmp_path / "x.npz")
    assert (said.exit_code, said.stderr.count("\n")) == (2, 1)
    assert "dynamic control flow 'If'" in said.stderr


def test_an_old_opset_is_raised(tmp_path: Path) -> None:
    model = parser.parse_model(
        FLOAT.replace("18", "13") + W + "{ h = MatMul(x, w)  r = Relu(h)  y = MatMul(r, w) }"
    )
    onnx.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32))
    said = run(tmp_path / "m.onnx", "--data", tmp_path / "x.npz", "--recover", "none")
    assert said.exit_code == 0, said.output
    assert (tmp_path / "m.int8.onnx").is_file()


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--recover", "auto,rounding", "--recover must be"),
        ("--recover", "magic", "got 'magic'"),
        ("--calibration", "median", "--calibration must be 'minmax', "),
        ("--weight-bits", "6", "--weight-bits must be 7, 8 or 'auto', got 6"),
        ("--scheme", "mips", "--scheme must be 'auto', 'x86', 'arm' or 'tensorrt', got 'mips'"),
        ("--method", "int3", "must be one of ptq, qat, mixed, auto, dynamic, int4"),
        ("--method", "mixed", "--method mixed must be judged by labels: write a recipe and use pastille run"),
        ("--samples", "5", "--samples must be greater than or equal to 16, got 5"),
        ("--percentile", "99", "--method ptq takes percentile only with calibration 'percentile'"),
        ("--set", "block_size=64", "unknown key 'block_size' with method ptq; it belongs to int4 or int8-w"),
        ("--set", "draws=7", "--set draws compares decisions on validation"),
        ("--method", "qat", "--method qat must be judged by labels"),
        ("--set", "samplse=64", "unknown key 'samplse'; did you mean 'samples'?"),
        ("--keep-float", "nowhere", "the model has no layer 'nowhere'"),
    ],
)
def test_unknown_options_are_named(folder: Path, option: str, value: str, words: str) -> None:
    said = run(folder / "model.onnx", "--data", folder / "calib.npz", option, value)
    assert said.exit_code == 2
    assert words in said.stderr


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("dynamic", [], "MatMulInteger"),
        ("int4", ["rounding=gptq", "block_size=16"], "MatMulNBits, 4 bits, blocks of 16, gptq"),
        ("int8-weights", ["rounding=rtn"], "MatMulNBits, 8 bits"),
        ("bf16", [], "stored in bf16"),
    ],
)
def test_other_methods_write_their_file(
    folder: Path, tmp_path: Path, method: str, settings: list[str], words: str
) -> None:
    options = [part for setting in settings for part in ("--set", setting)]
    target = tmp_path / "new.onnx"
    said = run(
        folder / "model.onnx", "--data", folder / "calib.npz", "--method", method, *options, "-o", target
    )
    assert said.exit_code == 0, said.output
    assert words in " ".join(said.stdout.split())
    made = run(
        folder / "model.onnx", "--data", folder / "calib.npz", "--method", method, "-o", target, "--json"
    )
    found = json.loads(made.stdout)["quantized"]
    assert found["method"] == method
    assert found["bytes_after"] == target.stat().st_size
    assert found["deviation"]["sqnr_db"] > 10


def test_the_float_file_is_never_replaced(folder: Path) -> None:
    before = (folder / "model.onnx").read_bytes()
    said = run(folder / "model.onnx", "--data", folder / "calib.npz", "-o", folder / "model.onnx")
    assert said.exit_code == 2
    assert (folder / "model.onnx").read_bytes() == before

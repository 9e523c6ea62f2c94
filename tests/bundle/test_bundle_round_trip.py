"""A bundle that was written is verified, opened and answers as the models that went into it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_parts import (
    FEATURES,
    LABELS,
    forge,
    golden,
    latency,
    make_bundle,
    make_parts,
    model_folder,
    samples,
    validation,
    variant,
    write_network,
)

from pastille.bundle import Bundle, Golden, answer_cases, load_bundle, read_manifest, verify, write_bundle
from pastille.errors import DataError, InferenceError, IntegrityError
from pastille.runtime import load
from pastille.values import TensorSpec


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("round") / "bundle")


@pytest.fixture(scope="module")
def bundle(directory: Path) -> Bundle:
    return load_bundle(directory)


def test_has_the_layout_of_the_design(directory: Path) -> None:
    files = sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file())
    assert files == [
        "evidence/report.html",
        "evidence/run.json",
        "golden/cases.npz",
        "manifest.json",
        "models/fp32.onnx",
        "models/int8.onnx",
    ]
    assert [p.name for p in directory.parent.iterdir()] == ["bundle"]


def test_manifest_reads_back_as_written(tmp_path: Path) -> None:
    manifest = write_bundle(tmp_path / "b", make_parts())
    assert read_manifest(tmp_path / "b" / "manifest.json") == manifest
    assert (tmp_path / "b/models/int8.onnx").read_bytes() == (model_folder() / "int8.onnx").read_bytes()
    assert manifest.labels == LABELS
    assert manifest.golden_source == "validation"
    assert manifest.variant("int8").latency[0].conditions.isa == "avx512-vnni"
    assert manifest.variant("fp32").status is None


def test_verify_says_what_it_checked_and_replays_every_variant(directory: Path) -> None:
    result = verify(directory)
    assert [p.what for p in result.passed] == ["manifest", "files", "hashes", "models", "golden cases"]
    assert [(r.variant, r.cases, r.equal_decisions, r.passes) for r in result.replays] == [
        ("int8", 16, 16, True),
        ("fp32", 16, 16, True),
    ]
    assert verify(directory, replay=False).replays == ()


def test_verifying_needs_neither_torch_nor_onnx(directory: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pastille.bundle import load_bundle, verify\n"
        f"verify(Path({str(directory)!r})); load_bundle({str(directory)!r})\n"
        "print([m for m in ('torch', 'onnx', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_importing_bundles_does_not_start_the_runtime() -> None:
    code = "import sys, pastille.bundle; print('onnxruntime' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_answers_as_the_model_that_went_in(bundle: Bundle) -> None:
    inputs = samples(5, seed=3)
    answer = bundle.predict(inputs)
    expected = load(model_folder() / "int8.onnx", threads=1)({"input": inputs})["logits"]
    np.testing.assert_array_equal(answer.outputs, expected)
    assert answer.decisions == tuple(LABELS[i] for i in expected.argmax(axis=1))
    assert answer.probabilities is not None
    np.testing.assert_allclose(answer.probabilities.sum(axis=1), 1)
    assert (answer.variant, bundle.reason) == ("int8", "int8 is smaller, faster and passes")


def test_named_and_bare_inputs_answer_alike(bundle: Bundle) -> None:
    inputs = samples(2, seed=4)
    np.testing.assert_array_equal(bundle.predict({"input": inputs}).outputs, bundle.predict(inputs).outputs)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.full((2, FEATURES), np.nan), "input 'input' must be finite, but 8 of its 8 values"),
        (np.array([[1.0, np.inf, 0, 0]]), "must be finite, but 1 of its 4"),
        (np.full((1, FEATURES), 1e300), "must be finite, but 4 of its 4"),
        (np.zeros((2, 5)), r"must have shape \(N, 4\) with N ≥ 1, got \(2, 5\)"),
        (np.zeros(FEATURES), r"must have shape \(N, 4\)"),
        (np.zeros((0, FEATURES)), r"N ≥ 1, got \(0, 4\)"),
        (np.float32(1), r"got \(\)"),
        (np.array([["a"] * FEATURES]), "must be float32, got <U1"),
        (np.zeros((1, FEATURES), complex), "must be float32, got complex128"),
        (np.array([[None] * FEATURES]), "must be float32, got object"),
        ({"x": np.zeros((1, FEATURES))}, "inputs must be input, got x"),
        ([[1, 2], [3]], "must be one array of numbers"),
        ({}, "inputs must be input, got none"),
        ({"input": np.zeros((1, FEATURES)), 3: np.zeros(1)}, "inputs must be input, got input, 3"),
    ],
)
def test_refuses_unusable_inputs(bundle: Bundle, inputs: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        bundle.predict(inputs)


def test_int8_would_have_answered_nan_with_confidence(bundle: Bundle) -> None:
    """Why inputs are checked: the model itself does not notice."""
    nan = np.full((1, FEATURES), np.nan, np.float32)
    assert np.isfinite(bundle.session({"input": nan})["logits"]).all()


def test_refuses_to_pass_on_an_answer_that_is_not_finite(tmp_path: Path) -> None:
    bundle = load_bundle(make_bundle(tmp_path / "b", selected="fp32"))
    with pytest.raises(InferenceError, match="fp32 of bundle brain-tumour-mri gave NaN or infinity"):
        bundle.predict(np.full((1, FEATURES), 3e38, np.float32))


def test_content_digest_ignores_what_is_timed(tmp_path: Path) -> None:
    one = write_bundle(tmp_path / "one", make_parts())
    slow = (variant("int8", latency=(latency(9.0),)), variant("fp32", validated=(validation("avx2"),)))
    other = make_parts(variants=slow, evidence={"run.json": b"later"}, selection_reason="another day")
    two = write_bundle(tmp_path / "two", other)
    assert one.content == two.content
    assert one.seal != two.seal


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"labels": ("a", "b", "c"), "positive": ()},
        {"positive": ()},
        {"threshold": 0.4},
        {"preprocessing": None},
    ],
)
def test_content_digest_covers_what_it_answers_with(tmp_path: Path, change: dict[str, Any]) -> None:
    one = write_bundle(tmp_path / "one", make_parts())
    two = write_bundle(tmp_path / "two", make_parts(**change))
    assert one.content != two.content


def test_same_parts_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = make_bundle(tmp_path / "one"), make_bundle(tmp_path / "two")
    for file in (p.relative_to(one) for p in one.rglob("*") if p.is_file()):
        assert (one / file).read_bytes() == (two / file).read_bytes(), file


def test_falls_back_to_fp32_where_the_selected_variant_fails_its_golden_cases(tmp_path: Path) -> None:
    directory = tmp_path / "b"
    write_network(tmp_path / "other.onnx", seed=9)
    parts = make_parts(variants=(variant("int8", path=tmp_path / "other.onnx"), variant("fp32")))
    write_bundle(directory, parts)
    bundle = load_bundle(directory)
    assert bundle.variant == "fp32"
    assert bundle.reason.startswith("int8 was selected but fails on this machine, so fp32 answers: ")
    assert "does not answer the golden cases as validated" in bundle.reason
    assert bundle.predict(samples(1, seed=0)).variant == "fp32"
    with pytest.raises(IntegrityError, match=r"models/int8\.onnx does not answer"):
        verify(directory)


def test_falls_back_to_fp32_where_the_runtime_refuses_the_selected_variant(tmp_path: Path) -> None:
    import onnx

    model = onnx.load(model_folder() / "int8.onnx")
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "odd.onnx")
    parts = make_parts(variants=(variant("int8", path=tmp_path / "odd.onnx"), variant("fp32")))
    write_bundle(tmp_path / "b", parts)
    for checked in (True, False):
        bundle = load_bundle(tmp_path / "b", verify=checked)
        assert bundle.variant == "fp32"
        assert "cannot be loaded by onnxruntime" in bundle.reason


def test_does_not_open_where_fp32_fails_as_well(tmp_path: Path) -> None:
    write_network(tmp_path / "other.onnx", seed=9)
    wrong = tuple(variant(name, path=tmp_path / "other.onnx") for name in ("int8", "fp32"))
    write_bundle(tmp_path / "b", make_parts(variants=wrong))
    with pytest.raises(IntegrityError, match=r"models/fp32\.onnx does not answer"):
        load_bundle(tmp_path / "b")


def test_opens_unverified_without_hashing(tmp_path: Path) -> None:
    directory = make_bundle(tmp_path / "b")
    (directory / "evidence/run.json").write_text("changed")
    assert load_bundle(directory, verify=False).variant == "int8"
    with pytest.raises(IntegrityError, match=r"evidence/run\.json"):
        load_bundle(directory)


@pytest.mark.parametrize("positive", [0, 1])
def test_binary_threshold_speaks_of_the_positive_label(tmp_path: Path, positive: int) -> None:
    _write_linear(tmp_path / "m.onnx", outputs=2)
    session = load(tmp_path / "m.onnx", threads=1)
    x = np.array([[1.0], [-1.0], [0.2]], np.float32)  # of label 1: 0.88, 0.12, 0.6
    labels = ("benign", "malignant")
    write_bundle(
        tmp_path / "b",
        make_parts(
            kind="binary",
            labels=labels,
            positive=(labels[positive],),
            threshold=0.3,
            inputs=(TensorSpec(name="input", shape=(1,), dtype="float32"),),
            output=TensorSpec(name="logits", shape=(2,), dtype="float32"),
            selected="fp32",
            variants=(variant("fp32", path=tmp_path / "m.onnx"),),
            golden=answer_cases({"input": x}, {"fp32": session}, output="logits"),
        ),
    )
    assert verify(tmp_path / "b").replays[0].passes
    bundle = load_bundle(tmp_path / "b")
    expected = {1: (1, 0, 1), 0: (1, 0, 0)}[positive]  # what reaches 0.3 is called positive
    assert bundle.predict(x).decisions == tuple(labels[i] for i in expected)


def test_a_replay_of_a_bundle_decides_by_its_own_threshold_and_positive_label(tmp_path: Path) -> None:
    """From 0.300002 to 0.299998 for label 0: near enough in value, another decision at 0.3."""
    _write_linear(tmp_path / "m.onnx", outputs=1)
    x = np.array([[0.84729]], np.float32)
    parts = make_parts(
        kind="binary",
        labels=("benign", "malignant"),
        positive=("benign",),
        threshold=0.3,
        inputs=(TensorSpec(name="input", shape=(1,), dtype="float32"),),
        output=TensorSpec(name="logits", shape=(1,), dtype="float32"),
        selected="fp32",
        variants=(variant("fp32", path=tmp_path / "m.onnx"),),
        golden=Golden(inputs={"input": x}, outputs={"fp32": x + np.float32(2e-5)}),
    )
    write_bundle(tmp_path / "b", parts)
    with pytest.raises(IntegrityError, match="0 of 1 decisions are equal"):
        verify(tmp_path / "b")


def test_regression_answers_with_numbers_alone(tmp_path: Path) -> None:
    _write_linear(tmp_path / "m.onnx", outputs=1)
    x = np.array([[1.0], [-1.0]], np.float32)
    session = load(tmp_path / "m.onnx", threads=1)
    write_bundle(
        tmp_path / "b",
        make_parts(
            kind="regression",
            labels=(),
            positive=(),
            inputs=(TensorSpec(name="input", shape=(1,), dtype="float32"),),
            output=TensorSpec(name="logits", shape=(1,), dtype="float32"),
            selected="fp32",
            variants=(variant("fp32", path=tmp_path / "m.onnx"),),
            golden=answer_cases({"input": x}, {"fp32": session}, output="logits"),
            golden_source="synthetic",
            evidence={},
        ),
    )
    answer = load_bundle(tmp_path / "b").predict(x)
    assert (answer.decisions, answer.probabilities) == ((), None)
    assert answer.outputs.shape == (2, 1)
    forge(tmp_path / "b")  # the forger of the other tests makes what the writer makes
    assert verify(tmp_path / "b").manifest.golden_source == "synthetic"


def _write_linear(path: Path, *, outputs: int) -> None:
    """Logits (-x, x), or x alone."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.array([[-1.0, 1.0]] if outputs == 2 else [[1.0]], np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "w"], ["logits"])],
        "linear",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", outputs])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def test_the_manifest_says_on_which_cpus_a_variant_was_validated(tmp_path: Path) -> None:
    other = validation("avx2", emulated=True, cases=100, equal_decisions=97, identical=60)
    int8 = variant("int8", validated=(validation(), other))
    write_bundle(tmp_path / "b", make_parts(variants=(int8, variant("fp32"))))
    read = read_manifest(tmp_path / "b" / "manifest.json").variant("int8")
    assert read.validated == (validation(), other)
    assert read.isa == "avx512-vnni"
    assert [seen.words for seen in read.validated] == [
        "avx512-vnni: judged there on 1000 cases",
        "avx2 (emulated): 97 of 100 decisions alike",
    ]
    with pytest.raises(IntegrityError, match="int8 must be validated on the machine that judged it first"):
        write_bundle(tmp_path / "c", make_parts(variants=(variant("int8", validated=()), variant("fp32"))))


def test_manifest_is_json_for_other_tools(directory: Path) -> None:
    value = json.loads((directory / "manifest.json").read_text())
    assert value["schema"] == 5
    assert value["variants"][0]["file"] == "models/int8.onnx"
    assert value["golden"]["cases"] == golden().cases

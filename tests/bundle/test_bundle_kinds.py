"""Bundles of several labels, of masks, of the user's own kind, and of models that answer probabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_parts import FEATURES, LABELS, forge, make_bundle, make_parts, model_folder, samples, variant

from pastille.bundle import Golden, Replay, answer_cases, choose_cases, load_bundle, read_manifest, verify
from pastille.bundle.golden import replay
from pastille.errors import IntegrityError
from pastille.runtime import load
from pastille.values import Kind, TensorSpec

SIZE, ORGANS = 8, ("background", "liver", "spleen")


def write_model(path: Path, *, masks: bool = False, last: str = "Identity") -> Path:
    """A linear or 1x1 convolution layer and one last activation: (N, 4, …) -> (N, 3, …)."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    size: list[Any] = [SIZE, SIZE] if masks else []
    weights = np.random.default_rng(0).normal(size=(3, FEATURES)).astype(np.float32)
    nodes = (
        [helper.make_node("Conv", ["input", "w"], ["answer"])]
        if masks
        else [helper.make_node("Gemm", ["input", "w"], ["answer"], transB=1)]
    )
    axis = {"axis": 1} if last == "Softmax" else {}
    graph = helper.make_graph(
        [*nodes, helper.make_node(last, ["answer"], ["logits"], **axis)],
        "network",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", FEATURES, *size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3, *size])],
        [numpy_helper.from_array(weights.reshape(3, FEATURES, 1, 1) if masks else weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def images(n: int, *, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, FEATURES, SIZE, SIZE)).astype(np.float32)


def bundle_of(folder: Path, model: Path, inputs: np.ndarray, **changes: Any) -> Path:
    """A bundle of one model, whose golden cases are ``inputs``."""
    golden = answer_cases({"input": inputs}, {"fp32": load(model)}, output="logits")
    tail = golden.outputs["fp32"].shape[1:]
    changes = {
        "variants": (variant("fp32", path=model),),
        "selected": "fp32",
        "golden": golden,
        "inputs": (TensorSpec(name="input", shape=inputs.shape[1:], dtype="float32"),),
        "output": TensorSpec(name="logits", shape=tail, dtype="float32"),
        "preprocessing": None,
        **changes,
    }
    return make_bundle(folder / "bundle", **changes)


class TestAnswers:
    def test_of_several_labels(self, tmp_path: Path) -> None:
        directory = make_bundle(tmp_path / "b", kind="multilabel", threshold=0.3)
        assert verify(directory).replays[0].passes
        answer = load_bundle(directory).predict(samples(6, seed=3))
        chance = 1 / (1 + np.exp(-answer.outputs.astype(np.float64)))
        assert answer.probabilities is not None
        np.testing.assert_allclose(answer.probabilities, chance)
        expected = tuple(tuple(LABELS[i] for i in range(3) if row[i] >= 0.3) for row in chance)
        assert answer.decisions == expected
        assert len(set(expected)) > 2
        assert answer.masks is None

    def test_of_masks(self, tmp_path: Path) -> None:
        model = write_model(tmp_path / "m.onnx", masks=True)
        kind = {"kind": "segmentation", "labels": ORGANS, "positive": ("liver",)}
        directory = bundle_of(tmp_path, model, images(4, seed=0), **kind)
        assert verify(directory).replays[0].equal_decisions == 4
        answer = load_bundle(directory).predict(images(2, seed=1))
        assert answer.masks is not None
        np.testing.assert_array_equal(answer.masks, answer.outputs.argmax(axis=1))
        assert answer.masks.dtype == np.int64
        assert answer.probabilities is not None
        assert answer.probabilities.shape == (2, 3, SIZE, SIZE)
        assert answer.decisions == ()

    def test_of_the_users_own_kind(self, tmp_path: Path) -> None:
        directory = make_bundle(tmp_path / "b", kind="custom", labels=(), positive=())
        assert verify(directory).replays[0].passes
        answer = load_bundle(directory).predict(samples(6, seed=3))
        assert (answer.decisions, answer.probabilities, answer.masks) == ((), None, None)
        assert answer.outputs.shape == (6, 3)

    def test_of_a_softmax(self, tmp_path: Path) -> None:
        """Decided as the same model without its softmax; a softmax of a softmax would flatten it."""
        inputs, unseen = samples(8, seed=2), samples(50, seed=3)
        found = {}
        for outputs, last in (("logits", "Identity"), ("probabilities", "Softmax")):
            folder = tmp_path / outputs
            folder.mkdir()
            model = write_model(folder / "m.onnx", last=last)
            directory = bundle_of(folder, model, inputs, outputs=outputs)
            assert verify(directory).replays[0].equal_decisions == 8
            found[outputs] = load_bundle(directory).predict(unseen)
        logits, chances = found["logits"], found["probabilities"]
        assert chances.decisions == logits.decisions
        assert chances.probabilities is not None
        assert logits.probabilities is not None
        np.testing.assert_allclose(chances.probabilities, logits.probabilities, atol=1e-6)
        np.testing.assert_allclose(chances.outputs, logits.probabilities, atol=1e-6)

    def test_of_sigmoids(self, tmp_path: Path) -> None:
        """None of their answers is below 0, so that read as logits every label would be given."""
        model = write_model(tmp_path / "m.onnx", last="Sigmoid")
        directory = bundle_of(tmp_path, model, samples(8, seed=2), kind="multilabel", outputs="probabilities")
        answer = load_bundle(directory).predict(samples(50, seed=3))
        np.testing.assert_array_equal(
            [len(given) for given in answer.decisions], (answer.outputs >= 0.5).sum(1)
        )
        assert answer.probabilities is not None
        np.testing.assert_allclose(answer.probabilities, answer.outputs, atol=1e-6)


class TestManifest:
    def test_what_the_outputs_are_is_part_of_the_content(self, tmp_path: Path) -> None:
        model = write_model(tmp_path / "m.onnx", last="Softmax")
        both = []
        for outputs in ("logits", "probabilities"):
            (tmp_path / outputs).mkdir()
            directory = bundle_of(tmp_path / outputs, model, samples(8, seed=2), outputs=outputs)
            both.append(read_manifest(directory / "manifest.json"))
        assert [m.outputs for m in both] == ["logits", "probabilities"]
        assert both[0].content != both[1].content

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (
                {"kind": "multilabel", "labels": [], "positive": []},
                "labels must name every class of a multilabel",
            ),
            ({"kind": "custom"}, "labels must name every class of a custom task, got ['glioma'"),
            ({"kind": "segmentation"}, "with 3 labels must answer with shape (N, 3, H, W)"),
            (
                {"kind": "segmentation", "labels": ["a"], "positive": []},
                "labels must name every class of a segm",
            ),
            (
                {"kind": "custom", "labels": [], "positive": [], "outputs": "probabilities"},
                "outputs must not be probabilities in a custom task",
            ),
            ({"outputs": "odds"}, "outputs: Input should be 'logits' or 'probabilities'"),
            ({"kind": "detection"}, "kind: Input should be"),
        ],
    )
    def test_what_contradicts_itself(self, change: dict[str, Any], problem: str, tmp_path: Path) -> None:
        directory = make_bundle(tmp_path / "b")
        forge(directory, lambda value: value.update(change))
        with pytest.raises(IntegrityError) as caught:
            read_manifest(directory / "manifest.json")
        assert problem in str(caught.value)


class Fake:
    """A session that answers as a function of its input."""

    inputs = (TensorSpec(name="x", shape=(2,), dtype="float32"),)
    outputs = (TensorSpec(name="y", shape=(2,), dtype="float32"),)
    fixed_batch: int | None = None
    threads = 1

    def __init__(self, function: Callable[[np.ndarray], np.ndarray]) -> None:
        self.function = function

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": self.function(inputs["x"])}


def replayed(kind: Kind, then: np.ndarray, now: np.ndarray, **options: Any) -> Replay:
    """What is said of a model that answered ``then`` and answers ``now``."""
    rows = np.arange(len(then), dtype=np.float32)[:, None]
    cases = Golden(inputs={"x": rows}, outputs={"int8": then})
    asked = Fake(lambda x: now[x[:, 0].astype(int)])
    return replay(asked, cases, "int8", kind=kind, output="y", precision="int8", **options)


class TestReplay:
    def test_one_label_that_flips_is_enough(self) -> None:
        then = np.array([[5.0, -5.0, 0.05], [5.0, -5.0, 3.0]], np.float32)
        now = then - np.array([[0, 0, 0.1], [0, 0, 0.1]], np.float32)
        result = replayed("multilabel", then, now)
        assert result.max_abs_difference < result.tolerance
        assert (result.equal_decisions, result.passes) == (1, False)
        assert replayed("multilabel", then, now, threshold=0.4).passes

    @pytest.mark.parametrize(("flipped", "passes"), [(0, True), (4, True), (5, False)])
    def test_a_thousandth_of_the_pixels_may_flip(self, flipped: int, passes: bool) -> None:
        then = np.zeros((2, 2, 64, 64), np.float32)
        then[:, 1] = 5.0
        then[1, 1, 0, :flipped] = 0.01
        now = then.copy()
        now[1, 0, 0, :flipped] = 0.02
        result = replayed("segmentation", then, now)
        assert result.equal_decisions == (2 if passes else 1)
        assert result.passes is passes

    @pytest.mark.parametrize(("off", "passes"), [(4, True), (5, False)])
    def test_a_thousandth_of_the_pixels_may_be_far_off(self, off: int, passes: bool) -> None:
        then = np.zeros((2, 1, 64, 64), np.float32)
        then[:, :, :32] = 5.0
        now = then.copy()
        now[0, 0, 0, :off] = 9.0  # the same decision
        result = replayed("segmentation", then, now)
        assert (result.max_abs_difference, result.passes) == (4.0, passes)

    @pytest.mark.parametrize("kind", ["multilabel", "segmentation", "custom"])
    @pytest.mark.parametrize("broken", [np.nan, np.inf])
    def test_an_answer_that_is_no_number_fails(self, kind: Kind, broken: float) -> None:
        then = np.full((3, 2, 64, 64), 3.0, np.float32)
        then = then[:, :, 0, 0] if kind == "multilabel" else then
        now = then.copy()
        now.reshape(3, -1)[1, 0] = broken
        result = replayed(kind, then, now)
        assert (result.max_abs_difference, result.passes) == (np.inf, False)

    def test_the_users_own_kind_is_judged_by_its_values(self) -> None:
        then = np.array([[10.0, 0.0], [0.0, 10.0]])
        assert replayed("custom", then, then + 0.3).passes
        result = replayed("custom", then, then + np.array([[0.0, 0.0], [0.0, 0.4]]))
        assert (result.equal_decisions, result.passes) == (1, False)

    def test_probabilities_are_decided_as_such(self) -> None:
        then, now = np.array([[0.9], [0.52], [0.0]]), np.array([[0.9], [0.49], [0.03]])
        result = replayed("binary", then, now, scale="probabilities")
        assert (result.equal_decisions, result.passes) == (2, False)


class TestChoice:
    def test_several_labels_away_from_the_threshold_and_alike_in_all(self) -> None:
        rng = np.random.default_rng(0)
        logits = rng.normal(0, 3, (400, 3))
        other = logits + rng.normal(0, 0.5, logits.shape)
        rows = choose_cases([logits, other], kind="multilabel", threshold=0.3)
        assert len(rows) == 16
        chances = [1 / (1 + np.exp(-x[rows])) for x in (logits, other)]
        np.testing.assert_array_equal(chances[0] >= 0.3, chances[1] >= 0.3)
        margin = np.abs(1 / (1 + np.exp(-logits)) - 0.3).min(axis=1)
        assert margin[rows].min() > np.quantile(margin, 0.2)
        given = (chances[0] >= 0.3).astype(int)
        assert given.any(axis=0).all()
        assert (~given.any(axis=1)).any(), "no label at all is a decision too"

    def test_no_case_alike(self) -> None:
        logits = np.array([[3.0, 3.0], [3.0, -3.0]])
        with pytest.raises(ValueError, match="decided alike in at least one case"):
            choose_cases([logits, logits * [1, -1]], kind="multilabel")

    @pytest.mark.parametrize("channels", [1, 2])
    def test_masks_with_the_clearest_edges_of_every_set_of_classes(self, channels: int) -> None:
        rng = np.random.default_rng(0)
        plane = np.where(np.arange(16)[:, None] < 8, -4.0, 4.0) * np.ones((60, 16, 16))
        plane[40:] = -4.0  # without an object
        plane += rng.normal(0, 0.1, plane.shape)
        unclear = rng.permutation(60)[:30]
        plane[unclear, :, 3] *= 0.01
        logits = plane[:, None] if channels == 1 else np.stack([-plane / 2, plane / 2], axis=1)
        other = -logits  # variants need not draw alike: each is held against its own
        rows = choose_cases([logits, other], kind="segmentation", count=12)
        assert len(rows) == 12
        assert not set(rows) & set(unclear)
        assert 0 < (rows >= 40).sum() < 12

    def test_large_answers_are_fewer(self) -> None:
        huge = np.broadcast_to(np.float32(3.0), (20, 2, 2048, 2048))  # 32 MiB each
        assert len(choose_cases([huge, huge], kind="custom")) == 2

    def test_the_users_own_kind_is_spread_over_its_first_number(self) -> None:
        outputs = np.arange(100.0)[::-1].reshape(100, 1, 1) * np.ones((100, 2, 3))
        assert choose_cases([outputs], kind="custom", count=5).tolist() == [0, 25, 49, 74, 99]


def test_the_parts_say_logits_unless_told() -> None:
    assert make_parts().outputs == "logits"
    assert (model_folder() / "fp32.onnx").is_file()

"""Inputs of a split, taken back to what was recorded, perturbed and prepared again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pastille.data.normalize import normalized
from pastille.data.perturb import (
    NAMES,
    Material,
    Perturbation,
    PerturbedInputs,
    choose,
    material_of,
)
from pastille.data.split import Split, batches
from pastille.data.text import TokenizedText
from pastille.errors import DataError, RecipeError, UsageError
from pastille.values import Normalization, Preprocessing

RGB = Normalization(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
Function = Callable[[Any, int, np.random.Generator], Any]


def images(n: int = 6, *, size: int = 12) -> np.ndarray:
    return np.random.default_rng(0).random((n, 3, size, size)).astype(np.float32)


def view(
    inputs: Any, function: Function, material: Material | None = None, *, severity: int = 3, seed: int = 0
) -> PerturbedInputs:
    return PerturbedInputs(
        inputs=inputs,
        perturbation=Perturbation(name="own.py:mine", setting="", function=function),
        severity=severity,
        material=material or material_of(inputs, None),
        seed=seed,
    )


def built_in(inputs: Any, name: str, preprocessing: Preprocessing | None = None) -> PerturbedInputs:
    material = material_of(inputs, preprocessing)
    return PerturbedInputs(
        inputs=inputs, perturbation=material.perturbations[name], severity=3, material=material, seed=0
    )


@pytest.mark.parametrize(
    ("shape", "modality"),
    [
        ((3, 8, 8), "image"),
        ((1, 8, 8), "image"),
        ((4, 8, 8), "image"),
        ((2, 8, 8), None),
        ((12, 500), "signal"),
        ((30,), "table"),
        ((), None),
        ((3, 4, 5, 6), None),
    ],
)
def test_the_shape_says_what_an_input_is(shape: tuple[int, ...], modality: str | None) -> None:
    assert material_of(np.ones((4, *shape), np.float32), None).modality == modality


def test_whole_numbers_are_images_or_nothing_known() -> None:
    assert material_of(np.ones((4, 3, 8, 8), np.uint8), None).modality == "image"
    assert material_of(np.ones((4, 16), np.int64), None).modality is None
    assert material_of([{"a": np.ones(3), "b": np.ones(3)}], None).modality is None
    assert material_of([{"x": np.ones(3)}], None).modality == "table"


class Grey(list[np.ndarray]):
    """Images without a channel axis would pass for signals."""

    modality = "table"


def test_inputs_may_say_themselves_what_they_are() -> None:
    assert material_of(Grey([np.ones((3, 4))]), None).modality == "table"
    wrong = Grey([np.ones(3)])
    wrong.modality = "video"
    with pytest.raises(DataError, match="one of image, signal, table, got 'video'"):
        material_of(wrong, None)


def test_perturbing_happens_before_the_normalization() -> None:
    raw = images()
    prepared = np.stack([normalized(x, RGB) for x in raw])
    for name in NAMES["image"]:
        plain = built_in(raw, name)
        undone = built_in(prepared, name, Preprocessing(normalization=RGB))
        for i in range(len(raw)):
            assert undone[i].dtype == np.float32
            # One grey level, where rounding to 8 bits for JPEG falls the other way.
            tolerance = 0.05 if name == "jpeg" else 1e-4
            np.testing.assert_allclose(undone[i], normalized(plain[i], RGB), atol=tolerance)


@pytest.mark.parametrize(("low", "high"), [(0.0, 255.0), (-1.0, 1.0), (-1000.0, 400.0)])
def test_images_of_another_range_are_perturbed_on_theirs(low: float, high: float) -> None:
    raw = images()
    raw[0, 0, 0, :2] = 0, 1
    scaled = (low + (high - low) * raw).astype(np.float32)
    for name in NAMES["image"]:
        found = built_in(scaled, name)[1]
        expected = low + (high - low) * built_in(raw, name)[1]
        tolerance = 0.05 if name == "jpeg" else 1e-3
        np.testing.assert_allclose(found, expected, atol=tolerance * (high - low))


def test_whole_number_images_stay_so() -> None:
    x = (255 * images()).astype(np.uint8)
    for name in NAMES["image"]:
        found = built_in(x, name)[0]
        assert (found.dtype, found.shape) == (np.uint8, x[0].shape)


def test_missing_values_are_filled_in_from_train() -> None:
    train = np.tile(np.array([[1.0], [7.0], [8.0]], np.float32), (1, 10))
    inputs = np.zeros((3, 10), np.float32)
    material = material_of(inputs, None, train=train)
    assert set(choose(["missing_values"], material, Path())[0].function(inputs[0], 5, rng())) == {0.0, 7.0}


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_units_slip_in_the_units_of_the_table_and_not_in_standard_deviations() -> None:
    normalization = Normalization(mean=(70.0, 170.0), std=(10.0, 8.0))
    inputs = np.zeros((3, 2), np.float32)  # everyone is average
    found = built_in(inputs, "unit_slip", Preprocessing(normalization=normalization))
    assert all(np.abs(found[i]).max() > 3 for i in range(3))


def test_an_input_is_perturbed_alike_in_any_order_and_only_by_its_own_seed() -> None:
    x = np.ones((8, 3, 6, 6), np.float32) / 2  # alike: what differs is drawn
    one = built_in(x, "gaussian_noise")
    forwards = [one[i] for i in range(8)]
    backwards = [one[i] for i in reversed(range(8))][::-1]
    np.testing.assert_array_equal(forwards, backwards)
    assert len({a.tobytes() for a in forwards}) == 8
    np.testing.assert_array_equal(forwards, list(one))

    def drawn(_: Any, __: int, generator: np.random.Generator) -> np.ndarray:
        return generator.random((3, 6, 6)).astype(np.float32)

    assert not np.array_equal(view(x, drawn)[0], view(x, drawn, seed=1)[0])
    assert not np.array_equal(view(x, drawn)[0], view(x, drawn, severity=4)[0])


def test_perturbed_inputs_are_inputs() -> None:
    x = images()
    seen = built_in(x, "contrast")
    split = Split(inputs=seen, targets=np.zeros(len(x)))
    (batch,) = batches(split.inputs, range(len(x)), 10)
    assert batch["input"].shape == x.shape
    assert set(built_in([{"pixels": x[0]}], "contrast")[0]) == {"pixels"}


def test_a_perturbation_may_write_on_what_it_is_given() -> None:
    x = images()
    kept = x.copy()

    def destructive(image: np.ndarray, severity: int, generator: np.random.Generator) -> np.ndarray:
        image[:] = 0
        return image

    assert view(x, destructive)[0].max() == 0
    np.testing.assert_array_equal(x, kept)
    pair = [{"a": x[0], "b": x[1]}]

    def both(inputs: dict[str, np.ndarray], severity: int, generator: np.random.Generator) -> Any:
        inputs["a"][:] = 0
        return inputs

    assert view(pair, both)[0]["a"].max() == 0
    np.testing.assert_array_equal(x, kept)


def raising(x: Any, severity: int, generator: np.random.Generator) -> Any:
    raise RuntimeError("no\nway")


HOSTILE: dict[str, tuple[Function, str]] = {
    "raises": (raising, "failed: RuntimeError: no way"),
    "too few arguments": (lambda x: x, "failed: TypeError"),  # type: ignore[dict-item, misc]
    "another shape": (lambda x, s, g: x[:, :4], r"must keep the shape \(3, 12, 12\), got \(3, 4, 12\)"),
    "a number": (lambda x, s, g: 3.0, "must give an array of numbers, got float"),
    "nothing": (lambda x, s, g: None, "must give an array of numbers, got NoneType"),
    "text": (lambda x, s, g: x.astype(str), "must give an array of numbers, got dtype <U"),
    "complex": (lambda x, s, g: x + 1j, "got dtype complex"),
    "NaN": (lambda x, s, g: np.where(x > x.min(), x, np.nan), "gave NaN or infinity in 1 of 432 values"),
    "infinity": (lambda x, s, g: x * np.float32(np.inf), "gave NaN or infinity in 432"),
    "overflow": (lambda x, s, g: x.astype(float) + 1e300, "gave NaN or infinity in 432"),
}


@pytest.mark.parametrize("which", HOSTILE)
def test_what_a_users_own_does_wrong_is_said_in_one_line(which: str) -> None:
    function, message = HOSTILE[which]
    with pytest.raises(UsageError, match=message) as caught:
        view(images(), function)[2]
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("requirements.stress.perturbations: own.py:mine (at severity 3, input 2) ")


def test_ctrl_c_is_no_failure_of_the_perturbation() -> None:
    def interrupted(x: Any, severity: int, generator: np.random.Generator) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        view(images(), interrupted)[0]


def test_of_several_inputs_all_must_come_back() -> None:
    pair = [{"image": images()[0], "age": np.array([50.0], np.float32)}]
    found = view(pair, lambda x, s, g: {**x, "age": x["age"] * 2})[0]
    assert (found["age"], found["age"].dtype) == (100.0, np.float32)
    with pytest.raises(UsageError, match="must give the inputs age, image by name"):
        view(pair, lambda x, s, g: {"age": x["age"]})[0]


def tokens(text: str) -> dict[str, np.ndarray]:
    codes = np.frombuffer(text.encode().ljust(40)[:40], np.uint8).astype(np.int64)
    return {"input_ids": codes, "attention_mask": np.ones(40, np.int64)}


def test_text_is_perturbed_before_it_is_cut_into_tokens() -> None:
    inputs = TokenizedText(texts=["no chest pain", "fever since Monday"], tokenize=tokens)
    assert material_of(inputs, None).modality == "text"
    found = built_in(inputs, "truncation")[1]
    assert bytes(found["input_ids"].astype(np.uint8)).strip() == b"fever since Mo"
    assert len(list(inputs)) == len(inputs) == 2
    with pytest.raises(UsageError, match="must give a string for a string, got int"):
        view(inputs, lambda x, s, g: 3)[0]


def test_names_are_found_however_they_are_written() -> None:
    material = Material(modality="signal")
    found = choose(["baseline wander", "Baseline-Wander", "noise"], material, Path())
    assert [one.name for one in found] == ["baseline_wander", "noise"]
    assert [one.name for one in choose("auto", material, Path())] == list(NAMES["signal"])
    assert choose("auto", Material(modality=None), Path()) == ()


def test_an_unknown_name_brings_the_closest_and_all() -> None:
    with pytest.raises(RecipeError) as caught:
        choose(["gausian_noise"], Material(modality="image"), Path())
    text = str(caught.value)
    assert "did you mean gaussian_noise?" in text
    assert all(name in text for name in NAMES["image"])
    assert caught.value.key == "requirements.stress.perturbations"


def test_a_name_for_other_inputs_is_explained() -> None:
    with pytest.raises(RecipeError, match=r"which is for inputs of modality image; these are table"):
        choose(["jpeg"], Material(modality="table", typical=np.zeros(2)), Path())
    with pytest.raises(RecipeError, match="no name fits these inputs, got 'jpeg'"):
        choose(["jpeg"], Material(modality=None), Path())
    with pytest.raises(RecipeError, match="at least one"):
        choose([], Material(modality="image"), Path())


def test_a_users_own_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def darker(x, severity, generator):\n    return x / (1 + severity)\n")
    (own,) = choose(["mine.py:darker"], Material(modality="image"), tmp_path)
    assert own.spoken == own.name == "mine.py:darker"
    x = images()
    np.testing.assert_allclose(view(x, own.function)[0], x[0] / 4, rtol=1e-6)
    with pytest.raises(UsageError, match=r"mine.py has no callable 'brighter'"):
        choose(["mine.py:brighter"], Material(modality="image"), tmp_path)
    with pytest.raises(UsageError, match="there is no file"):
        choose(["gone.py:f"], Material(modality="image"), tmp_path)


def test_a_normalization_of_other_channels_is_refused() -> None:
    preprocessing = Preprocessing(normalization=RGB)
    with pytest.raises(DataError, match=r"one mean for each channel of an input, shape \(1, 4, 4\), got 3"):
        material_of(np.ones((2, 1, 4, 4), np.float32), preprocessing)


def test_without_inputs_there_is_nothing_to_look_at() -> None:
    with pytest.raises(DataError, match="no inputs"):
        material_of([], None)

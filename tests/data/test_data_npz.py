from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_samples import BINARY, NUMBER, THREE
from numpy.lib import format as npy_format

from pastille.data.npz import Rows, load_archive, read_npz
from pastille.data.split import Splits
from pastille.errors import DataError, RecipeError
from pastille.progress import SILENT
from pastille.recipe import NpzData, TaskSection, parse_recipe
from pastille.values import Normalization


def table(n: int = 60, **more: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"x": rng.normal(3, 2, (n, 4)), "y": np.arange(n) % 2, **more}


def read(folder: Path, arrays: dict[str, Any], *, task: TaskSection = BINARY, **options: Any) -> Splits:
    np.savez(folder / "data.npz", **arrays)
    section = NpzData.model_validate({"reader": "npz", "path": "data.npz", **options})
    return read_npz(section, task, base=folder, seed=0, progress=SILENT)


def test_splits_a_table_by_fractions(tmp_path: Path) -> None:
    splits = read(tmp_path, table())
    assert [split.n for _, split in splits] == [39, 9, 12]
    assert splits.train.inputs[0].dtype == np.float32
    assert splits.train.targets.dtype == np.int64
    assert splits.preprocessing is None


def test_labels_are_stratified_unless_the_recipe_says_otherwise(tmp_path: Path) -> None:
    rare = {**table(200), "y": (np.arange(200) < 20).astype(int)}
    stratified = read(tmp_path, rare)
    assert [int(split.targets.sum()) for _, split in stratified] == [13, 3, 4]
    assert [split.n for _, split in stratified] == [130, 30, 40]
    free = read(tmp_path, rare, split={"stratify": None})
    assert [split.n for _, split in free] == [130, 30, 40]
    assert [int(split.targets.sum()) for _, split in free] != [13, 3, 4]


def test_inputs_stay_beside_their_targets(tmp_path: Path) -> None:
    splits = read(tmp_path, {"x": np.arange(60.0).reshape(60, 1), "y": np.arange(60) / 2}, task=NUMBER)
    for _, split in splits:
        assert [float(row[0]) / 2 for row in split.inputs] == split.targets.tolist()


def test_auto_normalization_is_measured_on_train_only(tmp_path: Path) -> None:
    arrays = table(split=np.array(["train"] * 40 + ["validation"] * 10 + ["test"] * 10))
    arrays["x"][40:] += 1000
    splits = read(tmp_path, arrays, split="split", normalize="auto")
    assert splits.preprocessing is not None
    normalization = splits.preprocessing.normalization
    assert normalization is not None
    np.testing.assert_allclose(normalization.mean, arrays["x"][:40].mean(axis=0), rtol=1e-5)
    train = np.stack(list(splits.train.inputs))
    np.testing.assert_allclose(train.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(train.std(axis=0), 1, atol=1e-4)
    assert np.stack(list(splits.test.inputs)).min() > 100


def test_several_inputs_come_by_name(tmp_path: Path) -> None:
    splits = read(tmp_path, table(age=np.ones((60, 1))), inputs=["x", "age"])
    assert {name: row.shape for name, row in splits.train.inputs[0].items()} == {"x": (4,), "age": (1,)}
    with pytest.raises(
        DataError, match=r"data.normalize must be none where there are several inputs, got x, age"
    ):
        read(tmp_path, table(age=np.ones((60, 1))), inputs=["x", "age"], normalize="auto")


def test_token_ids_stay_integers_and_pixels_become_floats(tmp_path: Path) -> None:
    ids = read(tmp_path, {"x": np.zeros((60, 4), np.int64), "y": np.arange(60) % 2})
    pixels = read(tmp_path, {"x": np.full((60, 1, 2, 2), 255, np.uint8), "y": np.arange(60) % 2})
    assert ids.train.inputs[0].dtype == np.int64
    assert pixels.train.inputs[0].dtype == np.float32
    assert pixels.train.inputs[0].max() == 255


def test_groups_bands_strata_and_subjects(tmp_path: Path) -> None:
    ages = np.array([44.0, 45.0, 65.0, np.nan] * 15)
    arrays = table(
        age=ages, sex=np.array([0.0, 1.0] * 30), site=np.array([b"A", b"B"] * 30), pid=np.arange(60) // 3
    )
    splits = read(
        tmp_path,
        arrays,
        groups={"age_band": {"column": "age", "bins": [45, 65]}, "sex": "sex"},
        strata="site",
        split={"by": "pid"},
    )
    assert set(splits.train.groups["age_band"]) == {"<45", "45-64", ">=65", "unknown"}
    assert set(splits.train.groups["sex"]) == {"0", "1"}
    assert splits.train.strata is not None
    assert set(splits.train.strata) == {"A", "B"}
    homes = [set(split.subjects.tolist()) for _, split in splits if split.subjects is not None]
    assert len(homes) == 3
    assert sum(map(len, homes)) == 20


def test_a_given_split_may_name_subjects_too(tmp_path: Path) -> None:
    arrays = table(part=np.array(["train", "val", "test"] * 20), pid=np.arange(60))
    splits = read(tmp_path, arrays, split="part", subject="pid")
    assert splits.validation.subjects is not None
    assert splits.validation.subjects[:2].tolist() == ["1", "4"]


def test_a_subject_beside_fractions_is_refused_by_the_recipe() -> None:
    asked = {
        "name": "r",
        "task": {"kind": "regression", "model": "m.py:f"},
        "data": {"reader": "npz", "path": "d.npz", "subject": "pid"},
        "plan": [{"quantize": {}}],
    }
    with pytest.raises(
        RecipeError, match="data takes subject only where split names a column; with fractions"
    ):
        parse_recipe(asked)


def test_targets_by_name_as_floats_and_as_booleans(tmp_path: Path) -> None:
    names = np.array(["cat", "dog", "fox"] * 20)
    assert set(read(tmp_path, {**table(), "y": names}, task=THREE).train.targets) == {0, 1, 2}
    assert set(read(tmp_path, {**table(), "y": np.arange(60) % 2 == 0}).train.targets) == {0, 1}
    assert set(read(tmp_path, {**table(), "y": np.arange(60) % 2 * 1.0}).train.targets) == {0, 1}


@pytest.mark.parametrize(
    ("change", "options", "task", "message"),
    [
        ({}, {"inputs": "X"}, BINARY, "data.npz has no array 'X'; allowed: x, y"),
        ({}, {"groups": {"sex": "gender"}}, BINARY, "data.npz has no array 'gender'; allowed: x, y"),
        (
            {"y": np.arange(59)},
            {},
            BINARY,
            "array 'y' must have shape (N, ...) with the N of 'x', (60,), got (59,)",
        ),
        (
            {"y": np.array(3)},
            {},
            BINARY,
            "array 'y' must have shape (N, ...) with the N of 'x', (60,), got ()",
        ),
        (
            {"x": np.arange(60.0)},
            {},
            BINARY,
            "input 'x' must be numbers of shape (N, ...), got float64 (60,)",
        ),
        (
            {"x": np.full((60, 1), "a")},
            {},
            BINARY,
            "input 'x' must be numbers of shape (N, ...), got <U1 (60, 1)",
        ),
        (
            {"y": np.arange(60) + 0.5},
            {},
            BINARY,
            "y[0] must be a whole number from 0 to 1, the index of a label, got 0.5",
        ),
        (
            {"y": np.full(60, np.nan)},
            {},
            BINARY,
            "y[0] must be a whole number from 0 to 1, the index of a label, got nan",
        ),
        ({"y": np.array([1.0, np.inf] * 30)}, {}, NUMBER, "y[1] must be finite, got inf"),
        ({"y": np.array(["dgo"] * 60)}, {}, THREE, "y[0] is 'dgo', not in task.labels; did you mean 'dog'?"),
        ({"y": np.array(["1"] * 60)}, {}, NUMBER, "target 'y' must be numbers, got <U1"),
        (
            {"g": np.zeros((60, 2))},
            {"groups": {"g": "g"}},
            BINARY,
            "array 'g' must have shape (N,), got (60, 2)",
        ),
        (
            {"s": np.array(["dev"] * 60)},
            {"split": "s"},
            BINARY,
            "s[0] must be train, validation (or val) or test",
        ),
        ({}, {"normalize": "imagenet"}, BINARY, "one std for each of 4 channels, got 3 and 3"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, change: dict[str, Any], options: dict[str, Any], task: TaskSection, message: str
) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        read(tmp_path, {**table(), **change}, task=task, **options)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    section = NpzData(reader="npz", path=Path("none.npz"))
    with pytest.raises(
        DataError, match=r"data.path: there is no \S+/none.npz; paths are relative to the recipe"
    ):
        read_npz(section, BINARY, base=tmp_path, seed=0, progress=SILENT)


class Bomb:
    """Says so when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit('unpickled')",)


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="array 'y' is stored as pickled objects, which are never loaded; save"
    ):
        read(tmp_path, {"x": np.zeros((2, 1)), "y": np.array([Bomb(), Bomb()], dtype=object)})


def test_a_pickle_in_place_of_an_array_is_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x.npy", pickle.dumps(Bomb()))
    with pytest.raises(DataError, match=r"'x' is not an array of numpy.savez"):
        load_archive(path, ["x"])


def test_a_bomb_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, x=np.zeros((1000, 1000)), y=np.zeros(3))
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match=r"bomb.npz inflates to 8000128 bytes, but at most 1000000 are read"):
        load_archive(path, ["x"], limit=1_000_000)
    assert load_archive(path, ["y"], limit=1_000_000).arrays["y"].shape == (3,)


def test_an_archive_that_understates_its_size_is_not_inflated_further(tmp_path: Path) -> None:
    path = tmp_path / "liar.npz"
    np.savez_compressed(path, x=np.zeros((1000, 1000)))
    lied = path.read_bytes().replace((8000128).to_bytes(4, "little"), (2000).to_bytes(4, "little"))
    path.write_bytes(lied)
    with pytest.raises(DataError, match="array 'x' cannot be read"):
        load_archive(path, ["x"], limit=1_000_000)


def test_an_array_that_promises_more_than_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as file, file.open("x.npy", "w") as member:
        header = {"descr": "<f8", "fortran_order": False, "shape": (1 << 50,)}
        npy_format.write_array_header_1_0(member, header)
    with pytest.raises(DataError, match="array 'x' cannot be read: "):
        load_archive(path, ["x"])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not really", b"\x93NUMPY\x01\x00"])
def test_what_is_no_npz_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"data.npz is not an .npz file of numpy.savez: BadZipFile: "):
        load_archive(path, ["x"])


def test_a_truncated_member(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.arange(1000.0))
    damaged = bytearray(path.read_bytes())
    damaged[500] ^= 0xFF
    path.write_bytes(bytes(damaged))
    with pytest.raises(DataError, match="array 'x' cannot be read: BadZipFile: Bad CRC-32"):
        load_archive(path, ["x"])


def test_rows_can_be_sliced_and_normalized_lazily() -> None:
    rows = Rows({None: np.arange(6.0).reshape(3, 2)}, np.array([2, 0]))
    assert [row.tolist() for row in rows[1:]] == [[0, 1]]
    normalization = Normalization(mean=(4.0, 0.0), std=(1.0, 5.0))
    assert rows.with_normalization(normalization)[0].tolist() == [0, 1]


def test_a_float64_beyond_float32_is_infinite_for_the_inspection_to_name() -> None:
    assert np.isinf(Rows({None: np.array([[1e300]])}, np.array([0]))[0]).all()

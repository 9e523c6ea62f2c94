"""Targets of several labels, of pixels, and of the user's own kind: checked, counted, split and sampled."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_samples import split_of
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pastille.data.cases import cases, own_metrics
from pastille.data.checks import check_targets, describe, one_sided_labels
from pastille.data.csv_images import read_csv_images
from pastille.data.image_folder import read_image_folder
from pastille.data.leakage import inspect
from pastille.data.npz import read_npz
from pastille.data.sampler import calibration_indices
from pastille.data.split import Split, Splits
from pastille.data.splitting import presence, stratification
from pastille.errors import DataError, UsageError
from pastille.progress import SILENT
from pastille.recipe import CsvImagesData, ImageFolderData, NpzData, TaskSection

FINDINGS = TaskSection(kind="multilabel", labels=["effusion", "nodule", "mass"])
ORGANS = TaskSection(kind="segmentation", labels=["background", "liver", "spleen"])
OWN = TaskSection(kind="custom", metric="metric.py:word_error_rate")

SEVERAL = np.array([[1, 0, 0], [0, 1, 1], [1, 1, 0], [0, 0, 0]])
MASKS = np.zeros((4, 2, 3), np.uint8)
MASKS[0, 0, 0], MASKS[1, 1] = 2, 1


def with_targets(targets: np.ndarray, *, validation: np.ndarray | None = None) -> Splits:
    """The same targets in every split, or others in validation."""
    train, test = (split_of([0] * len(targets), seed=seed) for seed in (0, 1))
    other = targets if validation is None else validation
    return Splits(
        train=Split(inputs=train.inputs, targets=targets),
        validation=Split(inputs=np.zeros((len(other), 3), np.float32), targets=other),
        test=Split(inputs=test.inputs, targets=targets),
    )


class TestChecks:
    @pytest.mark.parametrize(
        ("targets", "task"),
        [
            (SEVERAL, FINDINGS),
            (SEVERAL.astype(bool), FINDINGS),
            (SEVERAL.astype(np.uint8), FINDINGS),
            (MASKS, ORGANS),
            (np.array(["a b", "c", "d e f"]), OWN),
            (np.full((3, 2, 5), np.nan), OWN),
        ],
    )
    def test_sound_targets_pass(self, targets: np.ndarray, task: TaskSection) -> None:
        check_targets(with_targets(targets), task)

    @pytest.mark.parametrize(
        ("targets", "task", "message"),
        [
            (
                SEVERAL[:, 0],
                FINDINGS,
                "targets of train must have shape (N, 3), 0 or 1 for each label, got (4,)",
            ),
            (
                SEVERAL[:, :2],
                FINDINGS,
                "targets of train must have shape (N, 3), 0 or 1 for each label, got (4, 2)",
            ),
            (SEVERAL * 2, FINDINGS, "target train[0] is 2 for 'effusion', but must be 0 or 1"),
            (-SEVERAL, FINDINGS, "target train[0] is -1 for 'effusion', but must be 0 or 1"),
            (SEVERAL / 1.0, FINDINGS, "targets of train must be 0 or 1, got float64; convert them to int64"),
            (SEVERAL[:2] * [1, 0, 1], FINDINGS, "label 'nodule' has no positive case in train (2 cases)"),
            (SEVERAL | [0, 0, 1], FINDINGS, "label 'mass' has no negative case in train (4 cases)"),
            (
                MASKS[:, 0],
                ORGANS,
                "targets of train must have shape (N, H, W), a label per pixel, got (4, 3)",
            ),
            (
                MASKS[:, :0],
                ORGANS,
                "targets of train must have shape (N, H, W), a label per pixel, got (4, 0, 3)",
            ),
            (MASKS / 1.0, ORGANS, "targets of train must be integer class indices, got float64"),
            (
                MASKS + np.uint8(1),
                ORGANS,
                "target train[0, 0, 0] is 3, but must be between 0 and 2, an index",
            ),
            (MASKS[2:], ORGANS, "split train has one class only: all 12 pixels are 'background'"),
            (np.array([[1, 2], [3]], object), OWN, "targets of train must be an array of numbers or text"),
        ],
    )
    def test_bad_targets_are_named(self, targets: np.ndarray, task: TaskSection, message: str) -> None:
        with pytest.raises(DataError, match=re.escape(message)) as caught:
            check_targets(with_targets(targets), task)
        assert "\n" not in str(caught.value)

    def test_a_label_may_be_missing_from_validation(self) -> None:
        """Rare findings often are; train must have them, what cannot be judged is left out."""
        rare = SEVERAL * [1, 1, 0]
        check_targets(with_targets(SEVERAL, validation=rare), FINDINGS)
        assert one_sided_labels(rare, FINDINGS.labels) == {"mass": "positive"}


class TestCounts:
    def test_labels_by_case(self) -> None:
        split = with_targets(SEVERAL).train
        assert describe(split, FINDINGS.labels).classes == {"effusion": 2, "nodule": 2, "mass": 1}

    def test_images_in_which_a_class_occurs(self) -> None:
        split = with_targets(MASKS).train
        assert describe(split, ORGANS.labels).classes == {"background": 4, "liver": 1, "spleen": 1}

    @pytest.mark.parametrize("shape", [(4,), (4, 2), (4, 2, 2), (4, 1, 2, 3)])
    def test_nothing_of_a_custom_task(self, shape: tuple[int, ...]) -> None:
        assert describe(with_targets(np.zeros(shape)).train, []).classes == {}

    @given(hnp.arrays(np.int64, (5, 3, 2), elements=st.integers(0, 3)))
    def test_presence_is_what_a_plain_loop_finds(self, masks: np.ndarray) -> None:
        expected = [[c in mask for c in range(4)] for mask in masks]
        np.testing.assert_array_equal(presence(masks, 4), expected)


class TestStratification:
    def test_the_rarest_label_that_a_case_has(self) -> None:
        targets = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1], [1, 0, 0]])
        assert stratification(targets, "multilabel").tolist() == [2, 1, 0, 3, 1]
        assert stratification(targets.astype(bool), "multilabel").tolist() == [2, 1, 0, 3, 1]

    def test_the_set_of_classes_in_a_mask(self) -> None:
        masks = np.array([[[0, 1]], [[1, 0]], [[0, 0]], [[2, 0]], [[1, 1]]])
        found = stratification(masks, "segmentation")
        assert found[0] == found[1]
        assert len(set(found.tolist())) == 4

    def test_nothing_is_known_of_custom_targets(self) -> None:
        assert stratification(np.array(["a", "b"]), "custom").tolist() == [0, 0]

    @pytest.mark.parametrize("kind", ["multilabel", "segmentation", "custom"])
    def test_a_sample_of_every_kind(self, kind: Any) -> None:
        rng = np.random.default_rng(0)
        targets = (rng.random((200, 3)) < [0.5, 0.2, 0.05]).astype(int)
        targets = targets if kind == "multilabel" else targets[:, None, :]
        split = Split(inputs=np.zeros((200, 1)), targets=targets)
        found = calibration_indices(split, 60, seed=0, kind=kind)
        assert len(np.unique(found)) == 60
        if kind == "multilabel":  # the rarest label has a cell of its own, which is taken whole
            rare = int(targets[:, 2].sum())
            assert 0 < rare < 15
            assert int(targets[found, 2].sum()) == rare


class TestCases:
    def test_types_of_targets(self) -> None:
        split = with_targets(SEVERAL.astype(bool)).train
        assert cases(split, "train", FINDINGS).targets.dtype == np.int64
        assert cases(with_targets(MASKS).train, "train", ORGANS).targets.dtype == np.int64
        text = np.array(["a", "b"])
        assert cases(with_targets(text).train, "train", OWN).targets is text

    def test_a_metric_of_the_users_own(self, tmp_path: Path) -> None:
        (tmp_path / "metric.py").write_text(
            "def word_error_rate(outputs, targets):\n    return abs(outputs - targets).mean()\n"
            "word_error_rate.higher_is_better = False\n"
        )
        (metric,) = own_metrics(OWN, tmp_path)
        assert (metric.name, metric.higher_is_better) == ("word_error_rate", False)
        assert metric.function(np.array([1.0, 2.0]), np.array([2.0, 2.0])) == 0.5
        targets = with_targets(np.arange(3)).train
        assert cases(targets, "train", OWN, metrics=(metric,)).metrics == (metric,)
        assert own_metrics(ORGANS, tmp_path) == ()

    def test_a_metric_that_does_not_say_which_way_it_points(self, tmp_path: Path) -> None:
        (tmp_path / "metric.py").write_text(
            "def word_error_rate(o, t): ...\nword_error_rate.higher_is_better = 'no'"
        )
        with pytest.raises(UsageError, match=r"higher_is_better must be True or False, got 'no'"):
            own_metrics(OWN, tmp_path)

    def test_a_metric_that_is_not_there(self, tmp_path: Path) -> None:
        (tmp_path / "metric.py").write_text("def wer(o, t): ...\n")
        with pytest.raises(UsageError, match=r"task.metric: metric.py has no callable 'word_error_rate'"):
            own_metrics(OWN, tmp_path)


class TestReaders:
    def read(self, folder: Path, task: TaskSection, targets: np.ndarray) -> Splits:
        x = np.random.default_rng(0).normal(size=(len(targets), 2))
        np.savez(folder / "data.npz", x=x, y=targets)
        section = NpzData(reader="npz", path=Path("data.npz"))
        return read_npz(section, task, base=folder, seed=0, progress=SILENT)

    @pytest.mark.parametrize("kind", [np.int64, bool, np.float32])
    def test_several_labels_from_npz(self, kind: type, tmp_path: Path) -> None:
        splits = self.read(tmp_path, FINDINGS, np.tile(SEVERAL, (25, 1)).astype(kind))
        check_targets(splits, FINDINGS)
        assert splits.train.targets.dtype == np.int64
        shares = [split.targets.mean(axis=0) for _, split in splits]
        np.testing.assert_allclose(shares, np.tile(SEVERAL.mean(axis=0), (3, 1)), atol=0.1)

    def test_masks_from_npz(self, tmp_path: Path) -> None:
        splits = self.read(tmp_path, ORGANS, np.tile(MASKS, (25, 1, 1)))
        check_targets(splits, ORGANS)
        assert splits.train.targets.shape[1:] == (2, 3)
        for _, split in splits:
            assert describe(split, ORGANS.labels).classes["spleen"] >= 3
        assert inspect(splits, progress=SILENT).digest

    def test_anything_from_npz(self, tmp_path: Path) -> None:
        splits = self.read(tmp_path, OWN, np.array([["a", "b"]] * 50))
        assert splits.test.targets.shape == (10, 2)
        assert inspect(splits, progress=SILENT).digest

    @pytest.mark.parametrize(
        ("targets", "task", "message"),
        [
            (
                SEVERAL[:, :2],
                FINDINGS,
                "target 'y' must have shape (N, 3), 0 or 1 for each label, got (4, 2)",
            ),
            (SEVERAL * 3, FINDINGS, "y[0, 0] must be 0 or 1, got 3"),
            (
                MASKS * 9,
                ORGANS,
                "y[0, 0, 0] must be a whole number from 0 to 2, the index of a label, got 18",
            ),
            (SEVERAL.astype(str), FINDINGS, "target 'y' must be numbers, got <U21"),
        ],
    )
    def test_what_does_not_fit_is_named(
        self, targets: np.ndarray, task: TaskSection, message: str, tmp_path: Path
    ) -> None:
        with pytest.raises(DataError, match=re.escape(message)):
            self.read(tmp_path, task, targets)

    @pytest.mark.parametrize("task", [FINDINGS, ORGANS])
    def test_a_table_has_one_value_per_image(self, task: TaskSection, tmp_path: Path) -> None:
        section = CsvImagesData(
            reader="csv_images", path=Path("t.csv"), images=Path("i"), target="dx", size=8
        )
        with pytest.raises(DataError, match=f"csv_images cannot give the targets of a {task.kind} task"):
            read_csv_images(section, task, base=tmp_path, seed=0, progress=SILENT)

    @pytest.mark.parametrize(("task", "reader"), [(FINDINGS, "npz"), (ORGANS, "npz"), (OWN, "csv_images")])
    def test_a_folder_is_one_class(self, task: TaskSection, reader: str, tmp_path: Path) -> None:
        section = ImageFolderData(reader="image_folder", path=Path(), size=8)
        with pytest.raises(DataError, match=f"of a {task.kind} task.* use reader {reader}, or data.source"):
            read_image_folder(section, task, base=tmp_path, seed=0, progress=SILENT)

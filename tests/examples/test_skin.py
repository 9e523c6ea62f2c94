"""``examples/skin``: its recipe reads the published layout, and its model can be trained."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pastille import policy
from pastille.data.load import load_splits
from pastille.data.split import Splits
from pastille.errors import DataError
from pastille.progress import SILENT
from pastille.recipe import Recipe, read_recipe
from pastille.references import load_callable
from pastille.task.factory import model_factory
from pastille.task.load import check_output, load_model

ROOT = Path(__file__).parents[2]
SKIN = ROOT / "examples/skin"
REAL = ROOT.parent / "shared/data/ham10000_128.zip"

HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization"
DIAGNOSES = ("nv", "mel", "bkl", "bcc", "akiec", "vasc", "df")
MALIGNANT = {"mel", "bcc", "akiec"}
LESIONS = 42  # six of each diagnosis, two images each


def published(folder: Path, table: str) -> Path:
    """A data set of noise, laid out as HAM10000 is published."""
    parts = [folder / f"HAM10000_images_part_{part}" for part in (1, 2)]
    for part in parts:
        part.mkdir(parents=True)
    lines = [HEADER]
    random = np.random.default_rng(0)
    for i in range(2 * LESIONS):
        lesion = i // 2
        age, sex = ("30.0", "45.0", "80.0", "")[lesion % 4], ("male", "female", "unknown")[lesion % 3]
        lines.append(f"HAM_{lesion},ISIC_{i},{DIAGNOSES[lesion % 7]},histo,{age},{sex},back")
        pixels = random.integers(0, 256, (45, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(parts[i % 2] / f"ISIC_{i}.jpg")
    (folder / table).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def example(path: Path, *images: Path) -> Recipe:
    """The recipe for a data set that lies elsewhere, as its README says."""
    folders = ", ".join(map(str, images))
    return read_recipe(SKIN / "recipe.yaml", [f"data.path={path}", f"data.images=[{folders}]"])


def load(recipe: Recipe) -> Splits:
    return load_splits(recipe.data, recipe.task, base=SKIN, seed=recipe.seed, progress=SILENT)


@pytest.mark.parametrize("table", ["HAM10000_metadata", "HAM10000_metadata.csv"])
def test_reads_the_published_layout(tmp_path: Path, table: str) -> None:
    folder = published(tmp_path, table)
    splits = load(example(folder / table, *sorted(folder.glob("HAM10000_images_part_*"))))
    lesions: Counter[str] = Counter()
    for _, split in splits:
        assert split.inputs[0].shape == (3, 64, 64)
        assert split.subjects is not None
        assert split.strata is not None
        lesions.update(set(split.subjects))
        assert [dx in MALIGNANT for dx in split.strata] == split.targets.astype(bool).tolist()
        for lesion, sex, band in zip(
            split.subjects, split.groups["sex"], split.groups["age_band"], strict=True
        ):
            number = int(lesion.removeprefix("HAM_"))
            assert sex == ("male", "female", "unknown")[number % 3]
            assert band == ("<45", "45-64", ">=65", "unknown")[number % 4]
    assert lesions == Counter({f"HAM_{i}": 1 for i in range(LESIONS)})  # none is in two splits
    assert sum(split.n for _, split in splits) == 2 * LESIONS


def test_the_recipe_keeps_to_its_tier_and_the_model_fits_the_task(tmp_path: Path) -> None:
    folder = published(tmp_path, "HAM10000_metadata")
    recipe = example(folder / "HAM10000_metadata", *folder.glob("HAM10000_images_part_*"))
    policy.check(recipe)
    model = model_factory(recipe.task, SKIN)().eval()
    check_output(model, load(recipe), recipe)
    assert all(c.out_channels % 16 == 0 for c in model.modules() if isinstance(c, torch.nn.Conv2d))
    assert 0.7e6 < sum(p.numel() for p in model.parameters()) < 3e6


def test_the_chain_keeps_to_its_tier_on_the_same_data() -> None:
    plain, chain = (read_recipe(SKIN / f"{name}.yaml") for name in ("recipe", "chain"))
    policy.check(chain)
    assert chain.data == plain.data
    assert (chain.task.labels, chain.task.threshold) == (plain.task.labels, plain.task.threshold)


def test_a_diagnosis_that_is_not_known_is_refused(tmp_path: Path) -> None:
    folder = published(tmp_path, "HAM10000_metadata")
    table = folder / "HAM10000_metadata"
    table.write_text(table.read_text().replace(",mel,", ",Mel,", 1))
    with pytest.raises(DataError, match=r"row 4: column 'dx' is 'Mel', .* did you mean 'mel'"):
        load(example(table, *folder.glob("HAM10000_images_part_*")))


def test_augmentation_reaches_the_eight_orientations() -> None:
    turned = load_callable("augment.py:turned", SKIN, key="augment")
    image = torch.arange(27.0).reshape(1, 3, 3, 3)
    found = turned(image.expand(200, -1, -1, -1), torch.Generator().manual_seed(0))
    square = [torch.rot90(image, k, (2, 3)) for k in range(4)]
    orientations = torch.cat([*square, *(x.flip(-1) for x in square)])
    matches = (found[:, None] == orientations[None]).flatten(2).all(dim=2)  # (200, 8)
    assert matches.any(dim=1).all()
    assert matches.any(dim=0).all()


def test_training_writes_weights_that_the_recipe_loads(tmp_path: Path) -> None:
    folder, weights = published(tmp_path, "HAM10000_metadata"), tmp_path / "best.safetensors"
    options = ["--data", folder, "--epochs", "1", "--size", "32", "--output", weights]
    done = subprocess.run(
        [sys.executable, SKIN / "train.py", *map(str, options)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "epoch  1 of 1: loss" in done.stdout
    assert f"--set task.weights={weights}" in done.stdout
    recipe = read_recipe(SKIN / "recipe.yaml", [f"task.weights={weights}"])
    assert not load_model(recipe, SKIN, model_factory(recipe.task, SKIN)).training


@pytest.mark.skipif(not REAL.is_file(), reason="needs ../shared/data/ham10000_128.zip")
def test_reads_the_real_images(tmp_path: Path) -> None:
    with zipfile.ZipFile(REAL) as archive:
        archive.extractall(tmp_path)
    splits = load(example(tmp_path / "metadata.csv", tmp_path / "images"))
    sizes = {name: split.n for name, split in splits}
    assert sum(sizes.values()) == 5984
    assert sizes["test"] == pytest.approx(0.3 * 5984, abs=10)
    for _, split in splits:
        assert split.targets.mean() == pytest.approx(0.157, abs=0.005)
        assert set(split.groups["sex"]) == {"male", "female", "unknown"}
        assert set(split.groups["age_band"]) == {"<45", "45-64", ">=65", "unknown"}
        image = split.inputs[split.n - 1]
        assert image.shape == (3, 64, 64)
        assert np.isfinite(image).all()

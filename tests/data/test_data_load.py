from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_samples import BINARY, write_images

from pastille.data.load import load_splits
from pastille.data.split import Splits
from pastille.errors import DataError, UsageError
from pastille.progress import SILENT
from pastille.recipe import CsvImagesData, DataSection, ImageFolderData, NpzData, SourceData

SOURCE = """
import numpy as np
from pastille.data.split import Split, Splits
from pastille.errors import DataError

def part(n, **more):
    return Split(inputs=np.zeros((n, 2), np.float32), targets=np.arange(n) % 2, **more)

def splits(n=4):
    return Splits(train=part(n), validation=part(2), test=part(2))

def nothing(): pass
def broken(): raise RuntimeError("no disk\\nat all")
def ours(): raise DataError("said well already")
def tuples(): return part(1), part(2), part(3)
def no_split(): return Splits(train=part(4), validation=part(2), test=(1, 2))
def a_list(): return Splits(train=part(4), validation=Split(inputs=[1, 2], targets=[0, 1]), test=part(2))
def no_targets(): return Splits(train=Split(inputs=[1, 2], targets=None), validation=part(2), test=part(2))
def subjects(): return Splits(train=part(2, subjects=["a", "b"]), validation=part(2), test=part(2))
def groups(): return Splits(train=part(2, groups={"sex": ("F", "M")}), validation=part(2), test=part(2))
"""


def load(base: Path, section: DataSection) -> Splits:
    return load_splits(section, BINARY, base=base, seed=0, progress=SILENT)


def source(base: Path, name: str, **arguments: object) -> Splits:
    (base / "data.py").write_text(SOURCE)
    return load(base, SourceData(source=f"data.py:{name}", arguments=arguments))


def test_a_callable_is_given_its_arguments(tmp_path: Path) -> None:
    assert source(tmp_path, "splits", n=8).train.n == 8


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nothing",
            "data.source: data.py:nothing returned a NoneType; it must return pastille.Splits(",
        ),
        ("tuples", "data.source: data.py:tuples returned a tuple; it must return"),
        ("broken", "data.source: data.py:broken failed with RuntimeError: no disk at all; it must return"),
        ("no_split", "returned a tuple as test instead of a Split"),
        ("a_list", "returned targets of validation as a list instead of a numpy array"),
        ("no_targets", "returned targets of train as a NoneType instead of a numpy array"),
        ("subjects", "returned subjects of train as a list instead of a numpy array"),
        ("groups", "returned sex of train as a tuple instead of a numpy array"),
    ],
)
def test_a_callable_that_does_not_keep_to_it(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        source(tmp_path, name)
    assert "\n" not in str(caught.value)


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"data.py:splits failed with TypeError: .*unexpected keyword argument 'm'"
    ):
        source(tmp_path, "splits", m=1)


def test_our_own_errors_pass_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^said well already$"):
        source(tmp_path, "ours")


def test_a_callable_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"data.source: data.py has no callable 'split'; it has: splits"):
        source(tmp_path, "split")


def test_every_reader_is_found_by_its_section(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).normal(size=(20, 2)), y=np.arange(20) % 2)
    for seed, label in enumerate(BINARY.labels):
        write_images(
            tmp_path / "folder" / label, [f"{label}{i}.png" for i in range(10)], first_seed=seed * 10
        )
    lines = [f"{label}{i},{label}" for label in BINARY.labels for i in range(10)]
    (tmp_path / "t.csv").write_text("\n".join(["image_id,dx", *lines]))
    folders = [Path("folder") / label for label in BINARY.labels]
    sections: list[DataSection] = [
        NpzData(reader="npz", path=Path("d.npz")),
        ImageFolderData(reader="image_folder", path=Path("folder"), size=4),
        CsvImagesData(reader="csv_images", path=Path("t.csv"), images=folders, target="dx", size=4),
    ]
    shapes = [load(tmp_path, section).train.inputs[0].shape for section in sections]
    assert shapes == [(2,), (3, 4, 4), (3, 4, 4)]


def test_no_torch_is_imported() -> None:
    names = "pastille.data.load, pastille.data.leakage, pastille.data.sampler, pastille.data.cases"
    program = f"import sys, {names}; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"

"""The examples' raw inputs, prepared as a server does: the very arrays that their splits hold."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pastille import Splits
from pastille.data.prepare import prepare
from pastille.data.split import named
from pastille.references import load_callable
from pastille.values import TensorSpec

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared/data"


def archive(name: str) -> zipfile.ZipFile:
    if not (SHARED / name).is_file():
        pytest.skip(f"needs ../shared/data/{name}")
    return zipfile.ZipFile(SHARED / name)


def splits_of(name: str, folder: Path, **arguments: Any) -> Splits:
    load = load_callable("data.py:splits", ROOT / "examples" / name, key="test")
    found: Splits = load(str(folder), **arguments)
    return found


def first_rows(packed: zipfile.ZipFile, file: str, rows: int, folder: Path) -> list[dict[str, str]]:
    """The first rows of a table, also written beside what else the example reads."""
    with packed.open(file) as table:
        reader = csv.DictReader(io.TextIOWrapper(table, "utf-8", newline=""))
        found = [row for row, _ in zip(reader, range(rows), strict=False)]
    path = folder / file
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, list(found[0]))
        writer.writeheader()
        writer.writerows(found)
    return found


def same(splits: Splits, raw: dict[str, Any], folder: Path) -> None:
    """Hold what a server would prepare against each split."""
    assert splits.preprocessing is not None
    for _, split in splits:
        assert split.ids is not None
        for row in range(split.n):
            held = named(split.inputs[row])
            specs = tuple(TensorSpec(name=n, shape=x.shape, dtype=str(x.dtype)) for n, x in held.items())
            case, _, number = str(split.ids[row]).partition("-")
            found = prepare(raw[case], splits.preprocessing, specs, folder=folder).inputs
            for name, x in held.items():
                np.testing.assert_array_equal(found[name][int(number or 0)], x)


def test_recordings(tmp_path: Path) -> None:
    packed = archive("ptbxl_100hz.zip")
    packed.extract("scp_statements.csv", tmp_path)
    rows = first_rows(packed, "ptbxl_database.csv", 40, tmp_path)
    raw = {}
    for row in rows:
        files = [f"{row['filename_lr']}{end}" for end in (".hea", ".dat")]
        packed.extractall(tmp_path, files)
        sent = io.BytesIO()
        with zipfile.ZipFile(sent, "w") as zipped:
            for file in files:
                zipped.write(tmp_path / file, Path(file).name)
        raw[row["ecg_id"]] = sent.getvalue()
    same(splits_of("ecg", tmp_path), raw, tmp_path)


def test_rows(tmp_path: Path) -> None:
    rows = first_rows(archive("diabetes130.zip"), "diabetic_data.csv", 1500, tmp_path)
    splits = splits_of("readmission", tmp_path)
    same(splits, {row["encounter_id"]: row for row in rows}, tmp_path)
    assert splits.train.inputs[0].shape[0] > 40


def test_texts(tmp_path: Path) -> None:
    rows = first_rows(archive("med_abstracts.zip"), "medical_tc_test.csv", 60, tmp_path)
    splits = splits_of("abstracts", tmp_path, tokens=32)
    assert splits.preprocessing is not None
    (tokenizer,) = splits.files.values()
    specs = tuple(TensorSpec(name=n, shape=(32,), dtype="int64") for n in ("input_ids", "attention_mask"))
    texts = [row["medical_abstract"] for row in rows]
    found = [prepare(x, splits.preprocessing, specs, folder=tokenizer.parent).inputs for x in texts]
    sent = {x["input_ids"].tobytes() + x["attention_mask"].tobytes() for x in found}
    for _, split in splits:
        for held in split.inputs:
            assert held["input_ids"].tobytes() + held["attention_mask"].tobytes() in sent

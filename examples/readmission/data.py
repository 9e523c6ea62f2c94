"""Diabetes 130-US: hospital encounters, and whether the patient came back."""

import csv
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

import pastille
from pastille.data.rows import encode_rows, meant
from pastille.errors import DataError
from pastille.values import CategoryColumn, CodeRange, NumberColumn, TableEncoding

HERE = Path(__file__).resolve().parent
TABLE = "diabetic_data.csv"
VALIDATION, TEST = 0.15, 0.25  # of the patients
FREQUENT = 150  # encounters that have a value; a rarer one is left unsaid
NEVER_BACK = {"11", "13", "14", "19", "20", "21"}  # discharged to a hospice, or died
MEASURED = ("time_in_hospital", "num_lab_procedures", "num_procedures", "num_medications", "number_diagnoses")
VISITS = ("number_outpatient", "number_emergency", "number_inpatient")
DIAGNOSES = ("diag_1", "diag_2", "diag_3")
NOT_ASKED = ("encounter_id", "patient_nbr", "weight", "readmitted")
# The first code of each chapter of the ICD-9; diabetes, 250, is one of its own.
STARTS = (0, 1, 140, 240, 280, 290, 320, 390, 460, 520, 580, 630, 680, 710, 740, 760, 780, 800, 10_000)
CHAPTERS = (
    CodeRange(value="diabetes", prefix="250"),
    *(CodeRange(value=str(i), low=low, high=high) for i, (low, high) in enumerate(pairwise(STARTS))),
    *(CodeRange(value=letter, prefix=letter) for letter in "EV"),
)

Row = Mapping[str, str]


def splits(folder: str = "diabetes", seed: int = 0, patients: int | None = None) -> pastille.Splits:
    """A random split by patient.

    Args:
        folder: Holds ``diabetic_data.csv``.
        seed: Of the split.
        patients: To take, for a quick try; all if left out.
    """
    rows = [row for row in table(HERE / folder / TABLE) if row["discharge_disposition_id"] not in NEVER_BACK]
    owner = np.array([row["patient_nbr"] for row in rows])
    shuffled = np.random.default_rng(seed).permutation(np.unique(owner))[:patients]
    ends = np.cumsum([round(share * len(shuffled)) for share in (TEST, VALIDATION)])
    of_patients = dict(zip(("test", "validation", "train"), np.split(shuffled, ends), strict=True))
    masks = {name: np.isin(owner, part) for name, part in of_patients.items()}
    encoding = encoding_of(rows, masks["train"])
    features = encode_rows(rows, encoding)
    once = np.zeros(len(rows), bool)  # some patients are alike in all that is asked
    once[np.unique(features, axis=0, return_index=True)[1]] = True
    return pastille.Splits(
        **{name: some(rows, features, owner, np.flatnonzero(mask & once)) for name, mask in masks.items()},
        preprocessing=pastille.Preprocessing(table=encoding),
    )


def table(path: Path) -> list[Row]:
    if not path.is_file():
        raise DataError(
            f"there is no {path}; give the folder of the table as data.arguments.folder, see README.md"
        )
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def encoding_of(rows: list[Row], train: np.ndarray) -> TableEncoding:
    """What is known of each encounter as numbers; scales are those of train."""
    ages = {age: decade(age) for age in sorted({row["age"] for row in rows})}
    numbers = np.array([[float(row[name]) for name in MEASURED] for row in rows])
    visits = np.log1p([[float(row[name]) for name in VISITS] for row in rows])
    age = np.array([[ages[row["age"]]] for row in rows])
    known = np.concatenate([numbers, visits, age], axis=1)
    moments = (known[train].mean(axis=0).tolist(), known[train].std(axis=0).tolist())
    scales = dict(zip((*MEASURED, *VISITS, "age"), zip(*moments, strict=True), strict=True))
    named = [name for name in rows[0] if name not in (*scales, *NOT_ASKED)]
    categories = [category(rows, name, CHAPTERS if name in DIAGNOSES else ()) for name in named]
    columns = [
        NumberColumn(
            name=name,
            mean=mean,
            std=std,
            scale="log1p" if name in VISITS else "linear",
            codes=ages if name == "age" else {},
        )
        for name, (mean, std) in scales.items()
    ]
    return TableEncoding(columns=(*columns, *(column for column in categories if column.values)))


def category(rows: list[Row], name: str, ranges: Sequence[CodeRange]) -> CategoryColumn:
    """A column of zeros and ones for each frequent value; all zero if unknown or rare.

    Which values are frequent is counted over the whole table, so that every split has the same columns.
    """
    column = np.array([meant(row[name], ranges) for row in rows])
    values, counts = np.unique(column, return_counts=True)
    frequent = values[(counts >= FREQUENT) & (values != "?")].tolist()
    kept = tuple(frequent) if len(frequent) > 1 else ()
    return CategoryColumn(name=name, values=kept, ranges=tuple(ranges), others="zeros")


def decade(age: str) -> float:
    """The middle of ``[70-80)``."""
    return float(age[1:].partition("-")[0]) + 5


def some(rows: list[Row], features: np.ndarray, owner: np.ndarray, kept: np.ndarray) -> pastille.Split:
    chosen = [rows[i] for i in kept]
    ages = np.array([decade(row["age"]) for row in chosen])
    groups = {
        "race": np.array([row["race"].replace("?", "unknown") for row in chosen]),
        "gender": np.array([row["gender"].replace("Unknown/Invalid", "unknown") for row in chosen]),
        "age_band": np.select([ages < 40, ages < 60, ages < 80], ["<40", "40-59", "60-79"], ">=80"),
    }
    return pastille.Split(
        inputs=features[kept],
        targets=np.array([row["readmitted"] != "NO" for row in chosen], np.int64),
        groups=groups,
        subjects=owner[kept],
        ids=np.array([row["encounter_id"] for row in chosen]),
    )

"""Diabetes 130-US: hospital encounters, and whether the patient came back."""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

import pastille
from pastille.errors import DataError

HERE = Path(__file__).resolve().parent
TABLE = "diabetic_data.csv"
VALIDATION, TEST = 0.15, 0.25  # of the patients
FREQUENT = 150  # encounters that have a value; a rarer one is left unsaid
NEVER_BACK = {"11", "13", "14", "19", "20", "21"}  # discharged to a hospice, or died
MEASURED = ("time_in_hospital", "num_lab_procedures", "num_procedures", "num_medications", "number_diagnoses")
VISITS = ("number_outpatient", "number_emergency", "number_inpatient")
DIAGNOSES = ("diag_1", "diag_2", "diag_3")
NOT_ASKED = ("encounter_id", "patient_nbr", "weight", "readmitted")
# The first code of each chapter of the ICD-9.
CHAPTERS = (1, 140, 240, 280, 290, 320, 390, 460, 520, 580, 630, 680, 710, 740, 760, 780, 800)

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
    features = encoded(rows, masks["train"])
    once = np.zeros(len(rows), bool)  # some patients are alike in all that is asked
    once[np.unique(features, axis=0, return_index=True)[1]] = True
    return pastille.Splits(
        **{name: some(rows, features, owner, np.flatnonzero(mask & once)) for name, mask in masks.items()}
    )


def table(path: Path) -> list[Row]:
    if not path.is_file():
        raise DataError(
            f"there is no {path}; give the folder of the table as data.arguments.folder, see README.md"
        )
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def encoded(rows: list[Row], train: np.ndarray) -> np.ndarray:
    """What is known of each encounter as numbers, ``(N, F)`` float32; scales are those of train."""
    numbers = np.array([[float(row[name]) for name in MEASURED] for row in rows])
    visits = np.log1p([[float(row[name]) for name in VISITS] for row in rows])
    age = np.array([[decade(row["age"])] for row in rows])
    scaled = np.concatenate([numbers, visits, age], axis=1)
    scaled = (scaled - scaled[train].mean(axis=0)) / scaled[train].std(axis=0)
    named = [name for name in rows[0] if name not in (*MEASURED, *VISITS, *NOT_ASKED, "age")]
    columns = [one_hot(rows, name, chapter if name in DIAGNOSES else str) for name in named]
    return np.concatenate([scaled, *columns], axis=1).astype(np.float32)


def one_hot(rows: list[Row], name: str, meant: Callable[[str], str]) -> np.ndarray:
    """A column of zeros and ones for each frequent value, ``(N, values)``; all zero if unknown or rare.

    Which values are frequent is counted over the whole table, so that every split has the same columns.
    """
    column = np.array([meant(row[name]) for row in rows])
    values, counts = np.unique(column, return_counts=True)
    frequent = values[(counts >= FREQUENT) & (values != "?")]
    return column[:, None] == (frequent if len(frequent) > 1 else frequent[:0])


def decade(age: str) -> float:
    """The middle of ``[70-80)``."""
    return float(age[1:].partition("-")[0]) + 5


def chapter(code: str) -> str:
    """Of the ICD-9; diabetes, 250, is one of its own."""
    if code[:3] == "250":
        return "diabetes"
    number = code.partition(".")[0]
    return str(np.searchsorted(CHAPTERS, int(number), "right")) if number.isdigit() else code[:1]


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

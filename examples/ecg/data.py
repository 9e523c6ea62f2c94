"""PTB-XL as it is published: ECGs of twelve leads at 100 Hz, normal or not, in windows of 2.5 seconds."""

import ast
import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import pastille
from pastille.errors import DataError
from pastille.values import SignalDecoding

HERE = Path(__file__).resolve().parent
WINDOW = 250  # 2.5 s, as in Strodthoff et al., "Deep learning for ECG analysis", 2021, arXiv:2004.13701
LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
# What a server does with a recording: the windows below are those of `SignalDecoding`.
PREPARED = pastille.Preprocessing(signal=SignalDecoding(channels=LEADS, samples=WINDOW, rate_hz=100))
FOLDS = range(1, 11)  # the publication tests on 10 and chooses on 9; no patient is in two
VALIDATION, TEST = 0.15, 0.35  # of the patients, where folds are missing

Row = Mapping[str, str]


class Windows:
    """Signals kept as they are on disk, two bytes a sample, and given in millivolts, ``(12, 250)``."""

    def __init__(self, stored: np.ndarray) -> None:
        self.stored = stored  # (N, 250, 12) int16

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, index: int) -> np.ndarray:
        return np.ascontiguousarray(self.stored[index].T, np.float32) / 1000


def splits(folder: str = "ptbxl", seed: int = 0) -> pastille.Splits:
    """The published folds; a random split by patient, where a copy of the data lacks some of them.

    Args:
        folder: Holds ``ptbxl_database.csv``, ``scp_statements.csv`` and ``records100``.
        seed: Of the random split.
    """
    path = HERE / folder
    rows = table(path / "ptbxl_database.csv")
    superclass = {row[""]: row["diagnostic_class"] for row in table(path / "scp_statements.csv")}
    whole = windows_of(path, rows, superclass)
    folds = {int(row["strat_fold"]) for row in rows}
    return published(whole, rows) if folds == set(FOLDS) else by_patient(whole, seed)


def table(path: Path) -> list[Row]:
    if not path.is_file():
        raise DataError(
            f"there is no {path}; give the folder of PTB-XL as data.arguments.folder, see README.md"
        )
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def windows_of(folder: Path, rows: list[Row], superclass: Mapping[str, str]) -> pastille.Split:
    """Every window that there is; of those that occur twice, some as of two patients, the first."""
    signals = [cut(folder / f"{row['filename_lr']}.dat") for row in rows]
    each = [len(windows) for windows in signals]
    stored = np.concatenate(signals)
    _, first = np.unique([window.tobytes() for window in stored], return_index=True)
    kept = np.sort(first)
    columns = {
        "target": np.array([abnormal(row["scp_codes"], superclass) for row in rows], np.int64),
        "sex": np.array([{"0": "male", "1": "female"}.get(row["sex"], "unknown") for row in rows]),
        "age_band": np.array([age_band(row["age"]) for row in rows]),
        "patient": np.array([row["patient_id"] for row in rows]),
        "record": np.array([row["ecg_id"] for row in rows]),
    }
    windows = {name: np.repeat(column, each)[kept] for name, column in columns.items()}
    number = np.concatenate([np.arange(n) for n in each])[kept]
    return pastille.Split(
        inputs=Windows(stored[kept]),
        targets=windows["target"],
        groups={name: windows[name] for name in ("sex", "age_band")},
        subjects=windows["patient"],
        ids=np.array([f"{record}-{n}" for record, n in zip(windows["record"], number, strict=True)]),
    )


def cut(path: Path) -> np.ndarray:
    """The windows of one recording, ``(W, 250, 12)`` int16."""
    signal = np.fromfile(path, "<i2").reshape(-1, 12)
    return signal[: len(signal) // WINDOW * WINDOW].reshape(-1, WINDOW, 12)


def abnormal(codes: str, superclass: Mapping[str, str]) -> bool:
    """Whether a recording has any diagnosis beside, or instead of, a normal one."""
    return {superclass.get(code, "") for code in ast.literal_eval(codes)} - {""} != {"NORM"}


def age_band(age: str) -> str:
    """Ages above 89 are written as 300 in the publication, so that nobody is recognised by them."""
    if not age:
        return "unknown"
    return "<45" if float(age) < 45 else "45-64" if float(age) < 65 else ">=65"


def published(whole: pastille.Split, rows: list[Row]) -> pastille.Splits:
    fold = {row["ecg_id"]: int(row["strat_fold"]) for row in rows}
    of_window = np.array([fold[str(name).rpartition("-")[0]] for name in whole.ids])
    masks = {"train": of_window <= 8, "validation": of_window == 9, "test": of_window == 10}
    return pastille.Splits(
        **{name: some(whole, mask) for name, mask in masks.items()}, preprocessing=PREPARED
    )


def by_patient(whole: pastille.Split, seed: int) -> pastille.Splits:
    patients = np.random.default_rng(seed).permutation(np.unique(whole.subjects))
    ends = np.cumsum([round(share * len(patients)) for share in (TEST, VALIDATION)])
    test, validation, train = (np.isin(whole.subjects, part) for part in np.split(patients, ends))
    return pastille.Splits(
        train=some(whole, train),
        validation=some(whole, validation),
        test=some(whole, test),
        preprocessing=PREPARED,
    )


def some(whole: pastille.Split, mask: np.ndarray) -> pastille.Split:
    return pastille.Split(
        inputs=Windows(whole.inputs.stored[mask]),
        targets=whole.targets[mask],
        groups={name: column[mask] for name, column in whole.groups.items()},
        subjects=whole.subjects[mask],
        ids=whole.ids[mask],
    )


def jittered(signals: Tensor, generator: torch.Generator) -> Tensor:
    """Begin each window elsewhere and scale it: ``(N, 12, T)``, of the same shape."""
    shift = int(torch.randint(signals.shape[-1], (), generator=generator))
    gain = 0.8 + 0.4 * torch.rand((len(signals), 1, 1), generator=generator)
    return signals.roll(shift, dims=-1) * gain.to(signals.device)

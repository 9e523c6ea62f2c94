"""What quantizes badly comes back: the figures that recovery is held to, in reduced form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from recovery_nets import calibration, planted

from pastille.errors import CalibrationError
from pastille.quantization.recovery import TECHNIQUES, Choice, prepared, quantized_by, recovered
from pastille.quantization.recovery.auto import answers, split, sqnr_db

KINDS = ["wild scales", "outliers"]


def accuracy(model: Any, data: dict[str, np.ndarray], labels: np.ndarray) -> float:
    (found,) = answers(model, lambda: [data]).values()
    return 100 * float((found.argmax(axis=1) == labels).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_auto_brings_a_collapsed_model_back_to_one_point(kind: str) -> None:
    model, fit, test, labels = planted(kind)
    before = accuracy(model, test, labels)
    assert before > 90
    plain = quantized_by(model, calibration(fit), Choice())
    assert accuracy(plain, test, labels) < before - 10
    found, account = recovered(model, calibration(fit), Choice())
    assert accuracy(found, test, labels) >= before - 1
    assert account.trials[0].what == "plain"
    assert account.held_out == 64
    assert account.gained_db > 10


def test_auto_is_deterministic() -> None:
    model, fit, _, _ = planted("wild scales")
    (first, told), (second, again) = (recovered(model, calibration(fit), Choice()) for _ in range(2))
    assert told == again
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


def test_every_trial_is_accounted_for_and_what_is_kept_rises() -> None:
    model, fit, _, _ = planted("outliers")
    _, account = recovered(model, calibration(fit), Choice())
    kept = [trial.sqnr_db for trial in account.trials if trial.kept]
    assert kept == sorted(kept)
    assert {t.what.split()[0] for t in account.trials if t.kept and t.what in TECHNIQUES} <= set(
        account.choice.techniques
    )
    assert "ranges" in account.choice.words


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_each_alone_changes_the_file_and_lowers_no_sqnr_much(technique: Any) -> None:
    model, fit, test, _ = planted("wild scales")
    wanted = answers(model, lambda: [test])
    plain = quantized_by(model, calibration(fit), Choice())
    alone = quantized_by(model, calibration(fit), replace(Choice(), techniques=frozenset({technique})))
    assert alone.SerializeToString() != plain.SerializeToString()
    gain = sqnr_db(wanted, answers(alone, lambda: [test])) - sqnr_db(wanted, answers(plain, lambda: [test]))
    assert gain > (10 if technique in ("equalization", "smoothquant") else -1)


def test_the_split_parts_every_case_once() -> None:
    model, fit, _, _ = planted("outliers")
    parts = [[x["input"] for x in part()] for part in split(model, calibration(fit))]
    rows = [np.concatenate(part) for part in parts]
    assert [len(part) for part in rows] == [192, 64]
    assert {row.tobytes() for part in rows for row in part} == {row.tobytes() for row in fit["input"]}


def test_a_fixed_batch_is_parted_by_batches() -> None:
    model, fit, _, _ = planted("outliers")
    fixed = prepared(model)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 32
    sizes = [[len(x["input"]) for x in part()] for part in split(fixed, calibration(fit))]
    assert sizes == [[32] * 6, [32] * 2]


def test_too_few_cases_to_hold_any_out() -> None:
    model, fit, _, _ = planted("outliers")
    with pytest.raises(CalibrationError, match="no cases to compare on"):
        recovered(model, lambda: [{"input": fit["input"][:3]}], Choice())


def test_answers_that_are_not_finite_are_named() -> None:
    model, fit, _, _ = planted("outliers")
    with pytest.raises(CalibrationError, match="'output' of the model takes NaN"):
        answers(model, lambda: [{"input": np.full_like(fit["input"][:4], np.nan)}])


@pytest.mark.parametrize(("noise", "db"), [(0.1, 20), (0.01, 40), (1.0, 0)])
def test_sqnr(noise: float, db: float) -> None:
    rng = np.random.default_rng(0)
    y, e = rng.normal(size=(2, 20000, 3))
    assert sqnr_db({"y": y + 7}, {"y": y + 7 + noise * e}) == pytest.approx(db, abs=0.1)

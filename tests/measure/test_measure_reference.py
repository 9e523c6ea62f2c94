"""Reference statistics, held against quantiles and counts taken by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pastille.measure.reference import MAX_CASES, input_reference, looked_at, variant_reference
from pastille.stats.confidence import confidence, quantile_bins
from pastille.values import Cases


def test_inputs_are_described_by_quantiles_over_cases() -> None:
    x = np.random.default_rng(0).normal(3, 2, (400, 2, 5, 5)).astype(np.float32)
    (found,) = input_reference([{"image": case, "ids": np.arange(3)} for case in x])
    assert (found.name, found.channels) == ("image", 2)
    for spread, each in [(found.mean, x.mean(axis=(2, 3))), (found.std, x.std(axis=(2, 3)))]:
        for values, q in [(spread.low, 0.001), (spread.median, 0.5), (spread.high, 0.999)]:
            np.testing.assert_allclose(values, np.quantile(each, q, axis=0), rtol=1e-5)


def test_no_single_case_is_quoted() -> None:
    x = np.linspace(0, 1, 100, dtype=np.float32)[:, None]
    (found,) = input_reference(x)
    assert not set(found.mean.low + found.mean.high) & {float(f"{value:.6g}") for value in x[:, 0]}


@pytest.mark.parametrize(("shape", "channels"), [((64, 4), 1), ((16, 4), 16), ((700,), 700), ((1025,), 1)])
def test_many_channels_are_one(shape: tuple[int, ...], channels: int) -> None:
    assert input_reference(np.zeros((2, *shape)))[0].channels == channels


def test_some_cases_stand_for_all() -> None:
    rows = looked_at(100_000)
    assert (len(rows), rows[0], rows[-1]) == (MAX_CASES, 0, 99_999)
    assert looked_at(3).tolist() == [0, 1, 2]


def cases(kind: Any, targets: np.ndarray, **more: Any) -> Cases:
    labels = ("a", "b") if kind == "binary" else ("a", "b", "c")
    return Cases(kind=kind, split="validation", targets=targets, labels=labels, **more)


def test_a_binary_variant() -> None:
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(0, 2, 500), rng.integers(0, 2, 500)
    sex = np.array(["f", "m", "x"])[np.where(np.arange(500) < 12, 2, np.arange(500) % 2)]
    given = cases("binary", targets, groups={"sex": sex})
    found = variant_reference("int8", logits, given, threshold=0.3, min_group=20)
    assert found is not None
    p = 1 / (1 + np.exp(-logits))
    sure = np.where(p >= 0.3, p, 1 - p)
    np.testing.assert_allclose(found.grid, np.quantile(sure, np.linspace(0, 1, 101)), rtol=1e-5)
    np.testing.assert_allclose(found.shares, 0.1, atol=0.002)
    for name, members in [("everyone", sex != ""), ("sex=f", sex == "f"), ("sex=m", sex == "m")]:
        ours = next(group for group in found.sensitivity if group.group == name)
        ill = members & (targets == 1)
        assert (ours.positives, ours.found) == (ill.sum(), (ill & (p >= 0.3)).sum())
    assert len(found.sensitivity) == 3  # x has too few


def test_multiclass_counts_any_positive_label_as_found() -> None:
    logits = np.eye(3)[[0, 1, 2, 0]] * 5
    given = cases("multiclass", np.array([0, 2, 1, 1]), positive=(1, 2))
    found = variant_reference("fp32", logits, given, threshold=0.5, min_group=1)
    assert found is not None
    (everyone,) = found.sensitivity
    assert (everyone.positives, everyone.found) == (3, 2)
    plain = variant_reference("fp32", logits, cases("multiclass", given.targets), threshold=0.5, min_group=1)
    assert plain is not None
    assert plain.sensitivity == ()


def test_multilabel_and_what_decides_no_case() -> None:
    logits = np.array([[3.0, -3.0, -3.0], [-3.0, -3.0, -3.0]])
    given = cases("multilabel", np.array([[1, 1, 0], [0, 0, 1]]))
    found = variant_reference("fp32", logits, given, threshold=0.5, min_group=1)
    assert found is not None
    assert [(g.positives, g.found) for g in found.sensitivity] == [(2, 1)]
    assert variant_reference("fp32", logits, cases("regression", logits), threshold=0.5, min_group=1) is None


def test_confidences_that_repeat_make_fewer_bins() -> None:
    edges, shares = quantile_bins(np.array([1.0] * 75 + [0.6] * 25))
    assert edges.tolist() == [0, 0.6, 1]
    assert shares.tolist() == [0, 1]
    assert quantile_bins(np.ones(5))[0].tolist() == [0, 1]


def test_confidence_is_of_what_was_decided() -> None:
    multiclass = confidence("multiclass", np.array([[0.2, 0.5, 0.3]]), np.array([2]))
    assert multiclass is not None
    assert multiclass.tolist() == [0.3]
    assert confidence("segmentation", np.zeros((1, 2, 2)), np.zeros((1, 2, 2))) is None

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pastille.stats.holm import holm
from pastille.stats.sensitivity_check import SensitivityCheck, holm_limits
from pastille.stats.sequential import Side, Tally, TwoSampleTest, after_block, labels_per_block

RATES = np.linspace(0.02, 0.98, 13)


def expectation(a: float, b: float, tally: Tally, per_block: tuple[int, int], side: Side) -> float:
    """Of a block's evidence, over all of its outcomes."""
    total = 0.0
    for yes_a, yes_b in product(range(per_block[0] + 1), range(per_block[1] + 1)):
        chance = 1.0
        for yes, n, rate in ((yes_a, per_block[0], a), (yes_b, per_block[1], b)):
            chance *= comb(n, yes) * rate**yes * (1 - rate) ** (n - yes)
        after = after_block(tally, yes_a, yes_b, per_block=per_block, side=side)
        total += chance * float(np.exp(after.log_evidence))
    return total


@pytest.mark.parametrize("per_block", [(1, 1), (9, 1), (1, 3)])
@pytest.mark.parametrize("held", [(5, 9), (9, 5), (0, 10), (10, 10)])
def test_no_block_pays_if_there_is_no_difference(per_block: tuple[int, int], held: tuple[int, int]) -> None:
    tally = Tally(correct_a=held[0], correct_b=held[1], n_a=10, n_b=10)
    for rate in RATES:
        for side in ("different", "b_worse", "b_better"):
            assert expectation(rate, rate, tally, per_block, side) <= 1 + 1e-12
    for low, high in product(RATES, RATES):
        if low <= high:  # the other way round: a one-sided test may not be fooled either
            assert expectation(low, high, tally, per_block, "b_worse") <= 1 + 1e-12
            assert expectation(high, low, tally, per_block, "b_better") <= 1 + 1e-12


def test_a_block_pays_if_there_is_what_was_estimated() -> None:
    tally = Tally(correct_a=9, correct_b=5, n_a=10, n_b=10)
    for side in ("different", "b_worse"):
        assert expectation(0.9, 0.5, tally, (1, 1), side) > 1.05
    assert expectation(0.9, 0.5, tally, (1, 1), "b_better") == 1.0


def test_labels_are_paired_in_the_order_in_which_they_come() -> None:
    rng = np.random.default_rng(0)
    test, tally = TwoSampleTest(share_b=0.25, side="b_worse"), Tally()
    a, b = rng.random(300) < 0.9, rng.random(100) < 0.6
    arms = rng.permutation(np.repeat(["a", "b"], [300, 100]))
    left = {"a": a.tolist(), "b": b.tolist()}
    for arm in arms:
        test.update(arm, left[arm].pop(0))
    for block in range(100):
        tally = after_block(
            tally, a[3 * block : 3 * block + 3].sum(), b[block], per_block=(3, 1), side="b_worse"
        )
    assert test.evidence == pytest.approx(np.exp(tally.log_evidence))
    assert (test.labelled, test.correct) == ({"a": 300, "b": 100}, {"a": int(a.sum()), "b": int(b.sum())})
    assert test.alarm


def test_an_alarm_stays() -> None:
    test = TwoSampleTest(significance=0.01)
    for _ in range(40):
        test.update("a", True)
        test.update("b", False)
    assert test.alarm
    for _ in range(2000):
        test.update("a", False)
        test.update("b", True)
    assert test.alarm


def test_labels_that_wait_are_bounded() -> None:
    test = TwoSampleTest()
    for _ in range(10_050):
        test.update("a", True)
    assert test.labelled == {"a": 10_050, "b": 0}
    assert (test.evidence, test.alarm) == (1.0, False)
    assert len(test._waiting["a"]) == 10_000


@pytest.mark.parametrize(
    ("share", "sizes"), [(0.5, (1, 1)), (0.1, (9, 1)), (0.001, (99, 1)), (0.9, (1, 9)), (0.999, (1, 99))]
)
def test_a_block_is_as_the_arms_are(share: float, sizes: tuple[int, int]) -> None:
    assert labels_per_block(share) == sizes


def test_what_can_not_be_asked_is_refused() -> None:
    with pytest.raises(ValueError, match="share_b"):
        TwoSampleTest(share_b=0.0)
    with pytest.raises(ValueError, match="significance"):
        TwoSampleTest(significance=1.0)
    with pytest.raises(ValueError, match="floor of 'everyone'"):
        SensitivityCheck({"everyone": 1.0})
    with pytest.raises(ValueError, match="significance"):
        SensitivityCheck({"everyone": 0.9}, significance=0.0)


@given(st.lists(st.sampled_from([50.0, 150.0, 250.0, 450.0]) | st.floats(0.01, 5000), min_size=1, max_size=8))
def test_those_that_reach_their_limits_are_those_of_holm(evidence: list[float]) -> None:
    """On ``1 / evidence``, which is a p-value at any time."""
    e = np.array(evidence)
    expected = holm(np.minimum(1 / e, 1.0)) <= 0.01 * (1 + 1e-12)
    assert (e * (1 + 1e-12) >= holm_limits(e, 0.01)).tolist() == expected.tolist()


def test_a_group_that_is_missed_is_named_and_no_other() -> None:
    check = SensitivityCheck({"everyone": 0.6, "sex=female": 0.8, "sex=male": 0.8, "age=90+": 0.8})
    rng = np.random.default_rng(0)
    for _ in range(150):
        check.update(["everyone", "sex=male"], bool(rng.random() < 0.97))
        check.update(["everyone", "sex=female"], bool(rng.random() < 0.5))
    check.update(["everyone", "age=90+", "unknown=group"], found=True)
    states = {found.group: found.state for found in check.findings()}
    assert states == {
        "everyone": "ok",
        "sex=female": "alarm",
        "sex=male": "ok",
        "age=90+": "inconclusive",
    }
    female = check.findings()[1]
    assert female.positives == 150
    assert female.interval is not None
    assert female.interval.high < female.floor
    assert female.evidence > female.alarm_at == 400


def test_a_group_without_a_positive_is_inconclusive() -> None:
    (found,) = SensitivityCheck({"everyone": 0.9}).findings()
    assert (found.positives, found.interval, found.state, found.evidence) == (0, None, "inconclusive", 1.0)


def test_an_alarm_does_not_wait_for_the_minimum() -> None:
    check = SensitivityCheck({"everyone": 0.9}, minimum=30)
    for _ in range(10):
        check.update(["everyone"], found=False)
    assert check.findings()[0].state == "alarm"

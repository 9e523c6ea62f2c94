from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import fisher_exact, permutation_test
from statsmodels.stats.multitest import multipletests

from pastille.stats.concentration import QUARTERS, Partition, concentrations, partitions
from pastille.stats.fisher import fisher_greater
from pastille.stats.margins import decision_margins
from pastille.stats.permutation import _distinct, permuted_p_values
from pastille.values import Cases, Concentration, Kind


def part(codes: np.ndarray, name: str = "sex") -> Partition:
    values = tuple("abcdefgh"[: int(codes.max(initial=0)) + 1])
    return Partition(attribute=name, values=values, codes=codes)


def found_in(
    outcome: np.ndarray, *parts: Partition, subjects: np.ndarray | None = None
) -> tuple[Concentration, ...]:
    return concentrations({"changed": outcome}, parts, subjects=subjects, significance=0.05)


@st.composite
def tables(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Hits and cases of a part, hits and cases in all."""
    total = draw(st.integers(1, 3000))
    n, all_hits = draw(st.integers(0, total)), draw(st.integers(0, total))
    return draw(st.integers(max(0, n + all_hits - total), min(n, all_hits))), n, all_hits, total


@given(tables())
def test_fisher_agrees_with_scipy(counts: tuple[int, int, int, int]) -> None:
    hits, n, all_hits, total = counts
    table = np.array([[hits, n - hits], [all_hits - hits, total - n - all_hits + hits]])
    expected = fisher_exact(table, alternative="greater").pvalue
    assert fisher_greater(*counts) == pytest.approx(expected, rel=1e-7, abs=1e-300)


def test_fisher_of_a_large_table_agrees_with_scipy() -> None:
    table = np.array([[120, 9_880], [700, 89_300]])
    expected = fisher_exact(table, alternative="greater").pvalue
    assert fisher_greater(120, 10_000, 820, 100_000) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("counts", [(3, 2, 5, 10), (0, 8, 5, 10), (1, 11, 1, 10), (-1, 2, 5, 10)])
def test_counts_that_contradict_each_other_are_refused(counts: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"^counts must fit each other, got "):
        fisher_greater(*counts)


def test_p_values_are_corrected_by_holm_over_everything_looked_at() -> None:
    rng = np.random.default_rng(3)
    outcomes = {"changed": rng.random(400) < 0.1, "newly wrong": rng.random(400) < 0.05}
    parts = [part(rng.integers(0, 3, 400)), part(rng.integers(0, 5, 400), "age")]
    found = concentrations(outcomes, parts, subjects=None, significance=0.05)
    assert len(found) == 16
    assert [x.p_value for x in found] == sorted(x.p_value for x in found)
    expected = multipletests([x.p_value for x in found], method="holm")[1]
    assert [x.adjusted_p for x in found] == pytest.approx(list(expected))
    for x in found:
        rest = x.elsewhere_n - x.elsewhere_changed
        table = np.array([[x.changed, x.n - x.changed], [x.elsewhere_changed, rest]])
        assert x.p_value == pytest.approx(fisher_exact(table, alternative="greater").pvalue)
        assert x.n + x.elsewhere_n == 400
        assert x.changed + x.elsewhere_changed == outcomes[x.outcome].sum()


def test_a_planted_pile_is_found_and_named() -> None:
    old = np.arange(540) < 85
    changed = np.zeros(540, bool)
    changed[:12] = changed[100:105] = True
    first, *others = found_in(
        changed, Partition(attribute="age_band", values=("65+", "<65"), codes=np.where(old, 0, 1))
    )
    assert first.sentence == (
        "Changed decisions pile up in age band 65+: 12 of 85 cases changed (14.1 %) against 5 of 455 "
        "elsewhere (1.1 %); p < 0.0001 after Holm."
    )
    assert (first.attribute, first.value, first.adjusted_p) == ("age_band", "65+", 2 * first.p_value)
    assert [other.sentence for other in others] == [
        "No more changed decisions than chance would give in age band <65: 5 of 455 cases changed (1.1 %) "
        "against 12 of 85 elsewhere (14.1 %); p = 1.00 after Holm."
    ]


@pytest.mark.parametrize(
    ("quarter", "begins"),
    [
        (0, "As expected, changed decisions lie near the decision border, in the lowest quarter of the "),
        (3, "Changed decisions pile up away from the decision border, in the highest quarter of the "),
    ],
)
def test_changes_near_the_border_reassure_and_others_warn(quarter: int, begins: str) -> None:
    confidence = np.arange(400.0)
    cases = Cases(kind="regression", split="test", targets=np.zeros(400), labels=())
    changed = (np.arange(400) // 100 == quarter) & (np.arange(400) % 5 == 0)
    found = found_in(changed, *partitions(cases, confidence))
    assert found[0].sentence.startswith(begins + "baseline's confidence: 20 of 100 cases changed (20.0 %)")


def test_everything_or_nothing_changed_piles_up_nowhere() -> None:
    sex = part(np.arange(100) % 2)
    assert found_in(np.zeros(100, bool), sex) == ()
    assert {x.adjusted_p for x in found_in(np.ones(100, bool), sex)} == {1.0}


def test_a_value_without_an_elsewhere_is_not_tested() -> None:
    assert found_in(np.array([True, False]), part(np.zeros(2, int))) == ()
    assert found_in(np.array([True]), part(np.zeros(1, int)), subjects=np.array(["p"])) == ()


def test_significance_must_be_a_share() -> None:
    with pytest.raises(ValueError, match=r"^significance must be in \(0, 1\), got 0$"):
        concentrations({}, [], subjects=None, significance=0)


def cases_of(kind: Kind, targets: np.ndarray, labels: tuple[str, ...]) -> Cases:
    return Cases(kind=kind, split="test", targets=targets, labels=labels)


def test_cases_are_parted_by_what_is_true_of_them() -> None:
    (several,) = partitions(cases_of("multiclass", np.array([2, 0, 2]), ("a", "b", "c")), None)
    assert several.sizes.tolist() == [1, 0, 2]
    findings = partitions(cases_of("multilabel", np.array([[1, 0], [1, 1], [0, 0]]), ("x", "y")), None)
    assert [(p.values, p.sizes.tolist()) for p in findings] == [(("x",), [2]), (("y",), [1])]
    masks = np.array([[[0, 1]], [[0, 0]], [[2, 1]]])
    present = partitions(cases_of("segmentation", masks, ("ground", "x", "y")), None)
    assert [(p.values, p.sizes.tolist()) for p in present] == [(("x",), [2]), (("y",), [1])]
    (number,) = partitions(cases_of("regression", np.array([5.0, 1.0, 2.0, 8.0]), ()), None)
    assert [number.values[code] for code in number.codes] == ["5 to 5", "1 to 1", "2 to 2", "8 to 8"]


def test_what_names_every_case_is_no_group() -> None:
    names = {"site": np.arange(400) % 200, "file": np.arange(400)}
    found = partitions(
        Cases(kind="regression", split="test", targets=np.zeros(400), labels=(), groups=names), None
    )
    assert [p.attribute for p in found] == ["target", "site"]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_quarters_keep_equal_numbers_together_and_in_order(numbers: list[float]) -> None:
    confidence = np.array(numbers)
    quarters = partitions(cases_of("regression", confidence, ()), confidence)[-1]
    assert quarters.values == QUARTERS
    order = np.argsort(confidence, kind="stable")
    assert (np.diff(quarters.codes[order]) >= 0).all()
    assert all(len(set(quarters.codes[confidence == x])) == 1 for x in confidence)
    if len(set(numbers)) == len(numbers):
        assert np.ptp(np.bincount(quarters.codes, minlength=4)) <= 1


def test_saturated_confidence_is_the_highest_quarter() -> None:
    confidence = np.r_[np.arange(40.0), np.full(60, np.inf)]
    assert partitions(cases_of("regression", confidence, ()), confidence)[-1].sizes.tolist() == [
        25,
        15,
        0,
        60,
    ]


@pytest.mark.parametrize("confidence", [np.zeros(3), np.array([0.0, np.nan])])
def test_confidence_must_be_one_number_per_case(confidence: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"^confidence must be one number for each of 2 cases"):
        partitions(cases_of("regression", np.zeros(2), ()), confidence)


def test_margins_are_distances_from_the_border() -> None:
    two = Cases(kind="binary", split="test", targets=np.zeros(3, int), labels=("a", "b"), threshold=0.2)
    assert decision_margins(np.array([0.2, 0.8, 1.0]), two) == pytest.approx([0, np.log(16), np.inf])
    first = Cases(
        kind="binary", split="test", targets=np.zeros(1, int), labels=("a", "b"), threshold=0.2, positive=(0,)
    )
    assert decision_margins(np.array([0.8]), first) == pytest.approx([0], abs=1e-12)
    three = cases_of("multiclass", np.zeros(2, int), ("a", "b", "c"))
    assert decision_margins(np.array([[0.2, 0.2, 0.6], [1, 0, 0]]), three) == pytest.approx(
        [np.log(3), np.inf]
    )
    labels = cases_of("multilabel", np.zeros((1, 2), int), ("a", "b"))
    assert decision_margins(np.array([[0.9, 0.5]]), labels) == pytest.approx([0])
    assert decision_margins(np.zeros(2), cases_of("regression", np.zeros(2), ())) is None


@pytest.mark.parametrize(("n", "share"), [(60, 0.25), (3000, 0.01)])
def test_permuting_single_cases_agrees_with_fisher(n: int, share: float) -> None:
    rng = np.random.default_rng(0)
    sex, changed = rng.integers(0, 3, n), rng.random(n) < share
    ((p_values,),) = permuted_p_values([changed], [sex], np.arange(n))
    exact = [
        fisher_greater(int((changed & (sex == v)).sum()), int((sex == v).sum()), int(changed.sum()), n)
        for v in range(3)
    ]
    assert p_values == pytest.approx(exact, abs=0.015)  # three standard errors


def test_permuting_pairs_agrees_with_scipy() -> None:
    """Every subject has two cases, so that subjects change places as wholes."""
    rng = np.random.default_rng(1)
    young, changed = rng.integers(0, 2, 60), np.repeat(rng.random(60) < 0.2, 2)
    changed[::4] = False
    subjects, age = np.repeat(np.arange(60), 2), np.repeat(young, 2)
    ((p_values,),) = permuted_p_values([changed], [age], subjects)
    totals = changed.reshape(60, 2).sum(axis=1)
    oracle = permutation_test(
        (young, totals),
        lambda x, y: float((x * y).sum()),
        permutation_type="pairings",
        alternative="greater",
        n_resamples=4000,
        rng=np.random.default_rng(2),
    )
    assert p_values[1] == pytest.approx(oracle.pvalue, abs=0.03)


def test_one_subject_with_many_changes_is_no_pile() -> None:
    """Six changed images of one woman are one observation: Fisher would be sure of more."""
    subjects = np.repeat(np.arange(100), 6)
    sex = part((subjects % 2).astype(int))
    changed = subjects == 0
    alone = found_in(changed, sex)[0]
    clustered = found_in(changed, sex, subjects=subjects)[0]
    assert alone.adjusted_p < 0.05
    assert clustered.p_value == pytest.approx(0.5, abs=0.02)


def test_a_pile_within_subjects_is_found() -> None:
    """Each subject has one easy and one hard case, and only hard ones change."""
    subjects = np.repeat(np.arange(80), 2)
    hard = (np.arange(160) * 7919 % 4 // 2 != np.arange(160) % 2).astype(int)
    hard[1::2] = 1 - hard[::2]
    changed = (hard == 1) & (subjects < 20)
    found = found_in(changed, part(hard), subjects=subjects)[0]
    assert (found.value, found.changed, found.elsewhere_changed) == ("b", 20, 0)
    assert found.adjusted_p < 0.05


def test_no_p_value_is_below_one_in_all_arrangements() -> None:
    sex, changed = np.repeat([0, 1], [20, 180]), np.arange(200) < 10
    ((p_values,),) = permuted_p_values([changed], [sex], np.arange(200), permutations=99)
    assert p_values.tolist() == [0.01, 1.0]


def test_subjects_are_drawn_without_replacement_and_evenly() -> None:
    drawn = _distinct(np.random.default_rng(0), 100_000, 40, 2)  # few of many, which is drawn again
    assert (drawn[:, 0] != drawn[:, 1]).all()
    pairs = np.bincount(drawn[:, 0] * 40 + drawn[:, 1], minlength=1600).reshape(40, 40)
    expected = 100_000 / (40 * 39)
    distance = ((pairs[~np.eye(40, dtype=bool)] - expected) ** 2 / expected).sum()
    assert abs(distance - 1559) < 4 * np.sqrt(2 * 1559)  # chi-squared
    assert {tuple(sorted(row)) for row in _distinct(np.random.default_rng(0), 50, 3, 3)} == {(0, 1, 2)}


def test_permutations_are_seeded() -> None:
    rng = np.random.default_rng(5)
    subjects, sex, changed = rng.integers(0, 40, 200), rng.integers(0, 2, 200), rng.random(200) < 0.1
    one, same, other = (
        permuted_p_values([changed], [sex], subjects, permutations=99, seed=seed)[0][0].tolist()
        for seed in (1, 1, 2)
    )
    assert one == same != other


def false_findings(rng: np.random.Generator, rounds: int, *, clustered: bool) -> float:
    """How often anything is said to pile up where nothing does."""
    count = 0
    for _ in range(rounds):
        n_subjects = 150 if clustered else 400
        sizes = rng.choice([1, 2, 3, 6, 7], n_subjects) if clustered else np.ones(n_subjects, int)
        owner = np.repeat(np.arange(n_subjects), sizes)
        frailty = rng.beta(0.15, 1.5, n_subjects) if clustered else np.full(n_subjects, 0.08)
        changed = rng.random(len(owner)) < frailty[owner]
        columns = [
            rng.integers(0, 2, n_subjects)[owner],
            rng.integers(0, 4, n_subjects)[owner],
            rng.integers(0, 3, len(owner)),
        ]
        parts = [part(column, name) for column, name in zip(columns, "xyz", strict=True)]
        if clustered:
            p_values = permuted_p_values([changed], [p.codes for p in parts], owner, permutations=399, seed=1)
            smallest = min(p.min() for p in p_values[0]) * 9
        else:
            found = found_in(changed, *parts)
            smallest = found[0].adjusted_p if found else 1.0
        count += smallest <= 0.05
    return count / rounds


def test_nothing_is_found_where_nothing_is() -> None:
    assert false_findings(np.random.default_rng(11), 600, clustered=False) <= 0.05


def test_nothing_is_found_where_subjects_differ_by_chance() -> None:
    assert (
        false_findings(np.random.default_rng(12), 400, clustered=True) <= 0.06
    )  # three standard errors: 0.033

"""Groups and gaps against limits: who is named, who is passed, what is left open."""

from __future__ import annotations

import numpy as np
import pytest

from pastille.gates.groups import gap_checks, group_checks, settled, unasked_harm
from pastille.gates.words import why_not
from pastille.stats.fairness import fairness
from pastille.stats.forms import Share
from pastille.values import Cases, Check, Comparison, Fairness, Status

LIMITS = {"sensitivity": 0.02}


def _fairness(
    groups: dict[str, tuple[int, int, int]], *, negatives: int = 400, min_group: int = 30
) -> tuple[Fairness, ...]:
    """Group -> positive cases, of which newly wrong, of which newly right; the rest stays right."""
    names = np.repeat(list(groups), [n + negatives for n, *_ in groups.values()])
    truth, before, after = (np.zeros(len(names), bool) for _ in range(3))
    for name, (n, wrong, right) in groups.items():
        rows = np.flatnonzero(names == name)[:n]
        truth[rows] = before[rows] = after[rows] = True
        before[rows[wrong : wrong + right]] = False
        after[rows[:wrong]] = False
    cases = Cases(
        kind="binary",
        split="test",
        targets=truth.astype(np.int64),
        labels=("healthy", "ill"),
        positive=(1,),
        groups={"sex": names},
    )

    def shares(called: np.ndarray) -> dict[str, Share]:
        return {
            "sensitivity": Share(hits=called & truth, among=truth),
            "specificity": Share(hits=~called & ~truth, among=~truth),
            "accuracy": Share(hits=called == truth, among=np.ones(len(truth), bool)),
        }

    return fairness(shares(before), shares(after), cases, by=["sex"], min_group=min_group)


def _group_checks(found: tuple[Fairness, ...], *, min_group: int = 30) -> dict[str, Check]:
    checks = group_checks(found, limits=LIMITS, min_group=min_group, confidence=0.95)
    return {check.where["sex"]: check for check in checks}


def test_a_harmed_group_is_rejected_and_named_and_the_others_pass() -> None:
    checks = _group_checks(_fairness({"female": (210, 20, 0), "male": (900, 3, 2)}))
    harmed, spared = checks["female"], checks["male"]
    assert (harmed.status, spared.status) == (Status.REJECTED, Status.APPROVED)
    assert harmed.adjusted_p is not None
    assert harmed.adjusted_p < 0.025
    assert harmed.reason == (
        "sensitivity of sex female fell by 9.5 points (95 % CI 6.2 to 14.3, 210 cases of a positive class: "
        "20 newly wrong, 0 newly right), beyond the limit of 2 points even at the lower end of the interval "
        "and after Holm's correction over 2 comparisons of groups"
    )
    assert spared.reason.endswith("within the limit of 2 points")


def test_what_is_beyond_the_limit_alone_may_be_chance_among_many_groups() -> None:
    calm = {f"g{i}": (900, 3, 2) for i in range(12)}
    alone = _group_checks(_fairness({"odd": (300, 14, 0)}))["odd"]
    among = _group_checks(_fairness({"odd": (300, 14, 0), **calm}))["odd"]
    assert alone.status is Status.REJECTED
    assert alone.interval == among.interval
    assert among.status is Status.INCONCLUSIVE
    assert among.more_cases is None
    assert "beyond the limit of 2 points" in among.reason
    assert among.reason.endswith(
        "among 13 comparisons of groups that may be chance (Holm's correction); more cases would sooner "
        "reject than approve"
    )
    grown = {"odd": (600, 28, 0), **calm}
    assert _group_checks(_fairness(grown))["odd"].status is Status.REJECTED


def test_a_drop_beyond_the_limit_within_a_wide_interval_promises_nothing_of_more_cases() -> None:
    check = _group_checks(_fairness({"female": (100, 5, 0), "male": (900, 3, 2)}))["female"]
    assert check.status is Status.INCONCLUSIVE
    assert check.more_cases is None
    assert check.reason.endswith(
        "the drop itself is not below it, so more cases would sooner reject than approve"
    )


def test_a_small_group_is_never_passed_and_never_named() -> None:
    found = _fairness({"female": (12, 12, 0), "male": (900, 0, 0)})
    check = _group_checks(found)["female"]
    assert check.status is Status.INCONCLUSIVE
    assert check.more_cases == 177  # 189 prove a limit of 2 points if no decision changes
    assert check.reason == (
        "sensitivity of sex female is not judged: the group has 12 cases of a positive class, fewer than the "
        "30 asked for; at least 177 more are needed"
    )
    (loose,) = group_checks(
        _fairness({"f": (29, 0, 0)}), limits={"sensitivity": 0.2}, min_group=30, confidence=0.95
    )
    assert loose.reason.endswith("at least 1 more is needed")
    assert _group_checks(found)["male"].status is Status.APPROVED


def test_a_group_without_positive_cases_is_left_open() -> None:
    check = _group_checks(_fairness({"female": (0, 0, 0), "male": (900, 0, 0)}))["female"]
    assert (check.status, check.n, check.drop) == (Status.INCONCLUSIVE, 0, None)


def test_every_metric_with_a_limit_is_checked_in_every_group_in_one_family() -> None:
    found = _fairness({"female": (210, 20, 0), "male": (900, 3, 2)})
    both = group_checks(found, limits={**LIMITS, "accuracy": 0.02}, min_group=30, confidence=0.95)
    assert [(check.metric, check.where["sex"]) for check in both] == [
        ("sensitivity", "female"),
        ("sensitivity", "male"),
        ("accuracy", "female"),
        ("accuracy", "male"),
    ]
    assert "over 4 comparisons of groups" in both[0].reason


def test_a_limit_on_a_metric_that_was_not_compared_is_refused() -> None:
    found = _fairness({"female": (210, 20, 0), "male": (900, 3, 2)})
    with pytest.raises(ValueError, match=r"must name metrics of groups.*got recall"):
        group_checks(found, limits={"recall": 0.02}, min_group=30, confidence=0.95)
    limits = {**LIMITS, "balanced_accuracy": 0.02}
    assert len(unasked_harm(found, limits=limits, min_group=30, confidence=0.95)) == 1


def test_no_groups_give_no_checks() -> None:
    assert group_checks((), limits=LIMITS, min_group=30, confidence=0.95) == ()
    assert gap_checks((), limit=0.02, min_group=30) == ()


def test_a_gap_that_grows_is_rejected_with_the_groups_that_fare_worst() -> None:
    check, narrow = gap_checks(
        _fairness({"female": (600, 200, 0), "male": (900, 3, 0)}), limit=0.02, min_group=30
    )
    assert (narrow.status, narrow.metric, narrow.n) == (Status.REJECTED, "equal opportunity gap", 1500)
    assert (check.status, check.metric, check.where) == (
        Status.REJECTED,
        "equalized odds difference",
        {"between": "sex"},
    )
    assert check.reason.startswith(
        "equalized odds difference between groups of sex grew by 33.0 points, from 0.0 to 33.0 (95 % CI "
    )
    assert (
        "2300 cases, worst off: female), beyond the limit of 2 points even at the lower end" in check.reason
    )


def test_a_gap_that_stays_is_approved_and_says_so() -> None:
    check, _ = gap_checks(_fairness({"female": (900, 0, 0), "male": (900, 0, 0)}), limit=0.02, min_group=30)
    assert check.status is Status.APPROVED
    assert check.reason.startswith(
        "equalized odds difference between groups of sex stayed at 0.0 points (95 % CI of the growth −"
    )


def test_a_gap_that_few_cases_leave_open_asks_for_more() -> None:
    check, _ = gap_checks(
        _fairness({"female": (60, 0, 0), "male": (900, 0, 0), "other": (3, 0, 0)}), limit=0.02, min_group=30
    )
    assert check.status is Status.INCONCLUSIVE
    assert check.more_cases is not None
    assert f"about {check.more_cases:,} more cases would probably decide" in check.reason
    assert check.reason.endswith("not counted, with fewer than 30: other (3 cases of a positive class)")


def test_a_growth_that_reaches_the_limit_promises_nothing_of_more_cases() -> None:
    _, check = gap_checks(_fairness({"female": (60, 4, 0), "male": (900, 0, 0)}), limit=0.02, min_group=30)
    assert (check.status, check.more_cases) == (Status.INCONCLUSIVE, None)
    assert check.reason.endswith(
        "the growth itself is not below it, so more cases would sooner reject than approve"
    )


def test_a_quarter_of_ill_women_missed_is_mostly_rejected() -> None:
    """1,200 cases, a limit of 2 points; equalized odds alone reject 21 of 30 draws, both 27."""
    rng, found = np.random.default_rng(5), []
    for _ in range(30):
        ill, women = rng.random(1200) < 0.3, rng.random(1200) < 0.5
        right = rng.random(1200) < 0.93
        after = right & ~(ill & women & (rng.random(1200) < 0.25))
        cases = Cases(
            kind="binary",
            split="test",
            targets=ill.astype(np.int64),
            labels=("healthy", "ill"),
            positive=(1,),
            groups={"sex": np.where(women, "female", "male")},
        )
        pair = [
            {
                "sensitivity": Share(hits=hits & ill, among=ill),
                "specificity": Share(hits=hits & ~ill, among=~ill),
            }
            for hits in (right, after)
        ]
        checks = gap_checks(fairness(pair[0], pair[1], cases, by=["sex"]), limit=0.02, min_group=30)
        found.append([check.status for check in checks])
    rejected = [sum(status is Status.REJECTED for status in of_gap) for of_gap in zip(*found, strict=True)]
    assert sum(Status.REJECTED in statuses for statuses in found) >= 20
    assert rejected[1] > rejected[0] >= 8


def test_a_case_with_several_labels_counts_once_behind_a_gap() -> None:
    everyone = np.ones(600, bool)
    sex = np.repeat(["f", "m"], 300)
    cases = Cases(
        kind="multilabel",
        split="test",
        targets=np.ones((600, 2), int),
        labels=("a", "b"),
        groups={"sex": sex},
    )
    forms = {
        name: Share(hits=everyone, among=everyone) for name in ("sensitivity", "specificity", "accuracy")
    }
    check, _ = gap_checks(fairness(forms, forms, cases, by=["sex"]), limit=0.02, min_group=30)
    assert check.n == 600


@pytest.mark.parametrize(
    ("groups", "why"),
    [
        ({"female": (900, 0, 0)}, "there is only one group"),
        (
            {"female": (900, 0, 0), "male": (5, 0, 0)},
            "fewer than two of 2 groups have 30 cases of a positive class and cases of no positive class",
        ),
    ],
)
def test_without_two_groups_a_gap_is_left_open_and_never_passed(
    groups: dict[str, tuple[int, int, int]], why: str
) -> None:
    check, _ = gap_checks(_fairness(groups), limit=0.02, min_group=30)
    assert (check.status, check.drop) == (Status.INCONCLUSIVE, None)
    assert check.reason == f"equalized odds difference between groups of sex cannot be judged: {why}"


def test_what_is_undecided_is_only_reported_where_the_recipe_says_so() -> None:
    found = _fairness({"female": (12, 0, 0), "male": (900, 200, 0), "other": (900, 0, 0)})
    checks = group_checks(found, limits=LIMITS, min_group=30, confidence=0.95)
    assert settled(checks, undecided="inconclusive").checks == checks
    reported = settled(checks, undecided="report")
    assert [check.where["sex"] for check in reported.checks] == ["male", "other"]
    (note,) = reported.notes
    assert note.startswith("undecided, reported only: sensitivity of sex female is not judged")


def test_harm_that_nobody_asked_about_is_named_and_chance_is_not() -> None:
    harmed = _fairness({"female": (210, 20, 0), "male": (900, 3, 2)})
    (caution,) = unasked_harm(harmed, limits=LIMITS, min_group=30, confidence=0.95)
    assert caution.startswith(
        "a group is harmed, though no fairness limit was asked for: sensitivity of sex female fell by 9.5"
    )
    calm = _fairness({"female": (210, 5, 0), "male": (900, 3, 2)})
    assert unasked_harm(calm, limits=LIMITS, min_group=30, confidence=0.95) == ()


def test_a_metric_that_cases_do_not_define_says_why() -> None:
    def undefined(metric: str, n: int, where: dict[str, str]) -> str:
        return why_not(
            Comparison(
                metric=metric,
                where=where,
                n=n,
                baseline=None,
                candidate=None,
                drop=None,
                interval=None,
                method="none",
            )
        )

    assert undefined("auroc", 0, {}) == "the cases of the split are all of one class"
    assert undefined("spread", 500, {}) == "these 500 cases do not define it"
    assert undefined("sensitivity", 0, {"sex": "f"}) == "sex f has no cases of a positive class"

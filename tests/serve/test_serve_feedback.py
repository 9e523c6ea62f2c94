"""Labels that arrive later: joined to the right decision, counted once, and what they then say."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_events import answered
from serving_watched import Watching, manifest, status, watching

from pastille.measure.reference import positives_found
from pastille.serve.errors import Refused
from pastille.serve.values import Label
from pastille.serve.watch.labels import KEEP_S, Memory
from pastille.serve.watch.sensitivity import positive_found
from pastille.values import Cases


def ask(seen: Watching, request_id: str, decision: str, **reply: Any) -> None:
    seen.monitor.answered(answered((decision,), request_id=request_id, **reply))


def tell(seen: Watching, request_id: str, label: str, **groups: str) -> dict[str, Any]:
    return dict(seen.monitor.feedback(Label(request_id=request_id, label=label, groups=groups)))


def test_a_label_joins_its_decision_and_counts_once() -> None:
    seen = watching()
    seen.monitor.answered(answered(("glioma", "no tumour"), request_id="r-1"))
    first = seen.monitor.feedback(Label(request_id="r-1", row=1, label="glioma"))
    again = seen.monitor.feedback(Label(request_id="r-1", row=1, label="glioma"))
    assert first == {"decision": "no tumour", "correct": False, "counted": True}
    assert again == {"decision": "no tumour", "correct": False, "counted": False}
    (everyone, _) = seen.monitor.snapshot(status()).sensitivity
    assert (everyone.group, everyone.positives, everyone.found) == ("everyone", 1, 0)
    with pytest.raises(Refused, match="another label before"):
        seen.monitor.feedback(Label(request_id="r-1", row=1, label="no tumour"))


@pytest.mark.parametrize(
    ("label", "cause", "match"),
    [
        (Label(request_id="r-2", label="glioma"), "not_found", "no decision is known"),
        (Label(request_id="r-1", label="cat"), "malformed", "allowed: glioma, meningioma, no tumour"),
        (Label(request_id="r-1", label=("glioma",)), "malformed", "one label"),
        (Label(request_id="r-1", label="glioma", row=1), "malformed", "row must be in 0 … 0"),
        (Label(request_id="r-1", label="glioma", row=-1), "malformed", "row must be"),
        (Label(request_id="r-1", label="glioma", groups={"sex": "x" * 200}), "malformed", "at most 128"),
        (
            Label(request_id="r-1", label="glioma", groups={str(k): "x" for k in range(17)}),
            "malformed",
            "at most 16",
        ),
    ],
)
def test_what_cannot_be_joined_is_refused_in_one_line(label: Label, cause: str, match: str) -> None:
    seen = watching()
    ask(seen, "r-1", "glioma")
    with pytest.raises(Refused, match=match) as refused:
        seen.monitor.feedback(label)
    assert refused.value.cause == cause
    assert seen.monitor.snapshot(status()).sensitivity[0].positives == 0


def test_an_id_that_several_requests_had_is_of_none() -> None:
    seen = watching()
    ask(seen, "r-1", "glioma")
    ask(seen, "r-1", "glioma")  # a retry: the same decision
    assert tell(seen, "r-1", "glioma")["counted"]
    ask(seen, "r-1", "glioma")
    assert not tell(seen, "r-1", "glioma")["counted"]
    ask(seen, "r-1", "no tumour")
    with pytest.raises(Refused, match="several requests"):
        tell(seen, "r-1", "glioma")


def test_decisions_are_forgotten_by_number_and_by_age() -> None:
    memory = Memory(most=3)
    for k in range(4):
        memory.put(answered(request_id=str(k)), now=float(k))
    assert len(memory) == 3
    assert memory.find("0", now=4.0) is None
    assert memory.find("3", now=3.0 + KEEP_S) is not None
    assert memory.find("3", now=4.0 + KEEP_S) is None
    memory.put(answered((), request_id="nothing decided"), now=4.0)
    assert memory.find("nothing decided", now=4.0) is None
    memory.forget("tiny", "1")
    assert len(memory) == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["glioma", "no tumour"])), max_size=30))
def test_the_memory_keeps_the_last_decisions(asked: list[tuple[int, str]]) -> None:
    memory, model = Memory(most=3), dict[int, list[str]]()
    for key, decision in asked:
        memory.put(answered((decision,), request_id=str(key)), now=0.0)
        model[key] = [*model.pop(key, []), decision]
        model = dict(list(model.items())[-3:])
    for key in range(6):
        found = memory.find(str(key), now=0.0)
        assert (found is None) == (key not in model)
        if found is not None:
            assert found.decisions == (model[key][-1],)
            assert found.twice == (len(set(model[key])) > 1)


def test_missed_positives_raise_the_alarm_of_their_group() -> None:
    seen = watching()
    rng = np.random.default_rng(0)
    for k in range(400):
        woman = k % 2 == 0
        found = rng.random() < (0.6 if woman else 0.97)
        ask(seen, str(k), "meningioma" if found else "no tumour")
        tell(seen, str(k), "glioma", sex="female" if woman else "male", age="old")
    views = {view.group: view for view in seen.monitor.snapshot(status()).sensitivity}
    assert views["everyone"].expected == 0.95
    assert views["sex=female"].state == "alarm"
    assert "fewer than" in views["sex=female"].words
    assert [alarmed.kind for alarmed in seen.alarms] == ["sensitivity"]
    assert "sex=female" in seen.alarms[0].detail or "all" in seen.alarms[0].detail
    assert views["sex=female"].positives == 200
    assert views["sex=male"].state == "not_enough_data"
    assert "no figure for this group" in views["sex=male"].words


def test_negatives_say_nothing_of_sensitivity() -> None:
    seen = watching()
    ask(seen, "1", "glioma")
    assert tell(seen, "1", "no tumour") == {"decision": "glioma", "correct": False, "counted": True}
    assert seen.monitor.snapshot(status()).sensitivity[0].positives == 0


def test_groups_that_nobody_validated_are_counted_up_to_a_bound() -> None:
    seen = watching()
    for k in range(100):
        ask(seen, str(k), "glioma")
        tell(seen, str(k), "glioma", ward=str(k))
    assert len(seen.monitor.snapshot(status()).sensitivity) == 2 + 32


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_a_positive_is_what_validation_counts_as_one(kind: Any) -> None:
    """Every pair of a label and a decision, held against how the reference of a bundle is made."""
    names = ("a", "b") if kind == "binary" else ("a", "b", "c")
    positive = (1,) if kind == "binary" else (0, 1)
    each: list[Any] = list(range(len(names)))
    if kind == "multilabel":
        each = [list(flags) for flags in itertools.product((0, 1), repeat=len(names))]
    targets, decided = (np.array(side) for side in zip(*itertools.product(each, each), strict=True))
    cases = Cases(kind=kind, split="validation", targets=targets, labels=names, positive=positive)
    truly, found = positives_found(decided, cases)
    feared = frozenset(names[i] for i in positive)
    for target, said, is_positive, is_found in zip(targets, decided, truly, found, strict=True):
        outcome = positive_found(named(target, names), named(said, names), feared)
        assert outcome == (bool(is_found) if is_positive else None)


def named(decided: Any, names: tuple[str, ...]) -> str | tuple[str, ...]:
    return names[int(decided)] if np.ndim(decided) == 0 else tuple(names[i] for i in np.flatnonzero(decided))


def test_labels_of_a_multilabel_task_are_a_list_in_any_order() -> None:
    seen = watching(manifest(kind="multilabel"))
    labels = manifest(kind="multilabel").labels
    seen.monitor.answered(answered(((labels[1], labels[0]),), request_id="r"))  # type: ignore[arg-type]
    found = seen.monitor.feedback(Label(request_id="r", label=(labels[0], labels[1])))
    assert found["correct"]
    with pytest.raises(Refused, match="a list of labels"):
        tell(seen, "r", labels[0])


def ab(seen: Watching, *, right: tuple[float, float], n: int, subject: bool = True) -> None:
    rng = np.random.default_rng(0)
    for k in range(n):
        arm = "ab"[k % 2]
        correct = rng.random() < right[k % 2]
        event = answered(
            ("glioma" if correct else "no tumour",),
            request_id=str(k),
            arm=arm,
            variant={"a": "int8", "b": "fp32"}[arm],
            subject=f"subject {k}" if subject else None,
        )
        seen.monitor.answered(event)
        tell(seen, str(k), "glioma")


def test_a_test_of_two_arms_ends_where_they_differ_for_certain() -> None:
    seen = watching(mode="ab", comparison={"share": 0.5})
    ab(seen, right=(0.95, 0.6), n=400)
    view = seen.monitor.snapshot(status()).comparison
    assert view is not None
    assert (view.a, view.b) == ("tiny:1/int8", "tiny:1/fp32")
    assert (view.requests_a, view.requests_b, view.labelled_a, view.labelled_b) == (200, 200, 200, 200)
    assert view.correct_a > view.correct_b
    assert view.state == "alarm"
    assert "tiny:1/int8 is right more often" in view.words
    assert "comparison" in [alarmed.kind for alarmed in seen.alarms]


def test_of_each_subject_the_first_label_counts() -> None:
    """Answers about one patient are right or wrong together."""
    seen = watching(mode="ab", comparison={"share": 0.5})
    for k in range(40):
        decision, subject = (("glioma", "Jane"), ("no tumour", "John"))[k % 2]
        seen.monitor.answered(answered((decision,), request_id=str(k), arm="ab"[k % 2], subject=subject))
        assert tell(seen, str(k), "glioma")["counted"]  # for the sensitivity
    view = seen.monitor.snapshot(status()).comparison
    assert view is not None
    assert (view.labelled_a, view.labelled_b, view.requests_a, view.state) == (1, 1, 20, "ok")


def test_another_version_is_another_test_and_labels_speak_of_the_one_that_answered() -> None:
    seen = watching(mode="ab", comparison={"share": 0.5, "bundle": "b"})
    seen.monitor.watch(manifest(), "candidate", act=seen.acted.append)
    for k, (arm, version) in enumerate((("a", "1"), ("b", "candidate"))):
        event = answered(request_id=f"before {k}", arm=arm, version=version, subject=str(k))
        seen.monitor.answered(event)
    seen.monitor.watch(manifest(), "2", act=seen.acted.append)
    event = answered(request_id="after", arm="b", version="candidate", subject="s")
    seen.monitor.answered(event)
    for request_id in ("before 0", "before 1", "after"):
        tell(seen, request_id, "glioma")
    shown = [seen.monitor.snapshot(status(version=v)).comparison for v in ("1", "2")]
    assert [view and (view.labelled_a, view.labelled_b) for view in shown] == [(1, 1), (0, 1)]
    seen.monitor.forget("tiny", "1")
    assert b'kind="comparison",model="tiny",version="1"' not in seen.monitor.metrics([status(version="2")])


def test_arms_that_are_equal_stay_undecided_and_those_without_a_subject_are_in_none() -> None:
    seen = watching(mode="ab", comparison={"share": 0.5})
    ab(seen, right=(0.9, 0.9), n=200)
    view = seen.monitor.snapshot(status()).comparison
    assert view is not None
    assert view.state == "ok"
    unassigned = watching(mode="ab", comparison={"share": 0.5})
    ab(unassigned, right=(0.9, 0.9), n=20, subject=False)
    view = unassigned.monitor.snapshot(status()).comparison
    assert view is not None
    assert (view.requests_a, view.labelled_a, view.state) == (0, 0, "not_enough_data")
    assert watching().monitor.snapshot(status()).comparison is None

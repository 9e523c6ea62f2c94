"""The circuit breaker, against an independent account of what it must do."""

from __future__ import annotations

import hypothesis
from hypothesis import given
from hypothesis import strategies as st

from pastille.serve import settings
from pastille.serve.engine.breaker import LONGEST_REST_S, asked, failed, new_breaker, permits, succeeded

RULE = settings.Breaker(failures=3, rest_s=30.0)
events = st.lists(st.tuples(st.sampled_from(["ask", "ok", "fail"]), st.floats(0, 400)), max_size=60)


@hypothesis.settings(max_examples=60)
@given(events)
def test_never_asked_while_it_rests_and_rests_double(happened: list[tuple[str, float]]) -> None:
    breaker, now = new_breaker(RULE), 0.0
    opened_at, rest_s, in_a_row = None, RULE.rest_s, 0  # the account
    for event, later in happened:
        now += later
        if event == "ask":
            allowed = permits(breaker, now)
            if opened_at is not None and breaker.state == "open":
                assert allowed == (now >= opened_at + rest_s)
            if allowed:
                breaker = asked(breaker, now)
            assert allowed or breaker.state != "closed"
        elif event == "ok":
            before, breaker = breaker.state, succeeded(breaker, RULE)
            if before != "open":
                opened_at, rest_s, in_a_row = None, RULE.rest_s, 0
                assert breaker == new_breaker(RULE)
        else:
            before, breaker = breaker.state, failed(breaker, now, RULE)
            in_a_row += before == "closed"
            if before == "half_open":
                opened_at, rest_s = now, min(2 * rest_s, LONGEST_REST_S)
            if before == "closed" and in_a_row == RULE.failures:
                opened_at, in_a_row = now, 0
            assert (breaker.state == "open") == (opened_at is not None)
        assert RULE.rest_s <= breaker.rest_s <= LONGEST_REST_S


def test_one_probe_at_a_time() -> None:
    breaker = new_breaker(RULE)
    for _ in range(3):
        breaker = failed(breaker, 0.0, RULE)
    assert breaker.state == "open"
    assert not permits(breaker, 29.9)
    assert permits(breaker, 30.0)
    probing = asked(breaker, 30.0)
    assert probing.state == "half_open"
    assert not permits(probing, 31.0)
    assert permits(probing, 60.0), "a probe that never came back is repeated"
    assert succeeded(probing, RULE) == new_breaker(RULE)
    again = failed(probing, 31.0, RULE)
    assert again.state == "open"
    assert not permits(again, 90.9)
    assert permits(again, 91.0)


def test_late_answers_say_nothing_to_an_open_one() -> None:
    breaker = new_breaker(RULE)
    for _ in range(3):
        breaker = failed(breaker, 0.0, RULE)
    assert succeeded(breaker, RULE) == breaker == failed(breaker, 5.0, RULE)


def test_two_failures_and_an_answer_begin_anew() -> None:
    breaker = failed(failed(new_breaker(RULE), 0.0, RULE), 0.0, RULE)
    breaker = failed(succeeded(breaker, RULE), 0.0, RULE)
    assert breaker.state == "closed"
    assert breaker.failures == 1

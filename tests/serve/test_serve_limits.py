"""Rates, budgets and bodies: the bounds hold, and what keeps them is bounded itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pastille.serve.errors import Refused
from pastille.serve.limits import _PEERS, Budget, GoneError, Rate, network_of, read_body
from pastille.serve.settings import Limits

LIMITS = Limits(body_bytes=10)


@given(st.lists(st.floats(0, 3), max_size=60), st.integers(1, 5), st.floats(0.5, 5))
def test_a_peer_never_gets_more_than_its_rate(pauses: list[float], burst: int, per_second: float) -> None:
    """In any span, at most the burst and what the rate adds: held against a count of every span."""
    now, granted = 0.0, []
    rate = Rate(per_second=per_second, burst=burst, clock=lambda: now)
    for pause in pauses:
        now += pause
        if rate.take("peer") == 0:
            granted.append(now)
    for first, begin in enumerate(granted):
        for last in range(first, len(granted)):
            assert last - first + 1 <= burst + per_second * (granted[last] - begin) + 1e-6


@given(st.floats(0.5, 5), st.integers(1, 4))
def test_who_waits_as_long_as_told_is_let_in(per_second: float, burst: int) -> None:
    now = 0.0
    rate = Rate(per_second=per_second, burst=burst, clock=lambda: now)
    for _ in range(burst):
        assert rate.take("peer") == 0
    wait = rate.take("peer")
    assert wait > 0
    now += wait + 1e-9
    assert rate.take("peer") == 0


def test_rates_of_a_million_peers_cost_no_more_than_those_of_ten_thousand() -> None:
    rate = Rate(per_second=1, burst=1, clock=lambda: 0.0)
    for number in range(_PEERS + 500):
        rate.take(str(number))
    assert len(rate._peers) == _PEERS


def test_one_machine_is_one_peer_however_many_addresses_it_has() -> None:
    assert network_of("2001:db8:0:1::1") == network_of("2001:db8:0:1:ffff::2")
    assert network_of("2001:db8:0:1::1") != network_of("2001:db8:0:2::1")
    assert network_of("fe80::1%eth0") == "fe80::/64"


def test_a_budget_is_given_back_after_a_refusal_too() -> None:
    budget = Budget(10)
    with budget.share() as take:
        take(6)
        with pytest.raises(Refused) as refused, budget.share() as other:
            other(5)
        assert refused.value.status == 503
        assert budget.held == 6
    assert budget.held == 0


def receiving(*messages: dict[str, Any]) -> Callable[[], Awaitable[MutableMapping[str, Any]]]:
    left = list(messages)

    async def receive() -> MutableMapping[str, Any]:
        return left.pop(0)

    return receive


def piece(body: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def read(*messages: dict[str, Any], headers: dict[bytes, bytes] | None = None) -> bytes:
    taken: list[int] = []
    body = asyncio.run(read_body(receiving(*messages), headers or {}, LIMITS, taken.append))
    assert sum(taken) == len(body)
    return bytes(body)


@given(st.lists(st.binary(max_size=4), min_size=1, max_size=8))
def test_a_body_is_its_pieces_or_too_large(pieces: list[bytes]) -> None:
    messages = [piece(p, more=i < len(pieces) - 1) for i, p in enumerate(pieces)]
    whole = b"".join(pieces)
    if len(whole) <= LIMITS.body_bytes:
        assert read(*messages) == whole
    else:
        with pytest.raises(Refused, match="at most 10 bytes"):
            read(*messages)


def test_a_declared_length_is_refused_before_anything_is_read() -> None:
    with pytest.raises(Refused) as refused:
        read(headers={b"content-length": b"11"})
    assert refused.value.status == 413


def test_nobody_is_answered_who_left() -> None:
    with pytest.raises(GoneError):
        read(piece(b"a", more=True), {"type": "http.disconnect"})

"""Rates, budgets and bodies: the bounds hold, and what keeps them is bounded itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pastille.serve.endpoint import Asked, Endpoint
from pastille.serve.errors import STATUS, Cause, Refused
from pastille.serve.http_answers import PIECE, Outcome, refusal, send_outcome
from pastille.serve.limits import _PEERS, Budget, GoneError, Rate, network_of, read_body
from pastille.serve.routes_infer import json_numbers
from pastille.serve.settings import Limits, Settings
from pastille.serve.standing import Standing
from pastille.serve.watch.monitor import open_monitor
from pastille.values import TensorSpec
from pastille.wire import InferRequest, RequestedOutput

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


def test_an_answer_that_is_being_read_takes_the_room_of_bodies() -> None:
    budget = Budget(10)
    with budget.holding(12):
        with pytest.raises(Refused), budget.share() as take:
            take(1)
        assert budget.held == 12
    assert budget.held == 0


def test_a_peer_that_does_not_read_a_large_answer_is_let_go() -> None:
    settings = Settings(limits=Limits(body_s=0.05))
    standing = Standing(settings=settings, monitor=open_monitor(settings))
    sent: list[MutableMapping[str, Any]] = []

    async def large(_asked: Asked) -> Outcome:
        return Outcome(body=bytes(3 * PIECE))

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)
        if len(sent) == 3:  # the head and one piece were read, and nothing after
            assert standing.budget.held == 3 * PIECE
            await asyncio.Event().wait()

    endpoint = Endpoint(standing=standing, handlers={"GET": large}, scope=None, name="x")
    scope: dict[str, Any] = {"method": "GET", "headers": [], "path_params": {}, "query_string": b""}
    asyncio.run(asyncio.wait_for(endpoint(scope, receiving(), send), 10))
    assert [len(m.get("body", b"")) for m in sent] == [0, PIECE, PIECE]
    assert standing.budget.held == 0


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 7])
def test_an_answer_is_its_pieces(size: int) -> None:
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    asyncio.run(send_outcome(Outcome(body=body), send))
    assert b"".join(m["body"] for m in sent[1:]) == body
    assert [m.get("more_body", False) for m in sent[1:]] == [True] * (len(sent) - 2) + [False]
    assert max(len(m["body"]) for m in sent[1:]) <= PIECE


def test_an_answer_in_json_has_a_bound_before_a_model_is_asked() -> None:
    mask = TensorSpec(name="mask", shape=(4, 512, 512), dtype="float32")

    def asked(rows: int, *, binary: bool) -> InferRequest:
        x = np.zeros((rows, 1), np.float32)
        return InferRequest(inputs={"x": x}, outputs=(RequestedOutput(name="mask", binary=binary),))

    assert json_numbers(asked(64, binary=True), mask, Settings()) == 0
    assert json_numbers(asked(1, binary=False), mask, Settings()) == 1 << 20
    with pytest.raises(Refused, match="ask for binary_data_output") as refused:
        json_numbers(asked(2, binary=False), mask, Settings())
    assert refused.value.status == 413


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


@pytest.mark.parametrize("cause", [cause for cause, status in STATUS.items() if status in (429, 503)])
def test_who_is_refused_for_now_is_told_when_to_come_back(cause: Cause) -> None:
    own = [refusal(Refused(cause, "not now", retry_after_s=s)).headers for s in (0.2, 1.2)]
    assert own == [((b"retry-after", b"1"),), ((b"retry-after", b"2"),)]
    if STATUS[cause] == 503:
        assert refusal(Refused(cause, "not now")).headers == ((b"retry-after", b"1"),)


def test_nobody_is_answered_who_left() -> None:
    with pytest.raises(GoneError):
        read(piece(b"a", more=True), {"type": "http.disconnect"})

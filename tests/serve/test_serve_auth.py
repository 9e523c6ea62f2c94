"""Tokens and their scopes, exposure, and pages of strangers in a browser on the same machine."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from pastille.errors import UsageError
from pastille.serve.auth import (
    SCOPES,
    caller_of,
    check_browser,
    check_exposure,
    check_scope,
    is_loopback,
    new_token,
)
from pastille.serve.configuring import line_of, read_settings, read_tokens, size_of
from pastille.serve.errors import Refused
from pastille.serve.settings import Settings

LOCAL = {b"host": b"localhost:8080"}


def test_a_token_is_known_by_its_hash_alone() -> None:
    secret, kept = new_token("ward", frozenset({"infer"}))
    assert secret not in repr(kept)
    assert kept.sha256 == hashlib.sha256(secret.encode()).hexdigest()
    caller = caller_of(f"Bearer {secret}".encode(), (kept,))
    assert caller.name == "ward"
    assert caller_of(f"bearer  {secret} ".encode(), (kept,)) == caller


@pytest.mark.parametrize(
    "sent", [None, b"", b"Bearer", b"Bearer ", b"Basic abc", b"Bearer wrong", b"\xff \xfe"]
)
def test_without_a_known_token_nobody_gets_in(sent: bytes | None) -> None:
    _, kept = new_token("ward", frozenset({"infer"}))
    with pytest.raises(Refused) as refused:
        caller_of(sent, (kept,))
    assert refused.value.status == 401


def test_the_hash_is_no_token() -> None:
    _, kept = new_token("ward", frozenset({"infer"}))
    with pytest.raises(Refused):
        caller_of(b"Bearer " + kept.sha256.encode(), (kept,))


@pytest.mark.parametrize("scope", SCOPES)
def test_a_scope_allows_what_it_names_and_nothing_else(scope: Any) -> None:
    secret, kept = new_token("ward", frozenset({scope}))
    caller = caller_of(f"Bearer {secret}".encode(), (kept,))
    check_scope(caller, scope)
    for other in set(SCOPES) - {scope}:
        with pytest.raises(Refused, match=other) as refused:
            check_scope(caller, other)
        assert refused.value.status == 403


@pytest.mark.parametrize(
    "headers",
    [
        {b"host": b"evil.example"},
        {b"host": b"127.0.0.1.evil.example"},
        {b"host": b"localhost.evil.example:8080"},
        LOCAL | {b"origin": b"http://evil.example"},
        LOCAL | {b"origin": b"http://localhost:3000"},
        LOCAL | {b"origin": b"null"},
        LOCAL | {b"sec-fetch-site": b"cross-site"},
    ],
)
def test_a_page_of_a_stranger_is_refused(headers: dict[bytes, bytes]) -> None:
    with pytest.raises(Refused) as refused:
        check_browser("POST", headers, Settings())
    assert refused.value.status == 403


@pytest.mark.parametrize(
    "headers",
    [
        LOCAL,
        LOCAL | {b"origin": b"http://localhost:8080", b"sec-fetch-site": b"same-origin"},
        {b"host": b"127.0.0.1"},
        {b"host": b"[::1]:8080"},
        {b"host": b"box.ward"},
    ],
)
def test_the_own_page_and_programs_are_not(headers: dict[bytes, bytes]) -> None:
    check_browser("POST", headers, Settings(hosts=frozenset({"box.ward"})))


def test_where_tokens_are_needed_no_page_has_one() -> None:
    _, kept = new_token("ward", frozenset({"infer"}))
    check_browser("POST", {b"host": b"proxy", b"origin": b"http://elsewhere"}, Settings(tokens=(kept,)))


def test_beyond_this_machine_tokens_are_required() -> None:
    _, kept = new_token("ward", frozenset({"infer"}))
    assert check_exposure(Settings()) == ""
    assert check_exposure(Settings(host="0.0.0.0", tokens=(kept,))) == ""
    assert "INSECURE" in check_exposure(Settings(host="0.0.0.0", insecure=True))
    with pytest.raises(UsageError, match="--token-file"):
        check_exposure(Settings(host="::"))
    assert not is_loopback("localhost.example.org")


def test_a_token_file_is_read_as_it_is_printed(tmp_path: Path) -> None:
    made = [new_token("ward", frozenset({"infer", "feedback"}))[1], new_token("ops", frozenset({"admin"}))[1]]
    path = tmp_path / "tokens.txt"
    path.write_text("# who may ask\n" + "\n\n".join(map(line_of, made)) + "\n")
    assert read_tokens(path) == tuple(made)


@pytest.mark.parametrize("text", ["", "ward", "ward abc infer", f"ward {'0' * 64} everything", "\xff"])
def test_a_broken_token_file_is_named_and_not_quoted(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokens.txt"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=r"tokens\.txt") as error:
        read_tokens(path)
    assert "0" * 64 not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot: 80", "there is no setting 'prot'"),
        ("port: high", "'port'"),
        ("limits: {rows: 0}", "'limits.rows'"),
        ("[1, 2]", "KEY: VALUE"),
        ("a: [", "YAML"),
    ],
)
def test_settings_that_are_not_allowed_are_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said.replace("[", r"\[")):
        read_settings(path, {})


def test_the_command_line_comes_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("port: 9000\nqueue: {rate: 5, burst: 3}\n")
    found = read_settings(path, {"port": 9001, "queue.rate": 7, "mode": None})
    assert (found.port, found.queue.rate, found.queue.burst, found.mode) == (9001, 7, 3, "auto")
    with pytest.raises(UsageError, match="64MB"):
        size_of("much")

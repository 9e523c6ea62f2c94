"""Tokens and their scopes, exposure, and pages of strangers in a browser on the same machine."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pastille.cli.app import app
from pastille.errors import UsageError
from pastille.serve.auth import (
    SCOPES,
    caller_of,
    check_browser,
    check_exposure,
    check_scope,
    new_token,
)
from pastille.serve.configuring import line_of, read_settings, read_tokens, size_of
from pastille.serve.errors import Refused
from pastille.serve.settings import Settings, Token
from pastille.wire import is_loopback

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
    check_browser("POST", headers, Settings(hosts=frozenset({"Box.ward"})))


@pytest.mark.parametrize("sha256", ["a" * 65, "x" + "a" * 64, "A" * 64, "a" * 63])
def test_a_hash_that_no_token_can_have_is_refused(sha256: str) -> None:
    with pytest.raises(ValueError, match="sha256"):
        Token(name="ward", sha256=sha256)


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


def test_what_the_command_prints_can_be_appended_to_the_file_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "tokens.txt"
    made = [CliRunner().invoke(app, ["token", name, "--scope", "monitor"]) for name in ("ward", "prometheus")]
    path.write_text("".join(each.stdout for each in made))
    secrets = [re.search(r"pst_\S+", each.stderr) for each in made]
    sent = [f"Bearer {secret[0]}".encode() for secret in secrets if secret]
    assert [caller_of(each, read_tokens(path)).name for each in sent] == ["ward", "prometheus"]


def test_a_run_in_place_of_its_bundle_is_told_where_that_is(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/manifest.json").write_text("{}")
    done = CliRunner().invoke(app, ["serve", str(tmp_path)])
    assert done.exit_code == 2
    assert f"is a run; its bundle is {tmp_path / 'bundle'}" in done.stderr


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
    (tmp_path / "tokens").write_text(line_of(new_token("ward", frozenset({"infer"}))[1]))
    path.write_text("token_file: tokens\n")
    assert [token.name for token in read_settings(path, {}).tokens] == ["ward"]
    other = (new_token("ops", frozenset({"admin"}))[1],)
    assert read_settings(path, {"tokens": other}).tokens == other
    path.write_text("token_file: [tokens]\n")
    with pytest.raises(UsageError, match="token_file"):
        read_settings(path, {})
    with pytest.raises(UsageError, match="64MB"):
        size_of("much")

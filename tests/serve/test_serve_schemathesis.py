"""Schemathesis on the server's own description: whatever it makes up, there is no 5xx and no hang."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serving_bundles import tiny_bundle
from serving_process import Running, running

from pastille.serve.openapi import description

_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
_SETTINGS = settings(  # few per operation: a thousand were tried by hand
    max_examples=4, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tiny_bundle(tmp_path_factory.mktemp("schema") / "bundle", "binary")) as server:
        yield server


def operations() -> list[str]:
    return sorted(description("1", secured=False)["paths"])


@pytest.mark.parametrize("path", operations())
def test_whatever_is_asked_is_answered_as_described(server: Running, path: str) -> None:
    schema = schemathesis.openapi.from_dict(description("1", secured=False))
    schema.config.update(base_url=server.url)
    for method in {"get", "post"} & set(schema[path]):

        @given(case=schema[path][method].as_strategy())
        @_SETTINGS
        def check(case: Any) -> None:
            if "model" in case.path_parameters:
                case.path_parameters["model"] = "tiny"
            case.call_and_validate(checks=_CHECKS, timeout=10)

        check()


def test_the_server_is_still_the_same(server: Running) -> None:
    assert server.ask("GET", "/healthz/ready")[0] == 200
    assert not [event for event in server.events() if event["event"] == "fault"]

"""The application over the network: every route, scopes, refusals, bombs; one server for all of it."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from serving_bundles import cases, tiny_bundle
from serving_process import Running, running

from pastille.serve.app import PROBES, TABLE
from pastille.serve.auth import SCOPES, new_token
from pastille.serve.configuring import line_of
from pastille.serve.openapi import description
from pastille.wire import decode_response, encode_request

INFER = "/v2/models/tiny/infer"


@dataclass(frozen=True)
class Served:
    server: Running
    secrets: dict[str, str]
    folder: Path

    def headers(self, *scopes: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secrets['+'.join(scopes)]}"}

    def infer(self, body: bytes, **headers: str) -> tuple[int, dict[str, str], bytes]:
        return self.server.ask("POST", INFER, body, {**self.headers("infer"), **headers})


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("app")
    made = {scope: new_token(scope, frozenset({scope})) for scope in SCOPES}
    (folder / "tokens").write_text("\n".join(line_of(kept) for _, kept in made.values()))
    (folder / "serve.yaml").write_text("limits: {inflated_bytes: 4000000, json_bytes: 1000000}")
    bundle = tiny_bundle(folder / "bundle", "binary")
    tiny_bundle(folder / "next", "binary", selected="fp32")
    named = {"--config": "serve.yaml", "--token-file": "tokens", "--audit": "audit"}
    files = [word for option, name in named.items() for word in (option, str(folder / name))]
    with running(bundle, args=("--admin", "--log-requests", *files)) as server:
        yield Served(server, {scope: secret for scope, (secret, _) in made.items()}, folder)
        assert not [e for e in server.events() if e["event"] == "fault"]


def binary(x: np.ndarray) -> tuple[bytes, dict[str, str]]:
    encoded = encode_request({"input": x})
    return encoded.body, {name.decode(): value.decode() for name, value in encoded.headers()}


def test_an_answer_carries_its_provenance(served: Served) -> None:
    body, headers = binary(cases(2, seed=3))
    status, given, answer = served.infer(body, **headers)
    assert status == 200
    told = decode_response(answer, json_length=int(given["inference-header-content-length"]))
    assert told.parameters["variant"] == "int8"
    assert set(told.parameters) >= {"model_sha256", "decision", "confidence", "probability", "threshold"}
    assert told.outputs["logits"].shape == (2, 1)
    assert re.fullmatch("[0-9a-f]{16}", given["x-request-id"])


def test_the_fallback_is_said(served: Served) -> None:
    body, headers = binary(cases(1, nan=1))
    status, given, answer = served.infer(body, **headers)
    told = decode_response(answer, json_length=int(given["inference-header-content-length"]))
    assert (status, told.parameters["variant"]) == (200, "fp32")
    assert (told.parameters["fallback"], told.parameters["fallback_why"]) == (True, "non_finite")


def test_every_route_asks_for_its_scope(served: Served) -> None:
    for path, scope, handlers in TABLE:
        address = path.format(model="tiny", version="1")
        method = next(iter(handlers))
        if scope is None:
            continue
        assert served.server.ask(method, address)[0] == 401, path
        other = next(s for s in SCOPES if s != scope)
        assert served.server.ask(method, address, headers=served.headers(other))[0] == 403, path


def test_health_and_the_page_need_no_token(served: Served) -> None:
    for path in (*PROBES, "/", "/openapi.json"):
        assert served.server.ask("GET", path)[0] == 200, path
        assert served.server.ask("HEAD", path)[2] == b"", path
    _, headers, _ = served.server.ask("GET", "/")
    assert "default-src 'none'" in headers["content-security-policy"]


def test_every_refusal_is_json(served: Served) -> None:
    admin, infer = served.headers("admin"), served.headers("infer")
    refusals = {
        ("GET", "/nowhere"): (404, {}),
        ("DELETE", "/predict"): (405, {}),
        ("GET", "/v2/models/none"): (404, infer),
        ("GET", "/v2/models/tiny/versions/9"): (404, infer),
        ("POST", INFER): (400, infer),
        ("POST", "/admin/rollback"): (400, admin),
        ("GET", "/monitor.json?" + "&".join("a=b" for _ in range(99))): (400, served.headers("monitor")),
    }
    for (method, path), (expected, headers) in refusals.items():
        status, given, body = served.server.ask(method, path, headers=headers)
        assert status == expected, path
        assert given["content-type"] == "application/json"
        assert set(json.loads(body)) == {"error"}


def test_what_is_not_finite_never_reaches_a_model(served: Served) -> None:
    for bad in (np.nan, np.inf, -np.inf):
        body, headers = binary(np.full((1, 10), bad, np.float32))
        status, _, answer = served.infer(body, **headers)
        assert status == 400
        assert b"finite" in answer


HOSTILE = {
    "no JSON": b"{",
    "a list": b"[]",
    "deep": b"[" * 100_000,
    "deep in an object": b'{"inputs":' + b'{"a":' * 50_000,
    "many keys": b"{" + b",".join(b'"%d":1' % i for i in range(50_000)) + b"}",
    "large": b'{"inputs": "' + b"a" * 1_100_000 + b'"}',
    "huge number": b'{"id": ' + b"9" * 100_000 + b"}",
    "lying shape": b'{"inputs":[{"name":"input","datatype":"FP32","shape":[1,10],"data":[1]}]}',
    "huge shape": b'{"inputs":[{"name":"input","datatype":"FP32","shape":[9999999999,10],"data":[1]}]}',
    "negative shape": b'{"inputs":[{"name":"input","datatype":"FP32","shape":[-1,10],"data":[1]}]}',
    "not a number": b'{"inputs":[{"name":"input","datatype":"FP32","shape":[1,10],"data":[NaN]}]}',
    "binary that is not there": b'{"inputs":[{"name":"input","datatype":"FP32","shape":[1,10],'
    b'"parameters":{"binary_data_size":40}}]}',
    "lone surrogate": b'{"id":"\\ud800","inputs":[]}',
    "not UTF-8": b'{"id":"\xff"}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_json_is_refused(served: Served, name: str) -> None:
    for path in (INFER, "/predict"):
        headers = {**served.headers("infer"), "Content-Type": "application/json"}
        status, _, answer = served.server.ask("POST", path, HOSTILE[name], headers)
        assert status in (400, 413), answer
        assert set(json.loads(answer)) == {"error"}


def test_what_is_allowed_is_what_is_answered(served: Served) -> None:
    for path, allowed in (("/v2", "GET, HEAD"), ("/predict", "GET, HEAD, POST"), (INFER, "POST")):
        status, headers, _ = served.server.ask("DELETE", path, None, served.headers("infer"))
        assert (status, headers["allow"]) == (405, allowed)
        status, _, _ = served.server.ask("HEAD", path, None, served.headers("infer"))
        assert (status == 405) == ("HEAD" not in allowed)


def test_a_patience_beyond_every_number_is_the_servers(served: Served) -> None:
    given = {"name": "input", "datatype": "FP32", "shape": [1, 10], "data": cases(1).ravel().tolist()}
    body = json.dumps({"inputs": [given], "parameters": {"timeout": 10**400}}).encode()
    assert served.infer(body)[0] == 200


def test_a_bomb_does_not_go_off(served: Served) -> None:
    """256 MiB in 261 KB: refused where it grows too large, with little memory."""
    before = served.server.resident_bytes()
    block = b"\0" * (1 << 20)
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(packer.compress(block) for _ in range(256)) + packer.flush()
    for _ in range(2):
        status, _, _ = served.infer(bomb, **{"Content-Encoding": "gzip"})
        assert status == 413
    assert served.server.resident_bytes() < before + (32 << 20)


def test_compressed_bodies_are_taken(served: Served) -> None:
    body, headers = binary(cases(1))
    packed = served.infer(gzip.compress(body), **headers, **{"Content-Encoding": "gzip"})
    deflated = served.infer(zlib.compress(body), **headers, **{"Content-Encoding": "deflate"})
    assert packed[0] == deflated[0] == 200
    assert served.infer(body, **headers, **{"Content-Encoding": "br"})[0] == 415


def test_a_label_comes_later(served: Served) -> None:
    body, headers = binary(cases(1, seed=5))
    _, given, _ = served.infer(body, **headers)
    told = {"request_id": given["x-request-id"], "label": "ill", "groups": {"sex": "female"}}
    feedback = served.headers("feedback")
    assert served.server.ask_json("POST", "/feedback", told, **feedback)[0] == 200
    for wrong in ({"label": "ill"}, told | {"row": -1}, told | {"x": 1}, told | {"groups": 3}):
        assert served.server.ask_json("POST", "/feedback", wrong, **feedback)[0] == 400
    unknown = told | {"request_id": "unknown"}
    assert served.server.ask_json("POST", "/feedback", unknown, **feedback)[0] == 404


def test_a_swap_is_verified_and_comes_back(served: Served) -> None:
    admin, infer = served.headers("admin"), served.headers("infer")
    server = served.server
    status, told = server.ask_json("POST", "/admin/swap", {"bundle": str(served.folder / "next")}, **admin)
    assert (status, told["version"]) == (200, "2")
    status, _ = server.ask_json("POST", "/admin/swap", {"bundle": str(served.folder / "none")}, **admin)
    assert status == 400
    (served.folder / "broken").mkdir()
    status, _ = server.ask_json("POST", "/admin/swap", {"bundle": str(served.folder / "broken")}, **admin)
    assert status == 409
    assert server.ask_json("GET", "/v2/models/tiny", **infer)[1]["versions"][0] == "2"
    status, told = server.ask_json("POST", "/admin/rollback", {"model": "tiny"}, **admin)
    assert (status, told["version"]) == (200, "1")
    assert server.ask_json("POST", "/v2/repository/models/tiny/load", {}, **admin)[0] == 200


def test_nothing_of_a_request_is_logged(served: Served) -> None:
    body, headers = binary(cases(1))
    served.infer(body, **headers, **{"X-Request-Id": "Jane-Doe-1980"})
    logged = "\n".join(served.server.logged)
    assert [e for e in served.server.events() if e["event"] == "answered" and e["variant"] == "int8"]
    audit = b"".join(file.read_bytes() for file in (served.folder / "audit").iterdir())
    assert b'"decision"' in audit
    assert "Jane" not in logged
    assert b"Jane" not in audit
    assert not [secret for secret in served.secrets.values() if secret in logged]


def test_what_a_decoder_warns_of_is_not_logged() -> None:
    """One picture can make it warn a thousand times, each time in other words."""
    code = (
        "import warnings; from pastille.serve import logs; logs.set_up()\n"
        "for size in range(9): warnings.warn(f'Expecting to read {size} bytes')\n"
        "logs.event('over')"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    [line] = ran.stderr.splitlines()
    assert json.loads(line)["event"] == "over"


def test_the_description_lists_what_is_routed() -> None:
    described = {
        (path, method.upper())
        for path, item in description("1", secured=True)["paths"].items()
        for method in item
        if method in ("get", "post")
    }
    routed = {(path, method) for path, _, handlers in TABLE for method in handlers}
    assert described == routed | {(path, "GET") for path in PROBES}


def test_serving_imports_nothing_heavy() -> None:
    code = (
        "import sys, pastille.serve.lifecycle\n"
        "print([m for m in ('torch', 'onnx', 'scipy', 'transformers') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

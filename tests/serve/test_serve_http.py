"""HTTP below the application: hostile, broken and slow peers, on raw sockets against the real server."""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving_bundles import cases, tiny_bundle
from serving_process import Running, running
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from pastille.serve.http import HEADER_BYTES, PIPELINED, QUIET_S, BoundedProtocol, Shared
from pastille.serve.settings import Limits
from pastille.wire import encode_request

HOST = b"Host: localhost\r\n"
GET = b"GET /v2 HTTP/1.1\r\n" + HOST + b"\r\n"
SETTINGS = "limits: {header_s: 0.5, body_s: 0.5, idle_s: 0.5, connections: 20, body_bytes: 1000000}\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("http")
    (folder / "serve.yaml").write_text(SETTINGS)
    bundle = tiny_bundle(folder / "bundle", "binary")
    with running(bundle, args=("--config", str(folder / "serve.yaml"))) as server:
        yield server
        assert not [e for e in server.events() if e["event"] == "fault"]
        assert all(line.startswith("{") for line in server.logged)


def talk(server: Running, sent: bytes, *later: bytes) -> bytes:
    """Everything that comes back until the server closes; ``later`` pieces follow slowly."""
    with server.connect() as peer:
        peer.sendall(sent)
        for piece in later:
            time.sleep(0.05)
            peer.sendall(piece)
        found = b""
        while piece := peer.recv(1 << 16):
            found += piece
        return found


def answers(raw: bytes) -> list[tuple[int, dict[str, object]]]:
    """Status and JSON of every answer in what came back; each must be whole, and nothing beside them."""
    found = []
    while raw:
        head, _, rest = raw.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        length = int(headers["content-length"])
        assert len(rest) >= length
        found.append((int(lines[0].split()[1]), json.loads(rest[:length])))
        raw = rest[length:]
    return found


def post(*headers: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([b"POST /predict HTTP/1.1", b"Host: localhost", *headers, b"", body])


AMBIGUOUS = {
    "length and chunked": post(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "chunked and length": post(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n"),
    "two lengths": post(b"Content-Length: 5", b"Content-Length: 6", body=b"abcde"),
    "negative length": post(b"Content-Length: -5"),
    "endless length": post(b"Content-Length: 99999999999999999999999"),
    "not chunked": post(b"Transfer-Encoding: gzip", body=b"abc"),
    "nearly chunked": post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
    "broken chunk": post(b"Transfer-Encoding: chunked", body=b"ZZ\r\n"),
    "two hosts": b"GET /v2 HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
    "no host": b"GET /v2 HTTP/1.1\r\n\r\n",
    "two authorizations": b"GET /v2 HTTP/1.1\r\n" + HOST + b"Authorization: a\r\nAuthorization: b\r\n\r\n",
    "space before colon": b"GET /v2 HTTP/1.1\r\nHost : localhost\r\n\r\n",
    "folded header": b"GET /v2 HTTP/1.1\r\n" + HOST + b"X: a\r\n b\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a proxy's method": b"CONNECT a:80 HTTP/1.1\r\n" + HOST + b"\r\n",
    "chunked in HTTP/1.0": b"POST /predict HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n",
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_two_readers_could_read_differently_is_refused(server: Running, name: str) -> None:
    [(status, told)] = answers(talk(server, AMBIGUOUS[name] + GET))  # what is smuggled is not answered
    assert status == 400
    assert set(told) == {"error"}


def test_pipelined_requests_are_answered_in_order(server: Running) -> None:
    other = b"GET /v2/models/tiny HTTP/1.1\r\n" + HOST + b"\r\n"
    found = answers(talk(server, GET + other + GET))
    assert [told["name"] for _, told in found] == ["pastille", "tiny", "pastille"]


def test_garbage_behind_a_request_does_not_become_its_answer(server: Running) -> None:
    slow = encode_request({"input": cases(1, slow=0.05)})
    head = post(b"Inference-Header-Content-Length: %d" % (slow.json_length or 0))
    head = head.replace(b"/predict", b"/v2/models/tiny/infer").removesuffix(b"\r\n")
    request = head + b"Content-Length: %d\r\n\r\n" % len(slow.body) + slow.body
    assert b"binary_data_size" in talk(server, request + b"rubbish\r\n\r\n")
    found = answers(talk(server, GET + b"rubbish\r\n\r\n"))
    assert [status for status, _ in found] == [200]


def test_too_many_pipelined_requests_end_the_connection(server: Running) -> None:
    found = answers(talk(server, GET * (PIPELINED * 10)))
    assert len(found) <= PIPELINED + 1
    assert {status for status, _ in found} == {200}


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /v2 HTTP/1.1\r\n" + HOST + b"X: " + b"a" * (5 * HEADER_BYTES),
        b"GET /v2 HTTP/1.1\r\n" + HOST + b"a: b\r\n" * 1000 + b"\r\n",
        b"GET /" + b"a" * (2 * HEADER_BYTES) + b" HTTP/1.1\r\n" + HOST + b"\r\n",
        post(b"Transfer-Encoding: chunked", body=b"1\r\nx\r\n0\r\nX: " + b"a" * (8 * HEADER_BYTES)),
        post(b"Transfer-Encoding: chunked", body=b"1;" + b"a" * (8 * HEADER_BYTES)),
    ],
    ids=["one header", "many headers", "target", "trailer", "chunk extension"],
)
def test_headers_have_a_bound_wherever_they_hide(server: Running, sent: bytes) -> None:
    [(status, _)] = answers(talk(server, sent))
    assert status == 431


def test_a_slow_peer_is_let_go(server: Running) -> None:
    """Slow loris: in the first byte, in the headers, drop by drop, in the body."""
    drops = [b"X: y\r\n"] * 8  # 0.4 s of them, and then nothing
    for sent, later in ((b"", []), (b"GET /v2 HT", []), (b"GET /v2 HTTP/1.1\r\n", drops)):
        [(status, _)] = answers(talk(server, sent, *later))
        assert status == 408
    [(status, told)] = answers(talk(server, post(b"Content-Length: 5", body=b"ab")))
    assert status == 408
    assert "body" in str(told["error"])


def test_an_idle_connection_is_closed_without_a_word(server: Running) -> None:
    assert len(answers(talk(server, GET))) == 1


def test_a_body_of_65536_chunks_of_one_byte_is_one_body(server: Running) -> None:
    before = server.resident_bytes()
    flood = b"1\r\nx\r\n" * 65536 + b"0\r\n\r\n"
    [(status, _)] = answers(talk(server, post(b"Transfer-Encoding: chunked", body=flood)))
    assert status == 400
    assert server.resident_bytes() < before + (16 << 20)


def test_too_large_a_body_is_refused_and_the_peer_reads_why(server: Running) -> None:
    declared = talk(server, post(b"Content-Length: 5000000", body=b"a" * 300_000))
    pieces = (b"186A1\r\n" + b"a" * 100_001 + b"\r\n") * 11
    chunked = talk(server, post(b"Transfer-Encoding: chunked", body=pieces))
    for raw in (declared, chunked):
        [(status, _)] = answers(raw)
        assert status == 413


def test_an_early_refusal_leaves_the_connection_usable(server: Running) -> None:
    """404 before the body is read: what is left of it is read past, and the next request answered."""
    unread = b"POST /nowhere HTTP/1.1\r\n" + HOST + b"Content-Length: 200000\r\n\r\n" + b"a" * 200_000
    found = answers(talk(server, unread, GET))
    assert [status for status, _ in found] == [404, 200]


def test_more_connections_than_allowed_are_told_so(server: Running) -> None:
    peers = [server.connect() for _ in range(21)]
    try:
        [(status, _)] = answers(peers[-1].recv(1 << 16))
        assert status == 503
    finally:
        for peer in peers:
            peer.close()
    # The server may accept the next one before it notices that all of them left.
    assert 200 in (server.ask("GET", "/v2")[0] for _ in range(50))


def test_expectation_is_met_and_upgrades_are_passed_over(server: Running) -> None:
    raw = talk(server, post(b"Expect: 100-continue", b"Content-Length: 2", body=b"{}"))
    assert raw.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 400")
    upgrade = b"GET /v2 HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    assert [status for status, _ in answers(talk(server, upgrade))] == [200]
    # With a body behind it, as some clients send it: the parser would not read that, and answer for it.
    [(status, told)] = answers(
        talk(server, post(b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: 2"))
    )
    assert status == 400
    assert "no upgrade" in str(told["error"])


async def empty(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"{}"})


def test_idle_connections_do_not_keep_others_out() -> None:
    async def statuses() -> list[bytes]:
        config = Config(empty, ws="none", lifespan="off", log_config=None, access_log=False)
        config.load()
        state, shared = ServerState(), Shared(limits=Limits(connections=2), refused=lambda *_: None)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: BoundedProtocol(config, state, shared), "127.0.0.1", 0)
        async with server:
            peers, found = [], []
            for wait_s in (0, 0, 0, QUIET_S + 0.1):  # the third comes while the others may still ask again
                await asyncio.sleep(wait_s)
                peers.append(await asyncio.open_connection(*server.sockets[0].getsockname()))
                peers[-1][1].write(GET)
                found.append((await peers[-1][0].read(1 << 16))[:12])
            assert await peers[0][0].read() == b""  # who was idle for longest made room
            for _, writer in peers:
                writer.close()
            return found

    assert asyncio.run(statuses()) == [b"HTTP/1.1 200", b"HTTP/1.1 200", b"HTTP/1.1 503", b"HTTP/1.1 200"]


def test_an_unread_answer_keeps_a_closed_connection_for_so_long_only() -> None:
    """It fits into the transport's buffer, so that nothing ever pauses: only time lets it go."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        length = (b"content-length", b"60000")
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": bytes(60_000)})

    async def connections_left() -> set[Any]:
        config = Config(app, ws="none", lifespan="off", log_config=None, access_log=False)
        config.load()
        state, limits = ServerState(), Limits(body_s=0.1)
        shared = Shared(limits=limits, refused=lambda _cause, _status: None)
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        loop = asyncio.get_running_loop()
        async with await loop.create_server(lambda: BoundedProtocol(config, state, shared), sock=listener):
            with socket.socket() as peer:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                peer.connect(listener.getsockname())
                peer.sendall(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
                while not state.total_requests:
                    await asyncio.sleep(0.01)
                assert state.connections, "the answer was read: it is too short for this test"
                await asyncio.sleep(0.5)
                return set(state.connections)

    assert not asyncio.run(connections_left())


@pytest.mark.parametrize("body", [b"", b"x" * 300_000])
def test_a_crowded_server_refuses_at_the_head_and_keeps_the_connection(body: bytes) -> None:
    """The application never hears of it; what follows on the connection is answered as ever."""
    heard, refused = [], []

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        heard.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"{}"})

    async def asked() -> list[bytes]:
        config = Config(app, ws="none", lifespan="off", log_config=None, access_log=False)
        config.load()
        crowd = [0.2, 0.2, None, None]
        shared = Shared(
            limits=Limits(), refused=lambda *what: refused.append(what), crowded=lambda _: crowd.pop(0)
        )
        loop, state = asyncio.get_running_loop(), ServerState()
        server = await loop.create_server(lambda: BoundedProtocol(config, state, shared), "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            found = []
            for request in (*[post(b"Content-Length: %d" % len(body), body=body)] * 4, GET):
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                found.append(head + await reader.readexactly(length))
            writer.close()
            return found

    found = asyncio.run(asked())
    assert [answer[9:12] for answer in found] == [b"503", b"503", b"200", b"200", b"200"]
    assert all(b"retry-after: 1" in answer and b"connection: close" not in answer for answer in found[:2])
    assert json.loads(found[0].partition(b"\r\n\r\n")[2])["error"].startswith("more is asked")
    assert heard == ["/predict", "/predict", "/v2"]
    assert refused == [("overload", 503)] * 2


def test_a_peer_that_leaves_is_not_worked_for(server: Running) -> None:
    for _ in range(4):
        with server.connect() as peer:
            peer.sendall(post(b"Content-Length: 5", body=b"ab"))
    assert server.ask("GET", "/v2")[0] == 200


def test_uvicorn_still_has_what_the_protocol_leans_on() -> None:
    """uvicorn makes no promise about its protocol class: an update that moves these must be looked at."""
    overridden = {
        name
        for name, value in vars(BoundedProtocol).items()
        if inspect.isfunction(value) and hasattr(HttpToolsProtocol, name)
    }
    assert overridden >= {
        *("connection_made", "connection_lost", "data_received", "eof_received", "pause_writing"),
        *("resume_writing", "on_message_begin", "on_url", "on_header", "on_headers_complete", "on_body"),
        *("on_message_complete", "on_response_complete", "_start_asgi_task", "send_400_response"),
    }
    used = {"keep_alive", "response_started", "response_complete", "disconnected", "message_event"}
    assert used <= set(RequestResponseCycle.__init__.__code__.co_names)
    parameters = inspect.signature(HttpToolsProtocol._start_asgi_task).parameters
    assert list(parameters) == ["self", "cycle", "app"]


def test_settings_file_of_the_fixture_is_what_it_says(tmp_path: Path) -> None:
    from pastille.serve.configuring import read_settings

    (tmp_path / "serve.yaml").write_text(SETTINGS)
    assert read_settings(tmp_path / "serve.yaml", {}).limits.connections == 20

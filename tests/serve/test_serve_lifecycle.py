"""From start to end: what is answered while models open, signals, killed servers, exit codes."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from serving_bundles import cases, tiny_bundle
from serving_process import Running, left_behind, running, start, wait_until_ready

from pastille.serve.listening import listen, take_no_more
from pastille.serve.supervise import MOST, _Supervisor, pause_s
from pastille.wire import encode_request

INFER = "/v2/models/tiny/infer"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("lifecycle") / "bundle", "binary")


def request(slow_s: float = 0.0) -> tuple[bytes, dict[str, str]]:
    encoded = encode_request({"input": cases(1, slow=slow_s)})
    return encoded.body, {name.decode(): value.decode() for name, value in encoded.headers()}


class Clients:
    """As many clients as asked for, each on one connection, asking until the server says that it closes."""

    def __init__(self, server: Running, count: int) -> None:
        self.server, self.found = server, Counter[str]()
        self.started = threading.Barrier(count + 1)
        self.threads = [threading.Thread(target=self._ask) for _ in range(count)]
        for thread in self.threads:
            thread.start()
        self.started.wait()

    def _ask(self) -> None:
        body, headers = request(0.02)
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        connection.connect()
        self.started.wait()
        with contextlib.closing(connection):
            while True:
                try:
                    connection.request("POST", INFER, body, headers)
                    answer = connection.getresponse()
                    answer.read()
                except OSError as error:
                    self.found[type(error).__name__] += 1
                    return
                self.found[str(answer.status)] += 1
                if answer.getheader("connection") == "close":
                    self.found["told to go"] += 1
                    return

    def join(self) -> Counter[str]:
        for thread in self.threads:
            thread.join(60)
        return self.found


def settings(folder: Path, text: str) -> tuple[str, ...]:
    path = folder / "serve.yaml"
    path.write_text(text)
    return ("--config", str(path))


def test_sigterm_under_load_loses_no_answer(bundle: Path, tmp_path: Path) -> None:
    patient = settings(tmp_path, "queue: {wait_s: 20}")
    with running(bundle, args=patient) as server:
        clients = Clients(server, 16)
        time.sleep(0.2)
        assert server.stop(signal.SIGTERM) == 0
        found = clients.join()
        assert found["told to go"] == 16  # each connection got the answer that it waited for
        assert set(found) == {"200", "told to go"}
        with pytest.raises(ConnectionRefusedError):
            server.connect()


def test_the_last_answer_says_that_the_connection_closes(bundle: Path) -> None:
    with running(bundle) as server:
        body, headers = request(0.3)
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        with contextlib.closing(connection):
            connection.request("POST", INFER, body, headers)
            time.sleep(0.1)
            server.process.send_signal(signal.SIGTERM)
            answer = connection.getresponse()
            assert (answer.status, answer.getheader("connection")) == (200, "close")


def test_sigterm_answers_what_only_waits_in_the_backlog(bundle: Path) -> None:
    with running(bundle) as server:
        os.kill(server.pid, signal.SIGSTOP)
        peers = [server.connect() for _ in range(8)]  # the kernel connects them, the server does not know yet
        for peer in peers:
            peer.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        os.kill(server.pid, signal.SIGTERM)
        os.kill(server.pid, signal.SIGCONT)
        for peer in peers:
            with peer:
                assert peer.recv(1 << 16).startswith(b"HTTP/1.1 200")
        assert server.process.wait(60) == 0


def test_sigterm_resets_nobody_who_connects_at_the_last_moment(bundle: Path) -> None:
    """A connection is answered or not made: what a closing socket has not accepted would be reset."""
    found, started = Counter[str](), threading.Barrier(9)
    with running(bundle) as server:

        def ask_until_refused() -> None:
            started.wait()
            while True:
                try:
                    peer = server.connect()
                except ConnectionRefusedError:
                    return
                except OSError as error:
                    found[f"connect: {type(error).__name__}"] += 1
                    continue
                found[asked_once(peer)] += 1

        threads = [threading.Thread(target=ask_until_refused) for _ in range(8)]
        for thread in threads:
            thread.start()
        started.wait()
        time.sleep(0.1)
        assert server.stop() == 0
        for thread in threads:
            thread.join(60)
    assert set(found) == {"HTTP/1.1 200"}


def asked_once(peer: socket.socket) -> str:
    """The model's metadata on a connection that was made: the status, or how it ended."""
    with peer:
        try:
            peer.sendall(b"GET /v2/models/tiny HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return peer.recv(1 << 16)[:12].decode() or "closed"
        except OSError as error:
            return type(error).__name__


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the filter is Linux's")
def test_a_listener_that_takes_no_more_still_has_what_it_took() -> None:
    with listen("127.0.0.1", 0) as listener:
        address = listener.getsockname()
        with socket.create_connection(address) as early:
            take_no_more(listener)
            with pytest.raises(TimeoutError):
                socket.create_connection(address, timeout=0.1)
            accepted, _ = listener.accept()
            with accepted:
                accepted.setblocking(True)
                early.sendall(b"asked")  # the filter lets pass what belongs to a connection
                assert accepted.recv(16) == b"asked"


def test_a_drain_has_an_end(bundle: Path, tmp_path: Path) -> None:
    with running(bundle, args=settings(tmp_path, "drain_s: 0.3")) as server:
        with server.connect() as peer:
            peer.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nab")
            time.sleep(0.1)
            assert server.stop() == 0
            peer.settimeout(30)
            with contextlib.suppress(ConnectionResetError):
                assert peer.recv(100) == b""
        assert "cut off" in [event["event"] for event in server.events()]


def test_hangup_reads_the_bundle_anew(tmp_path: Path) -> None:
    served, folder = tmp_path / "served", tmp_path / "next"
    tiny_bundle(served, "binary")
    tiny_bundle(folder, "binary", selected="fp32")
    with running(served) as server:
        swapped = tmp_path / "before"
        served.rename(swapped)
        folder.rename(served)
        server.process.send_signal(signal.SIGHUP)
        _until(lambda: server.ask_json("GET", "/v2/models/tiny")[1]["versions"][0] == "2")
        (served / "manifest.json").write_text("{}")
        server.process.send_signal(signal.SIGHUP)
        _until(lambda: "reload refused" in [event["event"] for event in server.events()])
        body, headers = request()
        assert server.ask("POST", INFER, body, headers)[0] == 200  # what answered goes on


@pytest.mark.parametrize(
    ("broken", "code"), [("missing", 2), ("no bundle", 5), ("changed", 5)], ids=lambda value: str(value)
)
def test_without_a_model_it_ends_and_says_why(bundle: Path, tmp_path: Path, broken: str, code: int) -> None:
    folder = tmp_path / "bundle"
    if broken == "no bundle":
        folder.mkdir()
    if broken == "changed":
        shutil.copytree(bundle, folder)
        for file in (folder / "models").iterdir():
            file.write_bytes(file.read_bytes()[:-1] + b"x")
    server = start(folder)
    assert server.process.wait(60) == code
    [line] = [line for line in server.logged if line.startswith("error:")]
    assert "bundle" in line


def test_a_taken_port_is_named(bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        other = start(bundle, args=("--port", str(taken.getsockname()[1])))
        assert other.process.wait(60) == 1
        assert any("taken" in line for line in other.logged)


def test_a_killed_server_comes_back_on_the_same_port(bundle: Path) -> None:
    """Connections that come while nobody serves wait, and are answered by the next server."""
    with running(bundle, restart=True) as server:
        [worker] = left_behind(server.pid)
        os.kill(worker, signal.SIGKILL)
        body, headers = request()
        assert server.ask("GET", "/healthz/live", timeout=60)[0] == 200
        wait_until_ready(server)
        assert server.ask("POST", INFER, body, headers)[0] == 200
        [other] = left_behind(server.pid)
        assert other != worker
        assert [e["signal"] for e in server.events() if e["event"] == "server killed"] == ["SIGKILL"]


def test_a_server_does_not_outlive_its_supervisor(bundle: Path) -> None:
    server = start(bundle, restart=True)
    wait_until_ready(server)
    [worker] = left_behind(server.pid)
    server.stop(signal.SIGKILL)
    _until(lambda: not Path(f"/proc/{worker}").exists() or _is_dead(worker))


def test_sigterm_while_a_killed_server_comes_back_is_a_stop_like_any(bundle: Path) -> None:
    server = start(bundle, restart=True)
    wait_until_ready(server)
    [worker] = left_behind(server.pid)
    os.kill(worker, signal.SIGKILL)
    _until(lambda: set(left_behind(server.pid)) - {worker})
    assert server.stop() == 0  # its successor is not far enough to have a say


def test_a_stop_ends_the_pause_before_a_restart() -> None:
    supervisor = _Supervisor(-1, 0, ["/nonexistent"])
    supervisor.deaths = MOST - 1
    pausing = threading.Thread(target=supervisor.revive, args=(9,), daemon=True)
    pausing.start()
    time.sleep(0.2)
    supervisor.stopping = True
    pausing.join(10)
    assert not pausing.is_alive()


def test_the_supervisor_gives_up_what_dies_at_once() -> None:
    pauses = [pause_s(n) for n in range(1, MOST + 1)]
    assert pauses == sorted(pauses)
    assert 0 < sum(pauses) < 120


def _is_dead(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def _until(true: object) -> None:
    assert callable(true)
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)

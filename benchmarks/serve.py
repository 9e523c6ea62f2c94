"""Pastille's server beside in-process ONNX Runtime, FastAPI, LitServe, MLServer, BentoML and KServe.

    scripts/rival-servers DIR                                   # their environments, once
    .venv/bin/python benchmarks/serve.py --rivals DIR           # writes benchmarks/serve.csv, 40 minutes
    .venv/bin/python benchmarks/serve.py --only ecg turn        # Pastille alone if DIR is left out; printed

The same int8 file behind every server: a ResNet-18 (602 KB a request) and a tiny ECG network (12 KB), binary
bodies, one thread per call, random weights. Client and servers share the machine's cores. All servers are up
during a comparison, those whose turn it is not are held still (SIGSTOP); rounds alternate, and every figure
that is a ratio is taken within one round. `low` and `high` are the smallest and largest of the rounds.

turn      one client, one request after the other: server's CPU per request beyond that of the runtime alone,
          median time over the runtime's
clients   eight clients: answers per second over those of eight threads that call the runtime in process
overload  3 times as many requests as the server answers at most, Poisson, 20 s, not waiting for answers:
          answers within 500 ms over that most ("limit N" is the server's own setting, the best of several)
term      SIGTERM while 16 requests are in flight, three times: answers lost of 48, processes left behind
start     start to the first correct answer; memory (PSS of all its processes) five seconds after it
install   what `pip install .` takes, without torch
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from serving.load import Connection, ask, at_once, in_turn, open_load  # noqa: E402
from serving.processes import Running, running  # noqa: E402
from serving.servers import LIMITED, MAKERS, OURS, free_port, installed  # noqa: E402
from serving.subjects import Subject, subjects  # noqa: E402

from pastille.devices import this_machine  # noqa: E402
from pastille.runtime import ONNXRUNTIME, load  # noqa: E402

RAW = "in process"
CLIENTS = 8
PARTS = ("turn", "clients", "overload", "term", "start", "install")
LIMITS = (4, 8)  # that a rival with a setting for it is tried with


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure."""

    model: str
    server: str
    figure: str
    unit: str
    value: float
    low: float
    high: float
    rounds: int
    conditions: str
    note: str = ""


def conditions() -> str:
    machine = this_machine(threads=1, runtime=ONNXRUNTIME.name, runtime_version=ONNXRUNTIME.version)
    return (
        f"{machine.device}, {machine.isa}, {machine.cores} cores, {machine.os}, 1 thread a call, "
        f"onnxruntime {machine.runtime_version}"
    )


def row(
    subject: Subject, server: str, figure: str, unit: str, values: Sequence[float], note: str = ""
) -> Row:
    return Row(
        model=subject.name,
        server=server,
        figure=figure,
        unit=unit,
        value=round(statistics.median(values), 4),
        low=round(min(values), 4),
        high=round(max(values), 4),
        rounds=len(values),
        conditions=conditions(),
        note=note,
    )


class Raw:
    """The runtime in this process."""

    def __init__(self, subject: Subject) -> None:
        self._session = load(subject.int8)
        self._inputs = {"input": subject.sample()}
        for _ in range(20):
            self._session(self._inputs)

    def in_turn(self, seconds: float) -> tuple[np.ndarray, float]:
        """Times, and CPU seconds per call."""
        times, cpu, until = [], time.process_time(), time.perf_counter() + seconds
        while (now := time.perf_counter()) < until:
            self._session(self._inputs)
            times.append(time.perf_counter() - now)
        return np.array(times), (time.process_time() - cpu) / len(times)

    def at_once(self, threads: int, seconds: float) -> float:
        """Calls per second."""
        until, counts = time.perf_counter() + seconds, [0] * threads

        def call(i: int) -> None:
            while time.perf_counter() < until:
                self._session(self._inputs)
                counts[i] += 1

        started = time.perf_counter()
        workers = [threading.Thread(target=call, args=(i,)) for i in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return sum(counts) / (time.perf_counter() - started)


def start_all(
    stack: ExitStack, subject: Subject, names: Sequence[str], rivals: Path, logs: Path
) -> dict[str, Running]:
    """Every server, answering correctly, and held still."""
    expected = load(subject.int8)({"input": subject.sample()})["output"].ravel()
    found = {}
    for name in names:
        port = free_port()
        server = MAKERS[name](subject, port, rivals, 0)
        running_server = stack.enter_context(running(server, port, logs / f"{subject.name}-{name}.log"))
        running_server.await_answer()
        _, headers, body = ask(port, server.request.wire())
        np.testing.assert_array_equal(server.read(body, headers), expected)
        running_server.hold()
        found[name] = running_server
    return found


def compare_turns(
    subject: Subject, names: Sequence[str], rivals: Path, logs: Path, rounds: int, seconds: float
) -> Iterator[Row]:
    raw = Raw(subject)
    cpu: dict[str, list[float]] = {name: [] for name in (RAW, *names)}
    p50: dict[str, list[float]] = {name: [] for name in (RAW, *names)}
    beyond: dict[str, list[float]] = {name: [] for name in names}
    over: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        servers = start_all(stack, subject, names, rivals, logs)
        for _ in range(rounds):
            times, raw_cpu = raw.in_turn(seconds)
            cpu[RAW].append(raw_cpu * 1e3)
            p50[RAW].append(float(np.median(times)) * 1e3)
            for name, server in servers.items():
                server.go_on()
                connection = Connection(server.port)
                wire = server.server.request.wire()
                in_turn(connection, wire, 0.3)
                before = server.cpu_s()
                times = in_turn(connection, wire, seconds)
                cpu[name].append((server.cpu_s() - before) / len(times) * 1e3)
                p50[name].append(float(np.median(times)) * 1e3)
                connection.close()
                server.hold()
                beyond[name].append(cpu[name][-1] - cpu[RAW][-1])
                over[name].append(p50[name][-1] / p50[RAW][-1])
    for name in (RAW, *names):
        yield row(subject, name, "CPU per request", "ms", cpu[name])
        yield row(subject, name, "median time, one client", "ms", p50[name])
    for name in names:
        yield row(subject, name, "CPU per request beyond the runtime", "ms", beyond[name])
        yield row(subject, name, "median time over the runtime's", "ratio", over[name])


def compare_clients(
    subject: Subject, names: Sequence[str], rivals: Path, logs: Path, rounds: int, seconds: float
) -> Iterator[Row]:
    raw = Raw(subject)
    rates: dict[str, list[float]] = {name: [] for name in (RAW, *names)}
    with ExitStack() as stack:
        servers = start_all(stack, subject, names, rivals, logs)
        for _ in range(rounds):
            rates[RAW].append(raw.at_once(CLIENTS, seconds))
            for name, server in servers.items():
                server.go_on()
                wire = server.server.request.wire()
                at_once(server.port, wire, CLIENTS, 0.5)
                rates[name].append(at_once(server.port, wire, CLIENTS, seconds))
                server.hold()
    for name in (RAW, *names):
        yield row(subject, name, f"answers, {CLIENTS} clients", "1/s", rates[name])
    for name in names:
        ratios = [a / b for a, b in zip(rates[name], rates[RAW], strict=True)]
        yield row(subject, name, f"answers over the runtime's, {CLIENTS} clients", "ratio", ratios)
        if name != OURS:
            ours = [a / b for a, b in zip(rates[OURS], rates[name], strict=True)]
            yield row(subject, name, "Pastille's answers over its", "ratio", ours)


def overload(
    subject: Subject, names: Sequence[str], rivals: Path, logs: Path, rounds: int, seconds: float
) -> Iterator[Row]:
    for name in names:
        settings = (0, *LIMITS) if name in LIMITED else (0,)
        found = {
            limit: [_overloaded(subject, name, limit, rivals, logs, seconds, seed) for seed in range(rounds)]
            for limit in settings
        }
        best = max(found, key=lambda limit: statistics.median(x["share"] for x in found[limit]))
        for limit in {0, best}:
            results = found[limit]
            called = f"{name} (limit {limit})" if limit else name
            note = "; ".join(x["note"] for x in results)
            yield row(
                subject,
                called,
                "answers within 500 ms over the most",
                "ratio",
                [x["share"] for x in results],
                note,
            )
            yield row(subject, called, "memory after over before", "ratio", [x["memory"] for x in results])
            yield row(
                subject, called, "median time afterwards over before", "ratio", [x["after"] for x in results]
            )


def _overloaded(
    subject: Subject, name: str, limit: int, rivals: Path, logs: Path, seconds: float, seed: int
) -> dict:
    port = free_port()
    server = MAKERS[name](subject, port, rivals, limit)
    wire = server.request.wire()
    with running(server, port, logs / f"{subject.name}-{name}-{limit}-overload.log") as found:
        found.await_answer()
        connection = Connection(port)
        normal = np.median(in_turn(connection, wire, 1.0))
        connection.close()
        most = max(at_once(port, wire, clients, 4.0) for clients in (4, CLIENTS))
        before = found.pss_mb()
        outcome = open_load(port, wire, 3 * most, seconds, limit_s=0.5, seed=seed)
        after = found.pss_mb()
        try:
            connection = Connection(port, 5.0)
            afterwards = float(np.median(in_turn(connection, wire, 1.0)) / normal)
            connection.close()
        except (OSError, RuntimeError):
            afterwards = float("nan")
    counts = ", ".join(f"{status}: {n}" for status, n in sorted(outcome.statuses.items()))
    return {
        "share": outcome.in_time / seconds / most,
        "memory": after / before,
        "after": afterwards,
        "note": f"most {most:.0f}/s, sent {outcome.sent}, late {outcome.late} ({counts})",
    }


def terminate(
    subject: Subject, names: Sequence[str], rivals: Path, logs: Path, _rounds: int, _seconds: float
) -> Iterator[Row]:
    for name in names:
        lost, left, codes = 0, 0, []
        for _ in range(3):
            one_lost, one_left, code = _terminated(subject, name, rivals, logs)
            lost, left = lost + one_lost, left + one_left
            codes.append(str(code))
        note = f"exit codes {', '.join(codes)}"
        yield row(subject, name, "answers lost of 48 on SIGTERM", "count", [lost], note)
        yield row(subject, name, "processes left behind", "count", [left])


def _terminated(subject: Subject, name: str, rivals: Path, logs: Path) -> tuple[int, int, int | None]:
    port = free_port()
    server = MAKERS[name](subject, port, rivals, 0)
    wire = server.request.wire()

    def one(_: int) -> bool:
        try:
            return ask(port, wire, 20)[0] == 200
        except (OSError, ValueError):
            return False

    with running(server, port, logs / f"{subject.name}-{name}-term.log") as found:
        found.await_answer()
        with ThreadPoolExecutor(16) as pool:
            answers = [pool.submit(one, i) for i in range(16)]
            time.sleep(0.03)
            os.kill(found.pid, signal.SIGTERM)
            lost = sum(not answer.result() for answer in answers)
        code = found.wait(20)
        time.sleep(0.5)
        return lost, len(found.pids()), code


def start_up(
    subject: Subject, names: Sequence[str], rivals: Path, logs: Path, rounds: int, _seconds: float
) -> Iterator[Row]:
    for name in names:
        seconds, memory = [], []
        for _ in range(rounds):
            port = free_port()
            server = MAKERS[name](subject, port, rivals, 0)
            with running(server, port, logs / f"{subject.name}-{name}-start.log") as found:
                seconds.append(found.await_answer())
                time.sleep(5)
                memory.append(found.pss_mb())
        yield row(subject, name, "start to first correct answer", "s", seconds)
        yield row(subject, name, "memory when idle (PSS)", "MB", memory)


def install_size(subject: Subject) -> Iterator[Row]:
    """Bytes of a fresh environment's packages, without pip, as `pip install .` leaves them."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "site"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", str(target)]
        constraints = HERE.parent / "constraints.txt"
        subprocess.run([*command, "-c", str(constraints), str(HERE.parent)], check=True)
        size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file()) / 1e6
    yield row(subject, OURS, "installed, without compiled .pyc", "MB", [size])


COMPARISONS: dict[str, Callable[..., Iterator[Row]]] = {
    "turn": compare_turns,
    "clients": compare_clients,
    "overload": overload,
    "term": terminate,
    "start": start_up,
}


def show(found: Row) -> None:
    spread = f" ({found.low:g} to {found.high:g})" if found.rounds > 1 else ""
    what = f"{found.model:9} {found.server:20} {found.figure:45}"
    print(f"{what} {found.value:g} {found.unit}{spread} {found.note}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rivals", type=Path, help="folder of the rivals' environments: scripts/rival-servers"
    )
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "pastille-serve-benchmark")
    parser.add_argument("--only", nargs="+", choices=(*PARTS, "resnet18", "ecg", *MAKERS), default=[])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn; overload takes 20")
    parser.add_argument("--output", type=Path, help="where the CSV goes")
    asked = parser.parse_args()
    rivals = asked.rivals or Path("/nonexistent")
    names = [name for name in installed(rivals) if name in asked.only or not set(asked.only) & set(MAKERS)]
    parts = [part for part in PARTS if part in asked.only or not set(asked.only) & set(PARTS)]
    both = subjects(asked.work)
    chosen = [s for s in both if s.name in asked.only or not {x.name for x in both} & set(asked.only)]
    logs = asked.work / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    rows = []
    for part in parts:
        for subject in chosen:
            if part == "install":
                found = install_size(subject) if subject is chosen[0] else iter(())
            else:
                seconds = 20.0 if part == "overload" else asked.seconds
                rounds = min(3, asked.rounds) if part == "overload" else asked.rounds
                if part in ("overload", "term") and subject.name != "resnet18":
                    continue
                found = COMPARISONS[part](subject, names, rivals, logs, rounds, seconds)
            for one in found:
                show(one)
                rows.append(one)
    if asked.output or not asked.only:
        target = asked.output or HERE / "serve.csv"
        with target.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(asdict(rows[0])), lineterminator="\n")
            writer.writeheader()
            writer.writerows(asdict(one) for one in rows)


if __name__ == "__main__":
    main()

"""One server under one fault: started, watched, asked all the time, stopped; and what came of it."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from serving_bundles import cases, tiny_bundle

from pastille.devices import this_machine
from pastille.runtime import ONNXRUNTIME
from pastille.serve.audit_verify import verify_audit
from serving.asking import Clients, Question, Seen
from serving.processes import Running, running
from serving.servers import OURS, Server, free_port, oip_answer, oip_request

HERE = Path(__file__).parent
CLIENTS = 6
CALM_S = 0.8
REST_S = 4.5  # in which a server gives memory back
QUIET_S = 1.2  # without anything unusual: then it is as before
ENOUGH = 60  # answers meanwhile
LONGEST_S = 12.0  # that this is waited for
SLOW_S = 0.25
SETTINGS = """
queue: {timeout_s: 1}
breaker: {rest_s: 0.5}
limits: {header_s: 2, body_s: 2}
"""


@dataclass(kw_only=True)
class Scene:
    """One server under one fault."""

    server: Running
    bundle: Path
    clients: Clients
    sound: tuple[Question, ...]
    offset: Path  # seconds that the wall clock is put by
    attacks: Counter[str] = field(default_factory=Counter)
    deaths: list[tuple[float, float]] = field(default_factory=list)  # of workers: signal, and gone
    stopped: float | None = None

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def int8(self) -> Path:
        return self.bundle / "models/int8.onnx"

    def worker(self) -> int:
        """The process that answers: the supervisor's child, or the server itself."""
        others = [pid for pid in self.server.pids() if pid != self.server.pid]
        return others[0] if others else self.server.pid

    def hang_up(self) -> None:
        os.kill(self.server.pid, signal.SIGHUP)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong; `act` returns when it is over."""

    name: str
    act: Callable[[Scene], None]
    bound_mb: int  # of the growth of memory
    rests: bool = False  # whether it is looked at how much memory is left once nobody asks
    before: Callable[[Path], None] = lambda _: None  # done to the bundle before the server starts
    settings: str = ""
    supervised: bool = False
    audited: bool = False
    clock: bool = False  # a server whose clock can be put
    fresh: bool = False  # clients open a connection for each request
    faulty: tuple[str, ...] = ("int8",)
    failing: Literal["", "500"] = ""  # what hostile requests may get besides a refusal


@dataclass(frozen=True, kw_only=True)
class Row:
    """What came of it."""

    fault: str
    asked: int
    right: int
    of_fp32: int
    refused: int
    cut: int
    wrong: int
    unexplained: int
    attacks: int
    attacks_met: str
    amiss: int
    logged: int
    before_mb: float
    growth_mb: float
    bound_mb: int
    left_mb: float | None
    normal_s: float | None
    slowest_ms: float
    ended: str
    conditions: str
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether it did what it promises."""
        bounded = self.growth_mb <= self.bound_mb
        clean = not (self.wrong or self.unexplained or self.amiss or self.logged)
        return clean and bounded and self.ended == "exit 0" and self.normal_s is not None


def carried_out(fault: Fault, sound: tuple[Question, ...], bundles: tuple[Path, Path], folder: Path) -> Row:
    """Start, wait, act, wait until all is as before, stop, count."""
    scene_folder = folder / fault.name.replace(" ", "-").replace(",", "")
    shutil.rmtree(scene_folder, ignore_errors=True)
    scene_folder.mkdir()
    bundle = scene_folder / "bundle"
    if fault.faulty == ("int8",):
        shutil.copytree(bundles[0], bundle)
    else:
        tiny_bundle(bundle, faulty=fault.faulty)
    fault.before(bundle)
    log = scene_folder / "log"
    port = free_port()
    with running(_server(fault, (bundle, bundles[1]), scene_folder, port), port, log) as server:
        server.await_answer()
        clients = Clients(server.port, sound, CLIENTS, fresh=fault.fresh)
        offset = scene_folder / "offset"
        scene = Scene(server=server, bundle=bundle, clients=clients, sound=sound, offset=offset)
        try:
            time.sleep(CALM_S)
            with memory(scene) as (before, peak):
                fault.act(scene)
                over = time.monotonic()
                normal = over if scene.stopped else _settled(clients, over)
        finally:
            seen = clients.stop()
        left = None
        if fault.rests:
            time.sleep(REST_S)
            left = _status_mb(scene.worker(), "VmRSS") - before()
        if scene.stopped is None:
            os.kill(server.pid, signal.SIGTERM)
        code = server.wait(15)
        time.sleep(0.1)
        others = len([pid for pid in server.pids() if pid != server.pid])
    ended = f"exit {code}" + (f", {others} processes left" if others else "")
    return _row(
        fault,
        scene,
        seen,
        before=before(),
        peak=peak(),
        left=left,
        over=over,
        normal=normal,
        ended=ended,
        log=log,
    )


def _server(fault: Fault, bundles: Sequence[Path], folder: Path, port: int) -> Server:
    (folder / "serve.yaml").write_text(SETTINGS + fault.settings)
    (folder / "offset").write_text("")
    program = ("-m", "pastille")
    if fault.clock:
        program = (str(HERE / "jumping.py"), str(folder / "offset"))
    audit = ("--audit", str(folder / "audit")) if fault.audited else ()
    return Server(
        name=OURS,
        command=(
            sys.executable, *program, "serve", *map(str, bundles), "--config", str(folder / "serve.yaml"),
            "--port", str(port), *audit, *(() if fault.supervised else ("--no-restart",)),
        ),
        request=oip_request(cases(1), "tiny", output="logits"),
        read=oip_answer,
    )  # fmt: skip


@contextmanager
def memory(scene: Scene) -> Iterator[tuple[Callable[[], float], Callable[[], float]]]:
    """RSS in MB: before, and the peak of any worker meanwhile."""
    first = scene.worker()
    begun, highest, done = _status_mb(first, "VmRSS"), [0.0], threading.Event()
    Path(f"/proc/{first}/clear_refs").write_text("5")  # the peak is counted from here on

    def watch() -> None:
        while not done.wait(0.05):
            for pid in {first, scene.worker()}:
                highest.append(max(highest.pop(), _status_mb(pid, "VmHWM")))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: begun, lambda: highest[0]
    finally:
        done.set()
        thread.join()


def _status_mb(pid: int, what: str) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(what):
                return int(line.split()[1]) / 1024
    return 0.0


def usual(seen: Seen) -> bool:
    return seen.word == "right" and seen.variant == "int8" and seen.ended - seen.began <= SLOW_S


def _settled(clients: Clients, over: float) -> float | None:
    """When the last unusual answer ended; None where they do not end."""
    while (now := time.monotonic()) < over + LONGEST_S:
        seen = list(clients.seen)
        last = max([over, *(one.ended for one in seen if not usual(one))])
        since = sum(one.began > last for one in seen)
        if now - last > QUIET_S and since > ENOUGH:
            return last
        time.sleep(0.05)
    return None


def _row(
    fault: Fault, scene: Scene, seen: Sequence[Seen], *, before: float, peak: float, left: float | None,
    over: float, normal: float | None, ended: str, log: Path,
) -> Row:  # fmt: skip
    words = Counter(_word(one, scene) for one in seen)
    odd = Counter(one.detail for one in seen if _word(one, scene) in ("wrong", "unexplained", "refused"))
    note = "; ".join(f"{count} x {what[:150]}" for what, count in odd.most_common(3))
    amiss = sum(n for word, n in scene.attacks.items() if not _is_met(word, fault))
    if fault.audited:
        note = "; ".join(filter(None, (note, audit_note(scene.bundle.parent / "audit", words["right"]))))
    return Row(
        fault=fault.name,
        asked=len(seen),
        right=words["right"],
        of_fp32=sum(one.word == "right" and one.variant == "fp32" for one in seen),
        refused=words["refused"],
        cut=words["cut"],
        wrong=words["wrong"],
        unexplained=words["unexplained"],
        attacks=sum(scene.attacks.values()),
        attacks_met=", ".join(f"{word}: {n}" for word, n in sorted(scene.attacks.items())),
        amiss=amiss,
        logged=sum('"event":"fault"' in line or "Traceback" in line for line in log.read_text().splitlines()),
        before_mb=round(before, 1),
        growth_mb=round(max(0.0, peak - before), 1),
        bound_mb=fault.bound_mb,
        left_mb=left and round(left, 1),
        normal_s=None if normal is None else round(normal - over, 2),
        slowest_ms=round(1000 * max(one.ended - one.began for one in seen if one.word != "lost"), 1),
        ended=ended,
        conditions=conditions(),
        note=note,
    )


def _word(seen: Seen, scene: Scene) -> str:
    if seen.word in ("right", "wrong"):
        return seen.word
    if seen.word in ("429", "503") and not seen.detail.startswith("not explained"):
        return "refused"
    if seen.word == "lost":
        if any(seen.began <= gone and seen.ended >= at for at, gone in scene.deaths):
            return "cut"
        refused = seen.detail == "connect: ConnectionRefusedError"
        if refused and scene.stopped is not None and seen.ended >= scene.stopped:
            return "cut"
    return "unexplained"


def _is_met(word: str, fault: Fault) -> bool:
    if word == fault.failing:
        return True
    refusals = {"200", "400", "408", "413", "415", "422", "429", "431", "503"}
    return word in refusals or word in ("closed", "ConnectionResetError", "BrokenPipeError")


def audit_note(folder: Path, answered: int) -> str:
    """Whether the log is whole, and has every answer that was given."""
    found = verify_audit(folder)
    decisions = found.decisions
    broken = "" if found.intact else f" BROKEN: {found.broken}"
    missing = "" if decisions >= answered else f" {answered - decisions} MISSING"
    return f"audit log: {decisions} decisions for {answered} answers, intact{broken}{missing}"


def conditions() -> str:
    machine = this_machine(threads=1, runtime=ONNXRUNTIME.name, runtime_version=ONNXRUNTIME.version)
    return (
        f"{machine.device}, {machine.isa}, {machine.cores} cores, {machine.os}, onnxruntime "
        f"{machine.runtime_version}, {CLIENTS} clients"
    )

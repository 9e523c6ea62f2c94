"""Every fault of a list, one after the other, against the real `pastille serve`, while clients go on asking.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/faults.py       # writes benchmarks/faults.csv, 3 minutes
    .venv/bin/python benchmarks/faults.py --only stall gzip --json     # some of them, printed

Each fault gets a server of its own with two tiny bundles (one takes tensors, one pictures), whose int8 fails
where an input says so. Six clients ask both all the time, from before the fault until the server is as it
was; they know what either variant answers and hold every answer against it.

right       answered as the variant that it names answers in this process, with the label that follows
refused     429 or 503 with the reason and, where coming again helps, Retry-After
cut         lost with a worker that was killed (in flight at that moment), or asked of a server that had ended
wrong       any other answer with 200
unexplained anything else: a connection that ends without an answer, 4xx for a sound request, 500
amiss       hostile requests that were answered with 500, or not at all within 20 s
logged      unexpected exceptions in the server's log
growth_mb   the largest RSS of the worker during the fault and after it, over what it was before; bound_mb is
            the most that it may be: `SMALL` for threads and caches, `CONNECTIONS` for what is read ahead of
            450 connections, `READERS` for 256 MB of bodies that are held and two readers at once, each of
            which may take an inflated body of 128 MB, or a picture of 24 million pixels
left_mb     of that, 4.5 s after the last request
normal_s    from the end of the fault to the end of the last answer that was not right, not from int8, or took
            more than 250 ms
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests/serve")]

from serving import hostile  # noqa: E402
from serving.asking import pictures, tensors, triggered  # noqa: E402
from serving.faulting import Fault, Row, Scene, carried_out  # noqa: E402
from serving.servers import oip_request  # noqa: E402
from serving_bundles import Trigger, cases, tiny_bundle  # noqa: E402

from pastille.data.images import decoding_for  # noqa: E402
from pastille.values import Normalization, Preprocessing  # noqa: E402

SMALL, CONNECTIONS, READERS = 40, 100, 552  # MB that memory may grow by
PICTURES = Preprocessing(image=decoding_for(8, 1), normalization=Normalization(mean=(0.5,), std=(0.25,)))


def nothing(_: Scene) -> None:
    time.sleep(1.5)


def corrupt(int8: Path) -> None:
    """One bit in the middle."""
    data = bytearray(int8.read_bytes())
    data[len(data) // 2] ^= 1
    int8.write_bytes(data)


def mended(scene: Scene) -> None:
    """It began with a corrupt file; now the sound one is back."""
    time.sleep(1.0)
    shutil.copy(scene.bundle.parent / "sound", scene.int8)
    scene.hang_up()


def cut_off(scene: Scene) -> None:
    """The file is cut off under a server; then comes a new version with a corrupt one, then it is mended."""
    with scene.int8.open("r+b") as file:
        file.truncate(scene.int8.stat().st_size // 2)
    time.sleep(0.7)
    following = scene.bundle.parent / "next"
    tiny_bundle(following, selection_reason="a new version")
    sound = (following / "models/int8.onnx").read_bytes()
    corrupt(following / "models/int8.onnx")
    scene.bundle.rename(scene.bundle.parent / "before")
    following.rename(scene.bundle)
    scene.hang_up()
    time.sleep(1.5)
    scene.int8.write_bytes(sound)
    scene.hang_up()


def corrupt_before(bundle: Path) -> None:
    int8 = bundle / "models/int8.onnx"
    shutil.copy(int8, bundle.parent / "sound")
    corrupt(int8)


def failing(
    switch: Trigger, value: float = 1.0, *, share: float = 0.5, seconds: float = 2.0
) -> Callable[[Scene], None]:
    """Of the clients' questions, a share are such that int8 fails."""

    def act(scene: Scene) -> None:
        bad = triggered(scene.bundle, switch, value)
        copies = max(1, round(share / (1 - share) * len(scene.sound) / len(bad)))
        scene.clients.questions = (*scene.sound, *bad * copies)
        time.sleep(seconds)
        scene.clients.questions = scene.sound

    return act


def all_fail(scene: Scene) -> None:
    """Inputs that neither variant can answer: 500, never a guess."""
    bad = [cases(1, seed=seed, **{switch: 1.0}) for switch in ("nan", "raise") for seed in range(16)]
    wires = [oip_request(x, "tiny", output="logits").wire() for x in bad]
    scene.attacks += hostile.flood(scene.port, wires, times=6, peers=2)


def held(scene: Scene) -> None:
    """The whole process stands still, as under a hypervisor that takes the machine away."""
    worker = scene.worker()
    os.kill(worker, signal.SIGSTOP)
    time.sleep(3.0)
    os.kill(worker, signal.SIGCONT)


def killed(scene: Scene) -> None:
    """Twice: at once, and when it is back."""
    for wait in (0.0, 2.5):
        time.sleep(wait)
        worker, at = scene.worker(), time.monotonic()
        os.kill(worker, signal.SIGKILL)
        while Path(f"/proc/{worker}").exists():
            time.sleep(0.001)
        scene.deaths.append((at, time.monotonic()))


def disk_full(scene: Scene) -> None:
    """No file of the server may grow any more: a write fails in the middle of a line."""
    worker = scene.worker()
    log = max((scene.bundle.parent / "audit").iterdir(), key=lambda file: file.stat().st_size)
    soft, hard = resource.prlimit(worker, resource.RLIMIT_FSIZE)
    resource.prlimit(worker, resource.RLIMIT_FSIZE, (log.stat().st_size + 5000, hard))
    time.sleep(2.5)
    resource.prlimit(worker, resource.RLIMIT_FSIZE, (soft, hard))


def clock_jumps(scene: Scene) -> None:
    """A day ahead, two days back, to 1970, and right again."""
    for seconds in (86400.0, -2 * 86400.0, -time.time() + 1.0, 0.0):
        scene.offset.write_text(str(seconds))
        time.sleep(0.7)


def terminated(scene: Scene) -> None:
    scene.stopped = time.monotonic()
    os.kill(scene.server.pid, signal.SIGTERM)
    time.sleep(1.0)


def slow_headers(scene: Scene) -> None:
    scene.attacks += hostile.drip(
        scene.port, b"GET /v2 HTTP/1.1\r\nHost: 127.0.0.1\r\n", b"X: y\r\n", peers=450, seconds=4
    )


def slow_body(scene: Scene) -> None:
    head = b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 33554432\r\n\r\n"
    scene.attacks += hostile.drip(scene.port, head + bytes(60_000), b"x", peers=450, seconds=4)


def chunks(scene: Scene) -> None:
    """A sound request in 65,536 chunks of one byte, and 32 MB of them."""
    request = oip_request(cases(1), "tiny", output="logits")
    padded = replace(request, body=b" " * (65536 - len(request.body)) + request.body)
    length = int(request.headers["Inference-Header-Content-Length"]) + len(padded.body) - len(request.body)
    padded = replace(padded, headers={**request.headers, "Inference-Header-Content-Length": str(length)})
    wire = hostile.in_chunks(padded, 1)
    scene.attacks += hostile.flood(scene.port, [wire], times=16, peers=4)
    endless = hostile.in_chunks(replace(request, body=bytes(6 << 20)), 1)
    scene.attacks += hostile.flood(scene.port, [endless], times=2, peers=2)


def bodies(make: Callable[[], list[bytes]], *, times: int, peers: int = 8) -> Callable[[Scene], None]:
    made: list[bytes] = []

    def act(scene: Scene) -> None:
        made.extend(() if made else make())
        scene.attacks += hostile.flood(scene.port, made, times=times, peers=peers)

    return act


FAULTS = (
    Fault(name="none", act=nothing, bound_mb=SMALL),
    Fault(name="corrupt int8 at start", act=mended, before=corrupt_before, bound_mb=SMALL),
    Fault(name="corrupt int8 in a new version", act=cut_off, bound_mb=SMALL),
    Fault(name="NaN from the model", act=failing("nan"), bound_mb=SMALL),
    Fault(name="exception in the model", act=failing("raise"), bound_mb=SMALL),
    Fault(name="wrong shape from the model", act=failing("rows"), bound_mb=SMALL),
    Fault(name="10 s stall in the model", act=failing("slow", 10.0, share=0.1, seconds=4), bound_mb=SMALL),
    Fault(name="both variants fail", act=all_fail, faulty=("int8", "fp32"), failing="500", bound_mb=SMALL),
    Fault(name="process held for 3 s", act=held, bound_mb=SMALL),
    Fault(name="worker killed", act=killed, supervised=True, audited=True, bound_mb=SMALL),
    Fault(name="disk full for the audit", act=disk_full, audited=True, bound_mb=SMALL),
    Fault(name="clock jumps", act=clock_jumps, audited=True, clock=True, bound_mb=SMALL),
    Fault(name="SIGTERM under load", act=terminated, fresh=True, bound_mb=SMALL),
    Fault(name="slow headers", act=slow_headers, bound_mb=CONNECTIONS),
    Fault(name="slow bodies", act=slow_body, bound_mb=CONNECTIONS),
    Fault(name="65,536 chunks", act=chunks, bound_mb=CONNECTIONS),
    Fault(name="gzip bomb", act=bodies(hostile.gzip_bombs, times=8), bound_mb=READERS, rests=True),
    Fault(name="DICOM bomb", act=bodies(hostile.dicom_bombs, times=12), bound_mb=READERS, rests=True),
    Fault(name="PNG bomb", act=bodies(hostile.png_bombs, times=8), bound_mb=READERS, rests=True),
    Fault(name="lying shapes", act=bodies(hostile.lying_shapes, times=10, peers=4), bound_mb=SMALL),
    Fault(
        name="hostile JSON", act=bodies(hostile.hostile_json, times=2, peers=8), bound_mb=READERS, rests=True
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="faults with such a word")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "pastille-faults")
    parser.add_argument("--output", type=Path, help="where the CSV goes")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    bundles = asked.work / "tiny", asked.work / "picture"
    for bundle in bundles:
        shutil.rmtree(bundle, ignore_errors=True)
    tiny_bundle(bundles[0])
    tiny_bundle(bundles[1], shape=(1, 8, 8), preprocessing=PICTURES, name="picture")
    sound = tensors(bundles[0]) + pictures(bundles[1]) * 2
    rows = []
    for fault in FAULTS:
        if not asked.only or any(word in fault.name for word in asked.only):
            rows.append(carried_out(fault, sound, bundles, asked.work))
            show(rows[-1], as_json=asked.json)
    if asked.output or not asked.only:
        with (asked.output or HERE / "faults.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(asdict(rows[0])), lineterminator="\n")
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)
    raise SystemExit(0 if all(row.passed for row in rows) else 1)


def show(row: Row, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(row) | {"passed": row.passed}), flush=True)
        return
    print(
        f"{'ok  ' if row.passed else 'FAIL'} {row.fault:27} {row.right:5} of {row.asked:5} right "
        f"(fp32 {row.of_fp32}), refused {row.refused}, cut {row.cut}, wrong {row.wrong}, unexplained "
        f"{row.unexplained}; attacks {row.attacks} ({row.attacks_met}), amiss {row.amiss}; "
        f"logged {row.logged}; +{row.growth_mb:g} MB of {row.before_mb:g}, left {row.left_mb}; "
        f"normal after {row.normal_s} s; slowest {row.slowest_ms:g} ms; {row.ended}. {row.note}",
        flush=True,
    )


if __name__ == "__main__":
    main()

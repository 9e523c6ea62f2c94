"""Nothing lost: kill -9 at any moment, Ctrl-C, a full disk, a second process."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from forked import PASTILLE, Forked

from pastille.record import BundleWritten, Resumed, StageFinished, read_record

pytestmark = pytest.mark.e2e

# Kills its own process at the nth write of the record, before or after the file is replaced.
KILLER = """
import os, signal, sys
from pastille.runner import journal
moment, place = sys.argv.pop(1), int(sys.argv.pop(1))
real, count = journal.write_record, [0]
def write(record, path):
    count[0] += 1
    if count[0] == place and moment == "before": os.kill(os.getpid(), signal.SIGKILL)
    real(record, path)
    if count[0] == place and moment == "after": os.kill(os.getpid(), signal.SIGKILL)
journal.write_record = write
from pastille.cli import main
main()
"""


def pastille(
    project: Path, *options: str, killed: tuple[str, int] | None = None, file_bytes: int | None = None
) -> Forked:
    arguments = ["run", str(project / "recipe.yaml"), *options]
    if killed:
        return Forked(KILLER, killed[0], str(killed[1]), *arguments)
    return Forked(PASTILLE, *arguments, file_bytes=file_bytes)


def finished(process: Forked) -> tuple[int, str, str]:
    return process.finished()


def hashes(run: Path) -> dict[str, bytes]:
    """What must not differ: the models, the golden cases, and the digest over both."""
    bundle = run / "bundle"
    files = [*sorted((bundle / "models").iterdir()), *sorted((bundle / "golden").iterdir())]
    written = read_record(run / "run.json").last(BundleWritten)
    assert written is not None
    return {str(f.relative_to(bundle)): f.read_bytes() for f in files} | {"content": written.content.encode()}


def only_run(project: Path) -> Path:
    (run,) = (project / "runs/tiny").iterdir()
    return run


@pytest.fixture(scope="module")
def whole(new_project: Callable[[], Path]) -> Path:
    """A project whose run was not interrupted, by an interpreter of its own."""
    base = new_project()
    command = [sys.executable, "-m", "pastille", "run", str(base / "recipe.yaml"), "-q"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return base


@pytest.fixture(scope="module")
def reference(whole: Path) -> dict[str, bytes]:
    return hashes(only_run(whole))


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_every_event(project: Path, reference: dict[str, bytes], moment: str) -> None:
    kills, code = 0, -signal.SIGKILL
    # The first process writes "started" at once; each later one writes "resumed", then goes on.
    place = 2 if moment == "before" else 1
    while code == -signal.SIGKILL and kills < 12:
        options = ["-q", "--resume"] if kills else ["-q"]
        code, _, err = finished(pastille(project, *options, killed=(moment, place)))
        kills += code == -signal.SIGKILL
        # "resumed" and one more event per process, or no process would get any further; and two after
        # the test split was opened, since a killed process must open it again.
        place = 3 if moment == "before" else 2
        opened = read_record(only_run(project) / "run.json").events[-1].event == "test_opened"
        place += opened and moment == "after"
    assert code == 0, err
    assert kills >= 4
    run = only_run(project)
    assert hashes(run) == reference
    record = read_record(run / "run.json")
    # Killed after the last event, there is nothing left to take up.
    assert len(record.all(Resumed)) == kills - (moment == "after")
    assert sorted(e.index for e in record.all(StageFinished)) == [1, 2, 3]


@pytest.mark.parametrize("delay", [0.3, 1.5])
def test_killed_while_it_works(project: Path, reference: dict[str, bytes], delay: float) -> None:
    process = pastille(project, "-q")
    folder = project / "runs"
    deadline = time.monotonic() + 120
    while not folder.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    finished(process)
    code, _, err = finished(pastille(project, "-q", "--resume"))
    assert code == 0, err
    assert hashes(only_run(project)) == reference


def test_ctrl_c_is_one_line_and_can_be_resumed(project: Path, reference: dict[str, bytes]) -> None:
    process = pastille(project, "-q")
    while not (project / "runs").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    code, _, err = finished(process)
    assert code == 130
    assert err.splitlines() == ["error: interrupted: what was finished is kept; take it up with --resume"]
    code, _, err = finished(pastille(project, "-q", "--resume"))
    assert code == 0, err
    assert hashes(only_run(project)) == reference


def test_a_full_disk_is_one_line_and_earlier_stages_stay(project: Path) -> None:
    # What a full disk does to one file: every write past the limit fails.
    process = pastille(project, "-q", file_bytes=9_000)
    code, _, err = finished(process)
    assert code == 1
    assert len(err.splitlines()) == 1
    assert err.startswith("error: cannot write")
    record = read_record(only_run(project) / "run.json")
    assert record.events[0].event == "started"
    assert not list(project.rglob("*.draft"))
    assert finished(pastille(project, "-q", "--resume"))[0] == 0


def test_an_output_that_cannot_be_written(project: Path) -> None:
    (project / "file").write_text("in the way")
    code, _, err = finished(pastille(project, "-q", "--set", "output=file/runs"))
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "cannot write" in err


def test_two_processes_do_not_carry_out_one_run(project: Path) -> None:
    process = pastille(project, "-q")
    while not list(project.glob("runs/tiny/*/run.json")) and process.poll() is None:
        time.sleep(0.02)
    code, _, err = finished(pastille(project, "-q", "--resume"))
    if process.poll() is None:
        assert code == 2
        assert "another process is carrying out the run" in err
    assert finished(process)[0] == 0


def test_a_changed_recipe_is_not_resumed(project: Path) -> None:
    (project / "runs/tiny/20260101-000000-00000000").mkdir(parents=True)
    code, _, err = finished(pastille(project, "-q", "--resume"))
    assert code == 2
    assert "there is no run of this recipe to resume" in err


def test_killed_before_anything_was_written(project: Path, reference: dict[str, bytes]) -> None:
    finished(pastille(project, "-q", killed=("before", 1)))
    assert not (only_run(project) / "run.json").exists()
    code, _, err = finished(pastille(project, "-q", "--resume"))
    assert code == 0, err
    assert hashes(only_run(project)) == reference


def test_data_that_changed_is_not_resumed(project: Path) -> None:
    finished(pastille(project, "-q", killed=("after", 3)))
    text = (project / "data.py").read_text().replace("seed=0", "seed=1")
    (project / "data.py").write_text(text)
    code, _, err = finished(pastille(project, "-q", "--resume"))
    assert code == 2
    assert "the data changed since the run was begun" in err


def test_a_finished_run_is_shown_again(whole: Path) -> None:
    before = (only_run(whole) / "run.json").read_bytes()
    code, out, _ = finished(pastille(whole, "-q", "--resume"))
    assert code == 0
    assert "APPROVED" in out
    assert (only_run(whole) / "run.json").read_bytes() == before

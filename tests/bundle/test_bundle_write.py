"""A bundle is written whole or not at all."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_parts import golden, make_bundle, make_parts, variant

from pastille.bundle import Golden, verify, write_bundle
from pastille.errors import ExitCode, IntegrityError, OutputError

OLD: dict[str, Any] = {"evidence": {"run.json": b"old"}}
NEW: dict[str, Any] = {"evidence": {"run.json": b"new", "report.html": b"new"}}

# Writes NEW again and again, each time killed one file operation later, until it is not killed any more.
# It forks, so nothing that starts threads may be imported here.
KILLER = """
import os, pickle, shutil, signal, sys
from pathlib import Path
import pastille.bundle.write
from pastille.bundle import verify, write_bundle

def killed_at(k, directory, parts):
    child = os.fork()
    if child == 0:
        left = [k]
        def count(event, args):
            if event.startswith(("open", "os.", "shutil.", "ctypes.dlsym")):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(count)
        write_bundle(directory, parts)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

def state(directory):
    return verify(directory, replay=False).manifest.seal[:8] if directory.exists() else "none"

os.fsync = lambda descriptor: None  # what a killed process wrote is safe with the kernel
directory, old, new, exchange = pickle.load(sys.stdin.buffer)
if not exchange:
    sys.modules["pastille.bundle.write"]._exchange = lambda draft, directory: False
write_bundle(directory, new)  # so that every import is done
shutil.rmtree(directory)
k, states = 0, []
while True:
    k += 1
    if old is not None:
        write_bundle(directory, old)
    elif directory.exists():
        shutil.rmtree(directory)
    if not killed_at(k, directory, new):
        break
    states.append(state(directory))
left = sorted(p.name for p in directory.parent.iterdir())
print(k, *dict.fromkeys(states), left == [directory.name], state(directory))
"""


def kill_everywhere(directory: Path, *, replaces: bool, exchange: bool = True) -> list[str]:
    """Number of moments at which it was killed; what was there after each, without repeats; the end."""
    old = make_parts(**OLD) if replaces else None
    asked = pickle.dumps((directory, old, make_parts(**NEW), exchange))
    done = subprocess.run([sys.executable, "-c", KILLER], input=asked, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().split()


@pytest.fixture
def seals(tmp_path: Path) -> tuple[str, str]:
    old = write_bundle(tmp_path / "old", make_parts(**OLD)).seal[:8]
    new = write_bundle(tmp_path / "new", make_parts(**NEW)).seal[:8]
    shutil.rmtree(tmp_path / "old")
    shutil.rmtree(tmp_path / "new")
    return old, new


def test_killed_at_any_moment_leaves_the_earlier_bundle_or_the_new_one(
    tmp_path: Path, seals: tuple[str, str]
) -> None:
    moments, *states, tidy, end = kill_everywhere(tmp_path / "bundle", replaces=True)
    assert int(moments) > 30
    assert states == [*seals]
    assert (tidy, end) == ("True", seals[1])


def test_killed_at_any_moment_leaves_no_half_bundle(tmp_path: Path, seals: tuple[str, str]) -> None:
    moments, *states, tidy, end = kill_everywhere(tmp_path / "bundle", replaces=False)
    assert int(moments) > 20
    assert states == ["none", seals[1]]
    assert (tidy, end) == ("True", seals[1])


def test_without_an_atomic_exchange_the_next_write_brings_the_earlier_bundle_back(
    tmp_path: Path, seals: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, *states, tidy, end = kill_everywhere(tmp_path / "bundle", replaces=True, exchange=False)
    assert states == [seals[0], "none", seals[1]]  # "none": between its two renames
    assert (tidy, end) == ("True", seals[1])
    (tmp_path / "bundle").rename(tmp_path / ".bundle.previous")
    monkeypatch.setattr("pastille.bundle.write._fill", full_disk)
    with pytest.raises(OutputError):
        write_bundle(tmp_path / "bundle", make_parts(**OLD))
    assert verify(tmp_path / "bundle").manifest.seal[:8] == seals[1]


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "models/int8.onnx")


def test_removes_leftovers_of_killed_writes_only(tmp_path: Path) -> None:
    (tmp_path / ".bundle.0123abcd.draft" / "models").mkdir(parents=True)
    (tmp_path / ".bundle.previous").mkdir()
    (tmp_path / ".other.0123abcd.draft").mkdir()
    (tmp_path / "bundle.draft").touch()
    make_bundle(tmp_path / "bundle")
    make_bundle(tmp_path / "bundle")
    found = sorted(p.name for p in tmp_path.iterdir())
    assert found == [".other.0123abcd.draft", "bundle", "bundle.draft"]


@pytest.mark.parametrize("step", ["shutil.copyfile", "pastille.bundle.write._sync", "os.replace", "os.mkdir"])
def test_a_full_disk_leaves_the_earlier_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    old = write_bundle(tmp_path / "bundle", make_parts(**OLD))
    monkeypatch.setattr("pastille.bundle.write._exchange", lambda draft, directory: False)
    monkeypatch.setattr(step, full_disk)
    with pytest.raises(OutputError, match="No space left on device") as caught:
        write_bundle(tmp_path / "bundle", make_parts(**NEW))
    monkeypatch.undo()
    assert str(caught.value).startswith(f"cannot write bundle {tmp_path / 'bundle'}: ")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == ExitCode.FAILURE
    assert verify(tmp_path / "bundle").manifest == old
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


@pytest.fixture
def small_files_only() -> Iterator[None]:
    """The kernel refuses to write beyond 1,000 bytes of a file, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files_only")
def test_a_write_that_the_kernel_refuses(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="File too large"):
        make_bundle(tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_interrupted_by_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pastille.bundle.write._put_in_place", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_bundle(tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_makes_the_folders_above(tmp_path: Path) -> None:
    assert verify(make_bundle(tmp_path / "a" / "b" / "bundle"))


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for directory in (tmp_path / "file", tmp_path / "file" / "bundle", tmp_path / "file" / "a" / "b"):
        with pytest.raises(OutputError, match="cannot write bundle"):
            make_bundle(directory)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("mine", ["thesis.tex", "models/x", "manifest.json/x"])
def test_leaves_a_folder_alone_that_is_no_bundle(tmp_path: Path, mine: str) -> None:
    (tmp_path / "home" / mine).parent.mkdir(parents=True)
    (tmp_path / "home" / mine).write_text("mine")
    with pytest.raises(OutputError, match="so it is not a bundle; choose another place or empty it"):
        make_bundle(tmp_path / "home")
    assert (tmp_path / "home" / mine).read_text() == "mine"


def test_leaves_a_bundle_alone_that_something_was_added_to(tmp_path: Path) -> None:
    directory = make_bundle(tmp_path / "bundle")
    (directory / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"it holds 'notes\.txt'"):
        make_bundle(directory)


def test_does_not_write_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "bundle").symlink_to(tmp_path / "real")
    with pytest.raises(OutputError, match="something else is there"):
        make_bundle(tmp_path / "bundle")
    assert list((tmp_path / "real").iterdir()) == []


def test_fills_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    assert verify(make_bundle(tmp_path / "bundle"))


def test_a_model_that_is_missing_or_none(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_text("no model")
    for path, message in [("none.onnx", "is missing"), ("bad.onnx", "is not an ONNX model")]:
        variants = (variant("int8"), variant("fp32", path=tmp_path / path))
        with pytest.raises(IntegrityError, match=message):
            make_bundle(tmp_path / "bundle", variants=variants)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden"])
def test_refuses_odd_names_of_evidence(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="evidence must be named by plain file names"):
        make_bundle(tmp_path / "bundle", evidence={name: b""})


def test_refuses_parts_that_contradict_each_other(tmp_path: Path) -> None:
    only = Golden(inputs=golden().inputs, outputs={"fp32": golden().outputs["fp32"]})
    with pytest.raises(ValueError, match="golden must answer for the variants"):
        make_bundle(tmp_path / "bundle", golden=only)
    wide = Golden(inputs={"input": np.zeros((16, 5), np.float32)}, outputs=golden().outputs)
    changes: list[dict[str, Any]] = [{"selected": "compressed"}, {"labels": ("a", "b")}, {"golden": wide}]
    for change in changes:
        with pytest.raises(IntegrityError):
            make_bundle(tmp_path / "bundle", **change)
    assert list(tmp_path.iterdir()) == []

"""A file's answers on another kind of CPU, by QEMU's user mode: slow, but the decisions are that CPU's."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np

from pastille.errors import InferenceError, UsageError
from pastille.runtime.onnxruntime import load
from pastille.runtime.self_check import CHECK_INPUT, CHECK_MODEL, saturated

Isa = Literal["native", "avx2", "sse4", "aarch64"]
ISAS: Final[tuple[Isa, ...]] = get_args(Isa)
ARM_ROOT: Final = "PASTILLE_AARCH64_ROOT"
_X86: Final = frozenset({"x86_64", "AMD64"})


@dataclass(frozen=True, kw_only=True)
class Emulator:
    """How a CPU is emulated."""

    programs: tuple[str, ...]  # the first that is installed is taken
    cpu: str
    environment: Mapping[str, str] = field(default_factory=dict)


_EMULATORS: Final[Mapping[str, Emulator]] = {
    "avx2": Emulator(programs=("qemu-x86_64-static", "qemu-x86_64"), cpu="Haswell"),
    # OpenBLAS takes a CPU of another maker's name for a newer one and uses AVX, unless it is told.
    "sse4": Emulator(
        programs=("qemu-x86_64-static", "qemu-x86_64"),
        cpu="Nehalem",
        environment={"OPENBLAS_CORETYPE": "Nehalem"},
    ),
    "aarch64": Emulator(programs=("qemu-aarch64-static", "qemu-aarch64"), cpu="max"),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What a file answers on a CPU.

    Attributes:
        outputs: Output name -> ``(N, ...)``.
        saturates: Whether this CPU adds int8 products in saturating 16 bits; see `saturates_here`.
        machine: Architecture, e.g. ``"aarch64"``.
        runtime_version: Of ONNX Runtime there.
        seconds: That the answers took, without the start of the process.
    """

    outputs: Mapping[str, np.ndarray]
    saturates: bool
    machine: str
    runtime_version: str
    seconds: float


def answers_on(
    isa: Isa,
    path: Path,
    inputs: Mapping[str, np.ndarray],
    *,
    threads: int = 1,
    timeout_s: float = 1800.0,
    budget_s: float | None = None,
    root: Path | None = None,
) -> Answers:
    """Ask a file cases on another kind of CPU, one at a time, in a fresh process.

    Args:
        isa: ``"native"`` runs on this CPU; ``"avx2"`` and ``"sse4"`` this Python under QEMU's user mode;
            ``"aarch64"`` the Python of an ARM root.
        path: The ONNX file. One with a fixed batch is asked that many at once.
        inputs: ``{name: (N, ...)}``, at least one case.
        threads: That the runtime may use.
        timeout_s: Seconds after which the process is ended.
        budget_s: Seconds after which no further case is asked; the first is asked in any case. The answers
            are then fewer than the inputs.
        root: Of the ARM system; left out, the environment's ``PASTILLE_AARCH64_ROOT``.

    Raises:
        UsageError: QEMU or the ARM root is missing; the message says what to install.
        IntegrityError: The file is missing, not an ONNX model, or keeps weights in another file.
        InferenceError: The process failed, was killed, or took longer than ``timeout_s``.
        ValueError: There is no case.
    """
    if not all(len(array) for array in inputs.values()) or not inputs:
        raise ValueError("inputs must hold at least one case, got none")
    command, environment = _command(isa, root)
    batch = load(path).fixed_batch or 1
    with tempfile.TemporaryDirectory(prefix="pastille-") as name:
        folder = Path(name)
        (folder / "check.onnx").write_bytes(CHECK_MODEL)
        jobs = [
            _job(folder, "check", folder / "check.onnx", CHECK_INPUT, 1),
            _job(folder, "file", path.resolve(), inputs, batch),
        ]
        request = folder / "request.json"
        request.write_text(
            json.dumps({"jobs": jobs, "threads": threads, "seconds": budget_s}), encoding="utf-8"
        )
        with as_file(files("pastille.runtime") / "answering.py") as script:
            said = _run(isa, [*command, "-I", str(script), str(request)], environment, timeout_s)
        check, outputs = (_arrays(Path(job["answers"])) for job in jobs)
    return Answers(
        outputs=outputs,
        saturates=saturated(check["output"]),
        machine=said["machine"],
        runtime_version=said["version"],
        seconds=said["seconds"],
    )


def check_emulated(isa: Isa, root: Path | None = None) -> None:
    """Make sure that a kind of CPU can be asked here, without asking it.

    Args:
        isa: See `answers_on`.
        root: See `answers_on`.

    Raises:
        UsageError: QEMU or the ARM root is missing; the message says what to install.
    """
    _command(isa, root)


def is_emulated(isa: Isa) -> bool:
    """Whether that CPU is emulated here, rather than being this one."""
    return not (isa == "native" or (isa == "aarch64" and _is_arm()))


def _is_arm() -> bool:
    return platform.machine() in {"aarch64", "arm64"}


def _job(
    folder: Path, name: str, model: Path, inputs: Mapping[str, np.ndarray], batch: int
) -> dict[str, Any]:
    given, answers = folder / f"{name}-inputs.npz", folder / f"{name}-answers.npz"
    np.savez(given, **inputs)  # type: ignore[arg-type]  # numpy's stub takes allow_pickle for any key
    return {"model": str(model), "inputs": str(given), "answers": str(answers), "batch": batch}


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def _command(isa: Isa, root: Path | None) -> tuple[list[str], dict[str, str]]:
    """How a Python is started on that CPU: the command's beginning, and its environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("QEMU_")}
    if not is_emulated(isa):
        return [sys.executable], kept
    emulator = _EMULATORS[isa]
    program = next((found for name in emulator.programs if (found := shutil.which(name))), None)
    if program is None:
        raise UsageError(f"isa {isa} needs QEMU's user mode: apt-get install qemu-user-static")
    start = [program, "-cpu", emulator.cpu]
    environment = kept | dict(emulator.environment)
    if isa == "aarch64":
        arm = _arm_root(root)
        return [*start, "-L", str(arm), str(_python_of(arm))], environment
    if platform.machine() not in _X86:
        raise UsageError(f"isa {isa} can be emulated on x86-64 alone, this is {platform.machine()}")
    return [*start, sys.executable], environment


def _arm_root(root: Path | None) -> Path:
    given = root or (Path(os.environ[ARM_ROOT]) if os.environ.get(ARM_ROOT) else None)
    if given is None:
        raise UsageError(
            "isa aarch64 needs an ARM root with Python, numpy and onnxruntime: make one with "
            f"scripts/aarch64-root FOLDER of Pastille's repository, and set {ARM_ROOT}=FOLDER"
        )
    return given.resolve()


def _python_of(root: Path) -> Path:
    pythons = sorted((root / "usr" / "bin").glob("python3.[0-9]*"))
    if not pythons:
        raise UsageError(
            f"the ARM root {root} has no usr/bin/python3.*; make it by scripts/aarch64-root {root}"
        )
    return pythons[0]


def _run(isa: str, command: list[str], environment: Mapping[str, str], timeout_s: float) -> dict[str, Any]:
    try:
        done = subprocess.run(
            command, env=dict(environment), capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise InferenceError(
            f"isa {isa}: no answer within {timeout_s:g} s; give fewer cases or more time"
        ) from None
    except OSError as error:
        raise UsageError(f"isa {isa}: {command[0]} cannot be started: {error.strerror}") from None
    if done.returncode:
        raise InferenceError(f"isa {isa}: the process failed: {_reason(done)}")
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip() and "warning" not in line]
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}"
    return lines[-1][:300] if lines else f"exit code {done.returncode}"

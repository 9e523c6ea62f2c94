from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
from measure_models import mlp_file

from pastille.errors import InferenceError
from pastille.measure import fresh
from pastille.measure.memory import footprint

BATCH = {"input": np.ones((2, 8), np.float32)}


def test_a_fresh_process_is_measured(mlp: Path) -> None:
    ballast = np.ones(200 << 17)  # 200 MiB held by this process must not be counted
    found = footprint(mlp, BATCH, repeats=2)
    assert ballast[-1] == 1
    assert 10 << 20 < found.runtime_bytes <= found.peak_bytes < 200 << 20
    assert found.cold_start_ms > 0
    assert found.import_ms > 0
    assert (found.conditions.runtime, found.conditions.threads) == ("onnxruntime", 1)


def test_a_large_file_takes_more_memory(tmp_path: Path) -> None:
    wide = mlp_file(tmp_path / "wide.onnx", width=1200)  # 5.8 MB of weights
    found = footprint(wide, {"input": np.ones((1, 1200), np.float32)}, repeats=1)
    assert found.peak_bytes - found.runtime_bytes > 5_000_000


def test_a_process_that_fails_is_one_line(mlp: Path) -> None:
    with pytest.raises(InferenceError, match=r"^mlp\.onnx: a fresh process failed: .*cannot run") as error:
        footprint(mlp, {"other": np.ones(1)}, repeats=1)
    assert "\n" not in str(error.value)


def test_a_process_that_hangs_is_ended(mlp: Path) -> None:
    with pytest.raises(InferenceError, match=r"^mlp\.onnx: .* no answer within 0\.01 s"):
        footprint(mlp, BATCH, repeats=1, timeout_s=0.01)


def test_a_process_that_is_killed_is_told(mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killer = tmp_path / "python"
    killer.write_text("#!/bin/sh\nkill -9 $$\n")
    killer.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killer))
    with pytest.raises(InferenceError, match="killed by signal 9"):
        footprint(mlp, BATCH, repeats=1)


def test_what_lies_in_the_current_folder_is_not_imported(
    mlp: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    assert footprint(mlp, BATCH, repeats=1).peak_bytes > 0


def test_the_peak_is_of_this_process() -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    assert 0 < fresh.peak_bytes() <= peak * 1.1


def test_the_answer_is_json(mlp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "x.npz", input=BATCH["input"])
    fresh.main(json.dumps({"file": str(mlp), "inputs": str(tmp_path / "x.npz"), "threads": 1}))
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"version", "import_ms", "cold_start_ms", "peak_bytes"}

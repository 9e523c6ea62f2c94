"""KServe's unmodified client against the real server; it lives in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from serving_bundles import cases, tiny_bundle
from serving_process import running

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-kserve" / "bin" / "python"

pytestmark = pytest.mark.skipif(
    not PYTHON.exists(), reason="KServe's client is not here: scripts/kserve-environment installs it"
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the client saw, and the logits as another client read them."""
    folder = tmp_path_factory.mktemp("kserve")
    np.save(folder / "cases.npy", cases(4))
    with running(tiny_bundle(folder / "bundle", name="tiny")) as server:
        script = Path(__file__).with_name("kserve_asks.py")
        done = subprocess.run(
            [PYTHON, script, server.url, "tiny", folder / "cases.npy"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
            timeout=120,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        given = triton.InferInput("input", [4, 10], "FP32")
        given.set_data_from_numpy(cases(4))
        with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as other:
            logits = other.infer("tiny", [given]).as_numpy("logits")
    return {**json.loads(done.stdout.splitlines()[-1]), "logits": logits.tolist()}


def test_health(found: dict[str, Any]) -> None:
    assert [found[name] for name in ("live", "ready", "model", "other")] == [True, True, True, False]


def test_every_form_gives_the_same_answer(found: dict[str, Any]) -> None:
    assert len(found["answers"]) == 6
    for answer in found["answers"]:
        np.testing.assert_array_equal(np.float32(answer["logits"]), np.float32(found["logits"]))
        assert (answer["id"], answer["model"]) == ("k-1", "tiny")
        assert answer["parameters"]["variant"] == "int8"
        assert answer["travelled"] == (answer["binary"][1] is True)
    assert found["raw"] == "answered"


def test_errors_are_read(found: dict[str, Any]) -> None:
    assert "must have shape [N, 10]" in found["shape"]
    assert "400" in found["shape"]
    assert "404" in found["missing"]

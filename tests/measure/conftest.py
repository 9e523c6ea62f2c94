from __future__ import annotations

from pathlib import Path

import pytest
from measure_models import mlp_file


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def mlp(models: Path) -> Path:
    return mlp_file(models / "mlp.onnx")


@pytest.fixture(scope="session")
def quick(models: Path) -> Path:
    return mlp_file(models / "quick.onnx", width=96)


@pytest.fixture(scope="session")
def slow(models: Path) -> Path:
    return mlp_file(models / "slow.onnx", width=96, layers=30)

from __future__ import annotations

from pathlib import Path

import pytest
from task_files import write_users_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_users_files(tmp_path)

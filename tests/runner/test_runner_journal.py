"""A run's directory: what a stage finds of an earlier process."""

from __future__ import annotations

from pathlib import Path

import pytest

from pastille.errors import OutputError
from pastille.recipe import parse_recipe
from pastille.runner.journal import Journal, open_run
from pastille.stages.contract import STEPS


def journal(base: Path) -> Journal:
    asked = {
        "name": "r",
        "task": {"kind": "regression", "model": "m.py:f"},
        "data": {"source": "d.py:s"},
        "plan": [{"quantize": {}}],
    }
    return open_run(parse_recipe(asked), base, resume=False)


def test_a_stage_finds_its_own_steps_and_nothing_else(tmp_path: Path) -> None:
    opened = journal(tmp_path)
    folder = opened.fresh_folder("stages/01-prune")
    assert list(folder.iterdir()) == []
    (folder / "model.onnx").write_bytes(b"half")
    (folder / "trials").mkdir()
    (folder / "trials/1.onnx").write_bytes(b"half")
    (folder / STEPS / "01").mkdir(parents=True)
    (folder / STEPS / "01/step.json").write_text("{}")
    (folder / "link").symlink_to(tmp_path)
    assert opened.fresh_folder("stages/01-prune") == folder
    assert [path.name for path in folder.iterdir()] == [STEPS]
    assert (folder / STEPS / "01/step.json").read_text() == "{}"
    assert (tmp_path / "runs").is_dir(), "a link is removed, not what it leads to"
    opened.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    opened = journal(tmp_path)
    (opened.directory / "stages").write_text("a file")
    with pytest.raises(OutputError, match=r"cannot write .*stages/01-prune"):
        opened.fresh_folder("stages/01-prune")
    opened.close()

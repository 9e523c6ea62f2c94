"""The forms in docs/how-to/cluster.md: shell that parses, manifests that are YAML, options that exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

PAGE = (Path(__file__).parents[2] / "docs/how-to/cluster.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def manifests() -> list[dict[str, object]]:
    return [yaml.safe_load(text) for text in blocks("yaml")]


def commands() -> list[list[str]]:
    """Every call of torchrun, without the word itself."""
    (script,) = blocks("bash")
    lines = [
        line for line in (*blocks("")[0].splitlines(), script.replace("\\\n", " ")) if "torchrun" in line
    ]
    written = [re.search(r"torchrun (.*)", line) for line in lines]
    listed = re.findall(r"command: \[torchrun, (.*)\]", PAGE)
    shell = [found[1].split() for found in written if found]
    return [*shell, *(text.split(", ") for text in listed)]


def test_the_batch_script_is_shell(tmp_path: Path) -> None:
    (script,) = blocks("bash")
    (tmp_path / "job.sh").write_text(script)
    checked = subprocess.run(["bash", "-n", str(tmp_path / "job.sh")], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_manifests_are_what_they_say() -> None:
    assert [m["kind"] for m in manifests()] == ["Job", "PyTorchJob"]
    assert {"apiVersion", "kind", "metadata", "spec"} == set(manifests()[1])


@pytest.mark.parametrize("command", commands(), ids=range(len(commands())))
def test_the_launcher_takes_these_options(command: list[str]) -> None:
    numbers = [re.sub(r'^"?\$.*', "2", word) for word in command]
    asked = get_args_parser().parse_args(numbers)
    assert (asked.module, asked.training_script) == (True, "pastille")
    assert asked.training_script_args[0] == "run"

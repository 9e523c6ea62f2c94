"""The command line itself: help, lists, JSON, progress, and errors of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pastille.cli.app import app, exit_code
from pastille.cli.benching import parse_shape
from pastille.cli.console import Live
from pastille.cli.doctor import int8_note
from pastille.errors import ExitCode, UsageError
from pastille.values import Status

COMMANDS = [
    "run",
    "profile",
    "bench",
    "power",
    "predict",
    "quantize",
    "scan",
    "validate",
    "verify",
    "report",
    "doctor",
    "demo",
]


def pastille(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_and_exit_codes(command: str) -> None:
    result = pastille(command, "--help")
    assert result.exit_code == 0
    text = plain(result.stdout)
    assert f"$ pastille {command}" in text
    assert "3 rejected" in text


def test_without_a_command_the_commands_are_listed() -> None:
    text = plain(pastille("--help").stdout)
    assert all(f" {command} " in text for command in COMMANDS)


def test_version_is_the_packages() -> None:
    from importlib import metadata

    assert pastille("--version").stdout.strip() == metadata.version("pastille")


def test_the_demos_are_listed() -> None:
    lines = pastille("demo", "--list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["digits", "breast-cancer", "diabetes"]
    assert set(json.loads(pastille("demo", "--list", "--json").stdout)) == {
        "digits",
        "breast-cancer",
        "diabetes",
    }


def test_an_unknown_demo_is_refused_with_the_choice() -> None:
    result = pastille("demo", "digit")
    assert result.exit_code == ExitCode.USAGE
    assert "there is no demo 'digit'; choose one of: digits, breast-cancer, diabetes" in result.stderr


def test_doctor_describes_this_machine() -> None:
    found = json.loads(pastille("doctor", "--json").stdout)
    assert found["cores"] >= 1
    assert found["memory_bytes"] > 1 << 28
    assert found["packages"]["core"]["numpy"]
    assert found["packages"]["compress"]["torch"].startswith("2.13.0")
    shown = pastille("doctor").stdout
    assert found["device"] in shown
    assert found["isa"] in shown


def test_what_int8_means_here() -> None:
    assert "fast and exact" in int8_note("avx512-vnni")
    assert "no int8 dot product" in int8_note("avx2")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["verify", "nowhere"], ExitCode.USAGE, "nowhere does not exist; verify takes a bundle's directory"),
        (["bench", "nowhere.onnx"], ExitCode.USAGE, "there is no file nowhere.onnx"),
        (["report", "nowhere"], ExitCode.INTEGRITY, "nowhere"),
        (["run", "nowhere.yaml"], ExitCode.USAGE, "nowhere.yaml: cannot read the recipe"),
        (["profile", "nowhere.yaml"], ExitCode.USAGE, "nowhere.yaml: cannot read the recipe"),
        (
            ["validate", "a.onnx", "-r", "r.yaml", "--split", "train"],
            ExitCode.USAGE,
            "--split must be validation or test, got 'train'",
        ),
    ],
)
def test_what_is_not_there_is_one_line(arguments: list[str], code: ExitCode, said: str) -> None:
    result = pastille(*arguments)
    assert result.exit_code == code
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    result = pastille("bench", tmp_path / "model.onnx", "-q")
    assert result.exit_code == ExitCode.INTEGRITY
    assert "model.onnx" in result.stderr


@pytest.mark.parametrize("text", ["input", "input=", "=3", "input=3,x", "input=0"])
def test_a_malformed_shape_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="must be NAME=D1,D2"):
        parse_shape(text)


def test_every_status_has_its_exit_code() -> None:
    assert [exit_code(status) for status in Status] == [0, 3, 4]


def test_progress_goes_to_stderr_and_leaves_no_colour_in_a_file(tmp_path: Path) -> None:
    code = (
        "from pastille.cli.console import Live\nlive = Live()\n"
        "assert list(live.track(range(3), what='working')) == [0, 1, 2]\nlive.note('a [b] c')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr == "a [b] c\n"


def test_work_goes_on_when_nobody_reads_its_progress() -> None:
    code = (
        "import os, sys\nfrom pastille.cli.console import Live\nlive = Live()\n"
        "read, write = os.pipe()\nos.close(read)\nos.dup2(write, 2)\n"
        "for i in live.track(range(3), what='working'): live.note('x' * 9000)\n"
        "print('done')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "done\n"


def test_without_a_terminal_long_work_says_where_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pastille.cli.console._LINE_SECONDS", -1.0)
    assert list(Live().track("abc", what="working")) == ["a", "b", "c"]
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()] == [
        "working: 0/3",
        "working: 1/3",
        "working: 2/3",
    ]


def test_an_unexpected_failure_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("a\nb")

    monkeypatch.setattr("pastille.cli.doctor.examine", fail)
    result = pastille("doctor")
    assert result.exit_code == ExitCode.FAILURE
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: unexpected: RuntimeError: a b: this is a fault of Pastille")


def test_what_an_edge_installation_leaves_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr("pastille.cli.doctor.examine", fail)
    result = pastille("doctor")
    assert result.exit_code == ExitCode.USAGE
    assert "needs torch, which an edge installation leaves out; run: pip install" in result.stderr

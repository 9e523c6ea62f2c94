"""A recipe that names other CPUs: its files are asked there, and everything that is written says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pastille.bundle import read_manifest
from pastille.cli.app import app
from pastille.record import FinalJudged, read_record

pytestmark = pytest.mark.e2e

QUICK = ("--quiet", "--set", "plan=[{quantize: {samples: 64}}]")


@pytest.mark.skipif(
    shutil.which("qemu-x86_64-static") is None, reason="no QEMU here: apt-get install qemu-user-static"
)
def test_bundle_record_report_and_verify_name_the_cpus(project: Path) -> None:
    asked = ["run", str(project / "recipe.yaml"), *QUICK, "--set", "measure.isas=[avx2]"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    (directory,) = (project / "runs/tiny").iterdir()
    final = read_record(directory / "run.json").last(FinalJudged)
    assert final is not None
    here, there = final.validated["int8"]
    assert (here.emulated, here.cases, here.equal_decisions) == (False, 270, 270)
    assert (there.isa, there.emulated, there.cases) == ("avx2", True, 60)
    assert there.equal_decisions == there.identical == 60, "seven bits cannot saturate"
    manifest = read_manifest(directory / "bundle" / "manifest.json")
    assert {str(v.name): v.validated for v in manifest.variants} == dict(final.validated)
    words = "avx2 (emulated): 60 of 60 decisions alike"
    assert words in (directory / "report.html").read_text()
    verified = CliRunner().invoke(app, ["verify", str(directory / "bundle")])
    assert f"int8 on {here.words}; {words}" in " ".join(verified.output.split())


def test_a_cpu_that_cannot_be_emulated_is_refused_before_anything_is_written(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(project))
    asked = ["run", str(project / "recipe.yaml"), *QUICK, "--set", "measure.isas=[sse4]"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 2
    assert "measure.isas: isa sse4 needs QEMU's user mode: apt-get install" in " ".join(done.output.split())
    assert not (project / "runs").exists()

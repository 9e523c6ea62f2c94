"""What is deployed: unit, image and manifests, held against their linters and the real command."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from pastille.cli.app import app

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
UNIT = DEPLOY / "systemd/pastille.service"
IMAGE = DEPLOY / "docker/Dockerfile"


def options() -> set[str]:
    """Every option that ``pastille serve`` takes."""
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    return {name for parameter in serve.params for name in (*parameter.opts, *parameter.secondary_opts)}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text()))


def container(document: dict[str, Any]) -> dict[str, Any]:
    spec = document["spec"]
    found: dict[str, Any] = spec.get("template", {}).get("spec", spec)["containers"][0]
    return found


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed here")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/pastille/bin/pastille", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed here")
def test_the_unit_exposes_little() -> None:
    highest = "--threshold=20"  # of 100; less is better
    command = ["systemd-analyze", "security", "--offline=true", highest, str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr


def test_every_option_that_is_deployed_exists() -> None:
    unit = re.findall(r"(?<= )--[a-z-]+", re.search(r"^ExecStart=.*$", UNIT.read_text(), re.M)[0])  # type: ignore[index]
    image = re.findall(r'"(--[a-z-]+)"', IMAGE.read_text())
    manifests = [container(documents("pastille.yaml")[0]), container(documents("kserve.yaml")[0])]
    given = [arg.partition("=")[0] for c in manifests for arg in c["args"] if arg.startswith("--")]
    used = {*unit, *image, *given}
    assert len(used) >= 5
    assert used <= options()


def test_the_image_is_slim_torch_free_and_not_root() -> None:
    lines = IMAGE.read_text().replace("\\\n", " ").splitlines()
    instructions = [line for line in lines if line and not line.startswith("#")]
    stages = [i for i, line in enumerate(instructions) if line.startswith("FROM ")]
    final = instructions[stages[-1] :]
    assert len(stages) == 2
    assert all("-slim" in instructions[i] for i in stages)
    assert [line.split()[1] for line in final if line.startswith("USER ")] == ["10001:10001"]
    assert not any("pip install" in line or "apt-get" in line for line in final)
    installed = " ".join(line for line in instructions if "pip" in line)
    assert "torch" not in installed
    copied = [line for line in instructions if line.startswith("COPY ") and "--from" not in line]
    missing = [s for line in copied for s in line.split()[1:-1] if not (DEPLOY.parent / s).exists()]
    assert missing == []


@pytest.mark.parametrize("name", ["pastille.yaml", "kserve.yaml"])
def test_the_containers_may_do_little(name: str) -> None:
    document = documents(name)[0]
    found = container(document)
    context = found["securityContext"]
    pod = document["spec"].get("template", {}).get("spec", {}).get("securityContext", {})
    assert {**pod, **context}["runAsNonRoot"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert set(found["resources"]) == {"requests", "limits"}


def test_the_probes_tell_starting_ready_and_alive_apart() -> None:
    found = container(documents("pastille.yaml")[0])
    paths = [found[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")]
    assert paths == ["/healthz/startup", "/healthz/ready", "/healthz/live"]


def test_labels_and_names_fit_together() -> None:
    deployment, service, budget, policy = documents("pastille.yaml")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["selector"] == labels
    assert budget["spec"]["selector"]["matchLabels"] == labels
    assert policy["spec"]["podSelector"]["matchLabels"] == labels
    assert service["spec"]["ports"][0]["targetPort"] == container(deployment)["ports"][0]["name"]
    volumes = {volume["name"] for volume in deployment["spec"]["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container(deployment)["volumeMounts"]} == volumes
    runtime, model = documents("kserve.yaml")
    wanted = model["spec"]["predictor"]["model"]
    assert wanted["runtime"] == runtime["metadata"]["name"]
    assert wanted["modelFormat"]["name"] == runtime["spec"]["supportedModelFormats"][0]["name"]

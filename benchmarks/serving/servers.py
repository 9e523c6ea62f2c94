"""Every server that is compared: how it is started, asked and read; a rival in an environment of its own."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from serving.subjects import OUTPUT, Subject

RIVALS = Path(__file__).parent / "rivals"
OURS = "pastille"


@dataclass(frozen=True, kw_only=True)
class Request:
    """One POST, as bytes on the wire."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    def wire(self) -> bytes:
        """Request line, headers and body."""
        head = {"Host": "127.0.0.1", **self.headers, "Content-Length": str(len(self.body))}
        lines = [f"POST {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items())]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


@dataclass(frozen=True, kw_only=True)
class Server:
    """One server on one model."""

    name: str
    command: tuple[str, ...]
    request: Request
    read: Callable[[bytes, Mapping[str, str]], np.ndarray]  # the answer's body and headers -> outputs
    environment: Mapping[str, str] = field(default_factory=dict)
    cwd: Path = RIVALS


def raw_request(x: np.ndarray, path: str = "/infer") -> Request:
    return Request(path=path, headers={"Content-Type": "application/octet-stream"}, body=x.tobytes())


def raw_answer(body: bytes, _headers: Mapping[str, str]) -> np.ndarray:
    return np.frombuffer(body, np.float32)


def oip_request(x: np.ndarray, model: str, *, outputs: bool = True, output: str = OUTPUT) -> Request:
    """The Open Inference Protocol with the binary tensor extension."""
    tensor = {
        "name": "input",
        "shape": list(x.shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": x.nbytes},
    }
    asked: dict = {"inputs": [tensor]}
    if outputs:
        asked["outputs"] = [{"name": output, "parameters": {"binary_data": True}}]
    head = json.dumps(asked, separators=(",", ":")).encode()
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(head)),
    }
    return Request(path=f"/v2/models/{model}/infer", headers=headers, body=head + x.tobytes())


def oip_answer(body: bytes, headers: Mapping[str, str]) -> np.ndarray:
    """Binary or JSON outputs."""
    length = int(headers.get("inference-header-content-length", len(body)))
    tensor = json.loads(body[:length])["outputs"][0]
    if "data" in tensor:
        return np.asarray(tensor["data"], np.float32).reshape(-1)
    return np.frombuffer(body[length : length + tensor["parameters"]["binary_data_size"]], np.float32)


def pastille(subject: Subject, port: int, _environments: Path, _limit: int) -> Server:
    return Server(
        name=OURS,
        command=(sys.executable, "-m", "pastille", "serve", str(subject.bundle), "--port", str(port)),
        request=oip_request(subject.sample(), subject.name),
        read=oip_answer,
    )


def fastapi(subject: Subject, port: int, environments: Path, limit: int) -> Server:
    python = environments / "fastapi/bin/python"
    shape = ",".join(map(str, subject.shape))
    return Server(
        name="fastapi",
        command=(str(python), "fastapi_app.py", str(subject.int8), str(port), shape, str(limit)),
        request=raw_request(subject.sample()),
        read=raw_answer,
    )


def litserve(subject: Subject, port: int, environments: Path, _limit: int) -> Server:
    python = environments / "litserve/bin/python"
    shape = ",".join(map(str, subject.shape))
    return Server(
        name="litserve",
        command=(str(python), "litserve_app.py", str(subject.int8), str(port), shape),
        request=raw_request(subject.sample(), "/predict"),
        read=raw_answer,
    )


def bentoml(subject: Subject, port: int, environments: Path, limit: int) -> Server:
    bento = environments / "bentoml/bin/bentoml"
    shape = ",".join(map(str, subject.shape))
    return Server(
        name="bentoml",
        command=(
            str(bento),
            "serve",
            "bentoml_app:Service",
            "--port",
            str(port),
            "--host",
            "127.0.0.1",
            "-q",
        ),
        request=raw_request(subject.sample(), "/raw/infer"),
        read=raw_answer,
        environment={
            "MODEL": str(subject.int8),
            "SHAPE": shape,
            "LIMIT": str(limit),
            "BENTOML_DO_NOT_TRACK": "True",
        },
    )


def mlserver(subject: Subject, port: int, environments: Path, _limit: int) -> Server:
    folder = subject.bundle.parent / f"mlserver-{subject.name}"
    folder.mkdir(exist_ok=True)
    settings = {"http_port": port, "grpc_port": free_port(), "metrics_port": free_port(), "host": "127.0.0.1"}
    settings |= {"parallel_workers": 0, "debug": False, "use_structured_logging": False}
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(
        json.dumps({"name": "model", "implementation": "mlserver_runtime.Runtime"})
    )
    (folder / "mlserver_runtime.py").write_text((RIVALS / "mlserver_runtime.py").read_text())
    return Server(
        name="mlserver",
        command=(str(environments / "mlserver/bin/mlserver"), "start", str(folder)),
        request=raw_request(subject.sample()),
        read=raw_answer,
        environment={
            "MODEL": str(subject.int8),
            "PYTHONPATH": str(folder),
            "SHAPE": ",".join(map(str, subject.shape)),
        },
        cwd=folder,
    )


def kserve(subject: Subject, port: int, environments: Path, _limit: int) -> Server:
    python = environments / "kserve/bin/python"
    return Server(
        name="kserve",
        command=(str(python), "kserve_app.py", str(subject.int8), str(port)),
        request=oip_request(subject.sample(), "model", outputs=False),
        read=oip_answer,
    )


MAKERS = {
    "pastille": pastille,
    "fastapi": fastapi,
    "litserve": litserve,
    "mlserver": mlserver,
    "bentoml": bentoml,
    "kserve": kserve,
}
LIMITED = ("fastapi", "bentoml")  # what can be told how much to take on at once


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def installed(environments: Path) -> list[str]:
    """Names of the servers that can be started here, ours first."""
    return [OURS, *(name for name in MAKERS if (environments / name / "bin/python").exists())]


MARK = "PASTILLE_BENCHMARK_SERVER"


def environment(server: Server, mark: str) -> dict[str, str]:
    """Of its process: without ours, where it is a rival's; with a mark that its children inherit."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    if server.name == OURS and "PYTHONPATH" in os.environ:
        kept["PYTHONPATH"] = os.environ["PYTHONPATH"]
    return kept | {"OMP_NUM_THREADS": "1", MARK: mark, **server.environment}

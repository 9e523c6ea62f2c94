"""Two models to serve, as bundles: ResNet-18 on 602 KB images, and a tiny ECG network on 12 KB windows."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pastille.bundle import BundleParts, VariantPart, answer_cases, write_bundle
from pastille.devices import this_machine
from pastille.measure.latency import time_calls
from pastille.runtime import ONNXRUNTIME, load
from pastille.values import ModelPrecision, Status, TensorSpec, Validation, Verdict

OUTPUT = "output"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One model to serve."""

    name: str
    shape: tuple[int, ...]  # of one input
    classes: int
    int8: Path
    fp32: Path
    bundle: Path

    def sample(self, seed: int = 0) -> np.ndarray:
        """One input, ``(1, ...)`` float32."""
        return np.random.default_rng(seed).standard_normal((1, *self.shape), dtype=np.float32)


def subjects(folder: Path) -> tuple[Subject, Subject]:
    """Make both, or find them where they were made before."""
    return (
        _subject(folder, "resnet18", (3, 224, 224), 1000),
        _subject(folder, "ecg", (12, 250), 2),
    )


def _subject(folder: Path, name: str, shape: tuple[int, ...], classes: int) -> Subject:
    found = Subject(
        name=name,
        shape=shape,
        classes=classes,
        int8=folder / f"{name}-int8.onnx",
        fp32=folder / f"{name}-fp32.onnx",
        bundle=folder / f"{name}-bundle",
    )
    if not (found.bundle / "manifest.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _make(found)
    return found


def _make(subject: Subject) -> None:
    import torch

    from pastille.export import export_onnx
    from pastille.quantization import quantize_static
    from pastille.recipe import Quantize

    sys.path.insert(0, str(Path(__file__).parents[1]))
    import networks

    print(f"making {subject.name} ...", file=sys.stderr)
    torch.manual_seed(0)
    model = networks.settled(_module(subject.name), subject.shape).eval()
    two = np.concatenate([subject.sample(0), subject.sample(1)])  # one would be taken for a fixed batch
    export_onnx(model, {"input": torch.from_numpy(two)}, subject.fp32)
    rows = [subject.sample(i) for i in range(16)]
    quantize_static(subject.fp32, subject.int8, lambda: ({"input": x} for x in rows), Quantize())
    _write_bundle(subject)


def _module(name: str):  # type: ignore[no-untyped-def]
    import torch

    if name == "resnet18":
        from pastille.task.torchvision import import_torchvision

        return import_torchvision().models.get_model("resnet18", weights=None)
    widths = (12, 96, 128, 160, 160)
    layers: list[torch.nn.Module] = []
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        layers += [torch.nn.Conv1d(before, after, 7, stride=1 + (i < 2), padding=3), torch.nn.ReLU()]
    layers += [torch.nn.AdaptiveAvgPool1d(1), torch.nn.Flatten(), torch.nn.Linear(160, 2)]
    return torch.nn.Sequential(*layers)


def _write_bundle(subject: Subject) -> None:
    files: dict[ModelPrecision, Path] = {"int8": subject.int8, "fp32": subject.fp32}
    sessions = {name: load(path) for name, path in files.items()}
    inputs = _agreed(subject, sessions)
    machine = this_machine(threads=1, runtime=ONNXRUNTIME.name, runtime_version=ONNXRUNTIME.version)
    seen = Validation(
        isa=machine.isa,
        emulated=False,
        cases=16,
        equal_decisions=16,
        identical=16,
        runtime_version=ONNXRUNTIME.version,
    )
    parts = BundleParts(
        name=subject.name,
        kind="multiclass",
        labels=tuple(f"class {i}" for i in range(subject.classes)),
        positive=("class 1",),
        threshold=0.5,
        inputs=(TensorSpec(name="input", shape=subject.shape, dtype="float32"),),
        output=TensorSpec(name=OUTPUT, shape=(subject.classes,), dtype="float32"),
        preprocessing=None,
        requirements={"risk": "low"},
        verdict=Verdict(status=Status.APPROVED, reason="for a benchmark", checks=(), split="test"),
        selected="int8",
        selection_reason="for a benchmark",
        variants=tuple(
            VariantPart(
                name="int8" if name == "int8" else "fp32",
                path=path,
                precision=name,
                validated=(seen,),
                latency=(
                    time_calls(sessions[name], {"input": subject.sample()}, conditions=machine, budget_s=1),
                ),
                status=Status.APPROVED if name == "int8" else None,
                parameters=1,
                macs=1,
            )
            for name, path in files.items()
        ),
        golden=answer_cases({"input": inputs}, sessions, output=OUTPUT),
        golden_source="synthetic",
        evidence={},
    )
    write_bundle(subject.bundle, parts)


def _agreed(subject: Subject, sessions: dict, cases: int = 4) -> np.ndarray:  # type: ignore[type-arg]
    """Inputs that both variants decide alike; weights are random, so that not all of them are."""
    rows = np.concatenate([subject.sample(i) for i in range(100, 164)])
    decided = [s({"input": rows})[OUTPUT].argmax(axis=1) for s in sessions.values()]
    return rows[np.flatnonzero(decided[0] == decided[1])[:cases]]

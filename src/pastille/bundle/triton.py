"""A bundle as a model repository of NVIDIA Triton: for fleets that have Triton already.

What is lost on the way is the fallback, the alarms and the checks of inputs: Triton only runs the files.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pastille.bundle.manifest import Manifest, Variant
from pastille.bundle.stored import onnx_file
from pastille.bundle.verify import verify
from pastille.errors import OutputError, UsageError
from pastille.files import produce_atomic, write_atomic
from pastille.values import TensorSpec

MAX_BATCH: Final = 64
CONFIG: Final = "config.pbtxt"

_TYPES: Final = {
    "bool": "TYPE_BOOL",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    **{f"int{bits}": f"TYPE_INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"TYPE_UINT{bits}" for bits in (8, 16, 32, 64)},
}


@dataclass(frozen=True, kw_only=True)
class TritonModel:
    """One model of the repository."""

    name: str
    variant: str
    folder: Path


def write_triton_repository(
    bundle: Path, target: Path, *, version: int = 1, max_batch: int = MAX_BATCH
) -> tuple[TritonModel, ...]:
    """Write a bundle's models so that ``tritonserver --model-repository`` serves them.

    The selected variant takes the bundle's name; fp32, where it is another one, that name with ``_fp32``.
    Both take the same inputs, so that a client can fall back by changing the name.

    Args:
        bundle: Verified first, with its golden cases.
        target: The repository; other models in it are left alone.
        version: Folder of the model file, from 1.
        max_batch: Rows that one request may have.

    Returns:
        What was written.

    Raises:
        IntegrityError: The bundle is not what it was when it was written, or answers otherwise here.
        OutputError: Something cannot be written.
        UsageError: That version is there already: Triton's are not replaced in place.
    """
    if version < 1 or max_batch < 1:
        raise UsageError(f"version and max_batch must be at least 1, got {version} and {max_batch}")
    manifest = verify(bundle).manifest
    variants = {manifest.name: manifest.variant(manifest.selected)}
    variants.setdefault(f"{manifest.name}_fp32", manifest.variant("fp32"))
    if manifest.selected == "fp32":
        del variants[f"{manifest.name}_fp32"]
    for name in variants:
        if (target / name / str(version)).exists():
            raise UsageError(f"{target / name} holds version {version} already; give --version a higher one")
    return tuple(
        _written(bundle, manifest, variant, target / name, version, max_batch)
        for name, variant in variants.items()
    )


def _written(
    bundle: Path, manifest: Manifest, variant: Variant, folder: Path, version: int, max_batch: int
) -> TritonModel:
    with onnx_file(bundle, variant) as file:
        produce_atomic(folder / str(version) / "model.onnx", lambda draft: _copied(file, draft))
    if manifest.labels:
        write_atomic(folder / "labels.txt", "".join(f"{label}\n" for label in manifest.labels).encode())
    # Last: Triton takes up a model as soon as it finds its configuration.
    config = model_config(manifest, variant, name=folder.name, max_batch=max_batch)
    write_atomic(folder / CONFIG, config.encode())
    return TritonModel(name=folder.name, variant=variant.name, folder=folder)


def _copied(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error


def model_config(manifest: Manifest, variant: Variant, *, name: str, max_batch: int = MAX_BATCH) -> str:
    """Triton's ``config.pbtxt`` for one variant, in protobuf's text format.

    Threads are set to one and do not spin: by default each model would take every core.
    """
    labels = ' label_filename: "labels.txt"' if manifest.labels and _one_per_label(manifest) else ""
    notes = {
        "intra_op_thread_count": "1",
        "inter_op_thread_count": "1",
        "session.intra_op.allow_spinning": "0",
        "pastille.content": manifest.content,
        "pastille.sha256": variant.model.sha256,
        "pastille.variant": variant.name,
        "pastille.threshold": repr(manifest.threshold_of(variant)),
    }
    return "\n".join(
        [
            f"name: {_text(name)}",
            'backend: "onnxruntime"',
            f"max_batch_size: {max_batch}",
            *(f"input [ {{ {_tensor(spec)} }} ]" for spec in manifest.inputs),
            f"output [ {{ {_tensor(manifest.output)}{labels} }} ]",
            "instance_group [ { kind: KIND_CPU count: 1 } ]",
            *(
                f"parameters {{ key: {_text(k)} value {{ string_value: {_text(v)} }} }}"
                for k, v in notes.items()
            ),
            "",
        ]
    )


def _one_per_label(manifest: Manifest) -> bool:
    return manifest.output.shape == (len(manifest.labels),)


def _tensor(spec: TensorSpec) -> str:
    # A scalar per case: Triton wants at least one dimension, and reshapes it away.
    shape, reshape = (spec.shape, "") if spec.shape else ((1,), " reshape { shape: [ ] }")
    dims = ", ".join(map(str, shape))
    return f"name: {_text(spec.name)} data_type: {_TYPES[spec.dtype]} dims: [ {dims} ]{reshape}"


def _text(value: str) -> str:
    r"""A string of protobuf's text format.

    Example:
        >>> _text('a "b"')
        '"a \\"b\\""'
    """
    return json.dumps(value)

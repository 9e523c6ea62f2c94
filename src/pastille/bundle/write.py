"""Write a bundle whole or not at all.

It grows in a draft folder beside its final place, is synced and checked there, and is then put into
place by one rename. An earlier bundle stays whole until the moment in which the new one replaces it.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from pastille.bundle.golden import Golden, golden_bytes
from pastille.bundle.manifest import (
    MANIFEST,
    PREPROCESSING,
    FileEntry,
    GoldenFile,
    GoldenSource,
    Manifest,
    OutputScale,
    Variant,
    VariantName,
    is_safe_path,
    manifest_bytes,
    sealed,
)
from pastille.bundle.verify import verify
from pastille.errors import OutputError
from pastille.files import sha256_file
from pastille.runtime import check_self_contained
from pastille.runtime.packed import SUFFIX, pack
from pastille.values import (
    Kind,
    Latency,
    ModelPrecision,
    Preprocessing,
    Reference,
    Status,
    TensorSpec,
    Validation,
    Verdict,
)

GOLDEN_FILE = "golden/cases.npz"
FOLDERS = ("models", "golden", "evidence", PREPROCESSING)

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@dataclass(frozen=True, kw_only=True)
class VariantPart:
    """One model file to put into a bundle; see `Variant`."""

    name: VariantName
    path: Path  # where the file lies now; it is copied
    precision: ModelPrecision
    validated: tuple[Validation, ...]
    latency: tuple[Latency, ...]
    status: Status | None
    parameters: int
    macs: int
    threshold: float | None = None


@dataclass(frozen=True, kw_only=True)
class BundleParts:
    """Everything a bundle is made of; see `Manifest`."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    positive: tuple[str, ...]
    threshold: float
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    preprocessing: Preprocessing | None
    requirements: Mapping[str, Any]
    verdict: Verdict
    selected: VariantName
    selection_reason: str
    variants: tuple[VariantPart, ...]  # fp32 always among them
    golden: Golden
    golden_source: GoldenSource
    evidence: Mapping[str, bytes]  # file name under evidence/ -> its bytes, e.g. {"run.json": …}
    outputs: OutputScale = "logits"
    reference: Reference | None = None
    preparation: Mapping[str, bytes] = field(default_factory=dict)  # file name under preprocessing/ -> bytes


def write_bundle(directory: Path, parts: BundleParts) -> Manifest:
    """Write a bundle, or replace an earlier one.

    Killed at any moment, it leaves under ``directory`` what was there before or the whole new bundle;
    what a killed one left beside it is removed by the next. One process at a time may write there.

    Args:
        directory: Where it goes. Anything there that is not a bundle is left alone.
        parts: What it is made of.

    Returns:
        Its manifest.

    Raises:
        OutputError: The disk is full, the folder cannot be written, or something else is in the way.
        IntegrityError: A model is not a self-contained ONNX file, or the parts contradict each other.
        ValueError: An evidence file has a name that is none, or a variant has no golden output.
    """
    _check_parts(parts)
    _refuse_other_content(directory)
    draft = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}.draft")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(directory)
        manifest = _fill(draft, parts)
        verify(draft, replay=False)
        _put_in_place(draft, directory)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise OutputError(f"cannot write bundle {directory}: {error.strerror or error}{where}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return manifest


def _check_parts(parts: BundleParts) -> None:
    for what, files in {"evidence": parts.evidence, "preparation": parts.preparation}.items():
        odd = [name for name in files if "/" in name or not is_safe_path(name)]
        if odd:
            raise ValueError(f"{what} must be named by plain file names, got {odd}")
    variants = sorted(v.name for v in parts.variants)
    if sorted(parts.golden.outputs) != variants:
        raise ValueError(
            f"golden must answer for the variants {variants}, got {sorted(parts.golden.outputs)}"
        )
    for part in parts.variants:
        check_self_contained(part.path)


def _refuse_other_content(directory: Path) -> None:
    """A folder that holds anything but a bundle is the user's own: never replace it."""
    try:
        if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
            raise OutputError(
                f"cannot write bundle {directory}: something else is there; choose another place"
            )
        found = sorted(entry.name for entry in directory.iterdir()) if directory.is_dir() else []
    except OSError as error:
        raise OutputError(f"cannot write bundle {directory}: {error.strerror}") from error
    strange = [name for name in found if name not in (MANIFEST, *FOLDERS)]
    if strange or (found and not (directory / MANIFEST).is_file()):
        raise OutputError(
            f"cannot write bundle {directory}: it holds {(strange or found)[0]!r}, so it is not a bundle; "
            "choose another place or empty it"
        )


def _fill(draft: Path, parts: BundleParts) -> Manifest:
    draft.mkdir()
    variants = tuple(_add_variant(draft, part) for part in parts.variants)
    golden = _add(draft, GOLDEN_FILE, _writing(golden_bytes(parts.golden)))
    others = {f"evidence/{name}": data for name, data in sorted(parts.evidence.items())}
    others |= {f"{PREPROCESSING}/{name}": data for name, data in sorted(parts.preparation.items())}
    files = {file: _add(draft, file, _writing(data)) for file, data in others.items()}
    manifest = _manifest(parts, variants, golden, files)
    _add(draft, MANIFEST, _writing(manifest_bytes(manifest)))
    for folder in (draft, *(draft / name for name in FOLDERS)):
        if folder.is_dir():
            _sync(folder)
    return manifest


def _add_variant(draft: Path, part: VariantPart) -> Variant:
    file, held = f"models/{part.name}.onnx", None
    (draft / file).parent.mkdir(exist_ok=True)
    if pack(part.path, draft / (file + SUFFIX)):
        file, held = file + SUFFIX, _entry(part.path)
    else:
        shutil.copyfile(part.path, draft / file)
    entry = _synced(draft / file)
    return Variant(
        name=part.name,
        file=file,
        sha256=entry.sha256,
        size_bytes=entry.size_bytes,
        precision=part.precision,
        validated=part.validated,
        latency=part.latency,
        status=part.status,
        parameters=part.parameters,
        macs=part.macs,
        threshold=part.threshold,
        unpacked=held,
    )


def _add(draft: Path, file: str, produce: Callable[[Path], object]) -> FileEntry:
    """Let ``produce`` make one file of the draft, durably, and describe what is there now."""
    path = draft / file
    path.parent.mkdir(exist_ok=True)
    produce(path)
    return _synced(path)


def _synced(path: Path) -> FileEntry:
    _sync(path)
    return _entry(path)


def _entry(path: Path) -> FileEntry:
    return FileEntry(sha256=sha256_file(path), size_bytes=path.stat().st_size)


def _writing(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def _manifest(
    parts: BundleParts, variants: tuple[Variant, ...], golden: FileEntry, files: Mapping[str, FileEntry]
) -> Manifest:
    return sealed(
        Manifest(
            name=parts.name,
            pastille=metadata.version("pastille"),
            content="",
            seal="",
            kind=parts.kind,
            labels=parts.labels,
            positive=parts.positive,
            threshold=parts.threshold,
            outputs=parts.outputs,
            inputs=parts.inputs,
            output=parts.output,
            preprocessing=parts.preprocessing,
            requirements=parts.requirements,
            verdict=parts.verdict,
            selected=parts.selected,
            selection_reason=parts.selection_reason,
            variants=variants,
            golden=GoldenFile(
                file=GOLDEN_FILE,
                sha256=golden.sha256,
                size_bytes=golden.size_bytes,
                cases=parts.golden.cases,
            ),
            golden_source=parts.golden_source,
            reference=parts.reference,
            files=files,
        )
    )


def _put_in_place(draft: Path, directory: Path) -> None:
    if not directory.exists():
        draft.replace(directory)
    elif not _exchange(draft, directory):
        aside = _aside(directory)
        directory.replace(aside)
        draft.replace(directory)
    _sync(directory.parent)
    shutil.rmtree(_aside(directory), ignore_errors=True)


def _aside(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.previous")


def _exchange(draft: Path, directory: Path) -> bool:
    """Swap two folders in one step, so that no moment is without a bundle; False where it cannot be."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)  # glibc >= 2.28, musl >= 1.2.6
    if rename is None:
        return False
    old, new = os.fsencode(draft), os.fsencode(directory)
    return bool(rename(_AT_FDCWD, old, _AT_FDCWD, new, _RENAME_EXCHANGE) == 0)


def _clear_leftovers(directory: Path) -> None:
    """Remove what killed writes left; where one was killed between its two renames, undo the first."""
    aside = _aside(directory)
    if aside.is_dir() and not directory.exists():
        aside.replace(directory)
    shutil.rmtree(aside, ignore_errors=True)
    for draft in directory.parent.glob(f".{directory.name}.*.draft"):
        shutil.rmtree(draft, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Check that a bundle is what was written, file by file, before anything of it is parsed or run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pastille.bundle.golden import Golden, Replay, read_golden
from pastille.bundle.golden import replay as replay_golden
from pastille.bundle.manifest import MANIFEST, REMEDY, FileEntry, Manifest, Variant, entries, read_manifest
from pastille.bundle.stored import onnx_file
from pastille.errors import InferenceError, IntegrityError
from pastille.files import sha256_file
from pastille.progress import SILENT, Progress
from pastille.runtime import UNKNOWN_DIM, Session, check_self_contained, load
from pastille.runtime.onnxruntime import OnnxRuntimeSession
from pastille.values import TensorSpec

MAX_FILE_BYTES = 2 << 30  # protobuf's own limit for a model


@dataclass(frozen=True, kw_only=True)
class Passed:
    """One thing that was checked and found right."""

    what: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was checked of a bundle; one that fails has none."""

    manifest: Manifest
    passed: tuple[Passed, ...]
    replays: tuple[Replay, ...]  # one per variant; empty where they were not replayed


def verify(
    directory: str | Path, *, threads: int = 1, replay: bool = True, progress: Progress = SILENT
) -> Verification:
    """Check a bundle: manifest, files, hashes, models, and golden cases in this order.

    No file is parsed before its hash was compared, and no model is run before all of them were.

    Args:
        directory: The bundle.
        threads: That the runtime may use.
        replay: Whether to run every variant on its golden cases.
        progress: Told about long work.

    Returns:
        What was checked.

    Raises:
        IntegrityError: Something is missing, changed, added or a link, or a variant answers its golden
            cases differently on this machine. The message names the file.
    """
    directory = Path(directory)
    manifest = read_manifest(directory / MANIFEST)
    passed = (
        Passed(what="manifest", detail=f"seal {manifest.seal[:12]}, content {manifest.content[:12]}"),
        check_layout(directory, manifest),
        check_hashes(directory, manifest, progress),
        check_models(directory, manifest),
    )
    golden = golden_of(directory, manifest)
    if not replay:
        return Verification(manifest=manifest, passed=passed, replays=())
    replays = tuple(
        _replayed(directory, manifest, variant, golden, threads)
        for variant in progress.track(manifest.variants, what="replaying golden cases")
    )
    answers = ", ".join(f"{r.variant} {r.equal_decisions} of {r.cases}" for r in replays)
    agreed = Passed(what="golden cases", detail=f"decided as validated: {answers}")
    return Verification(manifest=manifest, passed=(*passed, agreed), replays=replays)


def check_layout(directory: Path, manifest: Manifest) -> Passed:
    """Make sure that the bundle holds the files of its manifest, and nothing else.

    Raises:
        IntegrityError: A file is missing, no plain file, of another size, or not listed.
    """
    listed = entries(manifest)
    check_strays(directory, manifest)
    for file, entry in listed.items():
        _check_size(directory / file, entry)
    return Passed(what="files", detail=f"{len(listed)} as listed, none beside them")


def check_strays(directory: Path, manifest: Manifest) -> None:
    """Make sure that the bundle holds nothing that its manifest does not list.

    Raises:
        IntegrityError: Something does not belong there, or a folder cannot be read.
    """
    try:
        for stray in _strays(directory, [*entries(manifest), MANIFEST]):
            raise IntegrityError(f"{_printable(directory / stray)} does not belong to the bundle; remove it")
    except OSError as error:
        raise IntegrityError(f"cannot read {error.filename or directory}: {error.strerror}") from None


def check_file(path: Path, entry: FileEntry) -> None:
    """Hold one file against what the manifest says of it: its size, then its SHA-256.

    Raises:
        IntegrityError: It is missing, differs, or cannot be read.
    """
    _check_size(path, entry)
    _check_hash(path, entry)


def _strays(directory: Path, listed: list[str]) -> Iterator[str]:
    """What is in the bundle's folders and is neither listed nor a plain file or folder."""
    folders = {str(parent) for file in listed for parent in PurePosixPath(file).parents}
    for folder in sorted(folders):  # "." first, so that no linked folder is entered
        if not (directory / folder).is_dir():
            continue  # its files are missing, and will be reported as such
        for entry in sorted(os.scandir(directory / folder), key=lambda e: e.name):
            path = str(PurePosixPath(folder, entry.name))
            known_file = path in listed and entry.is_file(follow_symlinks=False)
            known_folder = path in folders and entry.is_dir(follow_symlinks=False)
            if not (known_file or known_folder):
                yield path


def _printable(path: Path) -> str:
    """A path on one line: whoever added the file chose its name."""
    return str(path) if str(path).isprintable() else ascii(str(path))


def _check_size(path: Path, entry: FileEntry) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        raise IntegrityError(f"{path} is missing; {REMEDY}") from None
    except OSError as error:
        raise IntegrityError(f"cannot read {path}: {error.strerror}") from None
    if found.st_size != entry.size_bytes:
        raise IntegrityError(
            f"{path} must have {entry.size_bytes} bytes, but has {found.st_size}; it was changed; {REMEDY}"
        )
    if found.st_size > MAX_FILE_BYTES:
        raise IntegrityError(f"{path} must have at most {MAX_FILE_BYTES} bytes, but has {found.st_size}")


def check_hashes(directory: Path, manifest: Manifest, progress: Progress = SILENT) -> Passed:
    """Compare the SHA-256 of every file with the manifest.

    Raises:
        IntegrityError: One differs, or cannot be read.
    """
    listed = entries(manifest)
    for file, entry in progress.track(listed.items(), what="hashing", total=len(listed)):
        _check_hash(directory / file, entry)
    size = sum(entry.size_bytes for entry in listed.values())
    return Passed(what="hashes", detail=f"SHA-256 of {len(listed)} files, {size} bytes")


def _check_hash(path: Path, entry: FileEntry) -> None:
    try:
        found = sha256_file(path)
    except OSError as error:
        raise IntegrityError(f"cannot read {path}: {error.strerror}") from None
    if found != entry.sha256:
        raise IntegrityError(
            f"{path} was changed: its SHA-256 is {found[:12]}…, but {MANIFEST} says "
            f"{entry.sha256[:12]}…; {REMEDY}"
        )


def check_models(directory: Path, manifest: Manifest) -> Passed:
    """Make sure that every model is an ONNX file that needs no other file.

    Raises:
        IntegrityError: One is not.
    """
    for variant in manifest.variants:
        with onnx_file(directory, variant) as path:
            check_self_contained(path, max_bytes=MAX_FILE_BYTES)
    return Passed(what="models", detail=", ".join(f"{v.name} is self-contained" for v in manifest.variants))


def golden_of(directory: Path, manifest: Manifest) -> Golden:
    """Read the golden cases of a bundle, and hold them against its input and output specs.

    Raises:
        IntegrityError: They cannot be read, or do not suit the manifest.
    """
    path = directory / manifest.golden.file
    variants = [v.name for v in manifest.variants]
    golden = read_golden(path, inputs=[spec.name for spec in manifest.inputs], variants=variants)
    if golden.cases != manifest.golden.cases:
        raise IntegrityError(
            f"{path} must hold {manifest.golden.cases} cases, but holds {golden.cases}; {REMEDY}"
        )
    arrays = [(spec, golden.inputs[spec.name]) for spec in manifest.inputs]
    arrays += [(manifest.output, golden.outputs[name]) for name in variants]
    for spec, array in arrays:
        if array.shape[1:] != spec.shape or array.dtype != spec.dtype:
            raise IntegrityError(
                f"{path} must hold {spec.name!r} as {spec.dtype} {spec.shape}, but holds "
                f"{array.dtype} {array.shape[1:]}; {REMEDY}"
            )
    return golden


def open_variant(
    directory: Path, manifest: Manifest, variant: Variant, *, threads: int, lean: bool = False
) -> OnnxRuntimeSession:
    """Load one model of a bundle, and hold its inputs and outputs against the manifest.

    Args:
        directory: The bundle; the hash of the variant's file was compared.
        manifest: Its manifest.
        variant: Which one.
        threads: That one call may use.
        lean: Give memory back after each call.

    Raises:
        IntegrityError: The runtime does not take it, or it takes other inputs than the manifest says.
    """
    path = directory / variant.file
    try:
        with onnx_file(directory, variant) as file:
            session = load(file, threads=threads, lean=lean)
    except InferenceError as error:
        raise IntegrityError(f"{path} cannot be loaded by {variant.runtime}: {error}; {REMEDY}") from error
    outputs = [spec for spec in session.outputs if spec.name == manifest.output.name]
    expected = (*manifest.inputs, manifest.output)
    if not _suits((*session.inputs, *outputs), expected) or session.fixed_batch is not None:
        found = [*session.inputs, *session.outputs]
        raise IntegrityError(
            f"{path} must take and give {_shown(expected)} in batches of any size, but has "
            f"{_shown(found)}; {REMEDY}"
        )
    return session


def _suits(found: tuple[TensorSpec, ...], expected: tuple[TensorSpec, ...]) -> bool:
    by_name = {spec.name: spec for spec in found}
    return len(by_name) == len(found) == len(expected) and all(
        spec.name in by_name and _fits(by_name[spec.name], spec) for spec in expected
    )


def _fits(found: TensorSpec, expected: TensorSpec) -> bool:
    sizes = zip(found.shape, expected.shape, strict=False)
    same_rank = len(found.shape) == len(expected.shape)
    return same_rank and found.dtype == expected.dtype and all(f in (UNKNOWN_DIM, e) for f, e in sizes)


def _shown(specs: tuple[TensorSpec, ...] | list[TensorSpec]) -> str:
    return ", ".join(f"{s.name!r} {s.dtype} {s.shape}" for s in specs[:8])[:200]


def _replayed(directory: Path, manifest: Manifest, variant: Variant, golden: Golden, threads: int) -> Replay:
    session = open_variant(directory, manifest, variant, threads=threads)
    return check_replay(directory, manifest, variant, session, golden)


def check_replay(
    directory: Path, manifest: Manifest, variant: Variant, session: Session, golden: Golden
) -> Replay:
    """Replay a variant's golden cases, and refuse one that answers differently here.

    Raises:
        IntegrityError: A decision differs, a value is too far off, or the runtime failed.
    """
    path = directory / variant.file
    try:
        result = replay_golden(
            session,
            golden,
            variant.name,
            kind=manifest.kind,
            output=manifest.output.name,
            precision=variant.precision,
            scale=manifest.outputs,
            threshold=manifest.threshold_of(variant),
            positive=manifest.positive_class,
        )
    except InferenceError as error:
        raise IntegrityError(f"{path} fails on the golden cases: {error}; {REMEDY}") from error
    if not result.passes:
        raise IntegrityError(
            f"{path} does not answer the golden cases as validated: {result.equal_decisions} of "
            f"{result.cases} decisions are equal, the largest difference is "
            f"{result.max_abs_difference:.3g} where {result.tolerance:.3g} is allowed; it was validated "
            f"on {', '.join(seen.isa for seen in variant.validated)}: do not use it on this machine, run "
            "Pastille on one like it"
        )
    return result

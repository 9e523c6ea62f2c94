"""What a bundle says about itself: what its models answer, and every file with its hash.

Two digests tie it together. ``content`` covers what the bundle answers with and nothing that was timed
or dated, so that two runs of one recipe and seed agree on it. ``seal`` covers the manifest itself,
which lists the hash of every other file: two bundles with one seal are equal in every byte.
Neither proves who wrote the bundle; only a signature can.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from pastille.bundle.preparing import preparation_problems
from pastille.errors import IntegrityError
from pastille.files import read_bounded
from pastille.runtime.packed import SUFFIX
from pastille.stats.decisions import output_problem
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
    from_json,
    to_json,
)

SCHEMA = 5
MANIFEST = "manifest.json"
PREPROCESSING = "preprocessing"  # folder of the files that the preprocessing needs
MAX_MANIFEST_BYTES = 4 << 20
REMEDY = "fetch the bundle again or write it anew"

VariantName = Literal["int8", "int4", "fp16", "bf16", "compressed", "fp32"]
GoldenSource = Literal["validation", "synthetic"]
OutputScale = Literal["logits", "probabilities"]

_DTYPES = frozenset(
    {"bool", "float16", "float32", "float64", "int8", "int16", "int32", "int64"}
    | {"uint8", "uint16", "uint32", "uint64"}
)
_MANY = 1 << 20
_LABELS: Mapping[Kind, tuple[int, int]] = {  # fewest and most
    "binary": (2, 2),
    "multiclass": (2, _MANY),
    "multilabel": (1, _MANY),
    "segmentation": (2, _MANY),
    "regression": (0, 0),
    "custom": (0, 0),
}
_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """What one file of the bundle must be."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One model file, and what was measured of it where it was validated."""

    name: VariantName
    file: str  # relative to the bundle: "models/int8.onnx", or "models/int8.onnx.xz"
    sha256: str  # of the file as it is stored; its size as well
    size_bytes: int
    precision: ModelPrecision
    runtime: Literal["onnxruntime"] = "onnxruntime"
    validated: tuple[Validation, ...]  # the machine that judged it first, then other CPUs
    latency: tuple[Latency, ...]  # one per batch size
    status: Status | None  # None: the baseline, which is what the others are judged against
    parameters: int
    macs: int
    threshold: float | None = None  # its own, where calibration moved it; None: that of the manifest
    unpacked: FileEntry | None = None  # the ONNX file that a packed one holds; None: it is stored as it is

    @property
    def model(self) -> FileEntry:
        """The ONNX file as the runtime takes it."""
        return self.unpacked or FileEntry(sha256=self.sha256, size_bytes=self.size_bytes)

    @property
    def isa(self) -> str:
        """Of the machine that judged it, e.g. ``"avx512-vnni"``."""
        return self.validated[0].isa


@dataclass(frozen=True, kw_only=True)
class GoldenFile:
    """The file of golden cases."""

    file: str  # relative to the bundle: "golden/cases.npz"
    sha256: str
    size_bytes: int
    cases: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """``manifest.json``: a new or changed field is a new schema."""

    schema: int = SCHEMA
    name: str
    pastille: str  # version that wrote the bundle
    content: str  # see `content_digest`
    seal: str  # see `seal_of`
    kind: Kind
    labels: tuple[str, ...]  # in the order of the outputs; empty for regression and custom tasks
    positive: tuple[str, ...]  # labels that must not be missed
    threshold: float  # binary and multilabel: probability from which a case is called positive
    outputs: OutputScale  # what the models answer with
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    preprocessing: Preprocessing | None
    requirements: Mapping[str, Any]  # the limits that were asked for
    verdict: Verdict
    selected: VariantName
    selection_reason: str
    variants: tuple[Variant, ...]
    golden: GoldenFile
    golden_source: GoldenSource  # "validation": the cases are real inputs, perhaps of patients
    reference: Reference | None  # what validation saw; None: nothing to hold requests against
    files: Mapping[str, FileEntry]  # every other file: evidence, and what the preprocessing needs

    @property
    def positive_class(self) -> int:
        """Binary: index of the label that ``threshold`` speaks of, the second unless another is named."""
        return self.labels.index(self.positive[0]) if self.kind == "binary" and self.positive else 1

    def threshold_of(self, variant: Variant) -> float:
        """Probability from which a variant calls a case positive."""
        return self.threshold if variant.threshold is None else variant.threshold

    def variant(self, name: str) -> Variant:
        """The variant of that name.

        Raises:
            KeyError: There is none.
        """
        return {str(v.name): v for v in self.variants}[name]


def content_digest(manifest: Manifest) -> str:
    """SHA-256 over what the bundle answers with: no time, date or evidence is part of it."""
    value = json.loads(to_json(manifest))
    keys = ("name", "kind", "labels", "positive", "threshold", "outputs", "inputs", "output", "preprocessing")
    answers = {key: value[key] for key in keys}
    answers["variants"] = {v.name: v.model.sha256 for v in manifest.variants}
    answers["thresholds"] = {v.name: v.threshold for v in manifest.variants if v.threshold is not None}
    answers["golden"] = manifest.golden.sha256
    return hashlib.sha256(_canonical(answers)).hexdigest()


def seal_of(manifest: Manifest) -> str:
    """SHA-256 over the manifest, its own seal left empty, and so over every file that it lists."""
    return hashlib.sha256(manifest_bytes(replace(manifest, seal=""))).hexdigest()


def sealed(manifest: Manifest) -> Manifest:
    """The manifest with both digests filled in."""
    with_content = replace(manifest, content=content_digest(manifest))
    return replace(with_content, seal=seal_of(with_content))


def manifest_bytes(manifest: Manifest) -> bytes:
    """The one way to write a manifest, whatever library read it before."""
    return json.dumps(json.loads(to_json(manifest)), indent=2, ensure_ascii=False).encode() + b"\n"


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def read_manifest(path: Path) -> Manifest:
    """Read and check ``manifest.json``; nothing else of the bundle is opened.

    Raises:
        IntegrityError: It is missing, too large, malformed, of another schema, contradicts itself, or
            was changed in any byte since it was written.
    """
    data = read_bounded(path, MAX_MANIFEST_BYTES, what="manifest")
    manifest = parse_manifest(data, path)
    for problem in _problems(manifest):
        raise IntegrityError(f"{path}: {_brief(problem)}; {REMEDY}")
    expected = {"content": content_digest(manifest), "seal": seal_of(manifest)}
    for key, digest in expected.items():
        if getattr(manifest, key) != digest:
            raise IntegrityError(
                f"{path} was changed after it was written: its {key} is {digest[:12]}…, but it says "
                f"{getattr(manifest, key)[:12]!r}; {REMEDY}"
            )
    return manifest


def parse_manifest(data: bytes, path: Path) -> Manifest:
    """Read a manifest's JSON, which must be exactly as `manifest_bytes` writes it.

    Args:
        data: The JSON.
        path: Where it came from, for the error.

    Raises:
        IntegrityError: It is not the manifest of a bundle, or not of this schema.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} is not JSON: {_brief(error)}; {REMEDY}") from None
    schema = value.get("schema") if isinstance(value, dict) else None
    if schema != SCHEMA:
        raise IntegrityError(
            f"{path} has bundle schema {_brief(schema)}, but this Pastille reads {SCHEMA}; "
            "use the version of Pastille that wrote it"
        )
    try:
        manifest = from_json(Manifest, data)
        as_written = manifest_bytes(manifest)
    except ValueError as error:
        raise IntegrityError(f"{path} is not a bundle's manifest: {_first(error)}; {REMEDY}") from None
    if as_written != data:
        raise IntegrityError(
            f"{path} is not as Pastille writes it (unknown key, other type or other layout); {REMEDY}"
        )
    return manifest


def _first(error: ValueError) -> str:
    """The first thing that does not fit, as ``where: what``."""
    if not isinstance(error, ValidationError):
        return _brief(error)
    found = error.errors(include_url=False, include_input=False)[0]
    return _brief(f"{'.'.join(map(str, found['loc']))}: {found['msg']}")


def _brief(problem: object) -> str:
    return " ".join(str(problem).split())[:200]


def entries(manifest: Manifest) -> dict[str, FileEntry]:
    """Every file of the bundle but the manifest: path relative to the bundle -> what it must be."""
    named = _named_files(manifest)
    return {x.file: FileEntry(sha256=x.sha256, size_bytes=x.size_bytes) for x in named} | dict(manifest.files)


def _named_files(manifest: Manifest) -> tuple[Variant | GoldenFile, ...]:
    return (*manifest.variants, manifest.golden)


def is_safe_path(path: str) -> bool:
    """Whether a path stays inside the bundle on every system.

    Example:
        >>> [is_safe_path(p) for p in ("models/int8.onnx", "../x", "/x", "a//b", "C:x", "")]
        [True, False, False, False, False, False]
    """
    return all(_SEGMENT.fullmatch(segment) for segment in path.split("/"))


def _problems(manifest: Manifest) -> Iterator[str]:
    yield from _variant_problems(manifest)
    yield from _file_problems(manifest)
    yield from _label_problems(manifest)
    if manifest.preprocessing is not None:
        start = f"{PREPROCESSING}/"
        files = {f.removeprefix(start): e.sha256 for f, e in manifest.files.items() if f.startswith(start)}
        yield from preparation_problems(manifest.preprocessing, manifest.inputs, files)
    for threshold in (manifest.threshold, *map(manifest.threshold_of, manifest.variants)):
        if not 0 <= threshold <= 1:
            yield f"threshold must be in [0, 1], got {threshold}"
    for spec in (*manifest.inputs, manifest.output):
        if spec.dtype not in _DTYPES or min(spec.shape, default=1) < 1:
            yield f"{spec.name!r} must be numeric and of a fixed size, got {spec.dtype!r} {spec.shape}"
    names = [spec.name for spec in manifest.inputs]
    if not names or len(set(names)) < len(names):
        yield f"inputs must be named and differ from each other, got {names}"


def _variant_problems(manifest: Manifest) -> Iterator[str]:
    names = [v.name for v in manifest.variants]
    if len(set(names)) < len(names) or "fp32" not in names:
        yield f"variants must differ in name and include fp32, got {names}"
    for variant in manifest.variants:
        if [v.emulated for v in variant.validated[:1]] != [False]:
            yield f"{variant.name} must be validated on the machine that judged it first"
        if variant.file.endswith(SUFFIX) != (variant.unpacked is not None):
            yield f"{variant.file[:200]!r} must say what it holds if it ends with {SUFFIX}, and only then"
    if manifest.selected not in names:
        yield f"selected must be one of the variants {names}, got {manifest.selected!r}"


def _file_problems(manifest: Manifest) -> Iterator[str]:
    paths = [x.file for x in _named_files(manifest)] + list(manifest.files)
    for path in paths:
        if not is_safe_path(path):
            yield f"a file must lie inside the bundle, under a plain name, got {path[:200]!r}"
    if len({path.lower() for path in (*paths, MANIFEST)}) < len(paths) + 1:
        yield f"every file must be listed once, got {sorted(paths)}"
    held = {f"what {v.file} holds": v.unpacked for v in manifest.variants if v.unpacked is not None}
    for path, entry in (entries(manifest) | held).items():
        if not _SHA256.fullmatch(entry.sha256) or entry.size_bytes < 0:
            yield f"{path} must have a SHA-256 and a size, got {entry.sha256[:80]!r}, {entry.size_bytes}"


def _label_problems(manifest: Manifest) -> Iterator[str]:
    labels = manifest.labels
    least, most = _LABELS[manifest.kind]
    if not least <= len(labels) <= most or len(set(labels)) < len(labels):
        yield f"labels must name every class of a {manifest.kind} task, got {list(labels)}"
    problem = output_problem(manifest.kind, len(labels), (1, *manifest.output.shape))
    if problem:
        yield problem
    if manifest.outputs == "probabilities" and not labels:
        yield f"outputs must not be probabilities in a {manifest.kind} task, which has none"
    if not set(manifest.positive) <= set(labels):
        yield f"positive must be among the labels {list(labels)}, got {list(manifest.positive)}"

"""Open a bundle for serving: verified first, then each variant loaded, replayed and timed on this machine.

What answers is trusted only as far as it was checked: a changed manifest, golden file or stray file refuses
the whole bundle; a changed model file only its own variant; changed evidence answers nothing, so it is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time
from typing import Final

import numpy as np

from pastille.bundle import Golden, Manifest, Variant, VariantName, read_manifest
from pastille.bundle.manifest import MANIFEST, FileEntry
from pastille.bundle.verify import check_file, check_replay, check_strays, golden_of, open_variant
from pastille.errors import IntegrityError, PastilleError, UsageError
from pastille.runtime.onnxruntime import OnnxRuntimeSession
from pastille.serve.engine.machine import Machine, give_back_memory, resident_bytes
from pastille.serve.engine.quick import quick_rows
from pastille.serve.engine.selecting import Candidate, Selection, fitting, select
from pastille.serve.settings import Settings
from pastille.serve.values import Why
from pastille.values import Status

CALLS: Final = 9  # that are timed of each variant
SAMPLE_BYTES: Final = 1 << 20
TIMING_S: Final = 0.25  # after which none is added


@dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """One variant as it was found here; without a session it is not usable."""

    variant: Variant
    session: OnnxRuntimeSession | None = field(default=None, repr=False)
    why: Why | None = None
    reason: str
    left_out: bool = False  # it was not even tried
    latency_ms: float | None = None
    memory_bytes: int | None = None
    quick_rows: int = 0  # cases of one call that may run on the event loop

    @property
    def name(self) -> VariantName:
        """Of the variant."""
        return self.variant.name


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenedBundle:
    """What an engine is made from.

    Attributes:
        manifest: Of the bundle.
        sample: Some of its golden cases, inputs that the models take: ``{name: (N, ...)}``.
        variants: Every one of the manifest.
        selection: Who answers.
        tampered: Files of evidence that were changed, in a sentence; empty where none was.
    """

    manifest: Manifest
    sample: Mapping[str, np.ndarray] = field(repr=False)
    variants: tuple[Opened, ...]
    selection: Selection
    tampered: str


def open_bundle(
    directory: Path, settings: Settings, machine: Machine, *, judged: bool = True
) -> OpenedBundle:
    """Verify a bundle and make its variants ready.

    Args:
        directory: The bundle.
        settings: `variant` and `threads` count here.
        machine: This one.
        judged: False opens a variant that was not approved as well: only for answers that nobody is given.

    Raises:
        IntegrityError: The bundle was changed, or no variant is valid on this machine.
        UsageError: The settings force a variant that it does not have or that was not approved.
    """
    manifest = read_manifest(directory / MANIFEST)
    _check_forced(manifest, settings.variant, judged)
    check_strays(directory, manifest)
    golden_file = manifest.golden
    check_file(
        directory / golden_file.file,
        FileEntry(sha256=golden_file.sha256, size_bytes=golden_file.size_bytes),
    )
    golden = golden_of(directory, manifest)
    chosen = _to_load(manifest, settings.variant, machine, judged)
    variants = _opened(directory, manifest, golden, settings.threads or 1, chosen)
    if not any(v.session for v in variants):  # the one that fits is not valid: is another?
        rest = tuple(n for n in _approved(manifest) if n not in chosen and settings.variant is None)
        others = {v.name: v for v in _opened(directory, manifest, golden, settings.threads or 1, rest)}
        variants = tuple(others[v.name] if v.name in rest else v for v in variants)
    variants = tuple(
        replace(v, quick_rows=quick_rows(directory, v.variant, v.latency_ms))
        for v in _timed(variants, golden)
    )
    selection = select([_candidate(v) for v in variants], selected=manifest.selected, forced=settings.variant)
    if not selection.order:
        raise IntegrityError(f"bundle {manifest.name} cannot be served: {selection.reason}")
    return OpenedBundle(
        manifest=manifest,
        sample=_sample(golden),
        variants=variants,
        selection=selection,
        tampered=_tampered(directory, manifest),
    )


def is_approved(variant: Variant) -> bool:
    """Whether the verdict lets it answer: fp32 is what the others were judged against, and needs none."""
    return variant.status is Status.APPROVED or (variant.status is None and variant.name == "fp32")


def _approved(manifest: Manifest) -> tuple[VariantName, ...]:
    return tuple(v.name for v in manifest.variants if is_approved(v))


def _check_forced(manifest: Manifest, forced: str | None, judged: bool) -> None:
    names = [v.name for v in manifest.variants]
    if forced is None:
        return
    if forced not in names:
        raise UsageError(
            f"variant must be one of {', '.join(names)} of bundle {manifest.name}, got {forced!r}"
        )
    if judged and forced not in _approved(manifest):
        raise UsageError(
            f"variant {forced} of bundle {manifest.name} was not approved, so it is never served; choose "
            f"{' or '.join(_approved(manifest))}, or compare it in mode shadow"
        )


def _to_load(
    manifest: Manifest, forced: str | None, machine: Machine, judged: bool
) -> tuple[VariantName, ...]:
    if forced is not None:
        return (manifest.variant(forced).name,)
    found = [
        Candidate(name=v.name, approved=is_approved(v) or not judged, model_bytes=v.model.size_bytes)
        for v in manifest.variants
    ]
    return fitting(found, machine, selected=manifest.selected)


def _opened(
    directory: Path, manifest: Manifest, golden: Golden, threads: int, chosen: Sequence[VariantName]
) -> tuple[Opened, ...]:
    """Load one after the other, so that memory peaks once; replay side by side."""
    loaded = [
        _loaded(directory, manifest, v, threads) if v.name in chosen else _left_out(v, chosen)
        for v in manifest.variants
    ]
    with ThreadPoolExecutor(max(1, len(loaded))) as pool:
        replayed = tuple(pool.map(lambda v: _replayed(directory, manifest, v, golden), loaded))
    give_back_memory()
    return replayed


def _left_out(variant: Variant, chosen: Sequence[VariantName]) -> Opened:
    if not is_approved(variant):
        verdict = variant.status.value if variant.status else "not judged"
        return Opened(
            variant=variant,
            left_out=True,
            why="rejected",
            reason=f"{variant.name} is {verdict}, not approved",
        )
    reason = f"{variant.name} was not loaded: {', '.join(chosen)} answers alone"
    return Opened(variant=variant, left_out=True, why="load", reason=reason)


def _loaded(directory: Path, manifest: Manifest, variant: Variant, threads: int) -> Opened:
    before = resident_bytes()
    try:
        check_file(directory / variant.file, FileEntry(sha256=variant.sha256, size_bytes=variant.size_bytes))
        session = open_variant(directory, manifest, variant, threads=threads, lean=True)
    except (PastilleError, MemoryError) as error:
        return Opened(
            variant=variant, why="load", reason=f"{variant.name} cannot be loaded: {_short(error, directory)}"
        )
    give_back_memory()
    after = resident_bytes()
    taken = max(0, after - before) if after is not None and before is not None else None
    return Opened(variant=variant, session=session, reason="valid here", memory_bytes=taken)


def _replayed(directory: Path, manifest: Manifest, opened: Opened, golden: Golden) -> Opened:
    if opened.session is None:
        return opened
    try:
        check_replay(directory, manifest, opened.variant, opened.session, golden)
    except (PastilleError, MemoryError) as error:
        reason = f"{opened.name} is not valid here: {_short(error, directory)}"
        return replace(opened, session=None, why="golden", reason=reason)
    return opened


def _short(error: BaseException, directory: Path) -> str:
    return " ".join(str(error).replace(f"{directory}/", "").split())[:400] or type(error).__name__


def _timed(variants: Sequence[Opened], golden: Golden) -> tuple[Opened, ...]:
    """Batch 1, by turns: what else the machine does then slows all of them alike."""
    one = {name: x[:1] for name, x in golden.inputs.items()}
    taken: dict[str, list[float]] = {v.name: [] for v in variants if v.session}
    started = perf_counter()
    for _ in range(CALLS):
        for opened in variants:
            if opened.session is not None:
                taken[opened.name].append(_seconds(opened.session, one))
        if perf_counter() - started > TIMING_S:
            break
    give_back_memory()
    return tuple(replace(v, latency_ms=1000 * median(taken[v.name])) if v.session else v for v in variants)


def _sample(golden: Golden) -> dict[str, np.ndarray]:
    """As many as a megabyte holds, and two at least; copied, for a view would keep all of them alive."""
    bytes_per_case = sum(x[:1].nbytes for x in golden.inputs.values())
    count = max(2, SAMPLE_BYTES // max(1, bytes_per_case))
    return {name: x[:count].copy() for name, x in golden.inputs.items()}


def _seconds(session: OnnxRuntimeSession, inputs: dict[str, np.ndarray]) -> float:
    # Of one thread the processor's time is taken: what else starts on the machine would be in the other.
    clock = thread_time if session.threads == 1 else perf_counter
    started = clock()
    session(inputs)
    return clock() - started


def _candidate(opened: Opened) -> Candidate:
    return Candidate(
        name=opened.name,
        approved=is_approved(opened.variant),
        model_bytes=opened.variant.model.size_bytes,
        usable=opened.session is not None,
        why=opened.why,
        reason=opened.reason if opened.session is None else "",
        latency_ms=opened.latency_ms,
    )


def _tampered(directory: Path, manifest: Manifest) -> str:
    """Evidence is not answered with: that it was changed stops nothing, and is said wherever a reason is."""
    changed = []
    for file, entry in manifest.files.items():
        try:
            check_file(directory / file, entry)
        except IntegrityError:
            changed.append(file)
    if not changed:
        return ""
    return f"WARNING: {', '.join(changed[:5])} was changed since the bundle was written; do not trust it"

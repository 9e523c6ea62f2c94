"""What teachers say of every case, computed once and kept on disk: arrays and a manifest, no pickle.

The manifest says what the answers depend on: the teachers' weights, the data, the augmentation, the seed.
A cache is only ever read by whoever brings the same.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, final

import numpy as np
import torch

from pastille.data.split import Split, batches
from pastille.distillation.teaching import Live, Told
from pastille.errors import IntegrityError, OutputError, PreconditionError
from pastille.files import read_bounded, sha256_file, write_atomic
from pastille.progress import SILENT, Progress
from pastille.references import one_line
from pastille.train.batches import Augment, Batch, Drawn, names_of, one_by_one, reader
from pastille.values import from_json, to_json

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA: Final = 1
MANIFEST: Final = "manifest.json"
_ANSWERS: Final = ""  # their name among the features'; no module is called so
_MAX_MANIFEST_BYTES: Final = 1 << 20
_BATCH: Final = 64
_MOST_HALF: Final = 65504.0  # the largest number of half precision
_LOOKED_AT: Final = 8  # cases that show whether a cache is of this teacher
_ROUNDING: Final = 0.02  # of the range of answers: other machines and devices, but no other teacher
_LEAST: Final = 1e-4  # of the largest answer


@dataclass(frozen=True, kw_only=True)
class CacheKey:
    """All that a teacher's remembered answers depend on.

    Attributes:
        teachers: Digest of each one's weights.
        weights: How much each counts.
        data: Digest of inputs and targets.
        cases: How many there are.
        augment: Digest of the augmentation's source; "" without one.
        seed: Of the augmentation.
        views: Of each case; 1 without an augmentation.
        layers: Points of the first teacher whose features are kept.
    """

    teachers: tuple[str, ...]
    weights: tuple[float, ...]
    data: str
    cases: int
    augment: str = ""
    seed: int = 0
    views: int = 1
    layers: tuple[str, ...] = ()

    def differs(self, other: CacheKey) -> list[str]:
        """What two keys do not have in common, in words.

        Example:
            >>> one = CacheKey(teachers=("a",), weights=(1.0,), data="d", cases=3)
            >>> one.differs(CacheKey(teachers=("b",), weights=(1.0,), data="d", cases=4))
            ['teachers', 'cases']
        """
        return [f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)]


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One array of a cache, ``(views, cases, ...)``."""

    point: str  # whose features; "" for the answers
    file: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a cache holds, and what it was made of; written last, so that what has one is complete."""

    schema: int = SCHEMA
    key: CacheKey
    arrays: tuple[Stored, ...]


@final
class Remembered:
    """Teachers whose answers were computed before: as `Live` would tell them of the same view of a case.

    Args:
        arrays: Point -> ``(views, cases, ...)``; the answers' own under "".
        folder: Where they lie.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], folder: Path) -> None:
        self._arrays = dict(arrays)
        self.folder = folder

    def __call__(self, batch: Drawn) -> Told:
        """What was said of that view of these cases."""
        device = batch.targets.device
        told = {name: self._read(array, batch).to(device) for name, array in self._arrays.items()}
        return Told(answers=told.pop(_ANSWERS), features=told)

    def answers(self, rows: np.ndarray, *, view: int) -> np.ndarray:
        """What was answered to some cases, ``(n, ...)``."""
        return np.asarray(self._arrays[_ANSWERS][view, rows])

    def _read(self, array: np.ndarray, batch: Drawn) -> Tensor:
        found = np.asarray(array[batch.view % len(array), batch.rows], dtype=np.float32)
        return torch.from_numpy(found).clone()  # torch aligns what it allocates, numpy does not

    @property
    def size_bytes(self) -> int:
        """On disk."""
        return sum(array.nbytes for array in self._arrays.values())


def remembered(
    live: Live,
    split: Split,
    key: CacheKey,
    folder: Path,
    *,
    augment: Augment | None = None,
    progress: Progress = SILENT,
) -> Remembered:
    """Open the cache in a folder, or ask the teachers about every view of every case and fill it.

    A cache of other teachers or data, and one that is damaged, is made anew.

    Args:
        live: The teachers.
        split: What they are asked about.
        key: What their answers depend on; says how many views there are, and by which seed.
        folder: Of this cache alone.
        augment: As in `pastille.train.fit`; None where ``key.augment`` is "".
        progress: Shown while they are asked.

    Raises:
        OutputError: The disk is full.
        PreconditionError: An answer is not finite; or the teachers, or the augmentation, do not do the same
            thing twice.
    """
    try:
        found = open_cache(folder, key)
        if found is not None and is_current(found, live, split, key, augment):
            return found
        if found is not None:
            progress.note(f"{stale(folder)}; made anew")
    except (IntegrityError, PreconditionError) as error:
        progress.note(f"{one_line(error)}; made anew")
    _fill(live, split, key, folder, augment, progress)
    found = open_cache(folder, key)
    assert found is not None
    if not is_current(found, live, split, key, augment):
        why = "a teacher answers the same inputs differently each time"
        if augment is not None:
            why = f"augment must draw from nothing but the generator that it is given, or {why}"
        raise PreconditionError(f"{why}; mend it, or set distill.cache to off")
    return found


def is_current(
    found: Remembered, live: Live, split: Split, key: CacheKey, augment: Augment | None = None
) -> bool:
    """Whether teachers answer some cases as they did when a cache was made.

    A key cannot tell all: not how many heads a layer of attention has, nor what an augmentation calls from
    another file.

    Args:
        found: From `open_cache`, with that key.
        live: The teachers.
        split: What they were asked about.
        key: What their answers depend on.
        augment: As in `remembered`.
    """
    rows = np.unique(np.linspace(0, split.n - 1, _LOOKED_AT).astype(int))
    view = key.views - 1
    now = live.told(_shown(reader(split)(rows), augment, rows, view, key)).answers.float().cpu().numpy()
    sane = np.nan_to_num(now, posinf=0.0, neginf=0.0)
    reach = max(_ROUNDING * float(np.ptp(sane)), _LEAST * float(np.abs(sane).max()))
    return np.allclose(found.answers(rows, view=view), now, rtol=0, atol=reach, equal_nan=True)


def stale(folder: Path) -> str:
    """That a cache is not of these teachers, although its key says so."""
    return (
        f"the teacher cache {folder} holds other answers than the teacher gives now: its code or that of the "
        "augmentation changed"
    )


def open_cache(folder: Path, key: CacheKey) -> Remembered | None:
    """Open what `remembered` left in a folder.

    Args:
        folder: Of the cache.
        key: What the answers must depend on.

    Returns:
        None if there is none, or it was not finished.

    Raises:
        PreconditionError: It is of other teachers, other data or another augmentation; says which.
        IntegrityError: It is damaged.
    """
    if not (folder / MANIFEST).is_file():
        return None
    manifest = _manifest(folder)
    differs = key.differs(manifest.key)
    if manifest.schema != SCHEMA or differs:
        what = " and ".join(_IN_WORDS[name] for name in differs) or "another version of Pastille"
        raise PreconditionError(
            f"the teacher cache {folder} was made with {what}; bring what it was made of, or another folder"
        )
    return Remembered({stored.point: _array(folder, stored) for stored in manifest.arrays}, folder)


_IN_WORDS: Final = {
    "teachers": "another teacher",
    "weights": "other weights of the teachers",
    "data": "other data",
    "cases": "another number of cases",
    "augment": "another augmentation",
    "seed": "another seed",
    "views": "another number of views",
    "layers": "features of other layers",
}


def _manifest(folder: Path) -> Manifest:
    data = read_bounded(folder / MANIFEST, _MAX_MANIFEST_BYTES, what="teacher cache")
    try:
        return from_json(Manifest, data)
    except ValueError as error:
        problem = " ".join(str(error).split())[:200]
        raise IntegrityError(f"{folder / MANIFEST} is not a teacher cache: {problem}") from None


def _array(folder: Path, stored: Stored) -> np.ndarray:
    file = folder / Path(stored.file).name
    if not file.is_file() or sha256_file(file) != stored.sha256:
        raise IntegrityError(f"the teacher cache {folder} is damaged: {file.name} is not what was written")
    found: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
    return found


def _fill(
    live: Live, split: Split, key: CacheKey, folder: Path, augment: Augment | None, progress: Progress
) -> None:
    names = (_ANSWERS, *key.layers)
    files = {name: folder / f"{number:02d}.npy" for number, name in enumerate(names)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
        with ExitStack() as stack:
            open_files = {name: stack.enter_context(file.open("wb")) for name, file in files.items()}
            for told in _asked(live, split, key, augment, progress):
                _append(told, key, open_files)
    except OSError as error:
        raise OutputError(
            f"cannot write the teacher cache {folder}: {error.strerror or error}; free some space, or set "
            "distill.cache to off"
        ) from error
    arrays = tuple(Stored(point=n, file=f.name, sha256=sha256_file(f)) for n, f in files.items())
    write_atomic(folder / MANIFEST, to_json(Manifest(key=key, arrays=arrays)))


def _asked(
    live: Live, split: Split, key: CacheKey, augment: Augment | None, progress: Progress
) -> Iterator[Told]:
    """View by view, case by case, in order."""
    read = reader(split)
    parts = [
        (view, np.arange(start, min(start + _BATCH, split.n)))
        for view in range(key.views)
        for start in range(0, split.n, _BATCH)
    ]
    for view, rows in progress.track(parts, what="asking the teacher"):
        told = live.told(_shown(read(rows), augment, rows, view, key))
        finite = torch.isfinite(told.answers).reshape(len(rows), -1).all(dim=1).cpu().numpy()
        if not finite.all():
            raise PreconditionError(
                f"a teacher answers NaN or infinity to cases {names_of(split, rows[~finite])} of train, and "
                "its student would learn that; mend it, or take another"
            )
        yield told


def _shown(batch: Batch, augment: Augment | None, rows: np.ndarray, view: int, key: CacheKey) -> Batch:
    """As a training would draw it."""
    if augment is not None:
        batch = one_by_one(batch, augment, rows, view=view, seed=key.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {name: x.to(device) for name, x in batch.items()}


def _append(told: Told, key: CacheKey, files: Mapping[str, BinaryIO]) -> None:
    for name, file in files.items():
        found = _plain(told, name)
        if not file.tell():
            shape = (key.views, key.cases, *found.shape[1:])
            head = {"descr": found.dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_2_0(file, head)
        file.write(found.tobytes())


def _plain(told: Told, name: str) -> np.ndarray:
    """Answers in full; features, which are many and only steer, in half precision."""
    if name == _ANSWERS:
        return told.answers.float().cpu().numpy()
    features = told.features[name].float().clamp(-_MOST_HALF, _MOST_HALF)
    return features.cpu().numpy().astype(np.float16)


def bytes_of_case(told: Told) -> int:
    """What one view of one case takes on disk, from what was told of a few."""
    answers = told.answers[0].numel() * 4
    return answers + sum(feature[0].numel() * 2 for feature in told.features.values())


def split_digest(split: Split) -> str:
    """SHA-256 over every input and target, in order.

    Example:
        >>> one = Split(inputs=np.zeros((3, 2), np.float32), targets=np.zeros(3))
        >>> split_digest(one) == split_digest(Split(inputs=np.ones((3, 2), np.float32), targets=np.zeros(3)))
        False
    """
    digest = hashlib.sha256(f"{split.targets.dtype} {split.targets.shape}".encode())
    digest.update(np.ascontiguousarray(split.targets).tobytes())
    for batch in batches(split.inputs, range(split.n), _BATCH):
        for name, array in batch.items():
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def augment_digest(augment: Augment | None) -> str:
    """SHA-256 of the file that an augmentation is written in; "" for none."""
    if augment is None:
        return ""
    try:
        source = Path(inspect.getsourcefile(inspect.unwrap(augment)) or "").read_bytes()
    except (TypeError, OSError):  # a callable object, or one that was typed in
        source = b""
    name = getattr(augment, "__qualname__", type(augment).__qualname__)
    return hashlib.sha256(source + name.encode()).hexdigest()

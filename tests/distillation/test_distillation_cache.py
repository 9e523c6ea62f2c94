"""Remembered answers are those of a live teacher for the same view; any other cache is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pastille.data.split import Split
from pastille.distillation import Live, TeacherCache, distill
from pastille.distillation.asking import Cost, asking, cost_of
from pastille.distillation.cache import (
    MANIFEST,
    CacheKey,
    Remembered,
    augment_digest,
    open_cache,
    remembered,
    split_digest,
)
from pastille.errors import IntegrityError, OutputError, PreconditionError
from pastille.recipe import CacheLimits, Distill, Train
from pastille.task.digest import state_digest
from pastille.train import Fitted
from pastille.train.batches import Augment, drawn
from pastille.values import Cases

N, SEED = 70, 3


def shaken(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return x + torch.randn(x.shape, generator=generator)


def blurred(x: torch.Tensor, generator: torch.Generator, *, by: float) -> torch.Tensor:
    return x + by * torch.randn(x.shape, generator=generator)


def teacher(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).eval()


def split(seed: int = 0) -> Split:
    rng = np.random.default_rng(seed)
    return Split(inputs=rng.normal(size=(N, 4)).astype(np.float32), targets=np.arange(N) % 3)


def key_of(model: nn.Module, data: Split, *, augment: Augment | None = None, **more: object) -> CacheKey:
    key = CacheKey(
        teachers=(state_digest(model),),
        weights=(1.0,),
        data=split_digest(data),
        cases=data.n,
        augment=augment_digest(augment),
        seed=SEED,
    )
    return replace(key, **more)  # type: ignore[arg-type]


class Counted:
    """A `Progress` that counts what is tracked."""

    def __init__(self) -> None:
        self.tracked: list[str] = []
        self.notes: list[str] = []

    def track(self, items: object, *, what: str, total: int | None = None) -> object:
        self.tracked.append(what)
        return iter(items)  # type: ignore[call-overload]

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize("augment", [None, shaken])
def test_what_is_remembered_is_what_the_live_teacher_says_of_the_same_view(
    augment: Augment | None, tmp_path: Path
) -> None:
    model, data, views = teacher(), split(), 3 if augment else None
    live = Live([model], layers=["2"])
    key = key_of(model, data, augment=augment, views=views or 1, layers=("2",))
    cached = remembered(live, data, key, tmp_path, augment=augment)
    settings = Train(epochs=4, batch_size=16)
    seen: dict[int, list[torch.Tensor]] = {}
    for batch in drawn(data, settings, seed=SEED, augment=augment, views=views):
        now, then = live(batch), cached(batch)
        torch.testing.assert_close(then.answers, now.answers)
        torch.testing.assert_close(then.features["2"], now.features["2"], rtol=2e-3, atol=1e-3)
        assert then.answers.dtype == then.features["2"].dtype == torch.float32
        row = np.flatnonzero(batch.rows == 5)
        seen.setdefault(batch.view, []).extend(then.answers[i] for i in row)
    assert len(seen) == (views or 1)
    if augment:
        assert torch.equal(seen[0][0], seen[0][1])  # epochs 1 and 4 show one view
        assert not torch.equal(seen[0][0], seen[1][0])


def test_it_is_computed_once(tmp_path: Path) -> None:
    model, data, progress = teacher(), split(), Counted()
    key = key_of(model, data)
    for _ in range(2):
        remembered(Live([model]), data, key, tmp_path, progress=progress)  # type: ignore[arg-type]
    assert progress.tracked == ["asking the teacher"]
    assert progress.notes == []


DIFFERENT: list[tuple[str, Callable[[CacheKey], CacheKey]]] = [
    ("another teacher", lambda key: replace(key, teachers=(state_digest(teacher(1)),))),
    ("other data", lambda key: replace(key, data=split_digest(split(1)))),
    ("another seed", lambda key: replace(key, seed=4)),
    ("another augmentation", lambda key: replace(key, augment=augment_digest(shaken))),
    ("another number of views", lambda key: replace(key, views=2)),
    ("features of other layers", lambda key: replace(key, layers=("0",))),
    ("other weights of the teachers", lambda key: replace(key, weights=(0.5, 0.5))),
]


@pytest.mark.parametrize(("said", "changed"), DIFFERENT)
def test_a_cache_of_something_else_is_refused_by_its_hash(
    said: str, changed: Callable[[CacheKey], CacheKey], tmp_path: Path
) -> None:
    model, data = teacher(), split()
    key = key_of(model, data)
    remembered(Live([model]), data, key, tmp_path)
    with pytest.raises(PreconditionError, match=f"was made with {said}; bring what it was made of"):
        open_cache(tmp_path, changed(key))


def test_an_augmentation_of_its_own_chance_is_told(tmp_path: Path) -> None:
    """The student would be shown something else than the teacher was."""
    model, data, numbers = teacher(), split(), count()

    def random(x: torch.Tensor, _generator: torch.Generator) -> torch.Tensor:
        return x + next(numbers)

    with pytest.raises(PreconditionError, match="augment must draw from nothing but the generator"):
        remembered(Live([model]), data, key_of(model, data, augment=random), tmp_path, augment=random)


def test_answers_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    model, data = nn.Linear(4, 3), split()
    inputs = np.asarray(data.inputs).copy()
    inputs[66] = 3e38  # which overflows on the way
    data = Split(inputs=inputs, targets=data.targets)
    with torch.no_grad():
        model.weight.fill_(1.0)
    with pytest.raises(PreconditionError, match="a teacher answers NaN or infinity to cases 66 of train"):
        remembered(Live([model]), data, key_of(model, data), tmp_path)
    assert open_cache(tmp_path, key_of(model, data)) is None


def test_a_cache_of_another_teacher_is_made_anew_by_a_run(tmp_path: Path) -> None:
    one, other, data, progress = teacher(0), teacher(1), split(), Counted()
    remembered(Live([one]), data, key_of(one, data), tmp_path)
    found = remembered(Live([other]), data, key_of(other, data), tmp_path, progress=progress)  # type: ignore[arg-type]
    assert "was made with another teacher" in progress.notes[0]
    with torch.no_grad():
        expected = other(torch.from_numpy(np.asarray(data.inputs)))
    batch = next(iter(drawn(data, Train(epochs=1, batch_size=N), seed=0)))
    torch.testing.assert_close(found(batch).answers, expected[batch.rows])


def _truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8])


def _flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [_truncated, _flipped, Path.unlink])
def test_a_damaged_cache_is_noticed_and_made_anew(damage: Callable[[Path], None], tmp_path: Path) -> None:
    model, data, progress = teacher(), split(), Counted()
    key = key_of(model, data)
    whole = remembered(Live([model]), data, key, tmp_path)
    batch = next(iter(drawn(data, Train(epochs=1, batch_size=16), seed=0)))
    expected = whole(batch).answers
    damage(tmp_path / "00.npy")
    with pytest.raises(IntegrityError, match="is damaged"):
        open_cache(tmp_path, key)
    again = remembered(Live([model]), data, key, tmp_path, progress=progress)  # type: ignore[arg-type]
    assert torch.equal(again(batch).answers, expected)
    assert "is damaged" in progress.notes[0]


def test_a_manifest_that_names_files_elsewhere_reads_none(tmp_path: Path) -> None:
    """The manifest is not trusted: it cannot make anybody read outside its folder, or unpickle."""
    model, data = teacher(), split()
    key, folder = key_of(model, data), tmp_path / "cache"
    remembered(Live([model]), data, key, folder)
    np.save(tmp_path / "secret.npy", np.zeros(3))
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["arrays"][0]["file"] = "../secret.npy"
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(IntegrityError):
        open_cache(folder, key)
    (folder / MANIFEST).write_text("{}")
    with pytest.raises(IntegrityError, match="is not a teacher cache"):
        open_cache(folder, key)


def test_one_that_was_not_finished_is_none(tmp_path: Path) -> None:
    model, data = teacher(), split()
    remembered(Live([model]), data, key_of(model, data), tmp_path)
    (tmp_path / MANIFEST).unlink()
    assert open_cache(tmp_path, key_of(model, data)) is None


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    model, data = teacher(), split()
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OutputError, match="cannot write the teacher cache"):
        remembered(Live([model]), data, key_of(model, data), tmp_path / "taken")


def test_features_too_large_for_half_precision_stay_finite(tmp_path: Path) -> None:
    model, data = teacher(), split()
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(1e8)
    key = key_of(model, data, layers=("0",))
    found = remembered(Live([model], layers=["0"]), data, key, tmp_path)
    batch = next(iter(drawn(data, Train(epochs=1, batch_size=16), seed=0)))
    assert bool(torch.isfinite(found(batch).features["0"]).all())


def test_its_size_is_what_was_foreseen(tmp_path: Path) -> None:
    model, data = teacher(), split()
    live = Live([model], layers=["2"])
    cost = cost_of(live, {"input": torch.zeros(2, 4)})
    found = remembered(live, data, key_of(model, data, layers=("2",)), tmp_path)
    assert isinstance(found, Remembered)
    assert found.size_bytes == cost.bytes * N == (3 * 4 + 6 * 2) * N


def test_operations_are_counted() -> None:
    """Twice the multiply-accumulates; of kernels that the counter does not know, every weight once."""
    assert cost_of(Live([nn.Linear(100, 50).eval()]), {"input": torch.zeros(2, 100)}).operations >= 2 * 5000
    convolution = nn.Conv2d(1, 8, 3, padding=1).eval()
    assert cost_of(Live([convolution]), {"input": torch.zeros(2, 1, 10, 10)}).operations == 2 * 8 * 9 * 100


HEAVY, LIGHT = Cost(operations=4e9, bytes=40), Cost(operations=1e4, bytes=4_000_000)


def test_answers_are_kept_where_that_is_cheaper() -> None:
    def views(cache: object, cost: Cost, epochs: int, *, augmented: bool, **more: float) -> int | None:
        found = asking(cache, cost, cases=1000, epochs=epochs, augmented=augmented, **more)  # type: ignore[arg-type]
        assert (found.views is None) == (found.bytes == 0)
        return found.views

    assert views("auto", HEAVY, 10, augmented=False) == 1
    assert views("auto", HEAVY, 1, augmented=False) is None  # no epoch would come again
    assert views("auto", LIGHT, 10, augmented=False) is None  # reading costs more than asking
    assert views("auto", HEAVY, 10, augmented=True) == 4
    assert views("auto", HEAVY, 40, augmented=True) == 10
    assert views("auto", HEAVY, 4, augmented=True) is None
    assert views("off", HEAVY, 10, augmented=False) is None
    assert views(CacheLimits(views=7, max_size=1e11), LIGHT, 10, augmented=True) == 7  # asked for
    assert views(CacheLimits(max_size=1e4), HEAVY, 10, augmented=False) is None
    assert views("auto", HEAVY, 10, augmented=False, free=1e4) is None


def test_reasons_are_told() -> None:
    small = asking(CacheLimits(max_size=1e4), HEAVY, cases=1000, epochs=10, augmented=False)
    assert small.said(augmented=False) == (
        "asked for each batch: 40 kB of answers are more than max_size, 10 kB"
    )
    kept = asking("auto", HEAVY, cases=1000, epochs=16, augmented=True)
    assert kept.said(augmented=True) == "cached, 4 views of each case, 0.16 MB"


class TestAlone:
    """`pastille.distill`, whose cache is the caller's own."""

    @staticmethod
    def taught(model: nn.Module, data: Split, folder: Path | None, **more: object) -> Fitted:
        cases = Cases(kind="multiclass", split="train", targets=data.targets, labels=("a", "b", "c"))
        torch.manual_seed(7)
        student = nn.Linear(4, 3)
        cache = None if folder is None else TeacherCache(folder=folder)
        asked = Distill.model_validate({"alpha": 1.0, "temperature": 2})
        settings = Train(epochs=3, batch_size=16, learning_rate=0.1)
        return distill(student, model, (data, cases), (data, cases), settings, asked, cache=cache, **more)  # type: ignore[arg-type]

    def test_a_cached_teacher_teaches_as_a_live_one_does(self, tmp_path: Path) -> None:
        live, cached = (self.taught(teacher(), split(), folder) for folder in (None, tmp_path / "kept"))
        for one, other in zip(live.model.parameters(), cached.model.parameters(), strict=True):
            torch.testing.assert_close(one, other)
        assert live.loss[-1] < live.loss[0]

    def test_views_are_those_that_the_cache_was_asked_about(self, tmp_path: Path) -> None:
        found = self.taught(teacher(), split(), tmp_path, augment=shaken)
        again = self.taught(teacher(), split(), tmp_path, augment=shaken)
        assert found.loss == again.loss
        with pytest.raises(PreconditionError, match="views must be at least 1, got 0"):
            TeacherCache(folder=tmp_path, views=0)
        with pytest.raises(PreconditionError, match="was made with another augmentation and another number"):
            self.taught(teacher(), split(), tmp_path)

    def test_a_cache_of_another_teacher_or_data_is_refused_and_left_alone(self, tmp_path: Path) -> None:
        self.taught(teacher(), split(), tmp_path)
        before = (tmp_path / MANIFEST).read_bytes()
        with pytest.raises(PreconditionError, match="was made with another teacher"):
            self.taught(teacher(1), split(), tmp_path)
        with pytest.raises(PreconditionError, match="was made with other data"):
            self.taught(teacher(), split(1), tmp_path)
        assert (tmp_path / MANIFEST).read_bytes() == before

    def test_what_the_hashes_do_not_show_is_seen_by_the_answers(self, tmp_path: Path) -> None:
        """The same weights, read in another way; the same callable, that is set otherwise."""
        model = teacher()
        self.taught(model, split(), tmp_path / "code")
        model[2] = nn.Tanh()
        with pytest.raises(PreconditionError, match="holds other answers than the teacher gives now"):
            self.taught(model, split(), tmp_path / "code")
        self.taught(teacher(), split(), tmp_path / "set", augment=partial(blurred, by=0.1))
        with pytest.raises(PreconditionError, match="holds other answers than the teacher gives now"):
            self.taught(teacher(), split(), tmp_path / "set", augment=partial(blurred, by=2.0))

    def test_numbers_that_a_teacher_and_labels_agree_on_are_learned_alike(self) -> None:
        """Whatever their unit, and in a last batch of two as well."""
        model, rng = nn.Linear(4, 1), np.random.default_rng(0)
        inputs = rng.normal(size=(34, 4)).astype(np.float32)
        with torch.no_grad():
            answers = model(torch.from_numpy(inputs)).reshape(-1).numpy()
        data = Split(inputs=inputs, targets=answers)
        cases = Cases(kind="regression", split="train", targets=answers, labels=())
        student, settings = nn.Linear(4, 1), Train(epochs=3, batch_size=16)
        labels, told = (
            distill(student, model, (data, cases), (data, cases), settings, Distill.model_validate(asked))
            for asked in ({"alpha": 0.0}, {"alpha": 1.0})
        )
        assert labels.loss == pytest.approx(told.loss, rel=1e-4)

    @pytest.mark.parametrize(("count", "weights"), [(2, [1.0]), (1, [0.0]), (2, [3.0, -1.0]), (0, None)])
    def test_teachers_without_weights_are_refused(self, count: int, weights: list[float] | None) -> None:
        said = "weights must be a number above 0 for each" if count else "teacher must be a module"
        with pytest.raises(PreconditionError, match=said):
            self.taught([teacher()] * count, split(), None, weights=weights)  # type: ignore[arg-type]

    def test_answers_of_different_shapes_are_refused(self) -> None:
        with pytest.raises(
            PreconditionError, match=r"teacher 1 answers with shape \(2, 5\) .* with \(2, 3\)"
        ):
            self.taught(nn.Linear(4, 5), split(), None)

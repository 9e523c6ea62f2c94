"""The two problems of `accuracy.py`: data, splits by lesion or patient, and trained networks."""

from __future__ import annotations

import ast
import csv
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import networks
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pastille import Recipe, Split, Splits, read_recipe
from pastille.data.cases import cases
from pastille.data.load import read_splits
from pastille.files import produce_atomic
from pastille.recipe import Train
from pastille.references import load_callable
from pastille.task import Task, load_task
from pastille.task.factory import model_factory
from pastille.train import fit

HERE: Final = Path(__file__).parent
SKIN_FOLDER: Final = HERE.parent / "examples/skin"

_WINDOW = 250  # 2.5 s, as in Strodthoff et al., "Deep learning for ECG analysis", 2021, arXiv:2004.13701
_ECG_FOLDS = 2  # so that each of the few patients is tested once for each seed


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A network to train and to quantize.

    Attributes:
        name: In the table.
        archive: File in the data folder.
        base: Folder that the recipe's paths are relative to.
        folds: Trainings for each seed, whose test splits are judged together.
        train: From random weights.
        qat: In int8, after quantization; a tenth of its learning rate is taken.
        bf16: Whether to train in bfloat16, which a CPU with AVX512-BF16 does three times as fast.
    """

    name: str
    archive: str
    base: Path
    folds: int
    train: Train
    qat: Train
    bf16: bool

    def recipe(self, data: Path, *, seed: int, fold: int, weights: Path | None = None) -> Recipe:
        """What is asked of one training: the seed decides the split too."""
        make = _skin_recipe if self.name == "skin" else _ecg_recipe
        recipe = make(data / self.name, seed, fold)
        return recipe.model_copy(update={"task": recipe.task.model_copy(update={"weights": weights})})


def _problem(name: str, archive: str, base: Path, augment: str, epochs: tuple[int, int]) -> Problem:
    shared: Mapping[str, Any] = {"class_weights": "balanced", "augment": augment}
    return Problem(
        name=name,
        archive=archive,
        base=base,
        folds=_ECG_FOLDS if name == "ecg" else 1,
        train=Train(epochs=epochs[0], learning_rate=2e-3, optimizer="adamw", weight_decay=0.05, **shared),
        qat=Train(epochs=epochs[1], **shared),
        bf16=name == "skin",
    )


PROBLEMS: Final = (
    _problem("skin", "ham10000_128.zip", SKIN_FOLDER, "augment.py:turned", (12, 2)),
    _problem("ecg", "ptbxl_100hz.zip", HERE, "accuracy_models.py:jittered", (25, 4)),
)


class _InBf16(nn.Module):
    """A network of images that computes in bfloat16 and keeps its weights in float32."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits: Tensor = self.inner(x.contiguous(memory_format=torch.channels_last))
        return logits.float()


def _skin_recipe(folder: Path, seed: int, _fold: int) -> Recipe:
    where = [f"data.path={folder / 'metadata.csv'}", f"data.images=[{folder / 'images'}]"]
    return read_recipe(SKIN_FOLDER / "recipe.yaml", [*where, f"seed={seed}"])


def _ecg_recipe(folder: Path, seed: int, fold: int) -> Recipe:
    arguments = {"folder": str(folder), "seed": seed, "fold": fold}
    task = {"kind": "binary", "model": "accuracy_models.py:signal_resnet", "labels": ["normal", "abnormal"]}
    data = {"source": "accuracy_models.py:ecg_splits", "arguments": arguments}
    return Recipe.model_validate(
        {"name": "ecg", "task": task, "data": data, "plan": [{"quantize": {}}], "seed": seed}
    )


def unpacked(problem: Problem, data: Path, cache: Path) -> None:
    """Unpack a problem's archive into the cache, once."""
    if not (cache / problem.name).is_dir():
        draft = cache / f"{problem.name}.part"
        with zipfile.ZipFile(data / problem.archive) as archive:
            archive.extractall(draft)
        draft.rename(cache / problem.name)


def trained_task(problem: Problem, cache: Path, *, seed: int, fold: int) -> Task:
    """A problem with its trained network; trained here if the cache has no weights of it."""
    weights = cache / f"{problem.name}-{seed}-{fold}.safetensors"
    if not weights.is_file():
        _train(problem, problem.recipe(cache, seed=seed, fold=fold), weights)
    return load_task(problem.recipe(cache, seed=seed, fold=fold, weights=weights), problem.base)


def _train(problem: Problem, recipe: Recipe, weights: Path) -> None:
    splits = read_splits(recipe, problem.base)
    untrained = model_factory(recipe.task, problem.base, seed=recipe.seed)()
    fitted = fit(
        _InBf16(untrained) if problem.bf16 else untrained,
        (splits.train, cases(splits.train, "train", recipe.task)),
        (splits.validation, cases(splits.validation, "validation", recipe.task)),
        problem.train,
        seed=recipe.seed,
        augment=load_callable(str(problem.train.augment), problem.base, key="augment"),
    )
    print(f"{weights.stem}: {fitted.metric} {fitted.validation[fitted.best_epoch - 1]:.3f} on validation")
    trained = fitted.model.inner if isinstance(fitted.model, _InBf16) else fitted.model
    state = {name: value.contiguous() for name, value in trained.state_dict().items()}
    produce_atomic(weights, lambda draft: save_file(state, draft))


def signal_resnet() -> nn.Module:
    """A 1-D ResNet that says of twelve leads whether they are normal."""
    model: nn.Module = networks.SignalResNet()
    model.head = nn.Linear(256, 2)
    return model


def jittered(signals: Tensor, generator: torch.Generator) -> Tensor:
    """Begin each window elsewhere and scale it: ``(N, 12, T)``, of the same shape."""
    shift = int(torch.randint(signals.shape[-1], (), generator=generator))
    gain = 0.8 + 0.4 * torch.rand((len(signals), 1, 1), generator=generator)
    return signals.roll(shift, dims=-1) * gain.to(signals.device)


def ecg_splits(folder: str, seed: int, fold: int) -> Splits:
    """PTB-XL in windows of 2.5 s, normal or not; no patient is in two splits, and no window occurs twice.

    Args:
        folder: Holds ``ptbxl_database.csv``.
        seed: Orders the patients.
        fold: Which part of them is the test split; a sixth of the others is for validation.
    """
    whole = _ecg(Path(folder))
    order = np.random.default_rng(seed).permutation(np.unique(np.asarray(whole.subjects)))
    test = order[fold::_ECG_FOLDS]
    rest = order[~np.isin(order, test)]
    held = len(rest) // 6
    train, validation, tested = (_of(whole, part) for part in (rest[held:], rest[:held], test))
    return Splits(train=train, validation=validation, test=tested)


def _ecg(folder: Path) -> Split:
    """Every window; of the recordings that PTB-XL holds twice, some as of two patients, the first."""
    rows = _table(folder / "ptbxl_database.csv")
    superclass = {row[""]: row["diagnostic_class"] for row in _table(folder / "scp_statements.csv")}
    signals = [_windows(folder / f"{row['filename_lr']}.dat") for row in rows]
    each = [len(windows) for windows in signals]
    inputs = np.concatenate(signals)
    _, first = np.unique([window.tobytes() for window in inputs], return_index=True)
    kept = np.sort(first)
    abnormal = [_abnormal(row["scp_codes"], superclass) for row in rows]
    return Split(
        inputs=inputs[kept],
        targets=np.repeat(np.array(abnormal, np.int64), each)[kept],
        subjects=np.repeat([row["patient_id"] for row in rows], each)[kept],
    )


def _of(whole: Split, patients: np.ndarray) -> Split:
    subjects = np.asarray(whole.subjects)
    rows = np.flatnonzero(np.isin(subjects, patients))
    return Split(inputs=np.asarray(whole.inputs)[rows], targets=whole.targets[rows], subjects=subjects[rows])


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _windows(path: Path) -> np.ndarray:
    """Millivolts of one recording, ``(windows, 12, 250)`` float32."""
    signal = np.fromfile(path, "<i2").reshape(-1, 12).astype(np.float32) / 1000  # (T, 12)
    whole = len(signal) // _WINDOW * _WINDOW
    return signal[:whole].reshape(-1, _WINDOW, 12).transpose(0, 2, 1).copy()


def _abnormal(codes: str, superclass: Mapping[str, str]) -> bool:
    """Whether a recording has any diagnosis beside, or instead of, a normal one."""
    found = {superclass.get(code, "") for code in ast.literal_eval(codes)} - {""}
    return found != {"NORM"}

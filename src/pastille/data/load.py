"""From the ``data`` section of a recipe to splits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pastille.data.csv_images import read_csv_images
from pastille.data.ids import check_ids
from pastille.data.image_folder import read_image_folder
from pastille.data.npz import read_npz
from pastille.data.split import SPLIT_NAMES, Split, Splits
from pastille.errors import DataError, PastilleError
from pastille.progress import SILENT, Progress
from pastille.recipe import (
    CsvImagesData,
    DataSection,
    ImageFolderData,
    NpzData,
    Recipe,
    SourceData,
    TaskSection,
)
from pastille.references import load_callable, one_line

_RETURNS = "it must return pastille.Splits(train=, validation=, test=)"


def load_splits(
    section: DataSection, task: TaskSection, *, base: Path, seed: int, progress: Progress
) -> Splits:
    """Load the user's data, as the type of ``section`` says. Inputs stay unread until they are asked for.

    Args:
        section: A callable of the user's, or a reader with its options.
        task: Says what targets mean.
        base: Folder of the recipe; paths are relative to it.
        seed: Of the split, where the recipe asks for fractions.
        progress: Shows what takes long.

    Returns:
        Three splits, not yet checked: see `pastille.data.checks` and `pastille.data.leakage`.

    Raises:
        UsageError: The callable cannot be imported.
        DataError: It raises, or returns something else; or what a reader finds cannot be read.
    """
    match section:
        case SourceData():
            return _from_callable(section, base)
        case NpzData():
            return read_npz(section, task, base=base, seed=seed, progress=progress)
        case ImageFolderData():
            return read_image_folder(section, task, base=base, seed=seed, progress=progress)
        case CsvImagesData():
            return read_csv_images(section, task, base=base, seed=seed, progress=progress)


def _from_callable(section: SourceData, base: Path) -> Splits:
    source = load_callable(section.source, base, key="data.source")
    try:
        splits = source(**section.arguments)
    except PastilleError:
        raise  # it used a reader or check of ours, which says it better
    except Exception as error:
        raise DataError(f"data.source: {section.source} failed with {one_line(error)}; {_RETURNS}") from error
    problem = next(_problems(splits), None)
    if problem is not None:
        raise DataError(f"data.source: {section.source} returned {problem}; {_RETURNS}")
    check_ids(splits)
    return splits  # type: ignore[no-any-return]


def _problems(splits: object) -> Iterator[str]:
    if not isinstance(splits, Splits):
        yield f"a {type(splits).__name__}"
        return
    for name in SPLIT_NAMES:
        split: object = getattr(splits, name)
        if not isinstance(split, Split):
            yield f"a {type(split).__name__} as {name} instead of a Split"
            continue
        for column, values in _columns(split):
            if not isinstance(values, np.ndarray):
                yield f"{column} of {name} as a {type(values).__name__} instead of a numpy array"


def _columns(split: Split) -> Iterator[tuple[str, object]]:
    yield "targets", split.targets
    yield from split.groups.items()
    optional = {"subjects": split.subjects, "strata": split.strata, "ids": split.ids}
    yield from ((name, column) for name, column in optional.items() if column is not None)


def read_splits(recipe: Recipe, base: str | Path, *, progress: Progress = SILENT) -> Splits:
    """The splits that a recipe's run will see: what to train the model on before it is compressed.

    Args:
        recipe: From `pastille.read_recipe`.
        base: The recipe's folder, which its paths are relative to.
        progress: Shown while a reader works.

    Raises:
        DataError: The data cannot be read or split.
    """
    return load_splits(recipe.data, recipe.task, base=Path(base), seed=recipe.seed, progress=progress)

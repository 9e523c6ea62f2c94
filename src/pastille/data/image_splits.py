"""From image paths to splits: the part that the readers of images share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pastille.data.images import Images, PixelCache, decoding_for
from pastille.data.normalize import normalization_for
from pastille.data.split import Splits
from pastille.data.table import Columns, Parts
from pastille.progress import Progress
from pastille.recipe import CsvImagesData, ImageFolderData
from pastille.values import Preprocessing


def image_splits(
    paths: Sequence[Path],
    columns: Columns,
    parts: Parts,
    *,
    section: ImageFolderData | CsvImagesData,
    progress: Progress,
) -> Splits:
    """Give each split its images, all sharing one cache and one normalization.

    Args:
        paths: One file per case.
        columns: What else is known of each case.
        parts: Rows of each split.
        section: Size, channels and normalization that were asked for.
        progress: Shows the pass that measures ``normalize: auto``.

    Raises:
        DataError: Size or normalization cannot be, or an image of the train split cannot be decoded.
    """
    decoding = decoding_for(section.size, section.channels)
    cache = PixelCache()
    images = {name: Images(_at(paths, rows), decoding, cache=cache) for name, rows in parts.items()}
    normalization = normalization_for(
        section.normalize,
        images["train"],
        channels=section.channels,
        progress=progress,
        ids=columns.ids[parts["train"]],
    )
    splits = {
        name: columns.split(parts[name], inputs.with_normalization(normalization))
        for name, inputs in images.items()
    }
    return Splits(
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        preprocessing=Preprocessing(image=decoding, normalization=normalization),
    )


def _at(paths: Sequence[Path], rows: np.ndarray) -> list[Path]:
    return [paths[row] for row in rows]

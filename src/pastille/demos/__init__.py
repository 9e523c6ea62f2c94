"""Demonstrations on real data that scikit-learn carries: recipes like any user's, and how to train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pastille.recipe import Train

HERE = Path(__file__).parent
FILES = ("recipe.yaml", "model.py", "data.py")


@dataclass(frozen=True, kw_only=True)
class Demo:
    """One demonstration.

    Attributes:
        title: What it shows, in a few words.
        folder: Holds `FILES`.
        training: How the model is trained before it is compressed.
    """

    title: str
    folder: Path
    training: Train


DEMOS: Mapping[str, Demo] = {
    "digits": Demo(
        title="handwritten digits: 1,797 real scans, residual CNN, ten classes",
        folder=HERE / "digits",
        training=Train(epochs=12, learning_rate=0.05),
    ),
    "breast-cancer": Demo(
        title="breast cancer: 569 real aspirates, tabular MLP, malignant or benign",
        folder=HERE / "breast_cancer",
        training=Train(epochs=40, learning_rate=0.02, batch_size=32),
    ),
    "diabetes": Demo(
        title="diabetes progression: 442 real patients, regression, groups by sex and age",
        folder=HERE / "diabetes",
        training=Train(epochs=40, learning_rate=0.01, batch_size=32, weight_decay=0.01),
    ),
}

"""How something is trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pastille.recipe.section import Section


class Train(Section):
    """One training, by the standard names."""

    epochs: int = Field(ge=1, le=10_000)
    learning_rate: float = Field(0.01, gt=0)
    batch_size: int = Field(64, ge=1)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    class_weights: Literal["balanced", "none"] = "none"
    augment: str | None = Field(
        None, description="FILE.py:CALLABLE taking (inputs, generator), a batch at a time"
    )


class Distill(Section):
    """Answer like the model before it too, by softened Kullback-Leibler divergence (arXiv:1503.02531)."""

    alpha: float = Field(0.5, ge=0, le=1, description="share of the loss; the labels have the rest")
    temperature: float = Field(2.0, gt=0, le=100)

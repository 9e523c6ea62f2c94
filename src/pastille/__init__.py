"""Makes a trained model as small and fast as it can be while it still passes the bar its user set.

Every name below is imported when it is first used, so that ``import pastille`` is quick and needs
no torch; what compresses needs ``pip install 'pastille[compress]'``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pastille.bundle import Bundle as Bundle
    from pastille.bundle import load_bundle as load_bundle
    from pastille.bundle import verify as verify
    from pastille.client import AsyncClient as AsyncClient
    from pastille.client import Client as Client
    from pastille.data.load import read_splits as read_splits
    from pastille.data.split import Split as Split
    from pastille.data.split import Splits as Splits
    from pastille.distillation import TeacherCache as TeacherCache
    from pastille.distillation import distill as distill
    from pastille.gates.arrays import judge as judge
    from pastille.pruning import prune as prune
    from pastille.pruning import read_model as read_model
    from pastille.pruning import write_model as write_model
    from pastille.quantization import quantize_static as quantize
    from pastille.recipe import Distill as Distill
    from pastille.recipe import Quantize as Quantize
    from pastille.recipe import Recipe as Recipe
    from pastille.recipe import Train as Train
    from pastille.recipe import read_recipe as read_recipe
    from pastille.runner.run import run as run
    from pastille.values import Cases as Cases
    from pastille.values import CustomMetric as CustomMetric
    from pastille.values import Preprocessing as Preprocessing
    from pastille.values import Verdict as Verdict

_PLACES = {
    "AsyncClient": ("pastille.client", "AsyncClient"),
    "Bundle": ("pastille.bundle", "Bundle"),
    "Cases": ("pastille.values", "Cases"),
    "Client": ("pastille.client", "Client"),
    "CustomMetric": ("pastille.values", "CustomMetric"),
    "Distill": ("pastille.recipe", "Distill"),
    "Preprocessing": ("pastille.values", "Preprocessing"),
    "Quantize": ("pastille.recipe", "Quantize"),
    "Recipe": ("pastille.recipe", "Recipe"),
    "Split": ("pastille.data.split", "Split"),
    "Splits": ("pastille.data.split", "Splits"),
    "TeacherCache": ("pastille.distillation", "TeacherCache"),
    "Train": ("pastille.recipe", "Train"),
    "Verdict": ("pastille.values", "Verdict"),
    "distill": ("pastille.distillation", "distill"),
    "judge": ("pastille.gates.arrays", "judge"),
    "load_bundle": ("pastille.bundle", "load_bundle"),
    "prune": ("pastille.pruning", "prune"),
    "quantize": ("pastille.quantization", "quantize_static"),
    "read_model": ("pastille.pruning", "read_model"),
    "read_recipe": ("pastille.recipe", "read_recipe"),
    "read_splits": ("pastille.data.load", "read_splits"),
    "run": ("pastille.runner", "run"),
    "verify": ("pastille.bundle", "verify"),
    "write_model": ("pastille.pruning", "write_model"),
}

__all__ = [
    "AsyncClient",
    "Bundle",
    "Cases",
    "Client",
    "CustomMetric",
    "Distill",
    "Preprocessing",
    "Quantize",
    "Recipe",
    "Split",
    "Splits",
    "TeacherCache",
    "Train",
    "Verdict",
    "distill",
    "judge",
    "load_bundle",
    "prune",
    "quantize",
    "read_model",
    "read_recipe",
    "read_splits",
    "run",
    "verify",
    "write_model",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'pastille' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)

"""Structured pruning: whole channels leave, and what depends on them follows."""

from pastille.pruning.architecture import read_model, write_model
from pastille.pruning.structured import Pruned, prune

__all__ = ["Pruned", "prune", "read_model", "write_model"]

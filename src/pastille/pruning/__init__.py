"""Structured pruning: whole channels leave, and what depends on them follows."""

from pastille.pruning.architecture import read_model, write_model
from pastille.pruning.removal import Pruned, remove, survey
from pastille.pruning.structured import prune

__all__ = ["Pruned", "prune", "read_model", "remove", "survey", "write_model"]

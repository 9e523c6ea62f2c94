"""Inputs that go wrong as they do in practice: pure functions, and a lazy view of a split through one."""

from pastille.data.perturb.choose import choose
from pastille.data.perturb.inputs import PerturbedInputs
from pastille.data.perturb.material import NAMES, Material, material_of
from pastille.data.perturb.perturbation import SEVERITIES, Modality, Perturb, Perturbation

__all__ = [
    "NAMES",
    "SEVERITIES",
    "Material",
    "Modality",
    "Perturb",
    "Perturbation",
    "PerturbedInputs",
    "choose",
    "material_of",
]

"""What was measured: frozen values, each carrying the conditions that it depends on.

Nothing here computes; nothing here imports more than numpy. `to_json` and `from_json` write and read
every value, and every record that is built from them.
"""

from pastille.values.cases import Cases, CustomMetric, Kind, SplitName
from pastille.values.evidence import (
    Calibration,
    Comparison,
    Concentration,
    Disagreement,
    Evidence,
    Fairness,
    Gap,
    Invariance,
    ReliabilityBin,
    StressCurve,
    StressPoint,
)
from pastille.values.measured import (
    NOTICEABLE,
    Conditions,
    Confusion,
    Estimate,
    FloatKernel,
    Footprint,
    Interval,
    KernelProof,
    KernelUse,
    Latency,
    LayerCost,
    Metrics,
    ModelPrecision,
    Precision,
    Profile,
    Quantile,
    Speedup,
)
from pastille.values.serial import from_json, to_json
from pastille.values.specs import ImageDecoding, Normalization, Preprocessing, TensorSpec
from pastille.values.taught import LeftOut, StudentTaught, TeacherSeen
from pastille.values.validated import Validation
from pastille.values.verdict import Check, Status, Verdict

__all__ = [
    "NOTICEABLE",
    "Calibration",
    "Cases",
    "Check",
    "Comparison",
    "Concentration",
    "Conditions",
    "Confusion",
    "CustomMetric",
    "Disagreement",
    "Estimate",
    "Evidence",
    "Fairness",
    "FloatKernel",
    "Footprint",
    "Gap",
    "ImageDecoding",
    "Interval",
    "Invariance",
    "KernelProof",
    "KernelUse",
    "Kind",
    "Latency",
    "LayerCost",
    "LeftOut",
    "Metrics",
    "ModelPrecision",
    "Normalization",
    "Precision",
    "Preprocessing",
    "Profile",
    "Quantile",
    "ReliabilityBin",
    "Speedup",
    "SplitName",
    "Status",
    "StressCurve",
    "StressPoint",
    "StudentTaught",
    "TeacherSeen",
    "TensorSpec",
    "Validation",
    "Verdict",
    "from_json",
    "to_json",
]

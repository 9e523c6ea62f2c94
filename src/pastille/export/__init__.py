"""One file per format, and the proof that the exported file answers like the model."""

from pastille.export.onnx import export_onnx
from pastille.export.parity import Parity, check_parity

__all__ = ["Parity", "check_parity", "export_onnx"]

"""Post-training quantization of an exported file."""

from pastille.quantization.static import quantize_static

__all__ = ["quantize_static"]

"""Post-training quantization of an exported file."""

from pastille.quantization.post_training import quantize_static

__all__ = ["quantize_static"]
